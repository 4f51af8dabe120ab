//! Making and removing names: mkdir, rmdir, unlink.

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::Bytes;

use super::attr::{Attr, DIR_SIZE, Kind, Version};
use super::call::Call;
use super::error::FsError;
use super::tree::{Listed, Listing};
use super::{Entry, Vfs};
use crate::base::time::now;
use crate::ledger::Effect;
use crate::oss::{Body, ListRequest};
use crate::upload::headers_of;

impl Vfs {
    /// Makes a directory: its marker object stands when this returns.
    pub async fn mkdir(
        &self,
        call: Call,
        parent: u64,
        name: &str,
        mode: u32,
        owner: (u32, u32),
    ) -> Result<Entry, FsError> {
        self.check_writable()?;
        if let Some(made) = self.made_before(call).await {
            return made;
        }
        self.check_free(call, parent, name).await?;
        let (path, _change) = self.hold_place(parent, name).await?;
        self.begin(call);
        let at = now();
        let new = self.new_attr(mode, owner);
        let mode = if self.options.attr.posix { new.mode } else { self.options.attr.dir_mode };
        let mut attr = Attr { kind: Kind::Dir, size: DIR_SIZE, nlink: 2, mode, mtime: at, atime: at, ctime: at, ..new };
        let headers = headers_of(&self.options.attr.new_dir_headers(&attr));
        let receipt = self.client.put_object(&self.marker_key(&path)?, &Body::Bytes(Bytes::new()), &headers).await?;
        let version = Version {
            etag: receipt.etag,
            size: 0,
            crc64: receipt.crc64,
            last_modified: at,
            headers: Some(Box::new(headers)),
        };
        let deadline = self.attr_deadline();
        let mut tree = self.tree.lock();
        tree.detach(parent, name);
        attr.ino = tree.new_ino();
        tree.insert(parent, name, attr, Some(version));
        tree.changed(parent, name, Some(Listed { kind: Kind::Dir, ino: attr.ino, version: None }));
        if let Some(node) = tree.node_mut(attr.ino) {
            node.fresh_until = Some(deadline);
            node.lookups += 1;
            if let Some(dir) = &mut node.dir {
                // It was made just now, so what it holds is known: nothing.
                dir.listing = Some(Listing { entries: BTreeMap::new(), taken: Instant::now() });
            }
        }
        drop(tree);
        self.done(call, Effect::Entry(attr.ino));
        Ok(Entry { attr, ttl: self.options.attr_ttl })
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, call: Call, parent: u64, name: &str) -> Result<(), FsError> {
        self.check_writable()?;
        if self.was_done(call) {
            return Ok(());
        }
        let Some((ino, kind)) = self.resolve_removed(call, parent, name).await? else { return Ok(()) };
        if kind != Kind::Dir {
            return Err(FsError::NotDirectory);
        }
        let (path, _fence) = self.fence_place(parent, name).await?;
        self.check_empty(ino, &path).await?;
        self.begin(call);
        self.client.delete_object(&self.marker_key(&path)?).await?;
        self.delete_folder_object(&path).await?;
        self.took_away(call, parent, name);
        Ok(())
    }

    /// A name is gone.
    fn took_away(&self, call: Call, parent: u64, name: &str) {
        {
            let mut tree = self.tree.lock();
            tree.detach(parent, name);
            tree.changed(parent, name, None);
        }
        self.done(call, Effect::Nothing);
    }

    /// Refuses a directory that holds anything, sent or unsent.
    pub(super) async fn check_empty(&self, ino: u64, path: &str) -> Result<(), FsError> {
        let prefix = self.options.prefix.dir_key(path);
        let unsent = self
            .write
            .live()
            .iter()
            .filter_map(|file| file.publishable_key())
            .any(|key| key.as_str().starts_with(&prefix));
        let listed = {
            let tree = self.tree.lock();
            let listing = tree.fresh_listing(ino, self.options.list_ttl);
            listing.is_some_and(|listing| !listing.entries.is_empty())
        };
        if unsent || listed {
            return Err(FsError::NotEmpty);
        }
        let request = ListRequest { prefix: prefix.clone(), max_keys: 2, ..ListRequest::default() };
        let page = self.client.list_objects(&request).await?;
        if page.entries.iter().any(|entry| entry.key != prefix) { Err(FsError::NotEmpty) } else { Ok(()) }
    }

    /// Removes a file. One that is open lives on without a name until its last handle is gone.
    pub async fn unlink(&self, call: Call, parent: u64, name: &str) -> Result<(), FsError> {
        self.check_writable()?;
        if self.was_done(call) {
            return Ok(());
        }
        let Some((ino, kind)) = self.resolve_removed(call, parent, name).await? else { return Ok(()) };
        if kind == Kind::Dir {
            return Err(FsError::IsDirectory);
        }
        let (path, _fence) = self.fence_place(parent, name).await?;
        let key = self.file_key(&path)?;
        self.begin(call);
        let parting = self.part(ino, &key).await?;
        if parting.is_sent() {
            // A session that came back after power loss would be published again.
            self.write.spill().settle_ends().await?;
        }
        if parting.is_sent()
            && let Err(error) = self.client.delete_object(&key).await
        {
            self.rejoin(parting).await;
            return Err(error.into());
        }
        self.parted(parting).await?;
        self.drop_attributes(ino);
        self.took_away(call, parent, name);
        Ok(())
    }

    /// The inode and kind of a name that is to go; `None` where a process before this one has removed it for the same
    /// request, and did not live to say so.
    async fn resolve_removed(&self, call: Call, parent: u64, name: &str) -> Result<Option<(u64, Kind)>, FsError> {
        match self.resolve(parent, name).await {
            Err(FsError::NotFound) if self.was_begun(call) => {
                self.done(call, Effect::Nothing);
                Ok(None)
            }
            found => found.map(Some),
        }
    }

    /// The inode and kind of a name, without counting a look-up.
    pub(super) async fn resolve(&self, parent: u64, name: &str) -> Result<(u64, Kind), FsError> {
        let known = {
            let tree = self.tree.lock();
            tree.child(parent, name).and_then(|ino| tree.node(ino).map(|node| (ino, node.attr.kind)))
        };
        if let Some(known) = known {
            return Ok(known);
        }
        let entry = self.lookup(parent, name).await?;
        // The look-up keeps the inode in the table; the kernel was not told of it.
        let mut tree = self.tree.lock();
        if let Some(node) = tree.node_mut(entry.attr.ino) {
            node.lookups = node.lookups.saturating_sub(1);
        }
        Ok((entry.attr.ino, entry.attr.kind))
    }
}
