//! How far sending has come, on a terminal and in words.

use std::io::{self, IsTerminal, Write};

use crate::base::units::format_size;
use crate::control::Pending;

/// Cells of the progress bar.
const BAR_WIDTH: u64 = 30;

/// `3 files (24 MiB)`.
pub(super) fn count(pending: Pending) -> String {
    let files = if pending.files == 1 { "1 file".to_owned() } else { format!("{} files", pending.files) };
    format!("{files} ({})", format_size(pending.bytes))
}

/// `[##..]`: how much of it is done, in so many cells.
pub(super) fn bar(done: u64, whole: u64, cells: u64) -> String {
    let full = u128::from(cells) * u128::from(done) / u128::from(whole.max(1));
    let cells: String = (0..u128::from(cells)).map(|cell| if cell < full { '#' } else { '.' }).collect();
    format!("[{cells}]")
}

/// A progress bar on stderr, if that is a terminal.
#[derive(Debug, Default)]
pub(super) struct Bar {
    /// The most that was ever pending, in bytes: writers may add to it meanwhile.
    most: u64,
    shown: bool,
}

impl Bar {
    pub(super) fn show(&mut self, pending: Pending) {
        self.most = self.most.max(pending.bytes);
        if io::stderr().is_terminal() {
            self.shown = true;
            write_stderr(&format!("\r\x1b[K{}", self.line(pending)));
        }
    }

    fn line(&self, pending: Pending) -> String {
        let sent = self.most.saturating_sub(pending.bytes);
        format!("{} {} to send", bar(sent, self.most, BAR_WIDTH), count(pending))
    }

    pub(super) fn clear(&mut self) {
        if self.shown {
            write_stderr("\r\x1b[K");
        }
    }
}

/// A terminal that went away is no reason to stop.
fn write_stderr(text: &str) {
    let mut out = io::stderr().lock();
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_fills_as_bytes_go_and_more_may_come() {
        let mut bar = Bar::default();
        let pending = |bytes| Pending { files: 2, bytes };
        bar.show(pending(100));
        assert_eq!(bar.line(pending(50)), format!("[{}{}] 2 files (50 B) to send", "#".repeat(15), ".".repeat(15)));
        bar.show(pending(200));
        assert_eq!(bar.line(pending(200)), format!("[{}] 2 files (200 B) to send", ".".repeat(30)));
        assert_eq!(Bar::default().line(Pending::default()), format!("[{}] 0 files (0 B) to send", ".".repeat(30)));
    }
}
