//! Listing directories: pages of the bucket merged with what has not been sent yet.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::Vfs;
use super::attr::{Kind, Version};
use super::call::Call;
use super::error::FsError;
use super::handles::Snapshot;
use super::tree::{Listed, Listing, ROOT};
use crate::base::caller::wait;
use crate::base::limits::PAGE_MAX;
use crate::base::posix::LINK_BODY_BYTES_MAX;
use crate::ledger::Record;
use crate::oss::{self, ListPage, ListRequest, ObjectKind};

/// A listing across which this mount changed the directory is taken again, so often.
const LISTING_TRIES: u32 = 3;

/// Ending of the empty objects by which Hadoop's older file systems note directories.
const FOLDER_SUFFIX: &str = "_$folder$";
/// Such objects that are remembered, to be deleted with their directory.
const FOLDER_OBJECTS_MAX: usize = 100_000;

/// Names, inodes, and kinds where they are known.
type Entries = Vec<(String, u64, Option<Kind>)>;

impl Vfs {
    pub fn opendir(&self, call: Call, ino: u64) -> Result<u64, FsError> {
        if let Some(fh) = self.remembered(call).handle {
            return Ok(fh);
        }
        match self.tree.lock().node(ino) {
            Some(node) if node.attr.kind == Kind::Dir => {}
            Some(_) => return Err(FsError::NotDirectory),
            None => return Err(FsError::Stale),
        }
        let fh = self.handles.add_dir(ino);
        self.ledger.note(&Record::DirOpened { unique: call.unique(), fh, ino });
        Ok(fh)
    }

    pub fn releasedir(&self, fh: u64) {
        self.handles.remove_dir(fh);
        self.ledger.note(&Record::DirClosed { fh });
    }

    /// Notes the entries that an answer tells, from `offset` on: another process resumes by their names.
    pub fn listed(&self, fh: u64, offset: u64, entries: &[(String, u64, Option<Kind>)]) {
        if !entries.is_empty() {
            let names = entries.iter().map(|(name, ..)| name.as_str().into()).collect();
            self.ledger.note(&Record::Listed { fh, first: offset, names });
        }
    }

    /// The entries of an open directory. They are taken anew when reading begins at `offset` 0, and stay as they
    /// were for the rest of it.
    pub async fn readdir(&self, fh: u64, offset: u64) -> Result<Snapshot, FsError> {
        let handle = self.handles.dir(fh)?;
        if offset > 0
            && let Some(snapshot) = handle.snapshot.lock().clone()
        {
            return Ok(snapshot);
        }
        let mut entries = self.entries(handle.ino).await?;
        if offset > 0 && !handle.told.is_empty() {
            entries = self.resumed(&handle.told, entries);
        }
        let snapshot = Arc::new(entries);
        *handle.snapshot.lock() = Some(snapshot.clone());
        Ok(snapshot)
    }

    /// The entries of a directory that was being read from an earlier process: those that were told, at the offsets at
    /// which they were told, then what comes behind the last of them.
    fn resumed(&self, told: &[Box<str>], entries: Entries) -> Entries {
        let mut known: BTreeMap<String, (u64, Option<Kind>)> =
            entries.into_iter().map(|(name, ino, kind)| (name, (ino, kind))).collect();
        let mut resumed = Entries::with_capacity(told.len());
        for name in told {
            // One that has gone since holds its place.
            let (ino, kind) = known.remove(&**name).unwrap_or_else(|| (self.tree.lock().new_ino(), Some(Kind::File)));
            resumed.push((name.to_string(), ino, kind));
        }
        let last = told.last().map_or("", |name| name);
        // These two come first, whatever their place among the names.
        let is_behind = |name: &str| matches!(last, "." | "..") || name > last;
        resumed
            .extend(known.into_iter().filter(|(name, _)| is_behind(name)).map(|(name, (ino, kind))| (name, ino, kind)));
        resumed
    }

    /// Entries of a directory, `.` and `..` first.
    async fn entries(&self, ino: u64) -> Result<Entries, FsError> {
        let has_listing = || self.tree.lock().dir(ino).and_then(|dir| dir.listing.as_ref()).map(|_| Ok(()));
        self.ask_or(self.list(ino), has_listing).await?;
        let path = self.tree.lock().path(ino).ok_or(FsError::NotFound)?;
        let dir_key = self.options.prefix.dir_key(&path);
        let unsent = self.write.live();
        let mut tree = self.tree.lock();
        let parent = tree.node(ino).and_then(|node| node.place.as_ref()).map_or(ROOT, |(parent, _)| *parent);
        let mut names: BTreeMap<String, (u64, Option<Kind>)> = BTreeMap::new();
        let dir = tree.dir(ino).ok_or(FsError::NotDirectory)?;
        for (name, listed) in dir.listing.iter().flat_map(|listing| &listing.entries) {
            names.insert(name.clone(), (listed.ino, self.kind_listed(listed)));
        }
        let children: Vec<(String, u64)> = dir.children.iter().map(|(name, ino)| (name.to_string(), *ino)).collect();
        for (name, child) in children {
            let Some(node) = tree.node(child) else { continue };
            let listed = dir.listing.as_ref().and_then(|listing| listing.entries.get(&name));
            if node.open.as_ref().is_some_and(|open| open.dirty().is_some()) {
                names.insert(name, (child, Some(node.attr.kind)));
            } else if let Some(listed) = listed {
                let same = match (&listed.version, &node.version) {
                    (Some(listed), Some(known)) => listed.same_state(known),
                    _ => true,
                };
                let kind = if same { Some(node.attr.kind) } else { self.kind_listed(listed) };
                names.insert(name, (child, kind));
            }
        }
        for key in unsent.iter().filter_map(|file| file.publishable_key()) {
            let name = key.as_str().strip_prefix(&dir_key).filter(|name| !name.is_empty() && !name.contains('/'));
            if let Some(name) = name.filter(|name| !names.contains_key(*name)) {
                names.insert(name.to_owned(), (tree.new_ino(), Some(Kind::File)));
            }
        }
        let mut entries = vec![(".".to_owned(), ino, Some(Kind::Dir)), ("..".to_owned(), parent, Some(Kind::Dir))];
        entries.extend(names.into_iter().map(|(name, (ino, kind))| (name, ino, kind)));
        Ok(entries)
    }

    /// The kind of an entry; `None` where only the object's metadata can tell.
    fn kind_listed(&self, listed: &Listed) -> Option<Kind> {
        let unseen = listed.version.as_ref().is_some_and(|version| {
            version.headers.is_none() && version.size <= LINK_BODY_BYTES_MAX && self.options.attr.posix
        });
        (listed.kind != Kind::File || !unseen).then_some(listed.kind)
    }

    /// Makes sure that a fresh listing of the directory is in the table.
    pub(super) async fn list(&self, ino: u64) -> Result<(), FsError> {
        self.list_up_to(ino, u32::MAX).await.map(drop)
    }

    /// The same for a directory that fits in one page; one that does not is remembered, and not listed.
    pub(super) async fn list_if_small(&self, ino: u64) -> Result<(), FsError> {
        if self.options.list_ttl.is_zero() || self.tree.lock().dir(ino).is_none_or(|dir| dir.large) {
            return Ok(());
        }
        let small = self.list_up_to(ino, 1).await?;
        if let Some(dir) = self.tree.lock().dir_mut(ino) {
            dir.large = !small;
        }
        Ok(())
    }

    /// Lists a directory of at most so many pages; whether it has no more.
    async fn list_up_to(&self, ino: u64, pages: u32) -> Result<bool, FsError> {
        let gate = self.tree.lock().dir(ino).ok_or(FsError::Stale)?.listing_gate.clone();
        let _one = wait(gate.lock()).await?;
        for attempt in 1..=LISTING_TRIES {
            let (path, changes) = {
                let tree = self.tree.lock();
                if tree.fresh_listing(ino, self.options.list_ttl).is_some() {
                    return Ok(true);
                }
                let changes = tree.dir(ino).ok_or(FsError::Stale)?.changes;
                (tree.path(ino).ok_or(FsError::NotFound)?, changes)
            };
            let taken = Instant::now();
            let Some(found) = self.list_pages(&self.options.prefix.dir_key(&path), pages).await? else {
                return Ok(false);
            };
            let mut tree = self.tree.lock();
            let listing = self.make_listing(&mut tree, ino, found, taken);
            let Some(dir) = tree.dir_mut(ino) else { return Err(FsError::Stale) };
            if dir.changes == changes || attempt == LISTING_TRIES {
                dir.listing = Some(listing);
            }
        }
        Ok(true)
    }

    fn make_listing(
        &self,
        tree: &mut super::tree::Tree,
        ino: u64,
        found: BTreeMap<String, (Kind, Option<Version>)>,
        taken: Instant,
    ) -> Listing {
        let mut entries = BTreeMap::new();
        for (name, (kind, version)) in found {
            let known = tree
                .child(ino, &name)
                .filter(|child| tree.node(*child).is_some_and(|n| (n.attr.kind == Kind::Dir) == (kind == Kind::Dir)));
            let listed =
                tree.dir(ino).and_then(|dir| dir.listing.as_ref()).and_then(|l| l.entries.get(&name)).map(|l| l.ino);
            let number = known.or(listed).unwrap_or_else(|| tree.new_ino());
            entries.insert(name, Listed { kind, ino: number, version });
        }
        Listing { entries, taken }
    }

    /// Asks for the first page of the root, as a look whether the bucket answers; a root that fits in it is listed.
    ///
    /// # Errors
    /// The service's: bad credentials, a missing bucket, …
    pub async fn probe(&self) -> Result<(), oss::Error> {
        let prefix = self.options.prefix.dir_key("");
        let request = page_request(&prefix, None);
        let taken = Instant::now();
        let page = self.client.list_objects(&request).await?;
        if page.next_token.is_none() {
            let mut found = BTreeMap::new();
            self.take_page(page, &prefix, &mut found);
            let mut tree = self.tree.lock();
            let listing = self.make_listing(&mut tree, ROOT, found, taken);
            if let Some(dir) = tree.dir_mut(ROOT) {
                dir.listing = Some(listing);
            }
        }
        Ok(())
    }

    /// The entries under a prefix; `None` where they are more than so many pages.
    async fn list_pages(
        &self,
        prefix: &str,
        pages: u32,
    ) -> Result<Option<BTreeMap<String, (Kind, Option<Version>)>>, FsError> {
        let mut found = BTreeMap::new();
        let mut token = None;
        for _ in 0..pages {
            let request = page_request(prefix, token);
            let page = self.client.list_objects(&request).await?;
            token = page.next_token.clone();
            self.take_page(page, prefix, &mut found);
            if token.is_none() {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Adds a page to the entries; keys that no path can carry are counted and left out.
    fn take_page(&self, page: ListPage, prefix: &str, found: &mut BTreeMap<String, (Kind, Option<Version>)>) {
        for entry in page.entries {
            if entry.key == prefix {
                // The directory's own marker.
                continue;
            }
            let Some(name) = self.shown_name(&entry.key, prefix) else { continue };
            if let Some(dir) = folder_of(&name).filter(|_| entry.size == 0) {
                self.remember_folder_object(&entry.key);
                found.insert(dir.to_owned(), (Kind::Dir, None));
                continue;
            }
            let kind = if entry.kind == ObjectKind::Symlink { Kind::Symlink } else { Kind::File };
            let version = Version {
                etag: entry.etag,
                size: entry.size,
                crc64: None,
                last_modified: entry.last_modified,
                headers: None,
            };
            // `a` beside `a/…`: the directory is shown.
            found.entry(name).or_insert((kind, Some(version)));
        }
        for common in page.common_prefixes {
            let Some(name) = self.shown_name(&common, prefix) else { continue };
            let before = found.insert(name, (Kind::Dir, None));
            if before.is_some_and(|(kind, _)| kind != Kind::Dir) {
                self.hide(&common);
            }
        }
    }

    fn remember_folder_object(&self, key: &str) {
        let mut known = self.folder_objects.lock();
        if known.len() < FOLDER_OBJECTS_MAX {
            known.insert(key.to_owned());
        }
    }

    /// Deletes the Hadoop form of a directory's object, where a listing has shown one.
    pub(super) async fn delete_folder_object(&self, path: &str) -> Result<(), FsError> {
        let key = self.file_key(&format!("{path}{FOLDER_SUFFIX}"));
        let Some(key) = key.ok().filter(|key| self.folder_objects.lock().contains(key.as_str())) else { return Ok(()) };
        self.client.delete_object(&key).await?;
        self.folder_objects.lock().remove(key.as_str());
        Ok(())
    }

    fn shown_name(&self, key: &str, prefix: &str) -> Option<String> {
        if key.strip_prefix(self.options.prefix.as_str()) == Some(crate::base::limits::PRIVATE_DIR) {
            return None;
        }
        match self.options.prefix.path_of(key) {
            Some(_) => key.strip_prefix(prefix).map(|name| name.trim_end_matches('/').to_owned()),
            None => {
                self.hide(key);
                None
            }
        }
    }

    fn hide(&self, key: &str) {
        if self.hidden.fetch_add(1, Ordering::Relaxed) == 0 {
            log::warn!("{key:?} cannot be shown as a path; such keys are hidden and counted in `status`");
        }
    }
}

/// The directory that an empty object of this name stands for.
fn folder_of(name: &str) -> Option<&str> {
    name.strip_suffix(FOLDER_SUFFIX).filter(|dir| !dir.is_empty())
}

/// One page of a directory.
fn page_request(prefix: &str, continuation_token: Option<String>) -> ListRequest {
    ListRequest {
        prefix: prefix.to_owned(),
        delimiter: Some("/".into()),
        continuation_token,
        max_keys: PAGE_MAX,
        ..ListRequest::default()
    }
}
