//! Making many small files survive power loss at the price of one.
//!
//! Each fsync of a new file costs a commit of the disk's own journal. One thread takes whatever asks at the same time,
//! and has all of it on its way before it waits for the first: one commit takes the rest along. A crowd is written out
//! with all of its file system at once, but not on one that is not known to do what it is asked: for FUSE and others
//! `syncfs` returns 0 and tells nobody.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, Sender, channel};

use tokio::sync::oneshot;

use super::SpillError;
use crate::base::checked;

/// So many files that are synced one by one cost more than anything else could.
const CROWD: usize = 64;

/// File systems that write all of themselves out when asked by `syncfs`, by their numbers in statfs(2): ext2 to ext4,
/// XFS, Btrfs, F2FS, bcachefs. (One in memory has nothing to write: one by one costs nothing there.)
const SYNCED_WHOLE: [u32; 5] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0xca45_1a4e];

/// Files that are open at a time.
const SYNCS_AT_ONCE: usize = 64;

/// The thread that does it; started when it is first needed.
#[derive(Debug, Default)]
pub(super) struct Committer {
    jobs: OnceLock<Sender<Job>>,
}

#[derive(Debug)]
struct Job {
    paths: Vec<PathBuf>,
    done: oneshot::Sender<Result<(), SpillError>>,
}

impl Committer {
    /// Makes files and folders, all on the file system of `root`, survive power loss.
    pub(super) async fn commit(&self, root: &Path, paths: Vec<PathBuf>) -> Result<(), SpillError> {
        let (done, answer) = oneshot::channel();
        let jobs = self.jobs.get_or_init(|| start(root.to_owned()));
        // The thread lives as long as the process; one that could not be started has dropped its end.
        if jobs.send(Job { paths, done }).is_err() {
            log::error!("no thread to write to the disk");
        }
        let gone = || SpillError::io(root)(io::Error::other("no thread to write to the disk"));
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}

fn start(root: PathBuf) -> Sender<Job> {
    let (sender, jobs) = channel();
    let started = std::thread::Builder::new().name("committer".into()).spawn(move || work(&root, &jobs));
    if let Err(error) = started {
        log::error!("no thread to write to the disk: {error}");
    }
    sender
}

fn work(root: &Path, jobs: &Receiver<Job>) {
    // Held open from the start: it is told of what went wrong in the background meanwhile, too.
    let folder = File::open(root).ok().filter(can_sync_all);
    while let Ok(first) = jobs.recv() {
        let batch: Vec<Job> = std::iter::once(first).chain(jobs.try_iter()).collect();
        let mut known = HashSet::new();
        let paths = batch.iter().flat_map(|job| job.paths.iter().cloned());
        let paths: Vec<PathBuf> = paths.filter(|path| known.insert(path.clone())).collect();
        let whole = paths.len() >= CROWD && folder.as_ref().is_some_and(|folder| sync_all(folder).is_ok());
        let failed = if whole { Vec::new() } else { sync_each(&paths) };
        for Job { paths, done } in batch {
            let own = failed.iter().find(|(path, _)| paths.contains(path));
            // Who asked may have gone.
            drop(done.send(own.map_or(Ok(()), |(path, error)| Err(SpillError::io(path)(again(error))))));
        }
    }
}

/// The same error once more. The kernel tells it once: a file that failed must not be asked again.
fn again(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| io::Error::new(error.kind(), error.to_string()), io::Error::from_raw_os_error)
}

/// All are on their way to the disk before the first is waited for. Returns those that failed.
fn sync_each(paths: &[PathBuf]) -> Vec<(PathBuf, io::Error)> {
    let mut failed = Vec::new();
    for some in paths.chunks(SYNCS_AT_ONCE) {
        let files: Vec<_> = some.iter().map(|path| (path, File::open(path))).collect();
        files.iter().filter_map(|(_, file)| file.as_ref().ok()).for_each(begin_to_write);
        for (path, file) in files {
            if let Err(error) = file.and_then(|file| file.sync_all()) {
                failed.push((path.clone(), error));
            }
        }
    }
    failed
}

/// Only a beginning: where it cannot be made (a folder), or fails, the sync that follows does it and tells.
fn begin_to_write(file: &File) {
    // SAFETY: a plain call on a descriptor that lives through it.
    let begun = checked(unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) });
    if let Err(error) = begun {
        log::trace!("nothing to begin with: {error}");
    }
}

/// Whether `syncfs` is more than a name on the file system of `folder`.
fn can_sync_all(folder: &File) -> bool {
    // SAFETY: all zeros is a valid value of this plain structure.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a descriptor and a place for the result, both alive during the call.
    let done = unsafe { libc::fstatfs(folder.as_raw_fd(), &raw mut found) };
    // The type is signed on some machines and not on others; all that are listed fit both.
    done == 0 && SYNCED_WHOLE.contains(&(found.f_type as u32))
}

/// Writes out the file system that `folder` is on.
fn sync_all(folder: &File) -> io::Result<()> {
    // SAFETY: a plain call on a descriptor that lives through it.
    checked(unsafe { libc::syncfs(folder.as_raw_fd()) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_at_once_is_done_or_told() {
        let temp = tempfile::tempdir().unwrap();
        let committer = Committer::default();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let file = temp.path().join("f");
            std::fs::write(&file, "x").unwrap();
            let good = committer.commit(temp.path(), vec![file.clone()]);
            let bad = committer.commit(temp.path(), vec![temp.path().join("absent")]);
            assert!(good.await.is_ok());
            assert!(bad.await.is_err());
            let both = committer.commit(temp.path(), vec![file, temp.path().to_owned()]);
            assert!(both.await.is_ok());
        });
    }
}
