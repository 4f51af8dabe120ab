//! The process of the mount is killed: what was promised is in the bucket after the next mount, byte for byte.
//!
//! The server's gates stop a copy at exact points, so that each kill falls where the test says.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use super::harness::{BUCKET, Bench, KIB, MIB, Mount, assert_same, noise, shell, told, wait_until};

const PART: usize = 128 * KIB;
const PARTS: usize = 24;
const OPTIONS: [&str; 2] = ["--part-size", "128KiB"];

/// Mounts with parts of 128 KiB, four at a time.
fn mount<'b>(bench: &'b Bench, recover: &str) -> Mount<'b> {
    bench.mount(&[&OPTIONS[..], &["--upload-workers", "4", "--recover", recover]].concat())
}

fn source(bench: &Bench) -> Vec<u8> {
    let content = noise(11, PARTS * PART - 100);
    bench.file("source", &content);
    content
}

/// Starts a copy in the background: it may fail, as the mount is killed under it.
fn copy(mount: &Mount<'_>, script: &str) -> Child {
    shell(&mount.path(""), script).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Parts that the server has of the only upload.
fn parts_there(bench: &Bench) -> u64 {
    bench.server.uploads().iter().map(|upload| upload["parts"].as_array().unwrap().len() as u64).sum()
}

/// Stops a copy at a point, kills the mount, and remounts: the file is completed and no part goes twice.
fn killed_at(operation: &str, skip: u64) {
    let Some(bench) = Bench::new() else { return };
    let content = source(&bench);
    let first = mount(&bench, "publish");
    bench.server.hold(operation, skip);
    let mut writer = copy(&first, "cat ../source > f; sleep 60");
    bench.server.wait_for_held();
    wait_until("all is written or under way", || {
        fs::metadata(first.path("f")).is_ok_and(|found| found.len() == content.len() as u64)
    });
    // What stood at the gate never reaches the server's store: it goes with its connection.
    first.kill();
    bench.server.let_the_dead_go();
    writer.kill().unwrap();
    writer.wait().unwrap();
    let there = parts_there(&bench);
    assert_eq!(bench.server.get("f"), None, "half a file never shows");
    bench.server.reset_counts();
    let second = mount(&bench, "publish");
    second.settle();
    assert_same(&bench.server.get("f").unwrap(), &content, "f");
    assert_same(&second.read("f"), &content, "through the mount");
    let counts = bench.server.counts();
    // A part whose reply was lost with the process may be unknown to the journal, but ListParts tells of it.
    assert!(
        counts.number("UploadPart") <= PARTS as u64 - there,
        "{} parts went again though {there} were there",
        counts.number("UploadPart")
    );
    assert_eq!(bench.server.uploads(), [Value::Null; 0]);
    assert_eq!(bench.recover_list(), [Value::Null; 0]);
}

macro_rules! killed_at {
    ($($name:ident: $operation:literal, $skip:literal;)*) => {$(
        #[test]
        fn $name() {
            killed_at($operation, $skip);
        }
    )*};
}

killed_at! {
    killed_before_the_upload_begins: "InitiateMultipartUpload", 0;
    killed_at_part_1: "UploadPart", 0;
    killed_at_part_2: "UploadPart", 1;
    killed_at_part_5: "UploadPart", 4;
    killed_at_part_9: "UploadPart", 8;
    killed_at_part_14: "UploadPart", 13;
    killed_at_part_20: "UploadPart", 19;
    killed_at_the_last_part_but_one: "UploadPart", 22;
    killed_at_the_last_part: "UploadPart", 23;
    killed_before_complete: "CompleteMultipartUpload", 0;
}

/// The reply to Complete is lost with the process: the file is there already and is not sent again.
#[test]
fn killed_after_complete() {
    let Some(bench) = Bench::new() else { return };
    let content = source(&bench);
    let first = mount(&bench, "safe");
    bench.server.faults(&json!([{"operation": "CompleteMultipartUpload", "action": {"hold_after": "gate"}}]));
    let mut writer = copy(&first, "cp ../source f");
    bench.server.wait_for_held();
    first.kill();
    bench.server.let_the_dead_go();
    writer.wait().unwrap();
    assert_same(&bench.server.get("f").unwrap(), &content, "f");
    bench.server.reset_counts();
    let second = mount(&bench, "safe");
    second.settle();
    assert_eq!(bench.server.counts().number("UploadPart"), 0);
    assert_eq!(bench.server.keys(), ["f"]);
    assert_eq!(bench.recover_list(), [Value::Null; 0]);
}

#[test]
fn what_was_neither_closed_nor_synced_is_kept_with_safe() {
    let Some(bench) = Bench::new() else { return };
    let content = source(&bench);
    bench.server.put("old", b"old");
    let first = mount(&bench, "safe");
    bench.server.hold("UploadPart", 5);
    let mut writer = copy(&first, "exec 3>new 4>old; cat ../source >&3; cat ../source >&4; : > ../written; sleep 60");
    wait_until("all is written", || bench.path("written").exists());
    first.kill();
    bench.server.let_the_dead_go();
    writer.kill().unwrap();
    writer.wait().unwrap();
    let second = mount(&bench, "safe");
    second.settle();
    assert_eq!(bench.server.keys(), ["old"]);
    assert_eq!(bench.server.get("old").unwrap(), b"old");
    let kept = bench.recover_list();
    assert_eq!(kept.len(), 2, "{kept:?}");
    for entry in &kept {
        assert_eq!((&entry["state"], &entry["size"]), (&json!("kept"), &json!(content.len())), "{entry}");
    }
    second.umount();
    let third = mount(&bench, "publish");
    third.settle();
    assert_same(&bench.server.get("new").unwrap(), &content, "new");
    assert_same(&bench.server.get("old").unwrap(), &content, "old");
}

#[test]
fn what_was_synced_is_published() {
    let Some(bench) = Bench::new() else { return };
    let content = source(&bench);
    let first = mount(&bench, "safe");
    let mut writer =
        copy(&first, "exec 3>f; dd if=../source bs=64k conv=fsync status=none >&3; : > ../written; sleep 60");
    wait_until("all is written and synced", || bench.path("written").exists());
    first.kill();
    writer.kill().unwrap();
    writer.wait().unwrap();
    let second = mount(&bench, "safe");
    second.settle();
    assert_same(&bench.server.get("f").unwrap(), &content, "f");
    assert_same(&second.read("f"), &content, "through the mount");
}

#[test]
fn a_close_under_way_is_completed() {
    let Some(bench) = Bench::new() else { return };
    let content = source(&bench);
    fs::write(bench.path("small"), &content[..1000]).unwrap();
    bench.server.put("edited", &content);
    let first = mount(&bench, "safe");
    bench.server.faults(&json!([
        {"operation": "CompleteMultipartUpload", "action": {"hold": "gate"}},
        {"operation": "PutObject", "action": {"hold": "put"}},
    ]));
    let mut writers = [
        copy(&first, "cp ../source large"),
        copy(&first, "cp ../small small"),
        copy(&first, "printf changed | dd of=edited bs=1 seek=1000000 conv=notrunc status=none"),
    ];
    wait_until("three closes are under way", || {
        let uploads = first.status()["uploads"].as_array().unwrap().clone();
        uploads.iter().filter(|upload| upload["state"] == "closing" || upload["state"] == "completing").count() == 3
    });
    first.kill();
    bench.server.let_the_dead_go();
    for writer in &mut writers {
        assert!(!writer.wait().unwrap().success(), "no close that failed is told as done");
    }
    let second = mount(&bench, "safe");
    second.settle();
    assert_same(&bench.server.get("large").unwrap(), &content, "large");
    assert_same(&bench.server.get("small").unwrap(), &content[..1000], "small");
    let mut edited = content;
    edited[1_000_000..1_000_007].copy_from_slice(b"changed");
    assert_same(&bench.server.get("edited").unwrap(), &edited, "edited");
    assert_eq!(bench.recover_list(), [Value::Null; 0]);
}

#[test]
fn another_client_came_first() {
    let Some(bench) = Bench::new() else { return };
    let content = source(&bench);
    bench.server.put("f", b"as it was");
    let first = mount(&bench, "safe");
    bench.server.hold("CompleteMultipartUpload", 0);
    let mut writer = copy(&first, "cp ../source f");
    bench.server.wait_for_held();
    first.kill();
    bench.server.let_the_dead_go();
    writer.wait().unwrap();
    bench.server.put("f", b"another client's");
    let second = mount(&bench, "safe");
    second.settle();
    assert_eq!(bench.server.get("f").unwrap(), b"another client's");
    let beside: Vec<String> = bench.server.keys().into_iter().filter(|key| key.starts_with("f.conflict-")).collect();
    let [beside] = beside.as_slice() else { panic!("{:?}", bench.server.keys()) };
    assert_eq!(beside.len(), "f.conflict-YYYYMMDD-HHMMSS".len());
    assert_same(&bench.server.get(beside).unwrap(), &content, beside);
    assert_same(&second.read(beside), &content, "through the mount");
}

/// The folders of the sessions in the state folder.
fn sessions(bench: &Bench) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(bench.state().join("spill")).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

/// Leaves two closed files, `a` and then `b`, unsent behind. Gives the content of each and the folder of `a`.
fn leave_two(bench: &Bench) -> (Vec<u8>, PathBuf) {
    let content = source(bench);
    let first = mount(bench, "safe");
    bench.server.hold("CompleteMultipartUpload", 0);
    let mut a = copy(&first, "cp ../source a");
    bench.server.wait_for_held();
    let folder = sessions(bench).pop().unwrap();
    let mut b = copy(&first, "cp ../source b");
    wait_until("two closes are under way", || {
        let uploads = first.status()["uploads"].as_array().unwrap().clone();
        uploads.iter().filter(|upload| upload["parts_done"] == PARTS && upload["state"] != "open").count() == 2
    });
    first.kill();
    bench.server.let_the_dead_go();
    a.wait().unwrap();
    b.wait().unwrap();
    (content, folder)
}

fn garbage(path: &std::path::Path) {
    let len = fs::metadata(path).unwrap().len() as usize;
    fs::write(path, noise(99, len.max(16))).unwrap();
}

#[track_caller]
fn assert_quarantined(bench: &Bench, content: &[u8]) {
    let second = mount(bench, "safe");
    second.settle();
    wait_until("b is published", || bench.server.get("b").is_some());
    assert_same(&bench.server.get("b").unwrap(), content, "b");
    assert!(bench.server.get("a").is_none(), "a is not published");
    wait_until("a is set aside", || {
        let listed = bench.recover_list();
        listed.len() == 1 && listed[0]["state"] == "quarantined"
    });
    assert!(!second.log().contains("panicked"), "{}", second.log());
    second.sh("echo works > c");
    second.umount();
    assert_eq!(bench.recover_list()[0]["state"], "quarantined", "without a mount");
}

#[test]
fn a_damaged_session_file_is_set_aside() {
    let Some(bench) = Bench::new() else { return };
    let (content, folder) = leave_two(&bench);
    garbage(&folder.join("session"));
    assert_quarantined(&bench, &content);
}

#[test]
fn a_damaged_spill_file_is_set_aside() {
    let Some(bench) = Bench::new() else { return };
    let (content, folder) = leave_two(&bench);
    let mut files: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| !fs::read(path).unwrap().starts_with(b"OSFS"));
    files.sort();
    assert_eq!(files.len(), PARTS);
    garbage(&files[7]);
    assert_quarantined(&bench, &content);
}

#[test]
fn a_folder_without_a_session_file_is_set_aside() {
    let Some(bench) = Bench::new() else { return };
    let (content, folder) = leave_two(&bench);
    for file in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
        if fs::read(&file).unwrap().starts_with(b"OSFS") {
            fs::remove_file(file).unwrap();
        }
    }
    assert_quarantined(&bench, &content);
}

/// Both files are published, whatever became of the journal.
#[track_caller]
fn assert_both_published(bench: &Bench, content: &[u8]) {
    let second = mount(bench, "safe");
    second.settle();
    for key in ["a", "b"] {
        assert_same(&bench.server.get(key).unwrap(), content, key);
    }
    assert!(!second.log().contains("panicked"), "{}", second.log());
    assert_eq!(bench.recover_list(), [Value::Null; 0]);
    second.umount();
}

#[test]
fn a_missing_journal_costs_no_byte() {
    let Some(bench) = Bench::new() else { return };
    let (content, _) = leave_two(&bench);
    fs::remove_dir_all(bench.state().join("journal")).unwrap();
    assert_both_published(&bench, &content);
}

#[test]
fn a_damaged_journal_costs_no_byte() {
    let Some(bench) = Bench::new() else { return };
    let (content, _) = leave_two(&bench);
    let journal = bench.state().join("journal");
    for file in fs::read_dir(&journal).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
        garbage(&file);
    }
    assert_both_published(&bench, &content);
    assert!(journal.is_dir());
}

#[test]
fn a_journal_that_is_a_file_costs_no_byte() {
    let Some(bench) = Bench::new() else { return };
    let (content, _) = leave_two(&bench);
    let journal = bench.state().join("journal");
    fs::remove_dir_all(&journal).unwrap();
    fs::write(&journal, "what is this?").unwrap();
    assert_both_published(&bench, &content);
}

#[test]
fn state_of_a_newer_version_is_not_touched() {
    let Some(bench) = Bench::new() else { return };
    let (content, folder) = leave_two(&bench);
    let session = &folder.join("session");
    let before = fs::read(session).unwrap();
    let mut newer = before.clone();
    newer[4] = 200;
    fs::write(session, &newer).unwrap();
    let uploads = bench.server.uploads();
    let output = Mount::command(&bench, BUCKET, &bench.path("mnt"), &OPTIONS).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    assert!(told(&output).contains("newer version"), "{}", told(&output));
    assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1, "{}", told(&output));
    assert_eq!(fs::read(session).unwrap(), newer);
    assert_eq!(bench.server.uploads(), uploads);
    assert_eq!(bench.server.keys(), [""; 0]);
    // The version that wrote it goes on.
    fs::write(session, &before).unwrap();
    assert_both_published(&bench, &content);
}

#[test]
fn a_state_folder_serves_one_mount() {
    let Some(bench) = Bench::new() else { return };
    let first = bench.mount(&[]);
    let output = Mount::command(&bench, BUCKET, &bench.folder("second"), &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    let line = String::from_utf8(output.stderr).unwrap();
    assert!(line.contains("in use by") && line.contains(first.path("").to_str().unwrap()), "{line}");
    assert!(line.contains(&first.worker_pid().to_string()), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    first.sh("echo works > f");
}

/// Killed over and over while files come in: each `cp` that ended well is in the bucket.
#[test]
fn what_cp_said_is_true_over_many_kills() {
    let Some(bench) = Bench::new() else { return };
    let mut promised = Vec::new();
    for round in 0..6_u64 {
        let mount = mount(&bench, "safe");
        let script = format!(
            "for i in $(seq 100); do head -c $((i * 9001)) ../source > ../c && cp ../c r{round}-$i && echo $i >> ../done{round} || exit 0; done"
        );
        bench.file("source", &noise(12, 2 * MIB));
        let mut writer = copy(&mount, &script);
        let done = bench.path(&format!("done{round}"));
        let count = || fs::read_to_string(&done).unwrap_or_default().lines().count() as u64;
        wait_until("some are done", || count() > 3 * round);
        mount.kill();
        writer.wait().unwrap();
        for i in 1..=count() {
            promised.push((format!("r{round}-{i}"), i as usize * 9001));
        }
    }
    assert!(promised.len() > 40);
    let content = noise(12, 2 * MIB);
    for (key, len) in promised {
        assert_same(&bench.server.get(&key).unwrap_or_default(), &content[..len], &key);
    }
}

/// A mount that dies at a point, once `work` has come there: what it has left is to be looked at by the next one.
fn died_at(bench: &Bench, options: &[&str], point: &str, work: impl FnOnce(&Mount<'_>)) {
    let file = bench.path("crash");
    let mut mount =
        bench.mount_with(&[options, &["--no-supervisor"]].concat(), &[("_OSSFUSE_CRASH_FILE", file.as_os_str())]);
    fs::write(bench.path("crash.new"), point).unwrap();
    fs::rename(bench.path("crash.new"), &file).unwrap();
    work(&mount);
    wait_until("it has died there", || !file.exists());
    mount.wait();
    mount.kill();
    bench.server.let_the_dead_go();
}

/// The file was gone before its upload was: only the journal knew of that.
#[test]
fn the_upload_of_a_file_that_was_unlinked_is_aborted_by_the_next_mount() {
    let Some(bench) = Bench::new() else { return };
    died_at(&bench, &OPTIONS, "abort-sending", |mount| {
        let file = File::create(mount.path("f")).unwrap();
        file.write_all_at(&source(&bench), 0).unwrap();
        wait_until("parts are there", || parts_there(&bench) > 2);
        fs::remove_file(mount.path("f")).unwrap();
        // Nobody is told what becomes of it.
        drop(file);
    });
    assert!(parts_there(&bench) > 0, "its upload stands");
    let mount = bench.mount(&OPTIONS);
    wait_until("it is aborted", || bench.server.uploads().is_empty());
    mount.umount();
    assert_eq!((bench.server.keys(), bench.recover_list()), (vec![], vec![]));
}

/// What a file with a large hole has at keys of the program's own goes also if the mount dies before that.
#[test]
fn what_a_large_file_leaves_over_goes_with_the_next_mount() {
    let mut content = vec![0; 40 * MIB];
    let end = content.len() - 3;
    content[end..].copy_from_slice(b"end");
    for point in ["leftover-noted", "multi-delete-sending", "multi-delete-answered"] {
        let Some(bench) = Bench::new() else { return };
        let options = ["--part-size", "100KiB"];
        died_at(&bench, &options, point, |mount| {
            let file = File::create(mount.path("f")).unwrap();
            file.write_all_at(b"end", end as u64).unwrap();
            drop(file);
        });
        assert_same(&bench.server.get("f").unwrap(), &content, point);
        let mount = bench.mount(&options);
        wait_until("nothing is left over", || bench.server.keys() == ["f"] && bench.server.uploads().is_empty());
        assert_eq!(fs::metadata(mount.path("f")).unwrap().len(), content.len() as u64);
        mount.umount();
        assert_eq!(bench.recover_list(), [Value::Null; 0], "{point}");
    }
}

/// The file took its attributes along, with those that were set after it was closed: the ones before these, of which the
/// dead one had no time to forget that they were to be sent, are not set again.
#[test]
fn attributes_that_have_gone_with_the_file_are_not_put_back() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("f", b"old");
    died_at(&bench, &["--close", "local"], "session-ended", |mount| {
        let set_mode = |mode| fs::set_permissions(mount.path("f"), fs::Permissions::from_mode(mode)).unwrap();
        set_mode(0o604);
        // Before that is sent, unless the machine is slow.
        fs::write(mount.path("f"), b"new").unwrap();
        set_mode(0o640);
    });
    let mount = bench.mount(&[]);
    mount.settle();
    let objects = bench.server.objects();
    let mode: u32 = objects[0]["meta"]["mode"].as_str().unwrap().parse().unwrap();
    assert_eq!((mode & 0o7777, bench.server.get("f").unwrap()), (0o640, b"new".to_vec()));
    mount.umount();
}

/// A session that took attributes along is damaged: they go onto the object that stands.
#[test]
fn attributes_are_set_also_where_the_session_that_had_them_is_damaged() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("f", b"old");
    let first = bench.mount(&["--close", "local"]);
    bench.server.hold("PutObject", 0);
    fs::set_permissions(first.path("f"), fs::Permissions::from_mode(0o604)).unwrap();
    fs::write(first.path("f"), b"new").unwrap();
    bench.server.wait_for_held();
    first.kill();
    bench.server.let_the_dead_go();
    let spill = bench.state().join("spill");
    let session = fs::read_dir(&spill).unwrap().next().unwrap().unwrap().path();
    fs::write(session.join("000000"), b"").unwrap();
    let second = bench.mount(&[]);
    let mode = || bench.server.objects()[0]["meta"]["mode"].as_str().map(|mode| mode.parse::<u32>().unwrap() & 0o7777);
    wait_until("its mode is set", || mode() == Some(0o604));
    assert_eq!(bench.server.get("f").unwrap(), b"old");
    second.settle();
    second.umount();
}

/// A file is written on before its replay has come to it: what had been begun to be sent is of no use any more.
#[test]
fn what_is_written_on_during_its_replay_leaves_no_upload_behind() {
    let Some(bench) = Bench::new() else { return };
    let options = [&OPTIONS[..], &["--close", "local"]].concat();
    let mut content = source(&bench);
    let first = bench.mount(&options);
    bench.server.hold("CompleteMultipartUpload", 0);
    fs::write(first.path("f"), &content).unwrap();
    bench.server.wait_for_held();
    first.kill();
    bench.server.let_the_dead_go();
    assert!(parts_there(&bench) > 0, "its upload stands");
    bench.server.hold("HeadObject", 0);
    let second = bench.mount(&options);
    bench.server.wait_for_held();
    let file = File::options().write(true).open(second.path("f")).unwrap();
    file.write_all_at(b"changed", 5).unwrap();
    content[5..12].copy_from_slice(b"changed");
    bench.server.clear_faults();
    drop(file);
    second.settle();
    wait_until("no upload is left", || bench.server.uploads().is_empty());
    assert_same(&bench.server.get("f").unwrap(), &content, "f");
    second.umount();
    assert_eq!(bench.server.keys(), ["f"]);
}
