//! The inode table after a directory has moved: only its own place changes, but every version below is a copy now.

use super::super::Vfs;
use super::super::attr::{Kind, Version};
use super::super::tree::{Listed, Node, Tree};
use super::Place;
use super::exchange::copied;
use crate::base::ObjectKey;
use crate::base::key::join;
use crate::intent::Moved;
use crate::journal::CopyRecord;
use crate::oss::ObjectMeta;

impl Vfs {
    /// Shows a directory, and all that is below it, under its new path.
    pub(super) fn relocate(&self, old_path: &str, new_path: &str, moved: &Moved) {
        let new_prefix = self.options.prefix.dir_key(new_path);
        let mut guard = self.tree.lock();
        let tree = &mut *guard;
        let (old_dir, old_name) = split(old_path);
        let (new_dir, new_name) = split(new_path);
        let (source, old_dir, new_dir) = (tree.walk(old_path), tree.walk(old_dir), tree.walk(new_dir));
        if let Some(source) = source {
            carry_below(tree, source, &new_prefix, moved);
        }
        // What was looked up of a tree that was there in part only is not to be believed.
        if let Some(target) = tree.walk(new_path) {
            forget_below(tree, target);
        }
        match (source, new_dir) {
            (Some(source), Some(new_dir)) => {
                tree.detach(new_dir, new_name);
                tree.rename(source, new_dir, new_name);
            }
            (Some(_), None) => drop(old_dir.and_then(|dir| tree.detach(dir, old_name))),
            (None, _) => {}
        }
        if let Some(dir) = old_dir {
            tree.changed(dir, old_name, None);
        }
        if let Some(dir) = new_dir {
            let ino = source.or_else(|| tree.child(dir, new_name)).unwrap_or_else(|| tree.new_ino());
            tree.changed(dir, new_name, Some(Listed { kind: Kind::Dir, ino, version: None }));
        }
    }

    /// Shows a file under the new name that an earlier process has given it; `found` is its object there.
    pub(super) fn relocate_file(&self, from: &ObjectKey, to: &ObjectKey, found: &ObjectMeta) {
        let path = |key: &ObjectKey| self.options.prefix.path_of(key.as_str()).map(str::to_owned);
        let (Some(old), Some(new)) = (path(from), path(to)) else { return };
        let ((old_dir, old_name), (new_dir, new_name)) = (split(&old), split(&new));
        let mut tree = self.tree.lock();
        let (Some(ino), Some(old_dir)) = (tree.walk(&old), tree.walk(old_dir)) else { return };
        let Some(new_dir) = tree.walk(new_dir) else {
            tree.detach(old_dir, old_name);
            return;
        };
        let record = copied(tree.node(ino).and_then(|node| node.version.as_ref()), Some(found));
        drop(tree);
        let (from, new) = (Place { parent: old_dir, name: old_name }, Place { parent: new_dir, name: new_name });
        self.moved(ino, from, new, record.as_ref().map(|record| (to, record)));
        self.forget_freshness(ino);
    }
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// Everything below a directory, itself included: each inode with its path below.
fn below(tree: &Tree, top: u64) -> Vec<(u64, String)> {
    let mut found = vec![(top, String::new())];
    let mut at = 0;
    while let Some((ino, path)) = found.get(at).cloned() {
        let children = tree.dir(ino).into_iter().flat_map(|dir| &dir.children);
        found.extend(children.map(|(name, child)| (*child, join(&path, name))));
        at += 1;
    }
    found
}

fn carry_below(tree: &mut Tree, top: u64, new_prefix: &str, moved: &Moved) {
    for (ino, path) in below(tree, top) {
        let Some(node) = tree.node_mut(ino) else { continue };
        let is_dir = node.attr.kind == Kind::Dir;
        let relative = if is_dir && !path.is_empty() { format!("{path}/") } else { path };
        let record = moved.get(&relative);
        if let Ok(key) = ObjectKey::parse(&format!("{new_prefix}{relative}")) {
            carry(node, &key, record.as_ref());
        }
        if let Some(dir) = &mut node.dir {
            dir.changes += 1;
            if let Some(listing) = &mut dir.listing {
                let mut all = true;
                for (name, listed) in &mut listing.entries {
                    let copy = moved.get(&format!("{relative}{name}"));
                    all &= listed.kind == Kind::Dir || follow(&mut listed.version, copy.as_ref());
                }
                if !all {
                    dir.listing = None;
                }
            }
        }
        tree.note_object(ino);
    }
}

fn forget_below(tree: &mut Tree, top: u64) {
    for (ino, _) in below(tree, top) {
        let Some(node) = tree.node_mut(ino) else { continue };
        node.fresh_until = None;
        if let Some(dir) = &mut node.dir {
            dir.changes += 1;
            dir.listing = None;
        }
    }
}

/// The object behind an inode has another key and version by our own doing: its readers go along. Without a record
/// nothing is known of it any more, and the next look-up asks.
pub(super) fn carry(node: &mut Node, key: &ObjectKey, record: Option<&CopyRecord>) {
    if let Some(record) = record {
        let reader = node.open.as_ref().and_then(|open| open.state.lock().reader.clone());
        if let Some(reader) = reader.filter(|reader| reader.etag() == record.before) {
            reader.rekey(key.clone(), record.after.clone());
        }
        if node.cached.as_ref() == Some(&record.before) {
            node.cached = Some(record.after.clone());
        }
    }
    if !follow(&mut node.version, record) && node.open.is_none() {
        node.fresh_until = None;
    }
}

/// Makes a version that of the copy; whether that is known.
fn follow(version: &mut Option<Version>, record: Option<&CopyRecord>) -> bool {
    match (version, record) {
        (Some(version), Some(record)) if version.etag == record.before => {
            version.etag = record.after.clone();
            version.last_modified = record.at.unwrap_or(version.last_modified);
            true
        }
        (None, None) => true,
        _ => false,
    }
}
