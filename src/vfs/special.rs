//! Objects that stand at once when they are made: special files, symlinks, and what mknod(2) makes.

use bytes::Bytes;

use super::attr::{Attr, Kind, Version};
use super::call::Call;
use super::error::FsError;
use super::tree::{Link, Listed};
use super::{Entry, Vfs};
use crate::base::ObjectKey;
use crate::base::key::check_name;
use crate::base::time::now;
use crate::ledger::Effect;
use crate::oss::{self, Body, ErrorKind, Outcome, PutHeaders, PutReceipt};

/// An object to be, and the inode that shows it.
pub(super) struct NewObject {
    pub attr: Attr,
    pub headers: PutHeaders,
    pub body: Bytes,
    pub link: Option<Link>,
}

impl Vfs {
    /// Makes a file, fifo, socket or device, which stands in the bucket when this returns.
    ///
    /// # Errors
    /// `NotPermitted` for all but files where no metadata are kept: nothing else would tell them from files.
    pub async fn mknod(
        &self,
        call: Call,
        parent: u64,
        name: &str,
        mode: u32,
        rdev: u32,
        owner: (u32, u32),
    ) -> Result<Entry, FsError> {
        self.check_writable()?;
        let kind = Kind::of_mode(mode).ok_or(FsError::Invalid)?;
        if matches!(kind, Kind::Dir | Kind::Symlink) {
            return Err(FsError::Invalid);
        }
        if kind.is_special() && !self.options.attr.posix {
            return Err(FsError::NotPermitted);
        }
        let rdev = if matches!(kind, Kind::CharDevice | Kind::BlockDevice) { rdev } else { 0 };
        let attr = Attr { kind, rdev, ..self.new_special_attr(mode, owner) };
        let mut headers = self.options.attr.new_special_headers(&attr);
        if kind == Kind::File {
            headers.content_type = self.options.attr.new_file_headers(name, &attr).content_type;
        }
        self.put_new(call, parent, name, NewObject { attr, headers, body: Bytes::new(), link: None }).await
    }

    pub(super) fn new_special_attr(&self, mode: u32, owner: (u32, u32)) -> Attr {
        let at = now();
        Attr { mtime: at, atime: at, ctime: at, ..self.new_attr(mode, owner) }
    }

    /// Refuses a name that is taken, or that cannot be one. Once a request has passed this and begun, what is found
    /// at the name is its own doing.
    pub(super) async fn check_free(&self, call: Call, parent: u64, name: &str) -> Result<(), FsError> {
        check_name(name)?;
        if self.was_begun(call) {
            return Ok(());
        }
        match self.lookup(parent, name).await {
            Ok(entry) => {
                self.forget(entry.attr.ino, 1);
                Err(FsError::Exists)
            }
            Err(FsError::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Puts a new object under a free name, and its inode into the table.
    pub(super) async fn put_new(&self, call: Call, parent: u64, name: &str, new: NewObject) -> Result<Entry, FsError> {
        if let Some(made) = self.made_before(call).await {
            return made;
        }
        self.check_free(call, parent, name).await?;
        let (path, _change) = self.hold_place(parent, name).await?;
        let key = self.file_key(&path)?;
        if key.has_dot_segment() {
            return Err(FsError::Invalid);
        }
        let NewObject { attr, headers, body, link } = new;
        let size = body.len() as u64;
        self.begin(call);
        // What stands there, if the request had begun, is its own.
        let sent = PutHeaders { forbid_overwrite: !self.was_begun(call), ..headers.clone() };
        let receipt = match self.client.put_object(&key, &Body::Bytes(body), &sent).await {
            Err(error) if error.kind == ErrorKind::AlreadyExists => self.met(&key, error, size, &headers).await?,
            other => other?,
        };
        let version = Version {
            etag: receipt.etag,
            size,
            crc64: receipt.crc64,
            last_modified: super::settle::whole_seconds(receipt.date.unwrap_or(attr.mtime)),
            headers: Some(Box::new(headers)),
        };
        let entry = self.enter_new(parent, name, attr, Some(version), link);
        self.done(call, Effect::Entry(entry.attr.ino));
        Ok(entry)
    }

    /// Something stands at a name that was taken for free: another client's, or, where the reply to a first try was
    /// lost, what was to be put there.
    async fn met(
        &self,
        key: &ObjectKey,
        error: oss::Error,
        size: u64,
        headers: &PutHeaders,
    ) -> Result<PutReceipt, FsError> {
        if error.outcome == Outcome::Unknown {
            let found = self.client.head_object(key).await?;
            if found.size == size && found.headers.user_meta == headers.user_meta {
                return Ok(PutReceipt { etag: found.etag, date: Some(found.last_modified), crc64: found.crc64 });
            }
        }
        self.published_unseen(key);
        Err(FsError::Exists)
    }

    /// Puts the inode of an object that was made just now into the table, counted as a look-up.
    pub(super) fn enter_new(
        &self,
        parent: u64,
        name: &str,
        new: Attr,
        version: Option<Version>,
        link: Option<Link>,
    ) -> Entry {
        let deadline = self.attr_deadline();
        let mut tree = self.tree.lock();
        tree.detach(parent, name);
        let attr = Attr { ino: tree.new_ino(), ..new };
        tree.insert(parent, name, attr, version.clone());
        tree.changed(parent, name, Some(Listed { kind: attr.kind, ino: attr.ino, version }));
        if let Some(node) = tree.node_mut(attr.ino) {
            (node.fresh_until, node.link) = (Some(deadline), link);
            node.lookups += 1;
        }
        self.as_native(&tree, Entry { attr, ttl: self.options.attr_ttl })
    }
}
