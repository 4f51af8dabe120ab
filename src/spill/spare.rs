//! Folders of ended sessions, emptied and used again for the next ones.
//!
//! Making and deleting the four inodes of a small file's session costs more than all else that is done for it: ext4
//! looks, at each new inode, over all that were deleted within the last minutes. A spare folder lies in `trash/`, from
//! where the next start deletes it, and holds an empty session file, which says nothing, its former successor, which
//! nobody reads, and at most one empty spill file under a name of its own.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::session::{SESSION_FILE, SESSION_NEXT, is_piece};
use crate::base::checked;

/// The empty spill file of a spare folder.
pub(super) const SPARE_PIECE: &str = "spare";
/// As many as small files end at a time.
const FOLDERS: usize = 64;
/// A folder of more files is deleted.
const FILES: usize = 8;

/// Folders that wait to be used again.
#[derive(Debug, Default)]
pub(super) struct Spares {
    folders: Mutex<Vec<PathBuf>>,
}

impl Spares {
    pub(super) fn take(&self) -> Option<PathBuf> {
        self.folders.lock().pop()
    }

    /// Empties a folder, and keeps it; `false`: it is to be deleted, with whatever is left of it.
    pub(super) fn keep(&self, folder: &Path) -> bool {
        if self.folders.lock().len() >= FOLDERS {
            return false;
        }
        match empty(folder) {
            Ok(true) => self.folders.lock().push(folder.to_owned()),
            Ok(false) => return false,
            Err(error) => {
                log::debug!("{}: {error}", folder.display());
                return false;
            }
        }
        true
    }
}

fn empty(folder: &Path) -> io::Result<bool> {
    let names: Vec<_> = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?;
    if names.len() > FILES {
        return Ok(false);
    }
    let spare = folder.join(SPARE_PIECE);
    let mut has_spare = names.iter().any(|name| name == SPARE_PIECE);
    for name in names.iter().filter(|name| *name != SESSION_NEXT && *name != SPARE_PIECE) {
        let path = folder.join(name);
        if name == SESSION_FILE {
            OpenOptions::new().write(true).open(&path)?.set_len(0)?;
        } else if !has_spare
            && name.to_str().is_some_and(is_piece)
            && let Some(file) = open_alone(&path)?
        {
            file.set_len(0)?;
            fs::rename(&path, &spare)?;
            has_spare = true;
        } else {
            fs::remove_file(&path)?;
        }
    }
    Ok(true)
}

/// Opens a file for writing that nobody else has open: whoever still reads it must not see it emptied. `None` where
/// somebody has, or where the file system cannot tell.
fn open_alone(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new().write(true).open(path)?;
    // SAFETY: plain calls on a descriptor that lives through them. A lease for writing is granted only where the file
    // is open nowhere else.
    let alone = unsafe {
        libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) == 0
            && libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) == 0
    };
    Ok(alone.then_some(file))
}

/// Renames with flags of renameat2(2).
pub(super) fn rename_with(from: &Path, to: &Path, flags: libc::c_uint) -> io::Result<()> {
    let (from, to) = (CString::new(from.as_os_str().as_bytes())?, CString::new(to.as_os_str().as_bytes())?);
    // SAFETY: terminated strings that live through the call.
    checked(unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_folder_holds_nothing_to_be_believed() {
        let temp = tempfile::tempdir().unwrap();
        let write = |name: &str| fs::write(temp.path().join(name), name).unwrap();
        for name in [SESSION_FILE, SESSION_NEXT, "000000", "000001", "000002.fetched"] {
            write(name);
        }
        let spares = Spares::default();
        assert!(spares.keep(temp.path()));
        let mut left: Vec<_> = fs::read_dir(temp.path())
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len()))
            .collect();
        left.sort();
        assert_eq!(left, [(SESSION_FILE.into(), 0), (SESSION_NEXT.into(), 11), (SPARE_PIECE.into(), 0)]);
        assert_eq!(spares.take().as_deref(), Some(temp.path()));
        assert_eq!(spares.take(), None);
    }

    #[test]
    fn what_is_still_read_is_not_emptied() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("000000");
        fs::write(&path, "content").unwrap();
        let mut reader = File::open(&path).unwrap();
        assert!(Spares::default().keep(temp.path()));
        let mut text = String::new();
        io::Read::read_to_string(&mut reader, &mut text).unwrap();
        assert_eq!(text, "content");
        assert!(fs::read_dir(temp.path()).unwrap().next().is_none());
    }

    #[test]
    fn a_large_folder_is_not_kept() {
        let temp = tempfile::tempdir().unwrap();
        for index in 0..=FILES {
            fs::write(temp.path().join(format!("{index:06}")), "").unwrap();
        }
        assert!(!Spares::default().keep(temp.path()));
        assert!(!Spares::default().keep(&temp.path().join("none")));
    }
}
