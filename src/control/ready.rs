//! How a mount that was started in the background tells the command that it answers, or why it cannot.
//!
//! One line over a pipe. A pipe that closes without a line means that the mount has died.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;

use parking_lot::Mutex;

/// Names the pipe's descriptor to the mount. Not an option: its name does not begin like one.
pub const READY_VARIABLE: &str = "_OSSFUSE_READY_FD";
/// A line is read up to this many bytes.
const LINE_BYTES_MAX: u64 = 16 << 10;

/// The mount's end: call [`Ready::up`] once, as soon as the mount answers.
#[derive(Debug, Clone, Default)]
pub struct Ready {
    /// The pipe, while nothing has been said.
    pipe: Arc<Mutex<Option<File>>>,
}

/// What the command hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Started {
    Up,
    /// The line of the error.
    Failed(String),
    /// The pipe closed, or said something else.
    Died,
}

impl Ready {
    /// For a mount in the foreground: nobody waits.
    pub fn nobody() -> Self {
        Self::default()
    }

    /// Takes the pipe that `variable` (the value of [`READY_VARIABLE`]) names; children will not inherit it.
    ///
    /// # Errors
    /// It is no descriptor of a pipe.
    pub fn from_variable(variable: &str) -> io::Result<Self> {
        let fd: RawFd = variable.parse().map_err(io::Error::other)?;
        // SAFETY: F_SETFD on any number at worst fails with EBADF.
        if fd <= libc::STDERR_FILENO || unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        // SAFETY: the descriptor is open, and the command that named it in our environment made it for us alone.
        let pipe = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        if !pipe.metadata()?.file_type().is_fifo() {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        Ok(Self { pipe: Arc::new(Mutex::new(Some(pipe))) })
    }

    /// The mount answers. Whoever waited may have gone away; that is no fault of the mount.
    pub fn up(&self) {
        self.say("up");
    }

    /// The mount cannot come up; `line` says why, in the form of an error message. Without effect after [`Self::up`].
    pub fn failed(&self, line: &str) {
        self.say(&format!("failed {}", line.replace('\n', " ")));
    }

    fn say(&self, line: &str) {
        let Some(mut pipe) = self.pipe.lock().take() else { return };
        if let Err(error) = pipe.write_all(format!("{line}\n").as_bytes()) {
            log::debug!("nobody waits for the mount any more: {error}");
        }
    }
}

/// Waits for the mount's line at the command's end of the pipe.
pub fn read_started(pipe: impl Read) -> Started {
    let mut line = String::new();
    let read = pipe.take(LINE_BYTES_MAX).read_to_string(&mut line);
    let line = line.trim_end();
    match (read, line.strip_prefix("failed ")) {
        (Ok(_), Some(why)) => Started::Failed(why.to_owned()),
        (Ok(_), None) if line == "up" => Started::Up,
        _ => Started::Died,
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;

    use super::*;

    fn hear(say: impl FnOnce(Ready)) -> Started {
        let (reader, writer) = io::pipe().unwrap();
        let fd = OwnedFd::from(writer).into_raw_fd();
        say(Ready::from_variable(&fd.to_string()).unwrap());
        read_started(reader)
    }

    #[test]
    fn the_command_hears_the_first_word_and_a_silent_death() {
        assert_eq!(hear(|ready| ready.up()), Started::Up);
        assert_eq!(hear(|ready| ready.failed("a: b;\nc")), Started::Failed("a: b; c".into()));
        assert_eq!(hear(drop), Started::Died);
        let up_first = |ready: Ready| {
            ready.clone().up();
            ready.failed("later");
        };
        assert_eq!(hear(up_first), Started::Up);
        Ready::nobody().up();
    }

    #[test]
    fn only_a_pipe_is_taken() {
        for bad in ["", "x", "-1", "0", "2", "123456"] {
            assert!(Ready::from_variable(bad).is_err(), "{bad}");
        }
        let file = tempfile::tempfile().unwrap();
        let fd = OwnedFd::from(file).into_raw_fd();
        assert!(Ready::from_variable(&fd.to_string()).is_err());
    }

    #[test]
    fn a_command_that_went_away_is_no_fault() {
        let (reader, writer) = io::pipe().unwrap();
        let ready = Ready::from_variable(&OwnedFd::from(writer).into_raw_fd().to_string()).unwrap();
        drop(reader);
        ready.up();
    }
}
