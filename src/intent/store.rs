//! The folder of intents: one file each, replaced as a whole, gone when the work is done.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::record::{IntentRecord, Work};
use crate::base::time::{micros, now};
use crate::base::{SessionId, crash};
use crate::spill::{Layout, RecordError, SpillError};

/// The intents of a mount.
#[derive(Debug, Clone)]
pub struct IntentStore {
    layout: Layout,
    /// Those whose end must survive power loss too: one that came back would be done again, to what has been put in
    /// those places since.
    lasting: Arc<Mutex<HashSet<SessionId>>>,
}

impl IntentStore {
    /// Opens the folder and reads what an earlier process left in it, oldest first. A file that cannot be read is
    /// set aside in `quarantine/`.
    ///
    /// # Errors
    /// An intent of a newer version of the program: nothing was changed. Or the disk cannot be read.
    pub fn open(layout: &Layout) -> Result<(Self, Vec<IntentRecord>), SpillError> {
        let store = Self { layout: layout.clone(), lasting: Arc::default() };
        let left = store.scan()?;
        store.lasting.lock().extend(left.iter().map(|record| record.id));
        Ok((store, left))
    }

    fn scan(&self) -> Result<Vec<IntentRecord>, SpillError> {
        let folder = self.layout.intents();
        let (mut left, mut damaged) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&folder).map_err(SpillError::io(&folder))? {
            let path = entry.map_err(SpillError::io(&folder))?.path();
            if path.extension().is_some() {
                // A file that was being written: the one that it was to replace holds.
                fs::remove_file(&path).map_err(SpillError::io(&path))?;
                continue;
            }
            let bytes = fs::read(&path).map_err(SpillError::io(&path))?;
            match IntentRecord::decode(&bytes) {
                Ok(record) => left.push(record),
                Err(source @ RecordError::Newer(_)) => return Err(SpillError::Record { path, source }),
                Err(RecordError::Damaged) => damaged.push(path),
            }
        }
        for path in damaged {
            self.set_aside(&path)?;
        }
        left.sort_by_key(|record| record.id);
        Ok(left)
    }

    fn set_aside(&self, path: &Path) -> Result<(), SpillError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let target = self.layout.quarantine().join(format!("{name}.intent"));
        log::error!("{} cannot be read; it is set aside as {}", path.display(), target.display());
        fs::rename(path, &target).map_err(SpillError::io(path))
    }

    /// Records what is about to be begun: safe from a kill when this returns, with `durable` from power loss too.
    ///
    /// # Errors
    /// Then nothing may be begun.
    pub fn begin(&self, work: Work, durable: bool) -> Result<IntentRecord, SpillError> {
        let record = IntentRecord { id: SessionId::generate(micros(now())), work };
        self.write(&record, durable)?;
        Ok(record)
    }

    /// Replaces an intent: the old one or the new one stands at every instant.
    pub fn write(&self, record: &IntentRecord, durable: bool) -> Result<(), SpillError> {
        if durable {
            self.lasting.lock().insert(record.id);
        }
        let path = self.path(record.id);
        let temp = path.with_extension("tmp");
        let write = || -> io::Result<()> {
            let mut options = File::options();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temp)?;
            file.write_all(&record.encode())?;
            if durable {
                file.sync_data()?;
            }
            crash::point("intent-writing");
            fs::rename(&temp, &path)?;
            if durable { File::open(self.layout.intents())?.sync_all() } else { Ok(()) }
        };
        write().map_err(SpillError::io(&path))?;
        crash::point("intent-recorded");
        Ok(())
    }

    /// Takes an intent away: its work is done, also after power loss where the intent would survive that. One that
    /// cannot be taken away is found done by the next mount.
    pub fn finish(&self, id: SessionId) {
        let path = self.path(id);
        let lasting = self.lasting.lock().remove(&id);
        crash::point("intent-finishing");
        let remove = || -> io::Result<()> {
            fs::remove_file(&path)?;
            if lasting { File::open(self.layout.intents())?.sync_all() } else { Ok(()) }
        };
        match remove() {
            Err(error) if error.kind() != io::ErrorKind::NotFound => log::warn!("{}: {error}", path.display()),
            _ => {}
        }
        crash::point("intent-finished");
    }

    /// What must be on disk for an intent to survive power loss: its file and its folder.
    pub fn places(&self, id: SessionId) -> Vec<PathBuf> {
        vec![self.path(id), self.layout.intents()]
    }

    fn path(&self, id: SessionId) -> PathBuf {
        self.layout.intents().join(id.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ObjectKey;
    use crate::spill::LockedFolder;

    #[test]
    fn intents_are_found_again_until_they_are_done() {
        let temp = tempfile::tempdir().unwrap();
        let folder = LockedFolder::lock(Layout::new(temp.path()), "test").unwrap();
        let (store, left) = IntentStore::open(folder.layout()).unwrap();
        assert!(left.is_empty());
        let work = Work::Hidden { key: ObjectKey::parse("k").unwrap() };
        let (one, two) = (store.begin(work.clone(), true).unwrap(), store.begin(work, false).unwrap());
        store.finish(one.id);
        fs::write(folder.layout().intents().join("bad"), "garbage").unwrap();
        let half = folder.layout().intents().join("half.tmp");
        fs::write(&half, "half").unwrap();
        let (_, left) = IntentStore::open(folder.layout()).unwrap();
        assert_eq!(left, [two]);
        assert!(folder.layout().quarantine().join("bad.intent").exists());
        assert!(!half.exists(), "what was being written when a process died is swept");
    }
}
