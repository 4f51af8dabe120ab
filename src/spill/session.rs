//! The folder of one session: its session file and its spill files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use super::folder::Shared;
use super::spare::{SPARE_PIECE, rename_with};
use super::{SessionRecord, SpillError};
use crate::base::{SessionId, crash};

/// Name of the session file in its folder.
pub(super) const SESSION_FILE: &str = "session";
/// Its successor, before it takes its place, and its predecessor afterwards.
pub(super) const SESSION_NEXT: &str = "session.tmp";

/// Whether a name in a session's folder is that of a spill file.
pub(super) fn is_piece(name: &str) -> bool {
    name.len() >= 6 && name.parse::<u64>().is_ok()
}

/// What fills a spill file before it has its name. A write may replace a piece while it is being fetched: in one
/// file, what is still coming would overwrite what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filling {
    Fetched,
    Written,
}

/// A session's folder. Dropping it does nothing to the disk.
#[derive(Debug)]
pub struct SessionDir {
    id: SessionId,
    path: PathBuf,
    shared: Arc<Shared>,
    /// Its session file was made durable once: from then on a rename must not put one in its place that power loss
    /// could leave empty.
    durable: AtomicBool,
    /// The folder may hold an empty spill file that nobody has used yet.
    spare: AtomicBool,
}

impl SessionDir {
    pub(super) fn new(id: SessionId, path: PathBuf, shared: Arc<Shared>, durable: bool) -> Self {
        Self { id, path, shared, durable: AtomicBool::new(durable), spare: AtomicBool::new(false) }
    }

    /// The same, with what is said of an empty spill file in the folder.
    pub(super) fn with_spare(mut self, spare: bool) -> Self {
        *self.spare.get_mut() = spare;
        self
    }

    pub fn id(&self) -> SessionId {
        self.id
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the first session file of a new folder. A kill in the middle leaves a torn one in a folder of
    /// which nobody has been promised anything yet.
    pub(super) fn write_first(&self, record: &SessionRecord) -> Result<(), SpillError> {
        let path = self.path.join(SESSION_FILE);
        let write = || -> io::Result<()> { private_file(&path)?.write_all(&record.encode()) };
        write().map_err(SpillError::io(&path))
    }

    /// Replaces the session file: the old one or the new one stands at every instant. With `durable` it stands
    /// after power loss too, and so do the names of all spill files in the folder.
    pub fn write_record(&self, record: &SessionRecord, durable: bool) -> Result<(), SpillError> {
        let path = self.path.join(SESSION_FILE);
        let temp = self.path.join(SESSION_NEXT);
        let firm = durable || self.is_durable();
        let write = || -> io::Result<()> {
            if firm {
                // It was the session file before: on the disk it may be so still.
                remove_if_there(&temp)?;
            }
            let (mut file, content) = (private_file(&temp)?, record.encode());
            file.write_all(&content)?;
            // Not emptied beforehand: ext4 writes out at once what is written anew after that.
            file.set_len(content.len() as u64)?;
            if firm {
                file.sync_data()?;
                return fs::rename(&temp, &path);
            }
            crash::point("record-writing");
            take_place(&temp, &path)
        };
        let written = match write() {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                // What room is made, or what is closed, stands here: this must never fail for want of room.
                self.shared.reserve.release();
                let written = write();
                self.shared.reserve.fill();
                written
            }
            written => written,
        };
        written.map_err(SpillError::io(&path))?;
        crash::point("record-written");
        if durable {
            self.durable.store(true, Ordering::Relaxed);
            self.sync_names()?;
            crash::point("names-synced");
        }
        Ok(())
    }

    /// Replaces the session file before something is done to spill files that what it said until now holds no more
    /// for: where power loss would leave that behind, it must not find the one without the other.
    pub fn write_record_first(&self, record: &SessionRecord) -> Result<(), SpillError> {
        self.write_record(record, self.is_durable())
    }

    /// Whether power loss would leave the session behind, as it is or as it was: its session file was made durable.
    pub fn is_durable(&self) -> bool {
        self.durable.load(Ordering::Relaxed)
    }

    /// Makes bytes and lengths of spill files survive power loss; their names by [`Self::sync_names`].
    ///
    /// # Errors
    /// What the disk answered: nothing is promised then.
    pub fn sync_pieces(&self, indices: &[u64]) -> Result<(), SpillError> {
        indices.iter().try_for_each(|index| sync(&self.piece_path(*index)))
    }

    /// Makes spill files, the session file as it is, and the names of all of them survive power loss; in company with
    /// other sessions, which costs less than one after the other.
    ///
    /// # Errors
    /// What the disk answered: nothing is promised then.
    pub async fn commit(&self, pieces: &[u64]) -> Result<(), SpillError> {
        let mut paths: Vec<PathBuf> = pieces.iter().map(|index| self.piece_path(*index)).collect();
        paths.extend([self.path.join(SESSION_FILE), self.path.clone()]);
        paths.extend(self.path.parent().map(Path::to_owned));
        crash::point("commit-begun");
        self.shared.commit(paths).await?;
        crash::point("commit-done");
        self.durable.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Makes the names in the folder, and the folder's own, survive power loss.
    pub fn sync_names(&self) -> Result<(), SpillError> {
        for folder in [Some(self.path.as_path()), self.path.parent()].into_iter().flatten() {
            File::open(folder).and_then(|f| f.sync_all()).map_err(SpillError::io(folder))?;
        }
        Ok(())
    }

    /// Where the spill file with this index lies.
    pub fn piece_path(&self, index: u64) -> PathBuf {
        self.path.join(format!("{index:06}"))
    }

    /// Opens a spill file for reading and writing; creates it, empty, with `create`.
    pub fn open_piece(&self, index: u64, create: bool) -> Result<File, SpillError> {
        let path = self.piece_path(index);
        if create && self.spare.load(Ordering::Acquire) && !path.exists() && self.spare.swap(false, Ordering::AcqRel) {
            self.use_spare(&path);
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(create).truncate(false).mode(0o600);
        options.open(&path).map_err(SpillError::io(&path))
    }

    /// Gives the empty spill file a name, unless somebody was first to make one of that name.
    fn use_spare(&self, path: &Path) {
        if let Err(error) = rename_with(&self.path.join(SPARE_PIECE), path, libc::RENAME_NOREPLACE) {
            log::debug!("{}: {error}", path.display());
        }
    }

    /// A file to fill; it becomes the piece by [`Self::install_piece`] only when whole.
    pub fn begin_piece(&self, index: u64, filling: Filling) -> Result<File, SpillError> {
        let path = self.filling_path(index, filling);
        private_file(&path).and_then(|file| file.set_len(0).map(|()| file)).map_err(SpillError::io(&path))
    }

    /// Makes the filled file the piece. In a session that survives power loss its name must not be there without its
    /// bytes: they would be zeros, in the place of what the base holds.
    pub fn install_piece(&self, index: u64, filling: Filling) -> Result<(), SpillError> {
        let path = self.filling_path(index, filling);
        if self.is_durable() {
            sync(&path)?;
        }
        fs::rename(&path, self.piece_path(index)).map_err(SpillError::io(&path))?;
        crash::point("piece-installed");
        Ok(())
    }

    fn filling_path(&self, index: u64, filling: Filling) -> PathBuf {
        let suffix = match filling {
            Filling::Fetched => "fetched",
            Filling::Written => "tmp",
        };
        self.path.join(format!("{index:06}.{suffix}"))
    }

    /// Takes a spill file away; one that is not there is no error.
    pub fn remove_piece(&self, index: u64) -> Result<(), SpillError> {
        let path = self.piece_path(index);
        remove_if_there(&path).map_err(SpillError::io(&path))
    }

    /// Index, length and modification time of every spill file, ascending. Half-fetched ones are not among them.
    pub fn pieces(&self) -> Result<Vec<(u64, u64, SystemTime)>, SpillError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(SpillError::io(&self.path))? {
            let entry = entry.map_err(SpillError::io(&self.path))?;
            let name = entry.file_name();
            let Some(index) = name.to_str().filter(|n| is_piece(n)).and_then(|n| n.parse().ok()) else { continue };
            let meta = entry.metadata().map_err(SpillError::io(&self.path))?;
            found.push((index, meta.len(), meta.modified().unwrap_or(SystemTime::UNIX_EPOCH)));
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Whether a kill fell between the making of the folder and its first session file: no call has returned yet that
    /// would have promised anything.
    pub fn is_unbegun(&self) -> Result<bool, SpillError> {
        let empty = match fs::read(self.path.join(SESSION_FILE)) {
            // That of another is what the folder held before.
            Ok(bytes) => bytes.is_empty() || SessionRecord::decode(&bytes).is_ok_and(|record| record.id != self.id),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        Ok(empty && self.pieces()?.is_empty())
    }

    /// Ends the session: from here on it does not exist. The bytes are deleted at leisure.
    pub fn discard(&self) -> Result<(), SpillError> {
        self.shared.move_to_trash(&self.path, self.id, self.is_durable())
    }

    /// Sets the folder aside under `quarantine/`, for people to look at.
    pub fn quarantine(&self) -> Result<PathBuf, SpillError> {
        self.shared.move_to_quarantine(&self.path)
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync(path: &Path) -> Result<(), SpillError> {
    File::open(path).and_then(|file| file.sync_data()).map_err(SpillError::io(path))
}

/// A file for this user alone; what it holds stays.
fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Puts a file in the place of another, which stays under the first one's name, to be written over the next time:
/// a new inode each time costs more. Where the file system cannot exchange them, it goes.
fn take_place(next: &Path, path: &Path) -> io::Result<()> {
    match rename_with(next, path, libc::RENAME_EXCHANGE) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::ENOENT)) => {
            fs::rename(next, path)
        }
        done => done,
    }
}
