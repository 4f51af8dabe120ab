//! A disk of the tests' own, below the state folder: it sees every operation, knows what was synced, and breaks on
//! demand.
//!
//! A file system in memory, mounted by FUSE. Every change is an entry of its log (`log.rs`), by which `image.rs` tells
//! what a real disk could hold after the power went at any entry. What surprises: `syncfs` never reaches a FUSE file
//! system, so only what is synced by its own descriptor is synced here.

mod image;
mod log;
mod serve;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{BackgroundSession, Config, MountOption, SessionACL};
use ossfuse::base::time::now;
use parking_lot::Mutex;

pub(crate) use image::{Image, Loss, Rng};
pub(crate) use log::Op;

const ROOT: u64 = 1;

/// A kind of operation that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Making a file or folder.
    Make,
    Read,
    Write,
    Sync,
    /// Any change of names, and of files.
    Change,
}

/// Operations that fail from now on.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) act: Act,
    /// Paths that hold this, relative to the disk; all with an empty one.
    pub(crate) path: &'static str,
    pub(crate) errno: i32,
}

/// Called with the length of the log after each change, before the change is answered.
type Watcher = Box<dyn FnMut(usize) + Send>;

/// A mounted disk; unmounted when dropped.
pub(crate) struct Disk {
    shared: Arc<Mutex<State>>,
    path: PathBuf,
    session: Option<BackgroundSession>,
}

impl Disk {
    /// Mounts an empty disk in the namespace of the calling thread.
    pub(crate) fn mount(path: &Path) -> Self {
        Self::mount_state(path, State::new())
    }

    /// The same with what an earlier one has left, all of which is on the disk for sure.
    pub(crate) fn mount_image(path: &Path, image: &Image) -> Self {
        let mut state = State::new();
        state.take_in(image);
        Self::mount_state(path, state)
    }

    fn mount_state(path: &Path, state: State) -> Self {
        let shared = Arc::new(Mutex::new(state));
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("test-disk".into()), MountOption::DefaultPermissions];
        config.acl = SessionACL::Owner;
        config.n_threads = Some(2);
        let session = fuser::spawn_mount(serve::Server { shared: shared.clone() }, path, &config).unwrap();
        Self { shared, path: path.to_owned(), session: Some(session) }
    }

    /// Entries of the log so far.
    pub(crate) fn position(&self) -> usize {
        self.shared.lock().ops.len()
    }

    /// What has been done to it so far.
    pub(crate) fn ops(&self) -> Vec<Op> {
        self.shared.lock().ops.clone()
    }

    /// `watcher` is called after each change, with the disk standing still.
    pub(crate) fn watch(&self, watcher: impl FnMut(usize) + Send + 'static) {
        self.shared.lock().watcher = Some(Box::new(watcher));
    }

    /// Nobody watches any more.
    pub(crate) fn watch_no_more(&self) {
        self.shared.lock().watcher = None;
    }

    /// Calls the watcher now, with the disk standing still.
    pub(crate) fn look(&self) {
        self.shared.lock().tell();
    }

    /// Puts these faults in the place of those before.
    pub(crate) fn faults(&self, faults: &[Fault]) {
        self.shared.lock().faults = faults.to_vec();
    }

    /// Operations that have failed by faults or for want of room.
    pub(crate) fn failed(&self) -> u64 {
        self.shared.lock().failed
    }

    /// From now on files may hold so many bytes together.
    pub(crate) fn limit(&self, bytes: u64) {
        self.shared.lock().capacity = bytes;
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        super::harness::detach(&self.path);
        // The thread ends with the last user of the mount, which the test need not wait for.
        drop(self.session.take());
    }
}

/// A file or folder.
#[derive(Debug)]
struct Node {
    /// Where it was last seen, for faults.
    place: Option<(u64, String)>,
    mode: u32,
    mtime: SystemTime,
    data: Vec<u8>,
    /// Present for folders.
    entries: Option<BTreeMap<String, u64>>,
}

/// What is on the disk now, and how it came about.
struct State {
    nodes: HashMap<u64, Node>,
    next: u64,
    ops: Vec<Op>,
    watcher: Option<Watcher>,
    faults: Vec<Fault>,
    failed: u64,
    capacity: u64,
}

impl State {
    fn new() -> Self {
        let root = Node { place: None, mode: 0o700, mtime: now(), data: Vec::new(), entries: Some(BTreeMap::new()) };
        Self {
            nodes: HashMap::from([(ROOT, root)]),
            next: ROOT + 1,
            ops: Vec::new(),
            watcher: None,
            faults: Vec::new(),
            failed: 0,
            capacity: 1 << 40,
        }
    }

    /// Has the files of an image, and a log that has led to them.
    fn take_in(&mut self, image: &Image) {
        for op in image.ops() {
            match &op {
                Op::Make { dir, name, ino, is_dir, mode } => {
                    let place = Some((*dir, name.clone()));
                    let entries = is_dir.then(BTreeMap::new);
                    let node = Node { place, mode: *mode, mtime: now(), data: Vec::new(), entries };
                    self.nodes.insert(*ino, node);
                    let parent = self.nodes.get_mut(dir).and_then(|node| node.entries.as_mut());
                    parent.expect("folders come first").insert(name.clone(), *ino);
                    self.next = self.next.max(ino + 1);
                }
                Op::Write { ino, data, time, .. } => {
                    let node = self.nodes.get_mut(ino).expect("made before");
                    (node.data, node.mtime) = (data.to_vec(), *time);
                }
                _ => {}
            }
            self.ops.push(op);
        }
    }

    fn tell(&mut self) {
        let position = self.ops.len();
        if let Some(watcher) = &mut self.watcher {
            watcher(position);
        }
    }

    fn log(&mut self, op: Op) {
        self.ops.push(op);
        self.tell();
    }

    fn path(&self, ino: u64) -> String {
        match self.nodes.get(&ino).and_then(|node| node.place.as_ref()) {
            Some((parent, name)) => format!("{}/{name}", self.path(*parent)),
            None => String::new(),
        }
    }

    /// Whether an operation is to go wrong, and how.
    fn fault(&mut self, act: Act, ino: u64, name: &str) -> Result<(), i32> {
        if self.faults.is_empty() {
            return Ok(());
        }
        let path = format!("{}/{name}", self.path(ino));
        let hits = |fault: &&Fault| {
            let same = fault.act == act || (fault.act == Act::Change && matches!(act, Act::Make | Act::Write));
            same && path.contains(fault.path)
        };
        match self.faults.iter().find(hits) {
            Some(fault) => {
                self.failed += 1;
                Err(fault.errno)
            }
            None => Ok(()),
        }
    }

    fn used(&self) -> u64 {
        self.nodes.values().map(|node| node.data.len() as u64).sum()
    }

    /// A file grows to this size: there must be room.
    fn room(&mut self, ino: u64, size: u64) -> Result<(), i32> {
        let now = self.nodes.get(&ino).map_or(0, |node| node.data.len() as u64);
        if size > now && self.used() + (size - now) > self.capacity {
            self.failed += 1;
            return Err(libc::ENOSPC);
        }
        Ok(())
    }
}
