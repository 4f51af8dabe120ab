//! The power goes: whatever the disk then holds of what was not synced, what was promised is in the bucket after the
//! next mount, byte for byte.
//!
//! Each run writes through a mount whose state folder lies on a disk of the tests' own (`disk`), which is cut at many
//! positions of its log, and from each cut makes many images: nothing, everything or anything of what was not synced.
//! For each image a server with the bucket of that moment is started, and the mount.

mod record;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::disk::{Disk, Image, Loss, Op, Rng};
use crate::harness::{BUCKET, Bench, KIB, noise, wait_for, wait_until};
use record::{Cut, Found, Promises, Recorder, close, watch};

/// Images of each of the large runs, unless `OSSFUSE_POWERLOSS_IMAGES` says how many: `scripts/soak powerloss` has
/// thousands.
const IMAGES: usize = 30;
/// Images of each small run, which is about one way of losing something that was found and mended.
const FEW: usize = 8;
/// Entries of the log that are told of a cut that went wrong.
const LAST: usize = 40;
/// Mounts at a time.
const AT_ONCE: usize = 3;
/// Of so many operations of a replay one is a place to cut at.
const EVERY_OF_REPLAY: u64 = 3;
const PART: &str = "100KiB";
const LOCAL: [&str; 2] = ["--close", "local"];

fn images() -> usize {
    std::env::var("OSSFUSE_POWERLOSS_IMAGES").map_or(IMAGES, |text| text.parse().unwrap())
}

fn few() -> usize {
    FEW.max(images() / 8)
}

fn seed() -> u64 {
    std::env::var("OSSFUSE_SOAK_SEED").map_or(1, |text| text.parse().unwrap())
}

/// How often the power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cuts {
    Once,
    /// Also in the midst of what the next mount makes of it.
    Twice,
}

/// Runs `work`, cuts the power again and again, and looks at what each mount after that makes of it.
fn cut(options: &[&str], count: usize, work: impl FnOnce(&mut Recorder<'_>)) {
    cut_so_often(options, count, Cuts::Once, work);
}

fn cut_so_often(options: &[&str], count: usize, times: Cuts, work: impl FnOnce(&mut Recorder<'_>)) {
    let Some(bench) = Bench::new() else { return };
    let disk = Disk::mount(&bench.folder("state"));
    let options = [&["--part-size", PART], options].concat();
    let mount = bench.mount(&options);
    // Of a small run every operation is a place to cut at.
    let every = if count < images() { 1 } else { 6 };
    let mut recorder = Recorder::new(&bench, &disk, &mount, seed(), every);
    work(&mut recorder);
    let (cuts, ops, promises) = recorder.end();
    mount.kill();
    try_all(&cuts, &ops, &promises, &options, count, times);
}

fn try_all(cuts: &[Cut], ops: &[Op], promises: &Promises, options: &[&str], count: usize, times: Cuts) {
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let one = |n: usize| {
        let mut rng = Rng::new(seed() * 1_000_003 + n as u64);
        let cut = &cuts[rng.below(cuts.len() as u64) as usize];
        let loss = Loss::any(&mut rng);
        let (settled, again) = settle(cut, ops, loss, &mut rng, options, times);
        let Settled { found, log, left } = settled;
        let strict = loss == Loss::All && again.as_ref().is_none_or(|again| again.loss == Loss::All);
        let found = promises.check(cut.position, &found, strict);
        if !found.is_empty() {
            let before = last(ops, cut.position);
            let again = again.map_or(String::new(), |again| {
                format!("the second: {:?}\n{}{}", again.loss, last(&again.ops, again.position), again.log)
            });
            let before = format!("{before}{again}");
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
    found: Found,
    log: String,
    /// What `recover` lists.
    left: Vec<serde_json::Value>,
}

/// A second cut, and what came before it.
struct Again {
    loss: Loss,
    position: usize,
    ops: Vec<Op>,
    log: String,
}

/// The last of what was done to a disk before a cut.
fn last(ops: &[Op], position: usize) -> String {
    ops[position.saturating_sub(LAST)..position].iter().map(|op| format!("  {op}\n")).collect()
}

fn settle(cut: &Cut, ops: &[Op], loss: Loss, rng: &mut Rng, options: &[&str], times: Cuts) -> (Settled, Option<Again>) {
    let image = Image::of(&ops[..cut.position], loss, rng);
    if times == Cuts::Once {
        return (look_at(&cut.bench(&image), options), None);
    }
    let (disk, bench) = cut.bench_on_disk(&image);
    let cuts = watch(&bench, &disk, Rng::new(rng.next()), EVERY_OF_REPLAY, Arc::new(AtomicBool::new(true)));
    let Settled { log, .. } = look_at(&bench, options);
    disk.watch_no_more();
    let (cuts, ops) = (cuts.lock().clone(), disk.ops());
    let second = &cuts[rng.below(cuts.len() as u64) as usize];
    let loss = Loss::any(rng);
    let image = Image::of(&ops[..second.position], loss, rng);
    let settled = look_at(&second.bench(&image), options);
    (settled, Some(Again { loss, position: second.position, ops, log }))
}

/// Mounts what a cut has left, and waits until nothing is pending.
fn look_at(bench: &Bench, options: &[&str]) -> Settled {
    let mount = bench.mount(&[options, &["--no-supervisor"]].concat());
    wait_until("the replay has settled", || mount.status()["pending"]["files"] == 0);
    let objects = bench.server.objects();
    let found = objects.iter().filter_map(|object| {
        let key = object["key"].as_str().unwrap();
        let is_own = key.starts_with(".ossfuse-tmp/") || key.ends_with('/');
        let bytes = bench.server.get(key).filter(|_| !is_own)?;
        Some((key.to_owned(), (bytes, object["meta"].clone())))
    });
    let found = found.collect();
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
    cut(&[], images(), closes);
}

#[test]
fn what_was_closed_locally_survives() {
    cut(&LOCAL, images(), closes);
}

#[test]
fn what_was_fsynced_survives() {
    cut(&[], images(), syncs);
}

#[test]
fn what_was_fsynced_and_closed_locally_survives() {
    cut(&LOCAL, images(), syncs);
}

/// Renames of files and of directories, with what was written, changed and fsynced in them before, between and after.
fn moves(writer: &mut Recorder<'_>) {
    writer.promise(&[], |root| std::fs::create_dir_all(root.join("d/sub")).unwrap());
    for (name, seed, len) in [("d/a", 41, 4 * KIB), ("d/b", 42, 250 * KIB), ("d/sub/c", 43, 9 * KIB), ("f", 44, 5000)] {
        writer.put(name, &noise(seed, len));
    }
    writer.rename_dir("d", "e");
    // The same names again: what was begun before must not be done to these.
    writer.promise(&[], |root| std::fs::create_dir_all(root.join("d/sub")).unwrap());
    writer.put("d/a", &noise(45, 6 * KIB));
    let log = File::create(writer.path("d/log")).unwrap();
    let text = noise(46, 20 * KIB);
    log.write_all_at(&text, 0).unwrap();
    writer.promise(&[("d/log", Some(&text))], |_| log.sync_all().unwrap());
    writer.rename_dir("e", "g");
    writer.rename_dir("d", "e");
    let text = [text, noise(47, 5000)].concat();
    writer.hope("e/log", &text, |_| log.write_all_at(&text[20 * KIB..], 20 * KIB as u64).unwrap());
    writer.promise(&[("e/log", Some(&text))], |_| close(log));
    writer.rename("f", "g/f");
    writer.patch("g/b", 150 * KIB, b"changed");
    writer.rename("g/b", "f");
    writer.rename_dir("g", "d");
    writer.unlink("d/a");
    writer.rename("f", "d/a");
}

/// Attributes of finished files, of those that are written again and renamed after that.
fn attributes(writer: &mut Recorder<'_>) {
    for (name, seed, len) in [("f", 51, 5 * KIB), ("large", 52, 250 * KIB), ("d/in", 53, 3 * KIB)] {
        if let Some((dir, _)) = name.split_once('/') {
            writer.promise(&[], |root| std::fs::create_dir_all(root.join(dir)).unwrap());
        }
        writer.put(name, &noise(seed, len));
    }
    chmod(writer, "f", 0o640);
    touch(writer, "f", 1_000_000_001);
    set_xattr(writer, "f", "one");
    chmod(writer, "large", 0o600);
    chmod(writer, "d/in", 0o755);
    writer.settle();
    set_xattr(writer, "large", "two");
    touch(writer, "large", 1_000_000_002);
    writer.rename("large", "moved");
    set_xattr(writer, "d/in", "three");
    writer.rename_dir("d", "e");
    touch(writer, "e/in", 1_000_000_003);
    chmod(writer, "f", 0o604);
    writer.settle();
    writer.append("f", &noise(54, 4 * KIB));
    writer.settle();
    chmod(writer, "f", 0o644);
    set_xattr(writer, "moved", "four");
    writer.settle();
    writer.patch("moved", 150 * KIB, b"changed");
    writer.settle();
    touch(writer, "moved", 1_000_000_004);
    writer.put("e/in", &noise(55, 2 * KIB));
    // With what is to be sent still pending, and attributes of its own.
    chmod(writer, "f", 0o600);
    writer.put_with_mode("f", &noise(56, 2 * KIB), 0o666);
    writer.settle();
}

fn chmod(writer: &mut Recorder<'_>, name: &str, mode: u32) {
    let set = |path: &Path| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    writer.dress(name, |attrs| attrs.mode = Some(mode), set);
}

fn touch(writer: &mut Recorder<'_>, name: &str, seconds: u64) {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    // By name: an open for writing would begin a session.
    let set = |path: &Path| File::open(path).unwrap().set_times(std::fs::FileTimes::new().set_modified(time)).unwrap();
    writer.dress(name, |attrs| attrs.mtime = Some(seconds), set);
}

fn set_xattr(writer: &mut Recorder<'_>, name: &str, value: &str) {
    let set = |path: &Path| {
        let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: terminated strings, and a value that is as long as is said.
        let done = unsafe { libc::setxattr(path.as_ptr(), c"user.k".as_ptr(), value.as_ptr().cast(), value.len(), 0) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    };
    writer.dress(name, |attrs| attrs.xattr = Some(value.to_owned()), set);
}

#[test]
fn attributes_that_were_set_survive() {
    cut(&[], images() / 2, attributes);
}

#[test]
fn attributes_of_files_that_were_closed_locally_survive() {
    cut(&LOCAL, images() / 2, attributes);
}

#[test]
fn what_was_renamed_has_the_old_name_or_the_new() {
    cut(&[], images(), moves);
}

#[test]
fn what_was_renamed_and_is_not_sent_has_the_old_name_or_the_new() {
    cut(&LOCAL, images() / 2, moves);
}

/// What a replay has half done is as good as what the mount before it has left.
#[test]
fn power_that_goes_again_during_the_replay_takes_nothing() {
    for work in [closes, syncs, moves, attributes] {
        cut_so_often(&LOCAL, images() / 8, Cuts::Twice, work);
        cut_so_often(&[], images() / 8, Cuts::Twice, work);
    }
}

#[test]
fn the_names_of_a_new_state_folder_survive() {
    cut(&LOCAL, few(), |writer| writer.put("f", b"the first file of all"));
}

/// The session file said what the file looked like at its close, and more bytes were there.
#[test]
fn a_closed_file_that_is_written_again_keeps_what_was_promised() {
    cut(&LOCAL, few(), |writer| {
        writer.put("f", &noise(21, 5000));
        writer.append("f", &noise(22, 9000));
        writer.patch("f", 100, b"changed");
    });
}

/// The session file forgot that spill files were void before these were gone, or told of their sums still.
#[test]
fn a_closed_file_that_is_cut_has_the_one_size_or_the_other() {
    cut(&LOCAL, few(), |writer| {
        writer.put("f", &noise(23, 250 * KIB));
        let shorter = noise(23, 120 * KIB);
        writer.promise(&[("f", Some(&shorter))], |root| {
            OpenOptions::new().write(true).open(root.join("f")).unwrap().set_len(120 * KIB as u64).unwrap();
        });
    });
}

/// The new file was empty, and what had been closed before it gone.
#[test]
fn a_closed_file_that_is_begun_anew_leaves_the_old_bytes_or_the_new() {
    cut(&LOCAL, few(), |writer| {
        writer.put("f", &noise(24, 150 * KIB));
        writer.put("f", &noise(25, 30 * KIB));
    });
}

/// The same, where somebody else has it open. The kernel lets go of a file some time after its close, too.
#[test]
fn a_closed_file_that_is_begun_anew_while_it_is_open_leaves_the_old_bytes_or_the_new() {
    cut(&LOCAL, few(), |writer| {
        writer.put("f", &noise(24, 150 * KIB));
        let mut reader = Command::new("sleep").arg("600").stdin(File::open(writer.path("f")).unwrap()).spawn().unwrap();
        writer.put("f", &noise(25, 30 * KIB));
        reader.kill().unwrap();
        reader.wait().unwrap();
    });
}

/// Both were published under the one name, the second as a conflict copy.
#[test]
fn an_unsent_file_that_is_given_the_name_of_another_takes_its_place() {
    cut(&LOCAL, few(), |writer| {
        writer.put("f", b"the old one");
        writer.put("f.tmp", &noise(26, 150 * KIB));
        writer.rename("f.tmp", "f");
    });
}

/// A piece had its name and not its bytes: zeros, in the place of what the object held.
#[test]
fn pieces_that_come_into_a_synced_edit_are_whole() {
    cut(&[], few(), |writer| {
        writer.put("f", &noise(27, 450 * KIB));
        let file = OpenOptions::new().write(true).open(writer.path("f")).unwrap();
        let mut content = writer.now("f");
        for at in [10, 150 * KIB, 290 * KIB] {
            content[at..at + 4].copy_from_slice(b"edit");
            writer.hope("f", &content, |_| file.write_all_at(b"edit", at as u64).unwrap());
            if at == 10 {
                writer.promise(&[("f", Some(&content))], |_| file.sync_all().unwrap());
            }
        }
        writer.promise(&[("f", Some(&content))], |_| close(file));
    });
}

/// The session file reached the disk by chance, its bytes did not, and there was no sum to tell by.
#[test]
fn a_close_that_was_cut_off_publishes_nothing_that_is_torn() {
    cut(&[], few(), |writer| {
        writer.put("f", &noise(28, 90 * KIB));
        writer.patch("f", 50_000, &noise(29, 5000));
        writer.patch("f", 3, &noise(30, 70_000));
    });
}

/// A session came back whose spill files had been emptied for the next one: its file was published as zeros, beside the
/// good one.
#[test]
fn a_session_is_emptied_only_once_its_end_is_on_the_disk() {
    let Some(bench) = Bench::new() else { return };
    let disk = Disk::mount(&bench.folder("state"));
    let mount = bench.mount(&[]);
    let file = File::create(mount.path("f")).unwrap();
    file.write_all_at(&noise(33, 9000), 0).unwrap();
    file.sync_all().unwrap();
    close(file);
    // The session's folder goes to the trash, and there its spill file is emptied or removed.
    let emptied = || {
        let ops = disk.ops();
        let piece = ops.iter().find_map(|op| match op {
            Op::Make { name, ino, dir, .. } if name == "000000" => Some((*ino, *dir)),
            _ => None,
        });
        let (piece, folder) = piece.expect("a spill file");
        let goes = |op: &Op| match op {
            Op::Resize { ino, size: 0, .. } | Op::Remove { ino, .. } => *ino == piece,
            _ => false,
        };
        let at = ops.iter().position(goes)?;
        Some((ops, folder, at))
    };
    let (ops, folder, at) = wait_for("its bytes are taken away", emptied);
    let moved = |op: &Op| match op {
        Op::Rename { to, ino, .. } if *ino == folder => Some(to.0),
        _ => None,
    };
    let ended = ops[..at].iter().rposition(|op| moved(op).is_some()).expect("it is in the trash by then");
    let trash = moved(&ops[ended]).unwrap();
    let is_synced = ops[ended..at].iter().any(|op| matches!(op, Op::SyncDir { ino } if *ino == trash));
    assert!(is_synced, "{:?}", ops[ended..=at].iter().map(ToString::to_string).collect::<Vec<_>>());
    mount.kill();
}

/// The intent of a move that was done came back, and what had been put at the old names since was moved too.
#[test]
fn the_move_of_a_directory_has_ended_on_the_disk_when_it_is_answered() {
    let Some(bench) = Bench::new() else { return };
    let disk = Disk::mount(&bench.folder("state"));
    let mount = bench.mount(&[]);
    mount.sh("mkdir d; echo one > d/one; echo two > d/two");
    mount.settle();
    let before = disk.position();
    std::fs::rename(mount.path("d"), mount.path("e")).unwrap();
    let ops = disk.ops().split_off(before);
    let intents = ops.iter().find_map(|op| match op {
        Op::Rename { to, .. } if op.to_string().contains(".tmp") => Some(to.0),
        _ => None,
    });
    let intents = intents.expect("an intent was written");
    let gone = ops.iter().rposition(|op| matches!(op, Op::Remove { dir, .. } if *dir == intents)).expect("it has gone");
    assert!(ops[gone..].iter().any(|op| matches!(op, Op::SyncDir { ino } if *ino == intents)));
    mount.kill();
}

/// Power loss may take any part of it, and leave it as it was long ago.
#[test]
fn a_journal_that_does_not_open_or_is_older_than_the_sessions_costs_parts_alone() {
    let Some(bench) = Bench::new() else { return };
    let disk = Disk::mount(&bench.folder("state"));
    let options = [&["--part-size", PART], &LOCAL[..]].concat();
    let mount = bench.mount(&options);
    let mut writer = Recorder::new(&bench, &disk, &mount, seed(), 1 << 30);
    writer.put("one", &noise(31, 450 * KIB));
    bench.server.hold("CompleteMultipartUpload", 0);
    writer.put("two", &noise(32, 450 * KIB));
    bench.server.wait_for_held();
    writer.promise(&[], |_| ());
    let (cuts, ops, promises) = writer.end();
    mount.kill();
    bench.server.let_the_dead_go();
    let [first, .., last] = cuts.as_slice() else { panic!("{cuts:?}") };
    for journal in [Some((first, Loss::None)), Some((last, Loss::Bytes)), Some((last, Loss::Data)), None] {
        let mut rng = Rng::new(seed());
        let now = last.bench(&Image::of(&ops[..last.position], Loss::None, &mut rng));
        let place = now.state().join("journal");
        std::fs::remove_dir_all(&place).unwrap();
        if let Some((cut, loss)) = journal {
            let older = now.folder("older");
            Image::of(&ops[..cut.position], loss, &mut rng).unpack(&older);
            std::fs::rename(older.join(BUCKET).join("journal"), &place).unwrap();
        }
        let Settled { found, log, left } = look_at(&now, &options);
        let wrong = promises.check(last.position, &found, true);
        assert!(wrong.is_empty() && left.is_empty(), "{wrong:?} {left:?}\n{log}");
    }
}
