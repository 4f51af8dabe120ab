//! `ossfuse recover`: what was kept is shown, published, exported and discarded, with and without a live mount.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::harness::{BUCKET, Bench, KIB, Mount, assert_same, noise, shell, told, wait_until};

const PART: usize = 128 * KIB;

fn mount<'b>(bench: &'b Bench, options: &[&str]) -> Mount<'b> {
    bench.mount(&[&["--part-size", "128KiB"], options].concat())
}

/// `ossfuse recover`, with the way to the service and to the state.
fn recover(bench: &Bench, arguments: &[&str]) -> Command {
    let mut command = bench.ossfuse(["recover"]);
    command.args(arguments).args(bench.connection());
    command
}

#[track_caller]
fn done(bench: &Bench, arguments: &[&str]) -> String {
    let output = recover(bench, arguments).output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn refused(bench: &Bench, arguments: &[&str], words: &[&str]) {
    let output: Output = recover(bench, arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    for word in words {
        assert!(told(&output).contains(word), "{word}: {}", told(&output));
    }
}

/// Has a writer killed in the middle: what it wrote is kept as a session, whose id is given.
fn leave_killed(bench: &Bench, mount: &Mount<'_>, script: &str) -> String {
    let before = bench.recover_list().len();
    let _gone = fs::remove_file(bench.path("written"));
    let script = format!("{script}; : > ../written; exec sleep 60");
    let mut writer = shell(&mount.path(""), &script).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("all is written", || bench.path("written").exists());
    writer.kill().unwrap();
    writer.wait().unwrap();
    wait_until("it is kept", || bench.recover_list().len() > before);
    id_of(bench.recover_list().last().unwrap())
}

fn id_of(entry: &Value) -> String {
    entry["id"].as_str().unwrap().to_owned()
}

fn source(bench: &Bench) -> Vec<u8> {
    let content = noise(5, 5 * PART + 100);
    bench.file("source", &content);
    content
}

#[test]
fn a_live_mount_publishes_exports_and_discards() {
    let Some(bench) = Bench::new() else { return };
    let content = source(&bench);
    let mount = mount(&bench, &[]);
    mount.sh("ls");
    let one = leave_killed(&bench, &mount, "exec 3> one; cat ../source >&3");
    let two = leave_killed(&bench, &mount, "exec 3> two; cat ../source >&3");
    let three = leave_killed(&bench, &mount, "exec 3> three; cat ../source >&3");
    assert_eq!(mount.status()["kept"], json!({"files": 3, "bytes": 3 * content.len()}));
    let shown = done(&bench, &["show", &one]);
    assert!(shown.contains("key      one\n") && shown.contains("its writer was killed"), "{shown}");
    let saved = bench.path("saved");
    done(&bench, &["export", &one, saved.to_str().unwrap()]);
    assert_same(&fs::read(&saved).unwrap(), &content, "exported");
    refused(&bench, &["export", &one, saved.to_str().unwrap()], &["it is there already"]);
    assert_eq!(done(&bench, &["publish", &one]), "published as one\n");
    assert_same(&bench.server.get("one").unwrap(), &content, "one");
    assert_same(&mount.read("one"), &content, "through the mount");
    assert_eq!(done(&bench, &["publish", &two, "--as", "folder/new"]), "published as folder/new\n");
    assert_same(&mount.read("folder/new"), &content, "through the mount");
    refused(&bench, &["publish", &three, "--as", "one"], &["an object one is there already", "--as KEY"]);
    done(&bench, &["discard", &three]);
    assert_eq!(bench.recover_list(), [Value::Null; 0]);
    refused(&bench, &["show", &three], &["there is no such session"]);
    assert_eq!(mount.status()["kept"], json!({"files": 0, "bytes": 0}));
    assert_eq!(bench.server.keys(), ["folder/new", "one"]);
    wait_until("no upload is left behind", || bench.server.uploads().is_empty());
    mount.umount();
}

#[test]
fn without_a_mount_it_is_done_all_the_same() {
    let Some(bench) = Bench::new() else { return };
    let content = source(&bench);
    bench.server.put("old", &content);
    let first = mount(&bench, &[]);
    let new = leave_killed(&bench, &first, "exec 3> new; cat ../source >&3");
    let edit = "exec 3<> old; printf changed | dd of=/dev/fd/3 bs=1 seek=300000 conv=notrunc status=none";
    let old = leave_killed(&bench, &first, edit);
    let gone = leave_killed(&bench, &first, "exec 3> gone; cat ../source >&3");
    first.umount();
    let mut edited = content.clone();
    edited[300_000..300_007].copy_from_slice(b"changed");
    let saved = bench.path("saved");
    done(&bench, &["export", &old, saved.to_str().unwrap()]);
    assert_same(&fs::read(&saved).unwrap(), &edited, "local and remote pieces together");
    done(&bench, &["publish", &old]);
    assert_same(&bench.server.get("old").unwrap(), &edited, "old");
    done(&bench, &["publish", &new]);
    assert_same(&bench.server.get("new").unwrap(), &content, "new");
    done(&bench, &["discard", &gone]);
    assert_eq!(bench.recover_list(), [Value::Null; 0]);
    assert!(bench.server.uploads().is_empty());
    assert_eq!(bench.server.keys(), ["new", "old"]);
}

#[test]
fn discarding_needs_no_service() {
    let Some(bench) = Bench::new() else { return };
    source(&bench);
    let first = mount(&bench, &[]);
    let id = leave_killed(&bench, &first, "exec 3> f; head -c 1000 ../source >&3");
    first.umount();
    let state = bench.path("state").display().to_string();
    for arguments in [["export", &id, bench.path("saved").to_str().unwrap()].as_slice(), &["discard", &id]] {
        let mut command = bench.ossfuse(["recover"]);
        command.args(arguments).args(["--state-dir", &state]).env_remove("OSS_ACCESS_KEY_ID");
        let output = command.env_remove("OSS_ACCESS_KEY_SECRET").output().unwrap();
        assert!(output.status.success(), "{}", told(&output));
    }
    assert_eq!(fs::read(bench.path("saved")).unwrap(), noise(5, 5 * PART + 100)[..1000]);
    assert_eq!(bench.recover_list(), [Value::Null; 0]);
}

#[test]
fn an_object_of_another_client_stays_unless_its_name_is_given() {
    let Some(bench) = Bench::new() else { return };
    let content = source(&bench);
    let mount = mount(&bench, &[]);
    let one = leave_killed(&bench, &mount, "exec 3> f; cat ../source >&3");
    let two = leave_killed(&bench, &mount, "exec 3> g; cat ../source >&3");
    bench.server.put("f", b"another client's");
    bench.server.put("g", b"another client's");
    let said = done(&bench, &["publish", &one]);
    assert!(said.starts_with("published as f.conflict-"), "{said}");
    assert_eq!(bench.server.get("f").unwrap(), b"another client's");
    done(&bench, &["publish", &two, "--as", "g"]);
    assert_same(&bench.server.get("g").unwrap(), &content, "g");
}

#[test]
fn what_is_damaged_is_exported_and_discarded_but_not_published() {
    let Some(bench) = Bench::new() else { return };
    let content = source(&bench);
    let first = mount(&bench, &[]);
    let id = leave_killed(&bench, &first, "exec 3> f; cat ../source >&3");
    first.umount();
    let session = bench.state().join("spill").join(&id).join("session");
    fs::write(session, "garbage").unwrap();
    // The next mount sets it aside.
    mount(&bench, &[]).umount();
    assert_eq!(bench.recover_list()[0]["state"], "quarantined");
    refused(&bench, &["publish", &id], &["set aside as damaged", "recover export"]);
    let saved = bench.path("saved");
    done(&bench, &["export", &id, saved.to_str().unwrap()]);
    assert_same(&fs::read(&saved).unwrap(), &content, "the bytes are all there");
    done(&bench, &["discard", &id]);
    assert_eq!(bench.recover_list(), [Value::Null; 0]);
}

fn set_age(path: &Path, days: u64) {
    let at = ossfuse::base::time::now() - Duration::from_secs(days * 24 * 60 * 60);
    fs::File::options().append(true).open(path).unwrap().set_modified(at).unwrap();
}

#[test]
fn kept_files_go_after_their_time_and_status_says_so_a_week_ahead() {
    let Some(bench) = Bench::new() else { return };
    source(&bench);
    let first = mount(&bench, &[]);
    assert_eq!(first.status()["expiring"], Value::Null);
    let young = leave_killed(&bench, &first, "exec 3> young; head -c 1000 ../source >&3");
    let near = leave_killed(&bench, &first, "exec 3> near; head -c 1000 ../source >&3");
    let due = leave_killed(&bench, &first, "exec 3> due; head -c 1000 ../source >&3");
    first.umount();
    let session = |id: &str| bench.state().join("spill").join(id).join("session");
    set_age(&session(&near), 25);
    set_age(&session(&due), 31);
    let second = mount(&bench, &[]);
    wait_until("what is due is gone", || bench.recover_list().len() == 2);
    let left: Vec<String> = bench.recover_list().iter().map(id_of).collect();
    assert_eq!(left, [young, near.clone()]);
    let expiring = &second.status()["expiring"];
    assert_eq!((&expiring["files"], &expiring["bytes"]), (&json!(1), &json!(1000)), "{expiring}");
    let log = second.log();
    assert!(log.contains(&format!("session {near} of \"near\" is discarded at ")), "{log}");
    assert!(log.contains(&format!("session {due} of \"due\" was kept for --recover-keep")), "{log}");
    let shown = bench.ossfuse(["status"]).arg(second.path("")).output().unwrap();
    assert!(told(&shown).contains("expiring"), "{}", told(&shown));
    second.umount();
    let third = bench.mount_at(BUCKET, "mnt", &["--recover-keep", "365d"]);
    assert_eq!(third.status()["expiring"], Value::Null);
}

/// What the spill was too small for lies in an unfinished upload alone: nothing may give that up but `discard`.
#[test]
fn parts_that_have_left_the_disk_are_published_or_discarded_with_the_rest() {
    let Some(bench) = Bench::new() else { return };
    let content = noise(6, 4 * 1024 * 1024 + 77);
    bench.file("large", &content);
    let mount = mount(&bench, &["--spill-limit", "1MiB"]);
    let ids = ["a", "b"].map(|name| leave_killed(&bench, &mount, &format!("exec 3>{name}; cat ../large >&3")));
    assert_eq!(bench.server.uploads().len(), 2);
    refused(&bench, &["export", &ids[0], "out"], &["unfinished upload", "--as KEY"]);
    done(&bench, &["publish", &ids[0], "--as", "c"]);
    assert_same(&bench.server.get("c").unwrap(), &content, "c");
    done(&bench, &["discard", &ids[1]]);
    assert_eq!(bench.server.keys(), ["c"]);
    assert_eq!(bench.server.uploads(), [Value::Null; 0]);
    assert_eq!(bench.recover_list(), [Value::Null; 0]);
    mount.umount();
}

/// What was fsynced is published by the next mount, at its name, whatever became of attempts to publish it before.
#[test]
fn a_publication_that_fails_leaves_the_promise_and_the_name() {
    let Some(bench) = Bench::new() else { return };
    let content = noise(6, 3 * PART + 5);
    bench.server.put("new", b"old");
    bench.server.put("edited", &content);
    let first = mount(&bench, &[]);
    let new = fs::File::create(first.path("new")).unwrap();
    new.write_all_at(&content, 0).unwrap();
    new.sync_all().unwrap();
    let edited = fs::File::options().write(true).open(first.path("edited")).unwrap();
    edited.write_all_at(b"changed", 5).unwrap();
    edited.sync_all().unwrap();
    first.kill();
    drop((new, edited));
    bench.server.let_the_dead_go();
    bench.server.faults(&json!([
        {"operation": "CompleteMultipartUpload", "action": {"status": 403, "code": "AccessDenied"}},
        {"operation": "CopyObject", "action": {"status": 403, "code": "AccessDenied"}},
    ]));
    for entry in bench.recover_list() {
        let id = id_of(&entry);
        refused(&bench, &["publish", &id], &["AccessDenied"]);
        refused(&bench, &["publish", &id, "--as", "elsewhere"], &["AccessDenied"]);
    }
    bench.server.clear_faults();
    let second = mount(&bench, &["--recover", "safe"]);
    second.settle();
    assert_eq!(bench.server.keys(), ["edited", "new"]);
    assert_same(&bench.server.get("new").unwrap(), &content, "new");
    let mut wanted = content;
    wanted[5..12].copy_from_slice(b"changed");
    assert_same(&bench.server.get("edited").unwrap(), &wanted, "edited");
    assert_eq!(bench.recover_list(), [Value::Null; 0]);
    assert_eq!(bench.server.uploads(), [Value::Null; 0]);
}
