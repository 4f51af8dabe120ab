//! What a disk can hold after the power went: all that was synced, and of the rest whatever chance has left.
//!
//! The rules are those that hold for every file system: a name survives when its folder was synced after it was made,
//! a file's bytes and length when the file was; a rename is there or not, never half. What was not synced may be
//! there or not, each operation for itself, bytes in pages of 4 KiB, lengths without the bytes. Of a rename the new
//! name's folder makes sure.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::SystemTime;

use super::ROOT;
use super::log::Op;

const PAGE: u64 = 4096;

/// Numbers that look random, the same for the same seed.
#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    fn percent(&mut self, share: u64) -> bool {
        self.below(100) < share
    }
}

/// What becomes of that which was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// All of it is gone.
    All,
    /// All of it is there.
    None,
    /// Names are there, files as they were when they were synced: a rename without its data.
    Data,
    /// Names and lengths are there, zeros instead of bytes.
    Bytes,
    /// Bytes are there, names as they were when their folders were synced.
    Names,
    /// Names up to some moment, as file systems with a journal have them; bytes by chance.
    Late,
    /// Each operation by itself, this share of them in percent.
    Some(u64),
}

impl Loss {
    /// One of them: the hard ones more often.
    pub(crate) fn any(rng: &mut Rng) -> Self {
        match rng.below(20) {
            0..5 => Self::All,
            5..8 => Self::Data,
            8 => Self::Bytes,
            9 => Self::Names,
            10 | 11 => Self::None,
            12..16 => Self::Late,
            _ => Self::Some(10 + rng.below(80)),
        }
    }
}

/// What has become of the bytes of one write.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    Gone,
    Torn,
    Zeros,
}

#[derive(Debug, Default)]
struct Node {
    mode: u32,
    mtime: Option<SystemTime>,
    data: Vec<u8>,
    is_dir: bool,
    entries: BTreeMap<String, u64>,
}

/// The files of a disk after a cut.
#[derive(Debug)]
pub(crate) struct Image {
    nodes: HashMap<u64, Node>,
}

/// What the syncs of a log have made sure of: the index of the last one, by inode.
struct Synced {
    folders: HashMap<u64, usize>,
    data: HashMap<u64, usize>,
    whole: HashMap<u64, usize>,
}

impl Synced {
    fn of(ops: &[Op]) -> Self {
        let (mut folders, mut data, mut whole) = (HashMap::new(), HashMap::new(), HashMap::new());
        for (at, op) in ops.iter().enumerate() {
            match op {
                Op::SyncDir { ino } => drop(folders.insert(*ino, at)),
                Op::SyncFile { ino, data_only } => {
                    data.insert(*ino, at);
                    if !data_only {
                        whole.insert(*ino, at);
                    }
                }
                _ => {}
            }
        }
        Self { folders, data, whole }
    }

    fn has_name(&self, at: usize, op: &Op) -> bool {
        op.folders().iter().all(|dir| self.folders.get(dir).is_some_and(|sync| *sync > at))
    }

    fn has(table: &HashMap<u64, usize>, at: usize, ino: u64) -> bool {
        table.get(&ino).is_some_and(|sync| *sync > at)
    }
}

impl Image {
    /// What is left of a disk on which `ops` were done.
    pub(crate) fn of(ops: &[Op], loss: Loss, rng: &mut Rng) -> Self {
        let synced = Synced::of(ops);
        let sure = |at: usize| ops.get(at).is_some_and(|op| !op.folders().is_empty() && synced.has_name(at, op));
        // A journal keeps the order of names: what is sure takes all before it along.
        let last_sure = (0..ops.len()).rev().find(|at| sure(*at)).map_or(0, |at| at + 1);
        let until = last_sure + rng.below((ops.len() - last_sure) as u64 + 1) as usize;
        let root = Node { mode: 0o700, is_dir: true, ..Node::default() };
        let mut image = Self { nodes: HashMap::from([(ROOT, root)]) };
        for (at, op) in ops.iter().enumerate() {
            match op {
                Op::Make { ino, is_dir, mode, .. } => {
                    let node = Node { mode: *mode, is_dir: *is_dir, ..Node::default() };
                    image.nodes.insert(*ino, node);
                }
                Op::Write { ino, at: start, data, time } => {
                    let fate = if Synced::has(&synced.data, at, *ino) { Fate::Kept } else { fate(loss, rng) };
                    image.write(*ino, *start, data, fate, rng);
                    let timed = Synced::has(&synced.whole, at, *ino) || fate != Fate::Gone && rng.percent(50);
                    image.touch(*ino, timed.then_some(*time));
                }
                Op::Resize { ino, size, time } => {
                    let kept = Synced::has(&synced.data, at, *ino) || fate(loss, rng) != Fate::Gone;
                    if kept && let Some(node) = image.nodes.get_mut(ino) {
                        node.data.resize(*size as usize, 0);
                    }
                    image.touch(*ino, kept.then_some(*time));
                }
                Op::SyncFile { .. } | Op::SyncDir { .. } => continue,
                _ => {}
            }
            let named = synced.has_name(at, op)
                || match loss {
                    Loss::All | Loss::Names => false,
                    Loss::None | Loss::Data | Loss::Bytes => true,
                    Loss::Late => at < until,
                    Loss::Some(share) => rng.percent(share),
                };
            if named {
                image.rename(op);
            }
        }
        image
    }

    fn touch(&mut self, ino: u64, time: Option<SystemTime>) {
        if let (Some(time), Some(node)) = (time, self.nodes.get_mut(&ino)) {
            node.mtime = Some(time);
        }
    }

    fn write(&mut self, ino: u64, start: u64, data: &[u8], fate: Fate, rng: &mut Rng) {
        let Some(node) = self.nodes.get_mut(&ino).filter(|_| fate != Fate::Gone) else { return };
        let end = start + data.len() as u64;
        let old_len = node.data.len() as u64;
        // A torn write may have left the length behind.
        if fate != Fate::Torn || rng.percent(70) {
            node.data.resize(node.data.len().max(end as usize), 0);
        }
        let mut at = start;
        while at < end {
            let stop = end.min((at / PAGE + 1) * PAGE).min(end);
            let bytes = &data[(at - start) as usize..(stop - start) as usize];
            let have = node.data.len() as u64;
            if stop <= have {
                let place = &mut node.data[at as usize..stop as usize];
                match fate {
                    Fate::Kept => place.copy_from_slice(bytes),
                    Fate::Torn if rng.percent(50) => place.copy_from_slice(bytes),
                    Fate::Zeros if at >= old_len => place.fill(0),
                    _ => {}
                }
            }
            at = stop;
        }
    }

    fn rename(&mut self, op: &Op) {
        let folders: Vec<u64> = self.nodes.iter().filter(|(_, node)| node.is_dir).map(|(ino, _)| *ino).collect();
        let is_dir = |ino: &u64| folders.contains(ino);
        let mut entries = |dir: &u64, change: &mut dyn FnMut(&mut BTreeMap<String, u64>)| {
            if let Some(node) = self.nodes.get_mut(dir) {
                change(&mut node.entries);
            }
        };
        match op {
            Op::Make { dir, name, ino, .. } => entries(dir, &mut |found| put(found, name, *ino)),
            Op::Remove { dir, name, ino } => entries(dir, &mut |found| {
                if found.get(name) == Some(ino) {
                    found.remove(name);
                }
            }),
            Op::Exchange { dir, names, inos } => entries(dir, &mut |found| {
                names.iter().zip(inos).for_each(|(name, ino)| put(found, name, *ino));
            }),
            Op::Rename { from, to, ino } => {
                if is_dir(ino) {
                    // A folder has one name.
                    folders.iter().for_each(|dir| entries(dir, &mut |found| found.retain(|_, held| held != ino)));
                }
                entries(&from.0, &mut |found| {
                    if found.get(&from.1) == Some(ino) {
                        found.remove(&from.1);
                    }
                });
                entries(&to.0, &mut |found| put(found, &to.1, *ino));
            }
            _ => {}
        }
    }

    /// What makes these files on an empty disk and syncs them, folders before what is in them.
    pub(super) fn ops(&self) -> Vec<Op> {
        let mut ops = Vec::new();
        // A file that has two names after a rename that was half undone is two files: nobody writes to it by either.
        let mut next = ROOT + 1;
        self.ops_of(ROOT, ROOT, &mut next, &mut ops);
        ops
    }

    fn ops_of(&self, dir: u64, as_dir: u64, next: &mut u64, ops: &mut Vec<Op>) {
        for (name, child) in &self.nodes[&dir].entries {
            let (node, ino) = (&self.nodes[child], *next);
            *next += 1;
            ops.push(Op::Make { dir: as_dir, name: name.clone(), ino, is_dir: node.is_dir, mode: node.mode });
            if node.is_dir {
                self.ops_of(*child, ino, next, ops);
            } else {
                let time = node.mtime.unwrap_or(SystemTime::UNIX_EPOCH);
                ops.push(Op::Write { ino, at: 0, data: node.data.as_slice().into(), time });
                ops.push(Op::SyncFile { ino, data_only: false });
            }
        }
        ops.push(Op::SyncDir { ino: as_dir });
    }

    /// Writes the files into an empty folder.
    pub(crate) fn unpack(&self, into: &Path) {
        self.unpack_dir(ROOT, into);
    }

    fn unpack_dir(&self, ino: u64, into: &Path) {
        for (name, child) in &self.nodes[&ino].entries {
            let (node, path) = (&self.nodes[child], into.join(name));
            if node.is_dir {
                // Two names of one folder, of which a rename was half undone, do not occur: renames are whole.
                fs::create_dir(&path).unwrap();
                self.unpack_dir(*child, &path);
            } else {
                fs::write(&path, &node.data).unwrap();
                if let Some(time) = node.mtime {
                    fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
                }
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(node.mode & 0o7777)).unwrap();
        }
    }
}

fn put(entries: &mut BTreeMap<String, u64>, name: &str, ino: u64) {
    entries.insert(name.to_owned(), ino);
}

fn fate(loss: Loss, rng: &mut Rng) -> Fate {
    match loss {
        Loss::All | Loss::Data => Fate::Gone,
        Loss::None | Loss::Names => Fate::Kept,
        Loss::Bytes => Fate::Zeros,
        Loss::Late | Loss::Some(_) => match rng.below(4) {
            0 => Fate::Kept,
            1 => Fate::Gone,
            2 => Fate::Torn,
            _ => Fate::Zeros,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(ino: u64, at: u64, byte: u8, len: usize) -> Op {
        Op::Write { ino, at, data: vec![byte; len].into(), time: SystemTime::UNIX_EPOCH }
    }

    fn make(ino: u64, name: &str) -> Op {
        Op::Make { dir: ROOT, name: name.into(), ino, is_dir: false, mode: 0o600 }
    }

    #[test]
    fn an_image_is_all_there_after_the_next_cut() {
        let ops = [make(2, "a"), write(2, 0, 1, 10_000), make(3, "b"), write(3, 0, 2, 5)];
        let first = Image::of(&ops, Loss::None, &mut Rng::new(1));
        for seed in 0..100 {
            let mut rng = Rng::new(seed);
            let loss = Loss::any(&mut rng);
            let second = Image::of(&first.ops(), loss, &mut rng);
            let held = |name: &str| second.nodes[&second.nodes[&ROOT].entries[name]].data.clone();
            assert_eq!((held("a").len(), held("b")), (10_000, vec![2; 5]), "{loss:?}");
        }
    }

    #[test]
    fn what_was_synced_is_in_every_image_and_nothing_else_in_the_poorest() {
        let ops = [
            make(2, "a"),
            write(2, 0, 1, 10_000),
            Op::SyncFile { ino: 2, data_only: true },
            Op::SyncDir { ino: ROOT },
            write(2, 10_000, 2, 10_000),
            make(3, "b"),
        ];
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let loss = Loss::any(&mut rng);
            let image = Image::of(&ops, loss, &mut rng);
            let names: Vec<&String> = image.nodes[&ROOT].entries.keys().collect();
            assert_eq!(names[0], "a", "{loss:?}");
            let data = &image.nodes[&2].data;
            assert!(data.len() >= 10_000 && data[..10_000].iter().all(|byte| *byte == 1), "{loss:?}");
            if loss == Loss::All {
                assert_eq!((names.len(), data.len()), (1, 10_000));
            }
            if loss == Loss::None {
                assert_eq!((names.len(), data.len()), (2, 20_000));
            }
        }
    }
}
