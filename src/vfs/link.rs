//! Symlinks: how their targets are kept, and where they lead.
//!
//! All three forms are read wherever they are met: the target as the object's body, in its metadata, or a symlink of
//! the service. That last names a key of the bucket, not a path: the text that `readlink` shows is made from it and
//! from the place of the link, so it changes when the link moves, and leads to the same object.

use std::time::Duration;

use bytes::Bytes;

use super::attr::{Attr, Kind};
use super::call::Call;
use super::error::FsError;
use super::io::meta_of;
use super::special::NewObject;
use super::tree::{Link, Tree};
use super::{Entry, Vfs};
use crate::base::posix::{LINK_BODY_BYTES_MAX, LinkHeader};
use crate::base::{ByteRange, KeyError, ObjectKey};
use crate::ledger::Effect;

/// How new symlinks are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkForm {
    /// The target is the object's body.
    Body,
    /// The target is in the object's metadata.
    Meta,
    /// A symlink of the service.
    Native,
}

impl Vfs {
    /// Makes a symlink: its object stands when this returns.
    ///
    /// # Errors
    /// `NotPermitted` where no metadata are kept, and the link would have to be told by them.
    pub async fn symlink(
        &self,
        call: Call,
        parent: u64,
        name: &str,
        target: &[u8],
        (uid, gid): (u32, u32),
    ) -> Result<Entry, FsError> {
        self.check_writable()?;
        let new = Attr {
            kind: Kind::Symlink,
            mode: 0o777,
            size: target.len() as u64,
            ..self.new_special_attr(0, (uid, gid))
        };
        if self.options.links == LinkForm::Native {
            return self.symlink_native(call, parent, name, target, new).await;
        }
        if !self.options.attr.posix {
            return Err(FsError::NotPermitted);
        }
        let mut headers = self.options.attr.new_special_headers(&new);
        let mut body = Bytes::copy_from_slice(target);
        if self.options.links == LinkForm::Meta
            && let LinkHeader::Target(_) = LinkHeader::write(target, &mut headers.user_meta)
        {
            body = Bytes::new();
        }
        let link = Some(Link::Text(target.into()));
        self.put_new(call, parent, name, NewObject { attr: new, headers, body, link }).await
    }

    async fn symlink_native(
        &self,
        call: Call,
        parent: u64,
        name: &str,
        target: &[u8],
        new: Attr,
    ) -> Result<Entry, FsError> {
        if let Some(made) = self.made_before(call).await {
            return made;
        }
        self.check_free(call, parent, name).await?;
        let (path, _change) = self.hold_place(parent, name).await?;
        let target = std::str::from_utf8(target).map_err(|_| FsError::Name(KeyError::NotUtf8))?;
        let below = native_path(&path, target).ok_or(FsError::Invalid)?;
        let target = self.file_key(&below)?;
        let key = self.file_key(&path)?;
        self.begin(call);
        self.client.put_symlink(&key, target.as_str(), &self.options.attr.new_special_headers(&new)).await?;
        // The reply tells no ETag: the version is not known until somebody asks.
        let entry = self.enter_new(parent, name, new, None, Some(Link::Key(target.as_str().into())));
        self.done(call, Effect::Entry(entry.attr.ino));
        Ok(entry)
    }

    /// Where a symlink leads, as text.
    ///
    /// # Errors
    /// `Invalid` where its object holds no target that a path can say.
    pub async fn readlink(&self, ino: u64) -> Result<Vec<u8>, FsError> {
        let attr = self.getattr(ino).await?.attr;
        if attr.kind != Kind::Symlink {
            return Err(FsError::Invalid);
        }
        let (path, link) = {
            let tree = self.tree.lock();
            let link = tree.node(ino).and_then(|node| node.link.clone());
            (tree.path(ino).ok_or(FsError::Stale)?, link)
        };
        let link = match link {
            Some(link) => link,
            None => {
                let link = self.fetch_link(ino, &self.file_key(&path)?).await?;
                if let Some(node) = self.tree.lock().node_mut(ino) {
                    node.link = Some(link.clone());
                }
                link
            }
        };
        match link {
            Link::Text(text) => Ok(text.into_vec()),
            Link::Key(key) => self.native_text(&path, &key).ok_or(FsError::Invalid),
        }
    }

    async fn fetch_link(&self, ino: u64, key: &ObjectKey) -> Result<Link, FsError> {
        let version = self.tree.lock().node(ino).and_then(|node| node.version.clone());
        let Some((version, headers)) = version
            .and_then(|mut version| Some((version.headers.take()?, version)))
            .map(|(headers, version)| (version, headers))
        else {
            // Only a listing has told of it, so it is one of the service's.
            let (target, _) = self.client.get_symlink(key).await?;
            return Ok(Link::Key(target.into()));
        };
        if let Some(LinkHeader::Target(target)) = LinkHeader::read(&headers.user_meta) {
            return Ok(Link::Text(target.into()));
        }
        if version.size == 0 || version.size > LINK_BODY_BYTES_MAX {
            return Err(FsError::Invalid);
        }
        let meta = meta_of(version.etag, version.size, version.crc64, version.last_modified);
        let body = self.read.reader(key.clone(), &meta).fetch_exact(ByteRange::new(0, version.size)).await?;
        if body.contains(&0) { Err(FsError::Invalid) } else { Ok(Link::Text(body.as_ref().into())) }
    }

    /// What `readlink` shows of a symlink of the service at `path` (as ossfs 2 does).
    fn native_text(&self, path: &str, key: &str) -> Option<Vec<u8>> {
        let below = key.strip_prefix(self.options.prefix.as_str())?;
        let inner = below.strip_suffix('/').unwrap_or(below);
        if inner.split('/').any(|name| crate::base::key::check_name(name).is_err()) {
            return None;
        }
        Some(format!("{}{below}", "../".repeat(depth(path))).into_bytes())
    }

    /// The attributes of a symlink of the service: its size hangs on its place, so the kernel may not keep it; other
    /// entries stay as they are.
    pub(super) fn as_native(&self, tree: &Tree, mut entry: Entry) -> Entry {
        if let Some(size) = self.native_size(tree, entry.attr.ino) {
            (entry.attr.size, entry.ttl) = (size, Duration::ZERO);
        }
        entry
    }

    fn native_size(&self, tree: &Tree, ino: u64) -> Option<u64> {
        let node = tree.node(ino).filter(|node| node.attr.kind == Kind::Symlink)?;
        let stored = match (&node.link, &node.version) {
            (Some(Link::Key(key)), _) => key.len(),
            (None, Some(version)) if version.headers.is_none() => version.size as usize,
            _ => return None,
        };
        let path = tree.path(ino)?;
        Some((stored.saturating_sub(self.options.prefix.as_str().len()) + 3 * depth(&path)) as u64)
    }
}

/// Directories above a path.
fn depth(path: &str) -> usize {
    path.matches('/').count()
}

/// The path, from the root of the mount, that a link at `path` with a relative `target` leads to; `None` where it
/// is absolute, leaves the mount, or is the root itself.
fn native_path(path: &str, target: &str) -> Option<String> {
    if target.starts_with('/') {
        return None;
    }
    let mut names: Vec<&str> = path.split('/').collect();
    names.pop();
    for name in target.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                names.pop()?;
            }
            name => names.push(name),
        }
    }
    let slash = if target.ends_with('/') { "/" } else { "" };
    (!names.is_empty()).then(|| format!("{}{slash}", names.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_native_target_is_a_key_inside_the_mount() {
        let path = |target| native_path("d/e/link", target);
        assert_eq!(path("x").as_deref(), Some("d/e/x"));
        assert_eq!(path("../../a/./b/").as_deref(), Some("a/b/"));
        assert_eq!(path("..").as_deref(), Some("d"));
        for outside in ["/x", "../../../x", "../.."] {
            assert_eq!(path(outside), None, "{outside}");
        }
    }
}
