//! The kinds of change that are killed: what stands before, what is done, and what may stand afterwards.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use super::rig::{DEADLINE, LOOK, Object, State};
use crate::harness::{KIB, close, noise};

/// Bytes that are written by one call.
const WRITE: usize = 40 * KIB;

/// A kind of change.
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) options: &'static [&'static str],
    /// What may be found in the bucket once all is settled, each after the one before it. The first is what another
    /// client has put there.
    pub(super) states: fn() -> Vec<State>,
    pub(super) work: fn(&Site) -> io::Result<()>,
    /// The points at which it is killed; none are all that it meets.
    pub(super) only: &'static [&'static str],
}

/// Where the work is done, and what of it was acknowledged.
pub(super) struct Site {
    root: PathBuf,
    acknowledged: AtomicUsize,
    written: AtomicU64,
}

impl Site {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), acknowledged: AtomicUsize::new(0), written: AtomicU64::new(0) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The next state is promised.
    fn promise(&self) {
        self.acknowledged.fetch_add(1, Ordering::SeqCst);
        self.written.store(0, Ordering::SeqCst);
    }

    /// The state that is promised, as a position among those of the kind.
    pub(super) fn promised(&self) -> usize {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// Bytes that were written, and are neither promised to be published nor to be lost.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::SeqCst)
    }

    fn write(&self, file: &File, at: usize, bytes: &[u8]) -> io::Result<()> {
        for (index, chunk) in bytes.chunks(WRITE).enumerate() {
            file.write_all_at(chunk, (at + index * WRITE) as u64)?;
            self.written.fetch_add(chunk.len() as u64, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Waits until parts of a file that is being written are on their way.
    fn wait_for_upload(&self, name: &str) -> io::Result<()> {
        let path = std::ffi::CString::new(self.path(name).into_os_string().into_encoded_bytes())?;
        let mut value = [0_u8; 64];
        let begun = Instant::now();
        while !value.starts_with(b"uploading") && begun.elapsed() < DEADLINE {
            // SAFETY: a terminated string, and a buffer of this length that lives through the call.
            let len = unsafe {
                libc::getxattr(path.as_ptr(), c"user.ossfuse.state".as_ptr(), value.as_mut_ptr().cast(), value.len())
            };
            if len < 0 {
                return Err(io::Error::last_os_error());
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let file = File::create(self.path(name))?;
        self.write(&file, 0, bytes)?;
        close(file)?;
        self.promise();
        Ok(())
    }
}

fn old(len: usize) -> Vec<u8> {
    noise(91, len)
}

fn new(len: usize) -> Vec<u8> {
    noise(92, len)
}

fn state<const N: usize>(objects: [(&str, Vec<u8>); N]) -> State {
    objects.into_iter().map(|(key, bytes)| (key.to_owned(), Object::new(bytes))).collect()
}

fn with(mut bytes: Vec<u8>, at: usize, what: &[u8]) -> Vec<u8> {
    if bytes.len() < at + what.len() {
        bytes.resize(at + what.len(), 0);
    }
    bytes[at..at + what.len()].copy_from_slice(what);
    bytes
}

const SMALL: usize = 9 * KIB;
const LARGE: usize = 350 * KIB;
/// Nothing of it is fetched: it is copied on the server before its name goes.
const HUGE: usize = 1100 * KIB;
const SPARSE: usize = 40 * KIB * KIB;

fn moved(files: &[usize], dir: &str) -> State {
    files.iter().map(|n| (format!("{dir}/f{n}"), Object::new(noise(100 + *n as u64, 3 * KIB)))).collect()
}

fn exchange(one: &Path, two: &Path) -> io::Result<()> {
    crate::rename::exchange(one, two)
}

fn append(site: &Site) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).open(site.path("f"))?;
    file.write_all(&new(SMALL))?;
    close(file)?;
    site.promise();
    Ok(())
}

pub(super) const KINDS: &[Kind] = &[
    Kind {
        name: "a new small file",
        options: &[],
        states: || vec![BTreeMap::new(), state([("f", new(SMALL))])],
        work: |site| site.put("f", &new(SMALL)),
        only: &[],
    },
    Kind {
        name: "a new large file",
        options: &[],
        states: || vec![BTreeMap::new(), state([("f", new(LARGE))])],
        work: |site| site.put("f", &new(LARGE)),
        only: &[],
    },
    Kind {
        name: "an overwrite of a large file by a small one",
        options: &[],
        states: || vec![state([("f", old(LARGE))]), state([("f", new(SMALL))])],
        work: |site| site.put("f", &new(SMALL)),
        only: &[],
    },
    Kind {
        name: "an overwrite of a small file by a large one",
        options: &[],
        states: || vec![state([("f", old(SMALL))]), state([("f", new(LARGE))])],
        work: |site| site.put("f", &new(LARGE)),
        only: &[],
    },
    Kind {
        name: "an append to a small file",
        options: &[],
        states: || vec![state([("f", old(SMALL))]), state([("f", [old(SMALL), new(SMALL)].concat())])],
        work: append,
        only: &[],
    },
    Kind {
        name: "an append to a large file",
        options: &[],
        states: || vec![state([("f", old(LARGE))]), state([("f", [old(LARGE), new(SMALL)].concat())])],
        work: append,
        only: &[],
    },
    Kind {
        name: "edits of a large file",
        options: &[],
        states: || {
            let edited = with(with(old(LARGE), 150 * KIB, b"in the middle"), 200 * KIB, &new(100 * KIB));
            vec![state([("f", old(LARGE))]), state([("f", edited)])]
        },
        work: |site| {
            let file = OpenOptions::new().write(true).open(site.path("f"))?;
            file.write_all_at(b"in the middle", 150 << 10)?;
            // All of one piece in one write: it is not fetched.
            file.write_all_at(&new(100 * KIB), 200 << 10)?;
            close(file)?;
            site.promise();
            Ok(())
        },
        only: &[],
    },
    Kind {
        name: "an edit of a small file",
        options: &[],
        states: || vec![state([("f", old(SMALL))]), state([("f", with(old(SMALL), 70, b"changed"))])],
        work: |site| {
            let file = OpenOptions::new().write(true).open(site.path("f"))?;
            site.write(&file, 70, b"changed")?;
            close(file)?;
            site.promise();
            Ok(())
        },
        only: &[],
    },
    Kind {
        name: "a truncation",
        options: &[],
        states: || vec![state([("f", old(LARGE))]), state([("f", old(LARGE)[..150_000].to_vec())])],
        work: |site| {
            let path = std::ffi::CString::new(site.path("f").into_os_string().into_encoded_bytes())?;
            // SAFETY: a terminated string that lives through the call.
            if unsafe { libc::truncate(path.as_ptr(), 150_000) } != 0 {
                return Err(io::Error::last_os_error());
            }
            site.promise();
            Ok(())
        },
        only: &[],
    },
    Kind {
        name: "a file that is written, cut and written on",
        options: &[],
        states: || vec![BTreeMap::new(), state([("f", with(new(LARGE)[..130_000].to_vec(), 180_000, b"end"))])],
        work: |site| {
            let file = File::create(site.path("f"))?;
            site.write(&file, 0, &new(LARGE))?;
            file.set_len(130_000)?;
            site.write(&file, 180_000, b"end")?;
            close(file)?;
            site.promise();
            Ok(())
        },
        only: &[],
    },
    Kind {
        name: "an fsync of a file that stays open",
        options: &[],
        states: || vec![state([("f", old(SMALL))]), state([("f", new(LARGE))])],
        work: |site| {
            let file = File::create(site.path("f"))?;
            site.write(&file, 0, &new(LARGE))?;
            file.sync_all()?;
            site.promise();
            close(file)
        },
        only: &[],
    },
    Kind {
        name: "an fsync of an edit",
        options: &["--fsync", "remote"],
        states: || vec![state([("f", old(LARGE))]), state([("f", with(old(LARGE), 150 * KIB, b"changed"))])],
        work: |site| {
            let file = OpenOptions::new().write(true).open(site.path("f"))?;
            site.write(&file, 150 * KIB, b"changed")?;
            file.sync_all()?;
            site.promise();
            close(file)
        },
        only: &[],
    },
    Kind {
        name: "a rename",
        options: &[],
        states: || vec![state([("f", old(LARGE))]), state([("g", old(LARGE))])],
        work: |site| {
            fs::rename(site.path("f"), site.path("g"))?;
            site.promise();
            Ok(())
        },
        only: &[],
    },
    Kind {
        name: "a rename over another file",
        options: &[],
        states: || vec![state([("f", old(LARGE)), ("g", old(SMALL))]), state([("g", old(LARGE))])],
        work: |site| {
            fs::rename(site.path("f"), site.path("g"))?;
            site.promise();
            Ok(())
        },
        only: &[],
    },
    Kind {
        name: "a file saved by way of another name",
        options: &[],
        states: || {
            let both = state([("f", old(SMALL)), ("f~", new(SMALL))]);
            vec![state([("f", old(SMALL))]), both, state([("f", new(SMALL))])]
        },
        work: |site| {
            site.put("f~", &new(SMALL))?;
            fs::rename(site.path("f~"), site.path("f"))?;
            site.promise();
            Ok(())
        },
        only: &[],
    },
    Kind {
        name: "a rename of a file that is being edited",
        options: &[],
        states: || {
            let edited = with(old(LARGE), 150 * KIB, b"changed");
            vec![state([("f", old(LARGE))]), state([("g", old(LARGE))]), state([("g", edited)])]
        },
        work: |site| {
            let file = OpenOptions::new().write(true).open(site.path("f"))?;
            file.write_all_at(b"changed", 150 << 10)?;
            fs::rename(site.path("f"), site.path("g"))?;
            site.promise();
            close(file)?;
            site.promise();
            Ok(())
        },
        only: &[],
    },
    Kind {
        name: "a rename of a large file that is being written",
        options: &[],
        states: || vec![BTreeMap::new(), state([("g", new(LARGE))])],
        work: |site| {
            let file = File::create(site.path("f"))?;
            site.write(&file, 0, &new(LARGE))?;
            site.wait_for_upload("f")?;
            fs::rename(site.path("f"), site.path("g"))?;
            close(file)?;
            site.promise();
            Ok(())
        },
        only: &[],
    },
    Kind {
        name: "a rename of a directory",
        options: &[],
        states: || vec![moved(&[1, 2, 3], "d"), moved(&[1, 2, 3], "e")],
        work: |site| {
            fs::rename(site.path("d"), site.path("e"))?;
            site.promise();
            Ok(())
        },
        only: &[],
    },
    Kind {
        name: "a rename of a directory with a file that is being written",
        options: &[],
        states: || {
            let mut done = moved(&[1, 2], "e");
            done.insert("e/f".into(), Object::new(new(SMALL)));
            vec![moved(&[1, 2], "d"), moved(&[1, 2], "e"), done]
        },
        work: |site| {
            let file = File::create(site.path("d/f"))?;
            file.write_all_at(&new(SMALL), 0)?;
            fs::rename(site.path("d"), site.path("e"))?;
            site.promise();
            close(file)?;
            site.promise();
            Ok(())
        },
        only: &[],
    },
    Kind {
        name: "an exchange",
        options: &[],
        states: || {
            let (one, two) = (old(SMALL), old(LARGE));
            vec![state([("f", one.clone()), ("g", two.clone())]), state([("f", two), ("g", one)])]
        },
        work: |site| {
            exchange(&site.path("f"), &site.path("g"))?;
            site.promise();
            Ok(())
        },
        only: &[],
    },
    Kind {
        name: "an unlink",
        options: &[],
        states: || vec![state([("f", old(SMALL))]), BTreeMap::new()],
        work: |site| {
            fs::remove_file(site.path("f"))?;
            site.promise();
            Ok(())
        },
        only: &[],
    },
    Kind {
        name: "an unlink of a file that is open",
        options: &[],
        states: || vec![state([("f", old(HUGE))]), BTreeMap::new()],
        work: |site| {
            let file = File::open(site.path("f"))?;
            fs::remove_file(site.path("f"))?;
            site.promise();
            close(file)
        },
        only: &[],
    },
    Kind {
        name: "an unlink of a file that was just written",
        options: &[],
        states: || vec![BTreeMap::new(), state([("f", new(SMALL))]), BTreeMap::new()],
        work: |site| {
            site.put("f", &new(SMALL))?;
            fs::remove_file(site.path("f"))?;
            site.promise();
            Ok(())
        },
        only: &[],
    },
    Kind {
        name: "a chmod",
        options: &[],
        states: || {
            let changed = Object::new(old(SMALL)).with_mode(0o640);
            vec![state([("f", old(SMALL))]), BTreeMap::from([("f".to_owned(), changed)])]
        },
        work: |site| {
            fs::set_permissions(site.path("f"), fs::Permissions::from_mode(0o640))?;
            site.promise();
            Ok(())
        },
        only: &[],
    },
    Kind {
        name: "a chmod of a file that was just written",
        options: &[],
        states: || {
            let changed = Object::new(new(SMALL)).with_mode(0o640);
            vec![BTreeMap::new(), state([("f", new(SMALL))]), BTreeMap::from([("f".to_owned(), changed)])]
        },
        work: |site| {
            site.put("f", &new(SMALL))?;
            fs::set_permissions(site.path("f"), fs::Permissions::from_mode(0o640))?;
            site.promise();
            Ok(())
        },
        only: &[],
    },
    Kind {
        name: "a directory that is made and removed",
        options: &[],
        states: || vec![BTreeMap::new(), state([("d/", Vec::new())]), BTreeMap::new()],
        work: |site| {
            fs::create_dir(site.path("d"))?;
            site.promise();
            fs::remove_dir(site.path("d"))?;
            site.promise();
            Ok(())
        },
        only: &[],
    },
    Kind {
        name: "a file larger than the spill, changed where it has left the disk",
        options: &["--spill-limit", "500KiB"],
        states: || vec![BTreeMap::new(), state([("f", with(new(HUGE), 150 * KIB, b"changed"))])],
        work: |site| {
            let file = File::create(site.path("f"))?;
            site.write(&file, 0, &new(HUGE))?;
            site.write(&file, 150 * KIB, b"changed")?;
            close(file)?;
            site.promise();
            Ok(())
        },
        only: &[],
    },
    Kind {
        name: "a file with a large hole",
        options: &[],
        states: || vec![BTreeMap::new(), state([("f", with(vec![0; SPARSE], SPARSE - 3, b"end"))])],
        work: |site| {
            let file = File::create(site.path("f"))?;
            site.write(&file, SPARSE - 3, b"end")?;
            close(file)?;
            site.promise();
            Ok(())
        },
        only: &[
            "zeros-noted",
            "zeros-made",
            "put-answered",
            "initiate-answered",
            "part-copy-answered",
            "complete-answered",
            "leftover-noted",
            "multi-delete-answered",
            "leftover-cleared",
        ],
    },
];
