//! A little of the disk set aside for the day it is full: making room needs some, for session files that say where
//! the bytes are that leave. A session file takes the place of another, so what is given back is soon had again.
//!
//! Best effort: where nothing can be set aside, a full disk is only harder to leave.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// More than the largest session file.
const BYTES: libc::off_t = 2 << 20;

/// A file that holds nothing but its place.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
}

impl Reserve {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Sets the place aside (again).
    pub(super) fn fill(&self) {
        let fill = || -> io::Result<()> {
            let file = self.open()?;
            // SAFETY: a plain call on a descriptor that lives through it.
            match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, BYTES) } {
                0 => Ok(()),
                error => Err(io::Error::from_raw_os_error(error)),
            }
        };
        if let Err(error) = fill() {
            log::debug!("{}: {error}", self.path.display());
            // Half of it helps nobody.
            self.release();
        }
    }

    /// Gives the place back, for whoever makes room.
    pub(super) fn release(&self) {
        if let Err(error) = self.open().and_then(|file| file.set_len(0)) {
            log::debug!("{}: {error}", self.path.display());
        }
    }

    fn open(&self) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_aside_is_given_back() {
        let temp = tempfile::tempdir().unwrap();
        let reserve = Reserve::new(temp.path().join("reserve"));
        let len = || std::fs::metadata(temp.path().join("reserve")).unwrap().len();
        reserve.fill();
        assert_eq!(len(), BYTES as u64);
        reserve.release();
        assert_eq!(len(), 0);
        Reserve::new(temp.path().join("no/such/folder")).fill();
    }
}
