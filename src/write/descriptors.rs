//! Spill files are held open for the next write: how many may be, all files of a mount together.

use std::sync::atomic::Ordering;

use super::WriteEngine;
use super::file::DirtyFile;
use crate::base::checked;

impl WriteEngine {
    /// To be called before a spill file is opened, with no state of a file locked. The spill files of many files
    /// together must leave descriptors for connections, session files and whatever else it takes to send them: where
    /// they are about to be half of all, the idle ones are closed.
    pub(super) fn spare_descriptors(&self) {
        let most = allowed() / 2;
        let opened = self.0.opened.fetch_add(1, Ordering::Relaxed);
        // Counting looks at every file: not each time.
        if !opened.is_multiple_of((most / 4).max(1)) {
            return;
        }
        let live = self.live();
        let held: usize = live.iter().map(|file| file.open_pieces()).sum();
        if held > most {
            live.iter().for_each(|file| file.close_idle_pieces());
        }
    }
}

impl DirtyFile {
    /// Spill files of it that are held open; none where it is being looked at elsewhere.
    fn open_pieces(&self) -> usize {
        self.state.try_lock().map_or(0, |state| state.open_pieces())
    }

    fn close_idle_pieces(&self) {
        if let Some(mut state) = self.state.try_lock() {
            state.close_idle_pieces();
        }
    }
}

/// Descriptors that this process may have.
fn allowed() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the struct lives through the call.
    let told = checked(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) });
    told.ok().and_then(|_| usize::try_from(limit.rlim_cur).ok()).unwrap_or(usize::MAX)
}
