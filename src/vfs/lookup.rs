//! Look-ups and attributes: what stands at a name, at the least number of requests.
//!
//! A fresh listing of the directory answers for what is absent, and for all of a file's attributes where no
//! POSIX metadata is kept. Without one, HEAD of the file and LIST of the directory go side by side.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::attr::{Attr, Kind, Version};
use super::error::FsError;
use super::handles::OpenFile;
use super::tree::{Link, Listed, Node, ROOT, Tree};
use super::{Entry, Vfs};
use crate::base::ObjectKey;
use crate::base::key::check_name;
use crate::base::time::now;
use crate::ledger::Record;
use crate::oss::{self, ErrorKind, ListRequest, ObjectKind, ObjectMeta};
use crate::write::DirtyFile;

/// What the bucket has at a path.
struct Found {
    kind: Kind,
    version: Option<Version>,
    /// The object itself was looked at just now, not only a listing.
    asked: bool,
    link: Option<Link>,
}

impl Found {
    fn dir(version: Option<Version>) -> Self {
        Self { kind: Kind::Dir, version, asked: false, link: None }
    }

    /// What only a listing, or an earlier look, has told.
    fn listed(kind: Kind, version: Option<Version>) -> Self {
        Self { kind, version, asked: false, link: None }
    }
}

impl Vfs {
    /// Finds a name, if memory tells.
    pub fn lookup_now(&self, parent: u64, name: &str) -> Option<Result<Entry, FsError>> {
        let mut tree = self.tree.lock();
        if let Some(ino) = tree.child(parent, name)
            && let Some(entry) = tree.node(ino).and_then(|node| self.known(&tree, node))
        {
            tree.add_lookup(ino);
            return Some(Ok(entry));
        }
        let listed = tree.fresh_listing(parent, self.options.list_ttl)?.entries.get(name).cloned();
        let path = tree.child_path(parent, name)?;
        match listed {
            None => {
                drop(tree);
                let unsent = self.file_key(&path).ok().and_then(|key| self.write.session_for(&key));
                if unsent.is_some() { None } else { Some(Err(FsError::NotFound)) }
            }
            Some(Listed { kind, ino, version: Some(version) }) if !self.options.attr.posix => {
                if tree.child(parent, name).is_some() {
                    return None;
                }
                let attr = self.options.attr.attr_of(ino, kind, &version);
                tree.insert(parent, name, attr, Some(version));
                let node = tree.node_mut(ino)?;
                node.fresh_until = Some(self.attr_deadline());
                node.lookups += 1;
                Some(Ok(self.as_native(&tree, Entry { attr, ttl: self.options.attr_ttl })))
            }
            Some(_) => None,
        }
    }

    /// The attributes of an inode, where they need not be asked for.
    fn known(&self, tree: &Tree, node: &Node) -> Option<Entry> {
        let mut attr = node.attr;
        if node.place.is_none() && attr.ino != ROOT {
            attr.nlink = 0;
        }
        if let Some(dirty) = node.open.as_ref().and_then(|open| open.dirty()) {
            show_dirty(&mut attr, &dirty);
            let ttl = if dirty.may_meet() { Duration::ZERO } else { self.options.attr_ttl };
            return Some(Entry { attr, ttl });
        }
        if node.place.is_none() && attr.ino != ROOT {
            // The service has nothing of it, or it was taken up from an earlier process and not looked at since: that it
            // has lost its name is all that is known. Who came by the name looks again when told so.
            let is_gone = attr.kind == Kind::File && node.open.is_none() && node.fresh_until.is_none();
            return (!is_gone).then_some(Entry { attr, ttl: self.options.attr_ttl });
        }
        let left = node.fresh_until?.checked_duration_since(Instant::now())?;
        Some(self.as_native(tree, Entry { attr, ttl: left }))
    }

    /// Finds a name; asks the service where need be.
    pub async fn lookup(&self, parent: u64, name: &str) -> Result<Entry, FsError> {
        check_name(name)?;
        if let Some(known) = self.lookup_now(parent, name) {
            return known;
        }
        let ask = async { self.lookup_asking(parent, name).await.map(|entry| (entry, true)) };
        let remembered = || self.remembered_name(parent, name).map(|old| old.map(|entry| (entry, false)));
        let (entry, counted) = self.ask_or(ask, remembered).await?;
        if !counted {
            self.tree.lock().add_lookup(entry.attr.ino);
        }
        Ok(entry)
    }

    async fn lookup_asking(&self, parent: u64, name: &str) -> Result<Entry, FsError> {
        let known = self.tree.lock().child(parent, name);
        if let Some(ino) = known {
            self.see_again(ino).await?;
        }
        let found = loop {
            let path = self.child_path(parent, name)?;
            if let Ok(key) = self.file_key(&path)
                && let Some(dirty) = self.write.session_for(&key)
            {
                return Ok(self.adopt(parent, name, &dirty));
            }
            let found = self.find(parent, name, &path).await?;
            // A directory above that was moved meanwhile takes its names along.
            if self.child_path(parent, name)? == path {
                break found;
            }
        };
        match found {
            Some(found) => Ok(self.enter(parent, name, found, true)),
            None => {
                self.vanished(parent, name);
                Err(FsError::NotFound)
            }
        }
    }

    /// What the bucket has at a path. One page of the directory's listing tells as much as asking for the name
    /// twice (as a file, as a directory), and answers the next look-ups too; large directories are not listed.
    async fn find(&self, parent: u64, name: &str, path: &str) -> Result<Option<Found>, FsError> {
        let key = self.file_key(path)?;
        self.settled_at(&key).await?;
        self.list_if_small(parent).await?;
        let listed = {
            let tree = self.tree.lock();
            tree.fresh_listing(parent, self.options.list_ttl).map(|listing| listing.entries.get(name).cloned())
        };
        match listed {
            Some(None) => Ok(None),
            Some(Some(listed)) => self.find_listed(parent, name, path, &key, listed).await,
            None => self.find_unlisted(path, &key).await,
        }
    }

    async fn find_listed(
        &self,
        parent: u64,
        name: &str,
        path: &str,
        key: &ObjectKey,
        listed: Listed,
    ) -> Result<Option<Found>, FsError> {
        if listed.kind == Kind::Dir {
            return Ok(Some(Found::dir(self.marker(path).await?)));
        }
        let held = {
            let tree = self.tree.lock();
            tree.child(parent, name).and_then(|ino| {
                let node = tree.node(ino)?;
                Some((node.attr.kind, node.version.clone()?))
            })
        };
        let unchanged = held.filter(|(_, held)| {
            let complete = held.headers.is_some() || !self.options.attr.posix;
            complete && listed.version.as_ref().is_some_and(|listed| listed.same_state(held))
        });
        match unchanged {
            Some((kind, version)) => Ok(Some(Found::listed(kind, Some(version)))),
            None if !self.options.attr.posix && listed.version.is_some() => {
                Ok(Some(Found::listed(listed.kind, listed.version)))
            }
            None if listed.kind == Kind::Symlink && listed.version.as_ref().is_none_or(|v| v.headers.is_none()) => {
                self.find_link(key).await
            }
            None => match self.told_ahead(parent, name, key).await {
                Some(told) => self.file_of(key, Ok(told), false).await,
                None => self.find_file(key).await,
            },
        }
    }

    async fn find_file(&self, key: &ObjectKey) -> Result<Option<Found>, FsError> {
        let told = self.client.head_object(key).await;
        self.file_of(key, told, true).await
    }

    /// `now`: it was told just now.
    async fn file_of(
        &self,
        key: &ObjectKey,
        told: Result<ObjectMeta, oss::Error>,
        now: bool,
    ) -> Result<Option<Found>, FsError> {
        match told {
            Ok(meta) if meta.kind == ObjectKind::Symlink => self.find_link(key).await,
            Ok(meta) => {
                let kind = self.options.attr.kind_of(&meta.headers, meta.size);
                let asked = now && kind == Kind::File;
                Ok(Some(Found { kind, version: Some(Version::of(&meta)), asked, link: None }))
            }
            Err(error) if is_of_target(&error) => self.find_link(key).await,
            Err(error) if error.kind == ErrorKind::NoSuchKey => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// A symlink of the service. HEAD would show what it leads to.
    async fn find_link(&self, key: &ObjectKey) -> Result<Option<Found>, FsError> {
        match self.client.get_symlink(key).await {
            Ok((target, meta)) => Ok(Some(Found {
                kind: Kind::Symlink,
                version: Some(Version::of(&meta)),
                asked: false,
                link: Some(Link::Key(target.into())),
            })),
            Err(error) if error.kind == ErrorKind::NoSuchKey => Ok(None),
            // Another client has just put a file in its place.
            Err(error) if error.kind == ErrorKind::NotSymlink => Err(FsError::Stale),
            Err(error) => Err(error.into()),
        }
    }

    async fn find_unlisted(&self, path: &str, key: &ObjectKey) -> Result<Option<Found>, FsError> {
        let prefix = self.options.prefix.dir_key(path);
        let below = ListRequest { prefix: prefix.clone(), max_keys: 1, ..ListRequest::default() };
        let (file, dir) = tokio::join!(self.find_file(key), self.client.list_objects(&below));
        match dir?.entries.first() {
            Some(first) if first.key == prefix => Ok(Some(Found::dir(self.marker(path).await?))),
            Some(_) => Ok(Some(Found::dir(None))),
            None => file,
        }
    }

    /// What a directory's marker says; `None` where there is none, or nothing is wanted of it.
    async fn marker(&self, path: &str) -> Result<Option<Version>, FsError> {
        if !self.options.attr.posix {
            return Ok(None);
        }
        match self.client.head_object(&self.marker_key(path)?).await {
            Ok(meta) => Ok(Some(Version::of(&meta))),
            Err(error) if error.kind == ErrorKind::NoSuchKey => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Puts what was found into the table. An object that other handles have open in another version gets a new
    /// inode: two versions must not share the kernel's cache.
    fn enter(&self, parent: u64, name: &str, found: Found, count: bool) -> Entry {
        let mut tree = self.tree.lock();
        let held = tree.child(parent, name).and_then(|ino| tree.node(ino).map(|node| (ino, node)));
        let keep = held.and_then(|(ino, node)| {
            let same_kind = node.attr.kind == found.kind;
            let pinned = node.open.is_some()
                && node.version.as_ref().map(|v| &v.etag) != found.version.as_ref().map(|v| &v.etag);
            (same_kind && !pinned).then_some(ino)
        });
        if held.is_some() && keep.is_none() {
            tree.detach(parent, name);
        }
        let listed = tree.fresh_listing(parent, self.options.list_ttl).and_then(|l| l.entries.get(name).map(|e| e.ino));
        let ino = keep.or_else(|| listed.filter(|ino| tree.node(*ino).is_none())).unwrap_or_else(|| tree.new_ino());
        let attr = match &found.version {
            Some(version) => self.options.attr.attr_of(ino, found.kind, version),
            None => self.options.attr.default_attr(ino, found.kind, now()),
        };
        if keep.is_none() {
            tree.insert(parent, name, attr, found.version.clone());
        }
        let mut entry = Entry { attr, ttl: self.options.attr_ttl };
        let deadline = self.attr_deadline();
        if let Some(node) = tree.node_mut(ino) {
            if let Some(dirty) = node.open.as_ref().and_then(|open| open.dirty()) {
                entry.attr = node.attr;
                show_dirty(&mut entry.attr, &dirty);
            } else {
                let etag = |version: &Option<Version>| version.as_ref().map(|version| version.etag.clone());
                if found.link.is_some() || etag(&node.version) != etag(&found.version) {
                    node.link = found.link;
                }
                node.seen = found.asked.then(Instant::now);
                node.fresh_until = Some(deadline);
                // What is to be sent of its attributes is newer than what the object says.
                if node.pinned && etag(&node.version) == etag(&found.version) {
                    entry.attr = node.attr;
                } else {
                    (node.attr, node.version) = (attr, found.version);
                }
            }
            node.lookups += u64::from(count);
        }
        self.as_native(&tree, entry)
    }

    /// The service says that nothing stands at a name.
    fn vanished(&self, parent: u64, name: &str) {
        let mut tree = self.tree.lock();
        let Some(node) = tree.child(parent, name).and_then(|ino| tree.node_mut(ino)) else { return };
        if node.open.as_ref().is_none_or(|open| open.dirty().is_none()) {
            node.fresh_until = None;
            tree.detach(parent, name);
        }
    }

    /// Gives an inode to a file that an earlier process left unsent.
    fn adopt(&self, parent: u64, name: &str, dirty: &Arc<DirtyFile>) -> Entry {
        let mut tree = self.tree.lock();
        if tree.child(parent, name).is_some() {
            tree.detach(parent, name);
        }
        let ino = tree.new_ino();
        let attr = self.options.attr.default_attr(ino, Kind::File, dirty.mtime());
        let mut attr = self.attr_of_session(attr, dirty);
        tree.insert(parent, name, attr, None);
        let open = OpenFile::new(ino);
        open.state.lock().dirty = Some(dirty.clone());
        if let Some(node) = tree.node_mut(ino) {
            node.open = Some(open);
            node.lookups += 1;
        }
        drop(tree);
        self.sessions.lock().insert(dirty.id(), ino);
        self.ledger.note(&Record::Session { ino, session: Some(dirty.id()) });
        show_dirty(&mut attr, dirty);
        Entry { attr, ttl: Duration::ZERO }
    }

    /// Mode and owner as a session says that they will be published.
    pub(super) fn attr_of_session(&self, mut attr: Attr, dirty: &DirtyFile) -> Attr {
        let told = crate::base::posix::Attributes::read(&dirty.attributes().0.user_meta);
        if self.options.attr.posix {
            attr.mode = told.mode.map_or(attr.mode, |mode| mode & 0o7777);
            (attr.uid, attr.gid) = (told.uid.unwrap_or(attr.uid), told.gid.unwrap_or(attr.gid));
        }
        attr
    }

    /// An inode's attributes, if memory tells.
    pub fn getattr_now(&self, ino: u64) -> Option<Result<Entry, FsError>> {
        let tree = self.tree.lock();
        let Some(node) = tree.node(ino) else { return Some(Err(FsError::Stale)) };
        if ino == ROOT {
            return Some(Ok(Entry { attr: node.attr, ttl: self.options.attr_ttl }));
        }
        self.known(&tree, node).map(Ok)
    }

    /// An inode's attributes; asks the service where need be.
    pub async fn getattr(&self, ino: u64) -> Result<Entry, FsError> {
        if let Some(known) = self.getattr_now(ino) {
            return known;
        }
        self.ask_or(self.getattr_asking(ino), || self.remembered_inode(ino)).await
    }

    async fn getattr_asking(&self, ino: u64) -> Result<Entry, FsError> {
        self.see_again(ino).await?;
        let (parent, name, found) = loop {
            let (parent, name, path) = self.place(ino)?;
            let found = self.find(parent, &name, &path).await?;
            if self.place(ino)?.2 == path {
                break (parent, name, found);
            }
        };
        match found {
            Some(found) => {
                let entry = self.enter(parent, &name, found, false);
                if entry.attr.ino == ino { Ok(entry) } else { Err(FsError::Stale) }
            }
            None => {
                self.vanished(parent, &name);
                Err(FsError::NotFound)
            }
        }
    }

    /// Where an inode is: its directory, its name there, and its path.
    pub(super) fn place(&self, ino: u64) -> Result<(u64, String, String), FsError> {
        let tree = self.tree.lock();
        let (parent, name) = tree.node(ino).ok_or(FsError::Stale)?.place.as_ref().ok_or(FsError::Stale)?;
        let path = tree.path(ino).ok_or(FsError::Stale)?;
        Ok((*parent, name.to_string(), path))
    }
}

/// Whether an error is about what a symlink of the service leads to.
fn is_of_target(error: &crate::oss::Error) -> bool {
    matches!(error.code.as_deref(), Some("SymlinkTargetNotExist" | "InvalidTargetType"))
}

/// Shows the size and times of a file as it is written.
pub(super) fn show_dirty(attr: &mut Attr, dirty: &DirtyFile) {
    attr.size = dirty.size();
    attr.mtime = dirty.mtime();
    attr.ctime = dirty.ctime();
}
