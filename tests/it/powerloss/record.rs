//! What a writer was promised, by the position in the disk's log at which each promise was made.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

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
}

impl Promises {
    /// What is wrong with a bucket that holds `found` after a cut at `cut`; `strict` where nothing has survived but
    /// what was synced.
    pub(super) fn check(&self, cut: usize, found: &BTreeMap<String, Vec<u8>>, strict: bool) -> Vec<String> {
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
                held.is_some() && self.names[&one.names[0]].iter().any(|version| version.content.as_ref() == held)
            });
            // A session that had ended, and whose end had not reached the disk, may by chance have come back.
            let was_there = |version: &Version| version.acked.is_some_and(|acked| acked <= cut);
            let came_back = versions.iter().any(|version| was_there(version) && version.content.as_ref() == held);
            let is_copy = is_copy || !strict && held.is_some() && before.content.is_none() && came_back;
            if !is_copy && !legal.any(|version| version.allows(held, before, cut)) {
                let size =
                    |content: Option<&Vec<u8>>| content.map_or("nothing".into(), |bytes| bytes.len().to_string());
                let wanted = versions[promised..].iter().map(|version| size(version.content.as_ref()));
                wrong.push(format!("{name}: {} bytes, may hold {:?}", size(held), wanted.collect::<Vec<_>>()));
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
        let (cuts, always) = (Arc::new(Mutex::new(Vec::<Cut>::new())), Arc::new(AtomicBool::new(false)));
        let (server, into) = (bench.path("server"), bench.folder("cuts"));
        let mut rng = Rng::new(seed);
        let (all, forced) = (cuts.clone(), always.clone());
        disk.watch(move |position| {
            if forced.swap(false, Ordering::Relaxed) || rng.below(every) == 0 {
                let to = into.join(format!("{}", all.lock().len()));
                if copy_server(&server, &to) {
                    all.lock().push(Cut { position, server: to });
                }
            }
        });
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
        for (name, content) in after {
            let absent = Version { begun: 0, acked: Some(0), content: None, loose: false };
            let versions = self.promises.names.entry((*name).to_owned()).or_insert_with(|| vec![absent]);
            versions.push(Version { begun, acked, content: content.map(<[u8]>::to_vec), loose });
        }
        self.always.store(true, Ordering::Relaxed);
        self.disk.look();
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
        let content = self.now(from);
        let begun = self.disk.position();
        self.promise(&[(from, None), (to, Some(&content))], |root| {
            fs::rename(root.join(from), root.join(to)).unwrap();
        });
        let acked = self.disk.position();
        self.promises.moves.push(Move { begun, acked, names: [from.into(), to.into()], content });
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
    try_close(file).unwrap();
}

/// Closes a file, and tells what came of it.
pub(crate) fn try_close(file: File) -> std::io::Result<()> {
    // SAFETY: the descriptor was given up and is closed once.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
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
}
