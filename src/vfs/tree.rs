//! The inode table: which inode is which name in which directory, and what is known of it.
//!
//! Pure memory, one lock, no I/O under it; what the kernel may come to know goes into the ledger's memory too. An inode number is never used for anything else while the kernel
//! knows it, or while it is open or unsent; number 1 is the root.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::attr::{Attr, Kind, Version};
use super::handles::OpenFile;
use crate::base::ETag;
use crate::base::key::join;
use crate::base::time::since_epoch;
use crate::ledger::{Ledger, ObjectRecord, Record, VersionRecord};

/// The root's inode number.
pub const ROOT: u64 = 1;

/// An entry of a directory as the bucket lists it.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    pub kind: Kind,
    /// Its inode number, given when it was listed, so that `readdir` and `stat` agree.
    pub ino: u64,
    /// Of a file.
    pub version: Option<Version>,
}

/// A directory's listing.
#[derive(Debug, Clone)]
pub(super) struct Listing {
    pub entries: BTreeMap<String, Listed>,
    pub taken: Instant,
}

/// One inode.
#[derive(Debug)]
pub(super) struct Node {
    /// The directory it is in, and its name there; `None` once it is unlinked.
    pub place: Option<(u64, Box<str>)>,
    pub attr: Attr,
    /// Until when `attr` may be shown without asking.
    pub fresh_until: Option<Instant>,
    /// The object behind it; `None` for directories without marker and files that were never sent.
    pub version: Option<Version>,
    pub lookups: u64,
    /// The version whose bytes the kernel may hold in its cache.
    pub cached: Option<ETag>,
    /// When the object was last looked at, for opens that follow at once.
    pub seen: Option<Instant>,
    /// Attributes of it are not in the bucket yet: it stays, and shows them.
    pub pinned: bool,
    /// Present while it is open or unsent.
    pub open: Option<Arc<OpenFile>>,
    pub dir: Option<Box<Dir>>,
    /// Where a symlink leads, once that is known.
    pub link: Option<Link>,
}

/// What the object of a symlink says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Link {
    /// The target itself.
    Text(Box<[u8]>),
    /// The key in the bucket that a symlink of the service names.
    Key(Box<str>),
}

/// What a directory's inode has besides.
#[derive(Debug, Default)]
pub(super) struct Dir {
    /// Names whose inodes are in the table.
    pub children: HashMap<Box<str>, u64>,
    pub listing: Option<Listing>,
    /// Changes made by this mount: a listing that was taken across one is not kept.
    pub changes: u64,
    /// It did not fit in a page of a listing the last time: a look-up asks for the name itself.
    pub large: bool,
    /// One listing at a time; who waits finds it done.
    pub listing_gate: Arc<tokio::sync::Mutex<()>>,
}

/// The table.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: HashMap<u64, Node>,
    next: u64,
    ledger: Arc<Ledger>,
}

impl Tree {
    /// A table whose numbers begin at `first`: no process before this one has given them out.
    pub(super) fn new(root: Attr, first: u64, ledger: Arc<Ledger>) -> Self {
        let mut nodes = HashMap::new();
        let node = Node {
            place: None,
            attr: root,
            fresh_until: None,
            version: None,
            lookups: 1,
            cached: None,
            seen: None,
            pinned: false,
            open: None,
            dir: Some(Box::default()),
            link: None,
        };
        nodes.insert(ROOT, node);
        Self { nodes, next: first.max(ROOT + 1), ledger }
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// A number that was never given out.
    pub(super) fn new_ino(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    pub(super) fn node(&self, ino: u64) -> Option<&Node> {
        self.nodes.get(&ino)
    }

    pub(super) fn node_mut(&mut self, ino: u64) -> Option<&mut Node> {
        self.nodes.get_mut(&ino)
    }

    pub(super) fn dir(&self, ino: u64) -> Option<&Dir> {
        self.nodes.get(&ino)?.dir.as_deref()
    }

    pub(super) fn dir_mut(&mut self, ino: u64) -> Option<&mut Dir> {
        self.nodes.get_mut(&ino)?.dir.as_deref_mut()
    }

    /// The inode of a name, if it is in the table.
    pub(super) fn child(&self, parent: u64, name: &str) -> Option<u64> {
        self.dir(parent)?.children.get(name).copied()
    }

    /// The inode at a path, if it and all directories above are in the table.
    pub(super) fn walk(&self, path: &str) -> Option<u64> {
        path.split('/').filter(|name| !name.is_empty()).try_fold(ROOT, |dir, name| self.child(dir, name))
    }

    /// The path from the root, without slashes at its ends; `None` for what is unlinked.
    pub(super) fn path(&self, ino: u64) -> Option<String> {
        let mut names = Vec::new();
        let mut at = ino;
        while at != ROOT {
            let (parent, name) = self.nodes.get(&at)?.place.as_ref()?;
            names.push(name.as_ref());
            at = *parent;
        }
        names.reverse();
        Some(names.join("/"))
    }

    /// The path of a name in a directory.
    pub(super) fn child_path(&self, parent: u64, name: &str) -> Option<String> {
        Some(join(&self.path(parent)?, name))
    }

    /// Puts a new inode under a name; the name must be free. Its number is that of `attr`.
    pub(super) fn insert(&mut self, parent: u64, name: &str, attr: Attr, version: Option<Version>) {
        let node = Node {
            place: Some((parent, name.into())),
            attr,
            fresh_until: None,
            version,
            lookups: 0,
            cached: None,
            seen: None,
            pinned: false,
            open: None,
            dir: (attr.kind == Kind::Dir).then(Box::default),
            link: None,
        };
        self.nodes.insert(attr.ino, node);
        self.note_place(attr.ino, parent, name, attr.kind);
        if let Some(dir) = self.dir_mut(parent) {
            dir.children.insert(name.into(), attr.ino);
        }
    }

    fn note_place(&self, ino: u64, parent: u64, name: &str, kind: Kind) {
        self.ledger.note(&Record::Placed { ino, parent, name: name.into(), kind: kind.type_bits() });
    }

    /// Notes what an inode shows, where it is open: those who have it open go on with that.
    pub(super) fn note_object(&self, ino: u64) {
        let Some(node) = self.nodes.get(&ino).filter(|node| node.open.is_some()) else { return };
        let time = |at: SystemTime| {
            let since = since_epoch(at);
            (since.as_secs(), since.subsec_nanos())
        };
        let Attr { mode, uid, gid, size, mtime, atime, ctime, .. } = node.attr;
        let version = node.version.as_ref().map(|version| VersionRecord {
            etag: version.etag.clone(),
            size: version.size,
            crc64: version.crc64,
            last_modified: time(version.last_modified).0,
        });
        let times = [mtime, atime, ctime].map(time);
        let object = Box::new(ObjectRecord { mode, uid, gid, size, times, version });
        self.ledger.note(&Record::Object { ino, object });
    }

    /// Puts an inode back that an earlier process has told the kernel of. Its name leads to it after
    /// [`Self::link_restored`].
    pub(super) fn restore(
        &mut self,
        attr: Attr,
        place: Option<(u64, Box<str>)>,
        version: Option<Version>,
        lookups: u64,
        open: Option<Arc<OpenFile>>,
    ) {
        let node = Node {
            place,
            attr,
            fresh_until: None,
            version,
            lookups,
            pinned: false,
            cached: None,
            seen: None,
            open,
            dir: (attr.kind == Kind::Dir).then(Box::default),
            link: None,
        };
        self.nodes.insert(attr.ino, node);
    }

    /// Has the names of all inodes that were put back lead to them.
    pub(super) fn link_restored(&mut self) {
        let places: Vec<(u64, u64, Box<str>)> = self
            .nodes
            .iter()
            .filter_map(|(ino, node)| node.place.as_ref().map(|(parent, name)| (*ino, *parent, name.clone())))
            .collect();
        for (ino, parent, name) in places {
            match self.dir_mut(parent) {
                Some(dir) => drop(dir.children.insert(name, ino)),
                None => {
                    if let Some(node) = self.nodes.get_mut(&ino) {
                        node.place = None;
                    }
                }
            }
        }
    }

    /// Takes the name from an inode. The inode stays while it is known to the kernel or open.
    pub(super) fn detach(&mut self, parent: u64, name: &str) -> Option<u64> {
        let ino = self.dir_mut(parent)?.children.remove(name)?;
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.place = None;
            self.ledger.note(&Record::Unplaced { ino });
        }
        self.drop_if_unused(ino);
        Some(ino)
    }

    /// Moves an inode to another name, which must be free.
    pub(super) fn rename(&mut self, ino: u64, parent: u64, name: &str) {
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        let kind = node.attr.kind;
        let old = node.place.replace((parent, name.into()));
        self.note_place(ino, parent, name, kind);
        if let Some((old_parent, old_name)) = old
            && let Some(dir) = self.dir_mut(old_parent)
        {
            dir.children.remove(&old_name);
        }
        if let Some(dir) = self.dir_mut(parent) {
            dir.children.insert(name.into(), ino);
        }
    }

    /// Has two inodes that have names change places.
    pub(super) fn exchange(&mut self, one: u64, two: u64) {
        let places = [one, two].map(|ino| self.nodes.get(&ino).and_then(|node| node.place.clone()));
        let [Some(first), Some(second)] = places else { return };
        for (ino, (parent, name)) in [(one, second), (two, first)] {
            if let Some(dir) = self.dir_mut(parent) {
                dir.children.insert(name.clone(), ino);
            }
            let Some(node) = self.nodes.get_mut(&ino) else { continue };
            let kind = node.attr.kind;
            node.place = Some((parent, name.clone()));
            self.note_place(ino, parent, &name, kind);
        }
    }

    /// The kernel has got to know the inode once more.
    pub(super) fn add_lookup(&mut self, ino: u64) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.lookups += 1;
        }
    }

    /// The kernel forgets the inode `count` times.
    pub(super) fn forget(&mut self, ino: u64, count: u64) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.lookups = node.lookups.saturating_sub(count);
        }
        self.drop_if_unused(ino);
    }

    /// Drops an inode that neither the kernel, nor a handle, nor a child needs; then its directory, likewise.
    pub(super) fn drop_if_unused(&mut self, ino: u64) {
        let mut at = ino;
        while at != ROOT {
            let Some(node) = self.nodes.get(&at) else { return };
            let has_children = node.dir.as_ref().is_some_and(|d| !d.children.is_empty());
            if node.lookups > 0 || node.open.is_some() || node.pinned || has_children {
                return;
            }
            let place = self.nodes.remove(&at).and_then(|node| node.place);
            self.ledger.note(&Record::Dropped { ino: at });
            let Some((parent, name)) = place else { return };
            if let Some(dir) = self.dir_mut(parent) {
                dir.children.remove(&name);
            }
            at = parent;
        }
    }

    /// The listing of a directory, if it is younger than `ttl`.
    pub(super) fn fresh_listing(&self, ino: u64, ttl: Duration) -> Option<&Listing> {
        self.dir(ino)?.listing.as_ref().filter(|listing| listing.taken.elapsed() < ttl)
    }

    /// Notes in a directory that this mount changed it: `entry` is what the name is now, `None` where it is gone.
    pub(super) fn changed(&mut self, parent: u64, name: &str, entry: Option<Listed>) {
        let Some(dir) = self.dir_mut(parent) else { return };
        dir.changes += 1;
        if let Some(listing) = &mut dir.listing {
            match entry {
                Some(entry) => drop(listing.entries.insert(name.to_owned(), entry)),
                None => drop(listing.entries.remove(name)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    fn attr(ino: u64, kind: Kind) -> Attr {
        let at = SystemTime::UNIX_EPOCH;
        Attr { ino, kind, mode: 0, uid: 0, gid: 0, size: 0, mtime: at, atime: at, ctime: at, rdev: 0, nlink: 1 }
    }

    fn tree() -> Tree {
        let mut tree = Tree::new(attr(ROOT, Kind::Dir), 0, Arc::default());
        tree.insert(ROOT, "d", attr(10, Kind::Dir), None);
        tree.insert(10, "f", attr(11, Kind::File), None);
        tree
    }

    #[test]
    fn paths_follow_renames() {
        let mut tree = tree();
        assert_eq!(tree.path(11).as_deref(), Some("d/f"));
        tree.rename(10, ROOT, "e");
        assert_eq!(tree.path(11).as_deref(), Some("e/f"));
        assert_eq!(tree.child(ROOT, "d"), None);
        assert_eq!(tree.child_path(10, "g").as_deref(), Some("e/g"));
    }

    #[test]
    fn two_inodes_change_places() {
        let mut tree = tree();
        tree.insert(ROOT, "g", attr(12, Kind::File), None);
        tree.exchange(11, 12);
        assert_eq!((tree.path(11).as_deref(), tree.path(12).as_deref()), (Some("g"), Some("d/f")));
        assert_eq!((tree.child(10, "f"), tree.child(ROOT, "g")), (Some(12), Some(11)));
    }

    #[test]
    fn an_inode_lives_while_anything_needs_it() {
        let mut tree = tree();
        tree.add_lookup(11);
        tree.forget(10, 1);
        assert!(tree.node(10).is_some(), "its child is known");
        tree.forget(11, 1);
        assert!(tree.node(11).is_none());
        assert!(tree.node(10).is_none(), "nothing needs the directory any more");
        assert_eq!(tree.len(), 1);
    }

    #[test]
    fn an_unlinked_inode_has_no_path() {
        let mut tree = tree();
        tree.add_lookup(11);
        assert_eq!(tree.detach(10, "f"), Some(11));
        assert_eq!(tree.path(11), None);
        assert!(tree.node(11).is_some());
        tree.forget(11, 1);
        assert!(tree.node(11).is_none());
    }
}
