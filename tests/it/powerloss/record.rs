//! What a writer was promised, by the position in the disk's log at which each promise was made.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ossfuse::base::posix::UserMeta;
use ossfuse::base::xattr;
use parking_lot::Mutex;
use serde_json::Value;

use crate::disk::{Disk, Image, Op, Rng};
use crate::harness::{Bench, Mount};

/// What a name held from some moment on.
#[derive(Debug, Clone)]
struct Version {
    /// Position of the log when the call began, and when it had returned 0.
    begun: usize,
    acked: Option<usize>,
    content: Option<Vec<u8>>,
    /// Written over what had been promised and was not sent: until the next promise each byte may be of the one or
    /// the other, as on any disk.
    loose: bool,
}

/// Attributes of a file, as far as somebody has set them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Attrs {
    pub(super) mode: Option<u32>,
    /// Seconds. What is written anew has a time of its own.
    pub(super) mtime: Option<u64>,
    /// The value of `user.k`.
    pub(super) xattr: Option<String>,
}

impl Attrs {
    /// What an object has, of what these tell.
    fn are_those_of(&self, meta: &Value) -> bool {
        let text = |name: &str| meta[name].as_str();
        let mode = text("mode").and_then(|mode| mode.parse::<u32>().ok()).map(|mode| mode & 0o7777);
        let mtime = text("mtime").and_then(|time| time.split('.').next()?.parse().ok());
        let held: UserMeta = text("xattr").map(|held| ("xattr".to_owned(), held.to_owned())).into_iter().collect();
        let xattr = xattr::read(&held).unwrap().remove("user.k").map(|value| String::from_utf8(value).unwrap());
        (self.mode.is_none() || self.mode == mode)
            && (self.mtime.is_none() || self.mtime == mtime)
            && self.xattr == xattr
    }
}

/// What attributes a name had from some moment on.
#[derive(Debug, Clone)]
struct Dressed {
    begun: usize,
    acked: usize,
    attrs: Attrs,
}

/// A rename: whenever it is cut off, one of the names holds the bytes.
#[derive(Debug)]
struct Move {
    begun: usize,
    acked: usize,
    names: [String; 2],
    content: Vec<u8>,
}

/// The promises of a run.
#[derive(Debug, Default)]
pub(super) struct Promises {
    names: BTreeMap<String, Vec<Version>>,
    moves: Vec<Move>,
    attrs: BTreeMap<String, Vec<Dressed>>,
}

/// What is in a bucket: bytes and user metadata.
pub(super) type Found = BTreeMap<String, (Vec<u8>, Value)>;

impl Promises {
    /// What is wrong with a bucket that holds `found` after a cut at `cut`; `strict` where nothing has survived but
    /// what was synced.
    pub(super) fn check(&self, cut: usize, found: &Found, strict: bool) -> Vec<String> {
        let bytes = found.iter().map(|(key, (bytes, _))| (key.clone(), bytes.clone())).collect();
        let mut wrong = self.check_bytes(cut, &bytes, strict);
        for (name, all) in &self.attrs {
            let Some((_, meta)) = found.get(name) else { continue };
            let promised = all.iter().rposition(|dressed| dressed.acked <= cut);
            // Nothing is told of a name before it was given attributes.
            let Some(promised) = promised else { continue };
            let legal: Vec<&Dressed> = all[promised..].iter().filter(|dressed| dressed.begun <= cut).collect();
            // A session that comes back by chance, as its end had not reached the disk, sets its own time once more.
            let fits = |dressed: &&Dressed| {
                let timeless = Attrs { mtime: None, ..dressed.attrs.clone() };
                dressed.attrs.are_those_of(meta) || !strict && timeless.are_those_of(meta)
            };
            if !legal.iter().any(fits) {
                wrong.push(format!("{name}: {meta}, may have {legal:?}"));
            }
        }
        wrong
    }

    /// The names that the file of this name may have had before.
    fn names_of<'n>(&'n self, name: &'n String) -> Vec<&'n String> {
        let mut names = vec![name];
        for one in self.moves.iter().rev() {
            if names.contains(&&one.names[1]) && !names.contains(&&one.names[0]) {
                names.push(&one.names[0]);
            }
        }
        names
    }

    fn check_bytes(&self, cut: usize, found: &BTreeMap<String, Vec<u8>>, strict: bool) -> Vec<String> {
        let mut wrong = Vec::new();
        let known: BTreeSet<&String> = self.names.keys().collect();
        for (name, versions) in &self.names {
            let held = found.get(name);
            let last = versions.iter().rposition(|version| version.acked.is_some_and(|acked| acked <= cut));
            let promised = last.map_or(0, |at| at);
            let mut legal = versions[promised..].iter().filter(|version| version.begun <= cut);
            let before = &versions[promised];
            // Both names of a rename that was cut off may hold the object as it was before the last changes: copied
            // already, or not deleted yet.
            let moved = |one: &&Move| one.begun <= cut && cut < one.acked && one.names.contains(name);
            let is_copy = self.moves.iter().filter(moved).any(|one| {
                let was_held =
                    |name: &&String| self.names[*name].iter().any(|version| version.content.as_ref() == held);
                held.is_some() && self.names_of(&one.names[0]).iter().any(was_held)
            });
            // A session that had ended, and whose end had not reached the disk, may by chance have come back.
            let was_there = |version: &Version| version.acked.is_some_and(|acked| acked <= cut);
            let came_back = versions.iter().any(|version| was_there(version) && version.content.as_ref() == held);
            let is_copy = is_copy || !strict && held.is_some() && before.content.is_none() && came_back;
            if !is_copy && !legal.any(|version| version.allows(held, before, cut)) {
                let size =
                    |content: Option<&Vec<u8>>| content.map_or("nothing".into(), |bytes| bytes.len().to_string());
                let wanted = versions[promised..].iter().map(|version| size(version.content.as_ref()));
                let differs = |version: &Version| differences(held, version.content.as_ref());
                let at: Vec<_> = versions[promised..].iter().map(differs).collect();
                let wanted: Vec<_> = wanted.collect();
                wrong.push(format!("{name}: {} bytes, may hold {wanted:?}, differs in {at:?}", size(held)));
            }
        }
        for (name, bytes) in found.iter().filter(|(key, _)| !known.contains(key)) {
            // A close that had returned may come back to life where its end had not reached the disk, and nobody was
            // promised that it would: never over another object.
            let of = name.split_once(".conflict-").and_then(|(of, _)| self.names.get(of));
            let was_there = of.is_some_and(|all| all.iter().any(|version| version.content.as_ref() == Some(bytes)));
            if !was_there || strict {
                wrong.push(format!("{name} was never written"));
            }
        }
        for one in self.moves.iter().filter(|one| one.begun <= cut && cut < one.acked) {
            if !one.names.iter().any(|name| found.get(name) == Some(&one.content)) {
                wrong.push(format!("neither of {:?} holds what was moved", one.names));
            }
        }
        wrong
    }
}

/// The first and the last byte in which two files differ.
fn differences(one: Option<&Vec<u8>>, two: Option<&Vec<u8>>) -> Option<(usize, usize)> {
    let (one, two) = one.zip(two)?;
    let differs = |at: &usize| one.get(*at) != two.get(*at);
    let all = 0..one.len().max(two.len());
    Some((all.clone().find(differs)?, all.rev().find(differs)?))
}

impl Version {
    fn allows(&self, held: Option<&Vec<u8>>, before: &Self, cut: usize) -> bool {
        if held == self.content.as_ref() {
            return true;
        }
        let loose = self.loose && self.acked.is_none_or(|acked| acked > cut);
        let (Some(held), Some(new), Some(old), true) = (held, &self.content, &before.content, loose) else {
            return false;
        };
        let lengths = old.len().min(new.len())..=old.len().max(new.len());
        let fits = |(at, byte): (usize, &u8)| {
            old.get(at) == Some(byte) || new.get(at) == Some(byte) || (at >= old.len() && *byte == 0)
        };
        lengths.contains(&held.len()) && held.iter().enumerate().all(|(at, byte)| fits((at, byte)))
    }
}

/// The disk and the bucket at one moment.
#[derive(Debug, Clone)]
pub(super) struct Cut {
    pub(super) position: usize,
    server: PathBuf,
}

/// Writes through a mount whose state lies on a disk that is watched.
pub(super) struct Recorder<'b> {
    disk: &'b Disk,
    mount: &'b Mount<'b>,
    cuts: Arc<Mutex<Vec<Cut>>>,
    always: Arc<AtomicBool>,
    pub(super) promises: Promises,
}

impl<'b> Recorder<'b> {
    /// Cuts are made after every promise, and after one in `every` operations of the disk.
    pub(super) fn new(bench: &Bench, disk: &'b Disk, mount: &'b Mount<'b>, seed: u64, every: u64) -> Self {
        let always = Arc::new(AtomicBool::new(false));
        let cuts = watch(bench, disk, Rng::new(seed), every, always.clone());
        Self { disk, mount, cuts, always, promises: Promises::default() }
    }

    /// All cuts, in order, and the log.
    pub(super) fn end(self) -> (Vec<Cut>, Vec<Op>, Promises) {
        self.disk.watch_no_more();
        let cuts = self.cuts.lock().clone();
        (cuts, self.disk.ops(), self.promises)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.mount.path(name)
    }

    /// The same where what is unsent is written over in place: until it is promised there may be a mixture.
    fn promise_in_place(&mut self, name: &str, content: &[u8], action: impl FnOnce(&Path)) {
        self.change(&[(name, Some(content))], true, true, action);
    }

    /// Does something after which names hold what is said, promised.
    pub(super) fn promise(&mut self, after: &[(&str, Option<&[u8]>)], action: impl FnOnce(&Path)) {
        self.change(after, true, false, action);
    }

    /// The same, of which nothing is promised: what was fsynced before may have been overwritten.
    pub(super) fn hope(&mut self, name: &str, content: &[u8], action: impl FnOnce(&Path)) {
        self.change(&[(name, Some(content))], false, true, action);
    }

    fn change(&mut self, after: &[(&str, Option<&[u8]>)], acked: bool, loose: bool, action: impl FnOnce(&Path)) {
        let begun = self.disk.position();
        action(&self.mount.path(""));
        let acked = acked.then(|| self.disk.position());
        let after_it = self.disk.position();
        for (name, content) in after {
            // What is written has another time, and a new file nothing of an older one.
            if let Some(all) = self.promises.attrs.get(*name) {
                let is_new = content.is_none() || self.is_gone(name);
                let last = all.last().expect("never empty").attrs.clone();
                let attrs = if is_new { Attrs::default() } else { Attrs { mtime: None, ..last } };
                self.dressed(name, Dressed { begun, acked: after_it, attrs });
            }
            let absent = Version { begun: 0, acked: Some(0), content: None, loose: false };
            let versions = self.promises.names.entry((*name).to_owned()).or_insert_with(|| vec![absent]);
            versions.push(Version { begun, acked, content: content.map(<[u8]>::to_vec), loose });
        }
        self.always.store(true, Ordering::Relaxed);
        self.disk.look();
    }

    fn is_gone(&self, name: &str) -> bool {
        self.promises.names.get(name).and_then(|all| all.last()).is_none_or(|last| last.content.is_none())
    }

    /// Writes a whole file and closes it.
    pub(super) fn put(&mut self, name: &str, content: &[u8]) {
        self.promise(&[(name, Some(content))], |root| {
            let mut file = File::create(root.join(name)).unwrap();
            file.write_all(content).unwrap();
            close(file);
        });
    }

    /// Opens a file, writes at a place and closes it.
    pub(super) fn patch(&mut self, name: &str, at: usize, bytes: &[u8]) {
        let content = self.patched(name, at, bytes);
        self.promise_in_place(name, &content, |root| {
            let file = OpenOptions::new().write(true).open(root.join(name)).unwrap();
            file.write_all_at(bytes, at as u64).unwrap();
            close(file);
        });
    }

    /// Appends to a file and closes it.
    pub(super) fn append(&mut self, name: &str, bytes: &[u8]) {
        let content = [self.now(name).as_slice(), bytes].concat();
        self.promise_in_place(name, &content, |root| {
            let mut file = OpenOptions::new().append(true).open(root.join(name)).unwrap();
            file.write_all(bytes).unwrap();
            close(file);
        });
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) {
        self.rename_all(from, to, &[(from.to_owned(), to.to_owned())]);
    }

    /// Renames a directory with all that was written in it.
    pub(super) fn rename_dir(&mut self, from: &str, to: &str) {
        let (old, new) = (format!("{from}/"), format!("{to}/"));
        let is_there = |versions: &Vec<Version>| versions.last().is_some_and(|last| last.content.is_some());
        let there = self.promises.names.iter().filter(|(_, versions)| is_there(versions));
        let moved = |name: &String| Some((name.clone(), format!("{new}{}", name.strip_prefix(&old)?)));
        let names: Vec<(String, String)> = there.filter_map(|(name, _)| moved(name)).collect();
        self.rename_all(from, to, &names);
    }

    /// One rename, and the files that have other names by it.
    fn rename_all(&mut self, from: &str, to: &str, names: &[(String, String)]) {
        let contents: Vec<Vec<u8>> = names.iter().map(|(from, _)| self.now(from)).collect();
        let mut after: Vec<(&str, Option<&[u8]>)> = Vec::new();
        for ((from, to), content) in names.iter().zip(&contents) {
            after.extend([(from.as_str(), None), (to.as_str(), Some(content.as_slice()))]);
        }
        let attrs: Vec<Attrs> = names.iter().map(|(from, _)| self.attrs_now(from)).collect();
        let begun = self.disk.position();
        self.promise(&after, |root| fs::rename(root.join(from), root.join(to)).unwrap());
        let acked = self.disk.position();
        for (((from, to), content), attrs) in names.iter().zip(contents).zip(attrs) {
            if [from, to].iter().any(|name| self.promises.attrs.contains_key(*name)) {
                self.dressed(to, Dressed { begun, acked, attrs });
            }
            self.promises.moves.push(Move { begun, acked, names: [from.clone(), to.clone()], content });
        }
    }

    /// Changes attributes of a file, promised; `then` tells what it has afterwards.
    pub(super) fn dress(&mut self, name: &str, then: impl FnOnce(&mut Attrs), action: impl FnOnce(&Path)) {
        let mut attrs = self.attrs_now(name);
        then(&mut attrs);
        let begun = self.disk.position();
        action(&self.path(name));
        let acked = self.disk.position();
        self.dressed(name, Dressed { begun, acked, attrs });
        self.always.store(true, Ordering::Relaxed);
        self.disk.look();
    }

    /// The attributes that a file has by all that was done so far.
    fn attrs_now(&self, name: &str) -> Attrs {
        self.promises.attrs.get(name).and_then(|all| all.last()).map(|last| last.attrs.clone()).unwrap_or_default()
    }

    fn dressed(&mut self, name: &str, dressed: Dressed) {
        self.promises.attrs.entry(name.to_owned()).or_default().push(dressed);
    }

    /// Writes a whole file and sets its mode before it is closed.
    pub(super) fn put_with_mode(&mut self, name: &str, content: &[u8], mode: u32) {
        self.promise(&[(name, Some(content))], |root| {
            let mut file = File::create(root.join(name)).unwrap();
            file.write_all(content).unwrap();
            file.set_permissions(fs::Permissions::from_mode(mode)).unwrap();
            close(file);
        });
        let last = self.promises.attrs.get_mut(name).and_then(|all| all.last_mut()).expect("it has been given some");
        last.attrs.mode = Some(mode);
    }

    /// Waits until nothing is on its way to the bucket.
    pub(super) fn settle(&self) {
        self.mount.settle();
    }

    pub(super) fn unlink(&mut self, name: &str) {
        self.promise(&[(name, None)], |root| fs::remove_file(root.join(name)).unwrap());
    }

    /// What a name holds at the end of what was done so far.
    pub(super) fn now(&self, name: &str) -> Vec<u8> {
        self.promises.names[name].last().unwrap().content.clone().unwrap()
    }

    /// The same with bytes written over it.
    pub(super) fn patched(&self, name: &str, at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut content = self.now(name);
        content.resize(content.len().max(at + bytes.len()), 0);
        content[at..at + bytes.len()].copy_from_slice(bytes);
        content
    }
}

/// Closes a file; it must succeed.
pub(super) fn close(file: File) {
    crate::harness::close(file).unwrap();
}

/// Has a disk make cuts, after one in `every` operations and whenever `always` is set.
pub(super) fn watch(
    bench: &Bench,
    disk: &Disk,
    mut rng: Rng,
    every: u64,
    always: Arc<AtomicBool>,
) -> Arc<Mutex<Vec<Cut>>> {
    let cuts = Arc::new(Mutex::new(Vec::<Cut>::new()));
    let (server, into) = (bench.path("server"), bench.folder("cuts"));
    let all = cuts.clone();
    disk.watch(move |position| {
        if always.swap(false, Ordering::Relaxed) || rng.below(every) == 0 {
            let to = into.join(format!("{}", all.lock().len()));
            if copy_server(&server, &to) {
                all.lock().push(Cut { position, server: to });
            }
        }
    });
    cuts
}

/// A copy of the server's data as they are at one moment: its log, and links to its segments, which never change.
/// Where the log has grown meanwhile another copy is made; not for ever.
fn copy_server(from: &Path, to: &Path) -> bool {
    (0..20).any(|_| {
        drop(fs::remove_dir_all(to));
        link_server(from, to).is_ok_and(|len| fs::metadata(from.join("log.jsonl")).is_ok_and(|meta| meta.len() == len))
    })
}

fn link_server(from: &Path, to: &Path) -> std::io::Result<u64> {
    fs::create_dir_all(to.join("segments"))?;
    let len = fs::copy(from.join("log.jsonl"), to.join("log.jsonl"))?;
    for fan in fs::read_dir(from.join("segments"))? {
        let fan = fan?.path();
        let into = to.join("segments").join(fan.file_name().unwrap_or_default());
        fs::create_dir_all(&into)?;
        for segment in fs::read_dir(&fan)? {
            let segment = segment?.path();
            fs::hard_link(&segment, into.join(segment.file_name().unwrap_or_default()))?;
        }
    }
    Ok(len)
}

impl Cut {
    /// A bench with the bucket as it was, and a state folder that the power left behind so.
    pub(super) fn bench(&self, image: &Image) -> Bench {
        let prepare = |dir: &Path| {
            link_server(&self.server, &dir.join("server")).unwrap();
            fs::create_dir(dir.join("state")).unwrap();
            image.unpack(&dir.join("state"));
        };
        Bench::prepared(prepare).unwrap()
    }

    /// The same, with the state folder on a disk of its own.
    pub(super) fn bench_on_disk(&self, image: &Image) -> (Disk, Bench) {
        let prepare = |dir: &Path| {
            link_server(&self.server, &dir.join("server")).unwrap();
            fs::create_dir(dir.join("state")).unwrap();
        };
        let bench = Bench::prepared(prepare).unwrap();
        (Disk::mount_image(&bench.path("state"), image), bench)
    }
}
