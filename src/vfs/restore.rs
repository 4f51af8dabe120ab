//! Taking up what an earlier process has told the kernel: inodes, handles, and what became of requests.
//!
//! Names and pins come from the ledger, bytes from the write sessions; attributes and listings are asked for again
//! when they are wanted. What cannot be taken up is answered ESTALE.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use super::Vfs;
use super::attr::{Attr, Kind, Version};
use super::handles::{Handle, OpenFile};
use super::keep::Kept;
use super::opener::Process;
use super::tree::{ROOT, Tree};
use crate::base::SessionId;
use crate::base::time::now;
use crate::intent::{IntentRecord, Swap, Work};
use crate::ledger::{InodeState, KeptRecord, ObjectRecord, Table, VersionRecord};
use crate::read::Cursor;
use crate::spill::Base;
use crate::write::DirtyFile;

impl Vfs {
    /// Takes up what the ledger tells. `live` are the sessions that stand; of the work that was begun (`left`), what
    /// open files still need is kept back.
    pub fn restore(
        &self,
        table: Table,
        live: &BTreeMap<SessionId, Arc<DirtyFile>>,
        left: Vec<IntentRecord>,
    ) -> Vec<IntentRecord> {
        let Table { inodes, handles, dirs, requests, killed, .. } = table;
        let kept: BTreeSet<SessionId> = inodes.values().filter_map(|inode| kept_id(inode.kept.as_deref()?)).collect();
        self.sweep_kept(&kept);
        if !inodes.is_empty() {
            log::info!(
                "taking up {} inodes, {} open files, {} open directories",
                inodes.len(),
                handles.len(),
                dirs.len()
            );
        }
        *self.requests.lock() = requests;
        // Where nothing was handed over the numbers are another kernel's.
        if !inodes.is_empty() {
            left.iter().filter_map(exchange_call).for_each(|call| self.begun_before(call));
        }
        let mut tree = self.tree.lock();
        let numbers: Vec<u64> = inodes.keys().copied().collect();
        for (ino, state) in inodes {
            self.restore_inode(&mut tree, ino, state, live);
        }
        tree.link_restored();
        for (fh, state) in handles {
            let Some(node) = tree.node_mut(state.ino) else { continue };
            let file = node.open.get_or_insert_with(|| OpenFile::new(state.ino)).clone();
            let how = state.how;
            if let Some(dirty) = file.dirty().filter(|_| how.append) {
                dirty.mark_append();
            }
            self.handles.restore_file(
                fh,
                Handle {
                    ino: state.ino,
                    file,
                    readable: how.readable,
                    writable: how.writable,
                    append: how.append,
                    opener: how.opener.map(Process::restored),
                    cursor: Cursor::default(),
                },
            );
        }
        for (fh, state) in dirs {
            self.handles.restore_dir(fh, state.ino, state.names);
        }
        for session in killed {
            if let Some(dirty) = live.get(&session) {
                dirty.mark_killed();
            }
        }
        for ino in numbers {
            self.close_again(&tree, ino);
            self.close_if_idle(&mut tree, ino);
            tree.drop_if_unused(ino);
        }
        left.into_iter().filter(|intent| !kept.contains(&intent.id)).collect()
    }

    fn restore_inode(&self, tree: &mut Tree, ino: u64, state: InodeState, live: &BTreeMap<SessionId, Arc<DirtyFile>>) {
        if ino == ROOT {
            return;
        }
        let Some(kind) = Kind::of_mode(state.kind) else { return };
        let dirty = state.session.and_then(|session| live.get(&session)).cloned();
        let mut attr = self.options.attr.default_attr(ino, kind, now());
        let mut version = None;
        if let Some(object) = state.object {
            attr = shown(attr, &object);
            version = object.version.map(restored_version);
        }
        if let Some(dirty) = &dirty {
            attr = self.attr_of_session(attr, dirty);
        } else if state.session.is_some() {
            // It was published, or kept, and nobody lived to note what it became: the next look tells. Or it was never
            // begun.
            version = None;
            if !state.unlinked {
                self.unseen.lock().insert(ino);
            }
        }
        let open = (dirty.is_some() || state.unlinked).then(|| {
            let open = OpenFile::new(ino);
            {
                let mut opened = open.state.lock();
                opened.unlinked = state.unlinked;
                opened.kept = state.kept.as_deref().and_then(|kept| self.restored_kept(kept));
                if let Some(Kept::Hidden { base, .. }) = &opened.kept {
                    opened.reader = Some(self.reader_of(base));
                }
                opened.dirty = dirty.clone();
            }
            open
        });
        if let Some(dirty) = &dirty {
            self.sessions.lock().insert(dirty.id(), ino);
        }
        tree.restore(attr, state.place, version, state.lookups, open);
    }

    /// What was closed on the local disk (`--close local`), and is open elsewhere still, goes on its way to the service.
    fn close_again(&self, tree: &Tree, ino: u64) {
        let Some(open) = tree.node(ino).and_then(|node| node.open.as_ref()) else { return };
        let state = open.state.lock();
        let closed = state.dirty.clone().filter(|dirty| state.writers > 0 && !state.unlinked && dirty.is_closing());
        let Some(dirty) = closed.filter(|_| self.options.close_local) else { return };
        self.runtime.spawn(async move {
            if let Err(error) = dirty.close_locally().await {
                log::error!("{}: {error}", dirty.name());
            }
        });
    }

    fn restored_kept(&self, kept: &KeptRecord) -> Option<Kept> {
        match kept {
            KeptRecord::Hidden { intent, before, key, etag, size, crc64 } => {
                let base = Base { key: key.clone(), etag: etag.clone(), size: *size, crc64: *crc64 };
                Some(Kept::Hidden { intent: *intent, before: before.clone(), base })
            }
            KeptRecord::Local { id, len } => match File::options().read(true).write(true).open(self.kept_path(*id)) {
                Ok(file) => Some(Kept::Local { id: *id, file: Arc::new(file), len: *len }),
                Err(error) => {
                    log::error!("a file that was kept for its readers cannot be read: {error}");
                    None
                }
            },
        }
    }

    /// Takes away what was kept for handles that are no more.
    fn sweep_kept(&self, wanted: &BTreeSet<SessionId>) {
        let found = std::fs::read_dir(self.write.spill().layout().kept()).into_iter().flatten().flatten();
        for entry in found {
            let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if id.is_none_or(|id| !wanted.contains(&id))
                && let Err(error) = std::fs::remove_file(entry.path())
            {
                log::warn!("{}: {error}", entry.path().display());
            }
        }
    }
}

/// The request that an exchange was begun for.
fn exchange_call(intent: &IntentRecord) -> Option<u64> {
    match &intent.work {
        Work::Exchange { swap: Swap::Swapping { call, .. }, .. } => Some(*call),
        _ => None,
    }
}

/// The intent, or the local file, that something kept hangs on.
fn kept_id(kept: &KeptRecord) -> Option<SessionId> {
    match kept {
        KeptRecord::Local { id, .. } => Some(*id),
        KeptRecord::Hidden { intent, .. } => Some(*intent),
    }
}

fn shown(attr: Attr, object: &ObjectRecord) -> Attr {
    let [mtime, atime, ctime] = object.times.map(|(seconds, nanos)| UNIX_EPOCH + Duration::new(seconds, nanos));
    Attr { mode: object.mode, uid: object.uid, gid: object.gid, size: object.size, mtime, atime, ctime, ..attr }
}

fn restored_version(record: VersionRecord) -> Version {
    Version {
        etag: record.etag,
        size: record.size,
        crc64: record.crc64,
        last_modified: UNIX_EPOCH + Duration::from_secs(record.last_modified),
        headers: None,
    }
}
