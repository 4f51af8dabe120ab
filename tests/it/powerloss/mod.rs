//! The power goes: whatever the disk then holds of what was not synced, what was promised is in the bucket after the
//! next mount, byte for byte.
//!
//! Each run writes through a mount whose state folder lies on a disk of the tests' own (`disk`), which is cut at many
//! positions of its log, and from each cut makes many images: nothing, everything or anything of what was not synced.
//! For each image a server with the bucket of that moment is started, and the mount.

mod record;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::disk::{Disk, Loss, Op, Rng};
use crate::harness::{Bench, KIB, noise, wait_until};
use record::{Cut, Promises, Recorder, close};

/// Images of each run, unless `OSSFUSE_POWERLOSS_IMAGES` says how many; `scripts/powerloss` has thousands.
const IMAGES: usize = 60;
/// Entries of the log that are told of a cut that went wrong.
const LAST: usize = 40;
/// Mounts at a time.
const AT_ONCE: usize = 3;
const PART: &str = "100KiB";

fn images() -> usize {
    std::env::var("OSSFUSE_POWERLOSS_IMAGES").map_or(IMAGES, |text| text.parse().unwrap())
}

fn seed() -> u64 {
    std::env::var("OSSFUSE_SOAK_SEED").map_or(1, |text| text.parse().unwrap())
}

/// Runs `work`, cuts the power again and again, and looks at what each mount after that makes of it.
fn cut(options: &[&str], work: impl FnOnce(&mut Recorder<'_>)) {
    let Some(bench) = Bench::new() else { return };
    let disk = Disk::mount(&bench.folder("state"));
    let options = [&["--part-size", PART], options].concat();
    let mount = bench.mount(&options);
    let mut recorder = Recorder::new(&bench, &disk, &mount, seed(), 6);
    work(&mut recorder);
    let (cuts, ops, promises) = recorder.end();
    mount.kill();
    try_all(&cuts, &ops, &promises, &options);
}

fn try_all(cuts: &[Cut], ops: &[Op], promises: &Promises, options: &[&str]) {
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let count = images();
    let one = |n: usize| {
        let mut rng = Rng::new(seed() * 1_000_003 + n as u64);
        let cut = &cuts[rng.below(cuts.len() as u64) as usize];
        let loss = Loss::any(&mut rng);
        let Settled { found, log, left } = settle(cut, ops, loss, &mut rng, options);
        let found = promises.check(cut.position, &found, loss == Loss::All);
        if !found.is_empty() {
            let before = &ops[cut.position.saturating_sub(LAST)..cut.position];
            let before: String = before.iter().map(|op| format!("  {op}\n")).collect();
            let at = format!("image {n}, cut at {} of {}, {loss:?}", cut.position, ops.len());
            wrong.lock().push(format!("{at}: {found:?}\n{before}{log}left: {left:?}"));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= count {
                        break;
                    }
                    // A thread each: its mounts end with it.
                    if std::thread::scope(|scope| scope.spawn(|| one(n)).join()).is_err() {
                        wrong.lock().push(format!("image {n}: the mount fails"));
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner();
    println!("{count} images of {} cuts, {} entries in the log", cuts.len(), ops.len());
    assert!(wrong.is_empty(), "{} of {count} images:\n{}", wrong.len(), wrong.join("\n"));
}

/// What a mount after a cut has made of it.
struct Settled {
    /// What is in the bucket.
    found: BTreeMap<String, Vec<u8>>,
    log: String,
    /// What `recover` lists.
    left: Vec<serde_json::Value>,
}

fn settle(cut: &Cut, ops: &[Op], loss: Loss, rng: &mut Rng, options: &[&str]) -> Settled {
    let bench = cut.bench(ops, loss, rng);
    let mount = bench.mount(&[options, &["--no-supervisor"]].concat());
    wait_until("the replay has settled", || mount.status()["pending"]["files"] == 0);
    let keys = bench.server.keys();
    let held = keys.into_iter().filter_map(|key| bench.server.get(&key).map(|bytes| (key, bytes)));
    let found = held.filter(|(key, _)| !key.starts_with(".ossfuse-tmp/") && !key.ends_with('/')).collect();
    let (log, left) = (mount.log(), bench.recover_list());
    mount.kill();
    Settled { found, log, left }
}

/// Writes that end with a close: new, small and large, over an old one, appended, edited, renamed, deleted.
fn closes(writer: &mut Recorder<'_>) {
    let large = noise(1, 430 * KIB);
    writer.put("small", b"small");
    writer.put("large", &large);
    writer.put("empty", b"");
    writer.put("small", b"written anew");
    writer.append("small", b", and appended to");
    writer.patch("large", 150 * KIB, &noise(2, 5000));
    writer.append("large", &noise(3, 120 * KIB));
    writer.put("large.tmp", &noise(4, 310 * KIB));
    writer.rename("large.tmp", "large");
    writer.rename("small", "moved");
    writer.patch("moved", 3, b"EDITED");
    writer.put("doomed", &noise(5, 20 * KIB));
    writer.unlink("doomed");
    writer.put("doomed", b"again");
    writer.promise(&[], |root| std::fs::create_dir(root.join("d")).unwrap());
    writer.put("d/one", &noise(6, 7000));
    let shorter = noise(4, 310 * KIB)[..123_456].to_vec();
    writer.promise(&[("large", Some(&shorter))], |root| {
        OpenOptions::new().write(true).open(root.join("large")).unwrap().set_len(123_456).unwrap();
    });
    writer.unlink("empty");
}

/// Files that stay open and are fsynced, among writes that are not.
fn syncs(writer: &mut Recorder<'_>) {
    writer.put("old", &noise(11, 350 * KIB));
    let log = File::create(writer.path("log")).unwrap();
    let mut text = Vec::new();
    for line in 0..6_u8 {
        let more = vec![b'a' + line; 30 * KIB];
        let at = text.len() as u64;
        text.extend_from_slice(&more);
        let write = |_: &Path| log.write_all_at(&more, at).unwrap();
        if line == 0 {
            write(Path::new(""));
        } else {
            writer.hope("log", &text, write);
        }
        writer.promise(&[("log", Some(&text))], |_| log.sync_all().unwrap());
    }
    let edited = OpenOptions::new().write(true).open(writer.path("old")).unwrap();
    let mut content = writer.patched("old", 120_000, b"changed in the middle");
    edited.write_all_at(b"changed in the middle", 120_000).unwrap();
    writer.promise(&[("old", Some(&content))], |_| edited.sync_data().unwrap());
    content[5000..5004].copy_from_slice(b"more");
    writer.hope("old", &content, |_| edited.write_all_at(b"more", 5000).unwrap());
    writer.promise(&[("old", Some(&content))], |_| close(edited));
    let again = OpenOptions::new().append(true).open(writer.path("old")).unwrap();
    content.extend_from_slice(b"the end");
    (&again).write_all(b"the end").unwrap();
    writer.promise(&[("old", Some(&content))], |_| again.sync_all().unwrap());
    writer.rename("log", "log.1");
    writer.rename("old", "older");
    text.extend_from_slice(b"after the rename");
    writer.hope("log.1", &text, |_| log.write_all_at(b"after the rename", text.len() as u64 - 16).unwrap());
    writer.promise(&[("log.1", Some(&text))], |_| log.sync_all().unwrap());
    writer.promise(&[("log.1", Some(&text))], |_| close(log));
    writer.promise(&[("older", Some(&content))], |_| close(again));
    let gone = File::create(writer.path("gone")).unwrap();
    gone.write_all_at(&noise(12, 9000), 0).unwrap();
    writer.promise(&[("gone", Some(&noise(12, 9000)))], |_| gone.sync_all().unwrap());
    writer.unlink("gone");
    writer.promise(&[("gone", None)], |_| close(gone));
    writer.put("log.1", b"a new log");
}

#[test]
fn what_was_closed_survives() {
    cut(&[], closes);
}

#[test]
fn what_was_closed_locally_survives() {
    cut(&["--close", "local"], closes);
}

#[test]
fn what_was_fsynced_survives() {
    cut(&[], syncs);
}

#[test]
fn what_was_fsynced_and_closed_locally_survives() {
    cut(&["--close", "local"], syncs);
}
