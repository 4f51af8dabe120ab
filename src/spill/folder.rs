//! The state folder of a mount: its lock, and the folders of sessions in it.
//!
//! Holds no absolute path inside: it may be moved as a whole.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};

use super::commit::Committer;
use super::gauge::Gauge;
use super::reserve::Reserve;
use super::session::SESSION_FILE;
use super::spare::Spares;
use super::{RecordError, SessionDir, SessionRecord, SpillError};
use crate::base::{SessionId, checked, crash};

/// The places in a state folder.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }
    pub fn root(&self) -> &Path {
        &self.root
    }
    pub fn spill(&self) -> PathBuf {
        self.root.join("spill")
    }
    pub fn journal(&self) -> PathBuf {
        self.root.join("journal")
    }
    pub fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }
    pub fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }
    /// Operations of several steps that were begun.
    pub fn intents(&self) -> PathBuf {
        self.root.join("intents")
    }
    fn reserve(&self) -> PathBuf {
        self.root.join("reserve")
    }
    /// What the kernel was told; of no use to another mount.
    pub fn ledger(&self) -> PathBuf {
        self.root.join("ledger")
    }
    /// Files that were unlinked while they were open, for as long as they are.
    pub fn kept(&self) -> PathBuf {
        self.root.join("kept")
    }
    fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// Makes the folders, 0700.
    fn create(&self) -> Result<(), SpillError> {
        let above = self.folders_above();
        for path in [self.root.clone(), self.spill(), self.trash(), self.quarantine(), self.intents(), self.kept()] {
            DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(SpillError::io(&path))?;
        }
        // Their names must survive power loss before any promise lies in them.
        File::open(&self.root).and_then(|root| root.sync_all()).map_err(SpillError::io(&self.root))?;
        for path in above {
            match File::open(&path).and_then(|folder| folder.sync_all()) {
                // Somebody else's, who has made it long ago.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
                result => result.map_err(SpillError::io(&path))?,
            }
        }
        Ok(())
    }

    /// The folders that hold the names of the root and of what is above it, as far up as they may be new: that of the
    /// root itself always, as who made it may have died since.
    fn folders_above(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for path in self.root.ancestors().skip(1) {
            // "" stands for the working directory.
            found.push(if path.as_os_str().is_empty() { PathBuf::from(".") } else { path.to_owned() });
            if found.len() > 1 && path.exists() {
                break;
            }
        }
        found
    }
}

/// The exclusive ownership of a state folder, held as long as this lives (and no longer than the process).
#[derive(Debug)]
pub struct LockedFolder {
    layout: Layout,
    lock: File,
}

impl Drop for LockedFolder {
    /// Closing the file is not enough: a child that was forked and has not yet run its own program holds it too.
    fn drop(&mut self) {
        if let Err(error) = self.lock.unlock() {
            log::debug!("{}: {error}", self.layout.lock().display());
        }
    }
}

/// Another process owns the folder.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("the state folder {} is in use by {owner}", path.display())]
    Busy { path: PathBuf, owner: String },
    #[error(transparent)]
    Spill(#[from] SpillError),
}

impl LockedFolder {
    /// Creates the folder if need be and takes its lock. `owner` is written into it, for whoever is refused.
    pub fn lock(layout: Layout, owner: &str) -> Result<Self, LockError> {
        layout.create()?;
        let path = layout.lock();
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = open.map_err(SpillError::io(&path))?;
        // SAFETY: a plain call on a descriptor that lives through it.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            let mut other = String::new();
            file.read_to_string(&mut other).map_err(SpillError::io(&path))?;
            return Err(LockError::Busy { path: layout.root, owner: other.trim().to_owned() });
        }
        let mut write = || -> io::Result<()> {
            file.set_len(0)?;
            file.write_all(owner.as_bytes())
        };
        write().map_err(SpillError::io(&path))?;
        Ok(Self { layout, lock: file })
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }
}

/// The folder of a session that has ended, in the trash.
#[derive(Debug)]
struct Doomed {
    path: PathBuf,
    /// Power loss could bring it back to where it was.
    durable: bool,
}

/// What sessions share: where they go when they end.
#[derive(Debug)]
pub(super) struct Shared {
    layout: Layout,
    sweeper: Sender<Doomed>,
    gauge: Arc<Gauge>,
    pub(super) reserve: Reserve,
    committer: Committer,
    spares: Spares,
    /// A session that had been made durable has ended since its end was made durable too.
    ended: AtomicBool,
}

impl Shared {
    fn new(layout: Layout, sweeper: Sender<Doomed>, limit: u64) -> Self {
        let (committer, spares, ended) = Default::default();
        let reserve = Reserve::new(layout.reserve());
        Self { layout, sweeper, gauge: Gauge::new(limit), reserve, committer, spares, ended }
    }

    /// `durable` tells whether power loss could bring it back.
    pub(super) fn move_to_trash(&self, path: &Path, id: SessionId, durable: bool) -> Result<(), SpillError> {
        let target = self.layout.trash().join(id.to_string());
        crash::point("session-ending");
        fs::rename(path, &target).map_err(SpillError::io(path))?;
        crash::point("session-ended");
        if durable {
            self.ended.store(true, Ordering::Release);
        }
        // The sweeper ends only with the process; what it missed is swept at the next start.
        if self.sweeper.send(Doomed { path: target, durable }).is_err() {
            log::debug!("no sweeper for the trash; it is emptied at the next mount");
        }
        Ok(())
    }

    pub(super) async fn commit(&self, paths: Vec<PathBuf>) -> Result<(), SpillError> {
        self.committer.commit(self.layout.root(), paths).await
    }

    pub(super) fn move_to_quarantine(&self, path: &Path) -> Result<PathBuf, SpillError> {
        let name = path.file_name().unwrap_or_default();
        let mut target = self.layout.quarantine().join(name);
        let mut attempt = 1;
        while target.exists() {
            target = self.layout.quarantine().join(format!("{}.{attempt}", name.to_string_lossy()));
            attempt += 1;
        }
        fs::rename(path, &target).map_err(SpillError::io(path))?;
        Ok(target)
    }
}

/// A session found on disk.
#[derive(Debug)]
pub struct Found {
    pub dir: SessionDir,
    /// `Ok(None)`: no session file at all, an orphan.
    pub record: Result<Option<SessionRecord>, RecordError>,
}

/// The sessions of a mount.
#[derive(Debug, Clone)]
pub struct SpillStore {
    shared: Arc<Shared>,
}

impl SpillStore {
    /// Opens the store in a folder that this process owns.
    pub fn open(folder: &LockedFolder) -> Self {
        Self::open_limited(folder, u64::MAX)
    }

    /// The same, with a limit in bytes for all spill files together.
    pub fn open_limited(folder: &LockedFolder, limit: u64) -> Self {
        let (sweeper, doomed) = channel();
        let shared = Shared::new(folder.layout().clone(), sweeper, limit);
        shared.reserve.fill();
        let store = Self { shared: Arc::new(shared) };
        // What lies there now was left by another process; what comes can be used again.
        let left = fs::read_dir(store.shared.layout.trash()).into_iter().flatten().flatten();
        let left = left.map(|entry| Doomed { path: entry.path(), durable: true }).collect::<Vec<_>>();
        let (shared, layout) = (Arc::downgrade(&store.shared), folder.layout().clone());
        let sweep = move || {
            if are_over(&left, &layout) {
                left.iter().for_each(|doomed| delete(&doomed.path));
            }
            while let Ok(first) = doomed.recv() {
                let batch: Vec<Doomed> = std::iter::once(first).chain(doomed.try_iter()).collect();
                // The one who sends is the one who may use it again: where that has ended, nobody will.
                if !are_over(&batch, &layout) {
                    continue;
                }
                let shared = shared.upgrade();
                for Doomed { path, .. } in batch {
                    if !shared.as_ref().is_some_and(|shared| shared.spares.keep(&path)) {
                        delete(&path);
                    }
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("sweeper".into()).spawn(sweep) {
            log::warn!("no thread to empty the trash: {error}");
        }
        store
    }

    pub fn layout(&self) -> &Layout {
        &self.shared.layout
    }

    /// Counts the bytes in the spill files.
    pub fn gauge(&self) -> &Arc<Gauge> {
        &self.shared.gauge
    }

    /// Makes files and folders survive power loss, together with what others ask for at the same time.
    ///
    /// # Errors
    /// What the disk answered: nothing is promised then.
    pub async fn commit(&self, paths: Vec<PathBuf>) -> Result<(), SpillError> {
        self.shared.commit(paths).await
    }

    /// Makes the ends of sessions survive power loss: a session that came back would be published again. To be
    /// called before the object that a session has become is deleted, or gets another name.
    ///
    /// # Errors
    /// What the disk answered.
    pub async fn settle_ends(&self) -> Result<(), SpillError> {
        if !self.shared.ended.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        crash::point("ends-settling");
        let done = self.commit(vec![self.shared.layout.spill(), self.shared.layout.trash()]).await;
        crash::point("ends-settled");
        if done.is_err() {
            self.shared.ended.store(true, Ordering::Release);
        }
        done
    }

    /// Begins a session: its folder and its session file stand when this returns.
    pub fn create(&self, record: &SessionRecord) -> Result<SessionDir, SpillError> {
        let path = self.shared.layout.spill().join(record.id.to_string());
        let again = self.shared.spares.take().is_some_and(|spare| match fs::rename(&spare, &path) {
            Ok(()) => true,
            Err(error) => {
                log::debug!("{}: {error}", spare.display());
                false
            }
        });
        if !again {
            DirBuilder::new().mode(0o700).create(&path).map_err(SpillError::io(&path))?;
        }
        let dir = SessionDir::new(record.id, path, self.shared.clone(), false).with_spare(again);
        crash::point("session-folder-made");
        dir.write_first(record)?;
        crash::point("session-begun");
        Ok(dir)
    }

    /// All sessions on disk, oldest first. A folder whose name is no session id is left alone and logged.
    pub fn scan(&self) -> Result<Vec<Found>, SpillError> {
        let spill = self.shared.layout.spill();
        let mut found = Vec::new();
        for entry in fs::read_dir(&spill).map_err(SpillError::io(&spill))? {
            let path = entry.map_err(SpillError::io(&spill))?.path();
            let Some(id) = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse().ok()) else {
                log::warn!("{} is no session; left alone", path.display());
                continue;
            };
            let record = read_record(&path, id)?;
            found.push(Found { dir: SessionDir::new(id, path, self.shared.clone(), true), record });
        }
        found.sort_by_key(|found| found.dir.id());
        Ok(found)
    }
}

/// Bytes that this process may still write on the disk that holds `folder`.
pub fn free_bytes(folder: &Path) -> io::Result<u64> {
    let path = std::ffi::CString::new(folder.as_os_str().as_bytes())?;
    // SAFETY: all zeros is a valid value of this plain structure.
    let mut out: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: a terminated string and a place for the result, both alive during the call.
    checked(unsafe { libc::statvfs(path.as_ptr(), &raw mut out) })?;
    Ok(out.f_bavail.saturating_mul(out.f_frsize))
}

/// Bytes in the files of all sessions, as far as they can be read.
pub fn spilled_bytes(layout: &Layout) -> u64 {
    let sessions = fs::read_dir(layout.spill()).into_iter().flatten().flatten();
    let files = sessions.flat_map(|session| fs::read_dir(session.path()).into_iter().flatten().flatten());
    files.filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).sum()
}

/// The sessions in a folder that another process may own: only looks, changes nothing.
pub fn read_only_scan(layout: &Layout) -> Result<Vec<Found>, SpillError> {
    let (sweeper, _) = channel();
    let store = SpillStore { shared: Arc::new(Shared::new(layout.clone(), sweeper, u64::MAX)) };
    if layout.spill().is_dir() { store.scan() } else { Ok(Vec::new()) }
}

/// Whether folders are in the trash for good. What is taken from a session that power loss puts back would be missing
/// from a file that was promised. Who waits for ends (`settle_ends`) syncs by itself: it must not be told of one that is
/// only on its way.
fn are_over(doomed: &[Doomed], layout: &Layout) -> bool {
    let sync = |folder: PathBuf| File::open(folder)?.sync_all();
    if !doomed.iter().any(|doomed| doomed.durable) {
        return true;
    }
    match sync(layout.trash()).and_then(|()| sync(layout.spill())) {
        Ok(()) => true,
        Err(error) => {
            log::warn!("what is in the trash stays until the next mount: {error}");
            false
        }
    }
}

fn delete(path: &Path) {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            log::warn!("cannot delete {}: {error}", path.display());
        }
        _ => {}
    }
}

fn read_record(folder: &Path, id: SessionId) -> Result<Result<Option<SessionRecord>, RecordError>, SpillError> {
    let path = folder.join(SESSION_FILE);
    match fs::read(&path) {
        Ok(bytes) => Ok(match SessionRecord::decode(&bytes) {
            // That of the session which had the folder before: power loss has taken what this one wrote.
            Ok(record) if record.id != id => Ok(None),
            other => other.map(Some),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Ok(None)),
        Err(error) => Err(SpillError::io(&path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ObjectKey;
    use crate::spill::{Filling, Phase};

    fn record(id: SessionId) -> SessionRecord {
        SessionRecord::new(id, ObjectKey::parse("k").unwrap(), 1 << 20, None)
    }

    #[test]
    fn one_process_owns_a_folder() {
        let temp = tempfile::tempdir().unwrap();
        let layout = Layout::new(temp.path().join("s"));
        let held = LockedFolder::lock(layout.clone(), "the first").unwrap();
        let refused = LockedFolder::lock(layout.clone(), "the second").unwrap_err();
        assert!(refused.to_string().contains("the first"), "{refused}");
        // What a child that was forked a moment ago holds.
        let inherited = held.lock.try_clone().unwrap();
        drop(held);
        assert!(LockedFolder::lock(layout, "the third").is_ok());
        drop(inherited);
    }

    #[test]
    fn sessions_are_found_again_until_they_are_discarded() {
        let temp = tempfile::tempdir().unwrap();
        let folder = LockedFolder::lock(Layout::new(temp.path()), "test").unwrap();
        let store = SpillStore::open(&folder);
        let (first, second) = (SessionId::generate(1), SessionId::generate(2));
        let dir = store.create(&record(second)).unwrap();
        store.create(&record(first)).unwrap();
        dir.open_piece(3, true).unwrap().set_len(10).unwrap();
        dir.begin_piece(4, Filling::Fetched).unwrap();
        dir.begin_piece(5, Filling::Written).unwrap();
        assert_eq!(dir.pieces().unwrap().iter().map(|p| (p.0, p.1)).collect::<Vec<_>>(), [(3, 10)]);

        let mut changed = record(second);
        changed.phase = Phase::Closing;
        dir.write_record(&changed, true).unwrap();
        let found = store.scan().unwrap();
        assert_eq!(found.iter().map(|f| f.dir.id()).collect::<Vec<_>>(), [first, second]);
        assert_eq!(found[1].record, Ok(Some(changed)));

        dir.discard().unwrap();
        assert_eq!(store.scan().unwrap().len(), 1);
        assert!(!dir.path().exists());
    }

    #[test]
    fn damaged_and_missing_session_files_are_reported_not_fatal() {
        let temp = tempfile::tempdir().unwrap();
        let folder = LockedFolder::lock(Layout::new(temp.path()), "test").unwrap();
        let store = SpillStore::open(&folder);
        let damaged = store.create(&record(SessionId::generate(1))).unwrap();
        fs::write(damaged.path().join("session"), b"garbage").unwrap();
        let orphan = store.create(&record(SessionId::generate(2))).unwrap();
        fs::remove_file(orphan.path().join("session")).unwrap();
        fs::create_dir(folder.layout().spill().join("lost+found")).unwrap();
        let found = store.scan().unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].record, Err(RecordError::Damaged));
        assert_eq!(found[1].record, Ok(None));
        let aside = damaged.quarantine().unwrap();
        assert!(aside.starts_with(folder.layout().quarantine()) && aside.join("session").exists());
    }
}
