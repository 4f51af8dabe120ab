//! Attributes of finished files: seen at once, safe from a kill, in the bucket soon, at the price of one copy.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::thread;

use serde_json::json;

use super::harness::{Bench, Finally, told, wait_until};

/// A value of an object's user metadata.
fn meta(bench: &Bench, key: &str, name: &str) -> Option<String> {
    let objects = bench.server.objects();
    let object = objects.iter().find(|object| object["key"] == key)?;
    object["meta"][name].as_str().map(str::to_owned)
}

fn mode(bench: &Bench, key: &str) -> Option<u32> {
    Some(meta(bench, key, "mode")?.parse::<u32>().unwrap() & 0o7777)
}

#[test]
fn several_changes_are_one_copy() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    mount.sh("echo content > f; ls -l");
    let counts = bench.counting(|| {
        mount.sh("chmod 600 f; touch -d '2001-02-03 04:05:06.7 UTC' f; setfattr -n user.k -v v f");
        let shown = mount.sh("TZ=UTC stat -c '%a %y' f; getfattr -n user.k --only-values f");
        assert_eq!(shown, "600 2001-02-03 04:05:06.700000000 +0000\nv");
        mount.settle();
    });
    // A slow machine may take longer than the window in which they are gathered.
    assert!(counts.total() <= 4 && counts.number("PutObject") == 0, "{:?}", counts.all());
    assert_eq!(mode(&bench, "f"), Some(0o600));
    assert_eq!(meta(&bench, "f", "mtime").as_deref(), Some("981173106.700000000"));
    assert!(meta(&bench, "f", "xattr").is_some());
    mount.sh("setfattr -x user.k f");
    wait_until("it is sent unasked", || meta(&bench, "f", "xattr").is_none());
    assert_eq!(mount.sh("cat f"), "content\n");
}

#[test]
fn sync_and_umount_send_them() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    mount.sh("echo a > a; echo b > b; chmod 600 a");
    let output = bench.ossfuse(["sync"]).arg(mount.path("a")).output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    assert_eq!(mode(&bench, "a"), Some(0o600));
    mount.sh("chmod 640 a b");
    mount.umount();
    assert_eq!((mode(&bench, "a"), mode(&bench, "b")), (Some(0o640), Some(0o640)));
    assert_eq!(fs::read_dir(bench.state().join("intents")).unwrap().count(), 0);
}

#[test]
fn they_survive_a_kill() {
    let Some(bench) = Bench::new() else { return };
    let first = bench.mount(&[]);
    first.sh("echo content > f; ls -l");
    bench.server.hold("CopyObject", 0);
    first.sh("chmod 601 f; touch -d @1000000000 f");
    assert_eq!(first.status()["pending"]["files"], 1);
    first.kill();
    bench.server.let_the_dead_go();
    let second = bench.mount(&[]);
    second.settle();
    assert_eq!((mode(&bench, "f"), meta(&bench, "f", "mtime").as_deref()), (Some(0o601), Some("1000000000")));
    assert_eq!(second.sh("stat -c '%a %Y' f"), "601 1000000000\n");
    assert_eq!(fs::read_dir(bench.state().join("intents")).unwrap().count(), 0);
}

/// The attributes of files that are looked at in their order are asked for ahead: that must not show what was before.
#[test]
fn what_is_asked_ahead_is_what_was_answered_before_a_kill() {
    let Some(bench) = Bench::new() else { return };
    bench.server.fill(24, |n| (format!("d/{n:02}"), b"x"));
    let first = bench.mount(&[]);
    bench.server.hold("CopyObject", 0);
    first.sh("ls d; chmod 601 d/20");
    first.kill();
    bench.server.let_the_dead_go();
    bench.server.hold("CopyObject", 0);
    let second = bench.mount(&[]);
    bench.server.wait_for_held();
    let looks = || fs::read_to_string(bench.path("looks")).unwrap_or_default();
    thread::scope(|scope| {
        let _free = Finally(|| bench.server.clear_faults());
        scope.spawn(|| second.sh("for file in d/*; do stat -c '%n %a' $file >> ../looks; done"));
        wait_until("all before it were looked at", || looks().contains("d/19"));
        // While these are looked at it would be too, if it could.
        second.sh("stat d/21; stat d/22; stat d/23");
    });
    assert!(looks().contains("d/20 601\n"), "{}", looks());
}

/// The copy onto itself was done, and nobody heard: its repetition is refused, as the ETag is another one by now.
#[test]
fn a_lost_reply_loses_no_time_and_is_taken_for_nobody_elses_doing() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    mount.sh("echo content > f; ls -l");
    bench.server.faults(&json!([{"operation": "CopyObject", "times": 1, "action": {"reset": "after"}}]));
    let counts = bench.counting(|| {
        mount.sh("touch -d @1000000000 f");
        mount.settle();
    });
    assert_eq!(meta(&bench, "f", "mtime").as_deref(), Some("1000000000"));
    assert!(counts.number("CopyObject") <= 2, "{:?}", counts.all());
    assert!(!mount.log().contains("another client"), "{}", mount.log());
    assert_eq!(mount.sh("cat f; stat -c %Y f"), "content\n1000000000\n");
}

#[test]
fn a_rename_takes_them_along() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("final", b"old");
    let mount = bench.mount(&[]);
    mount.sh("mkdir d; ls -l");
    mount.sh("echo content > .tmp; chmod 750 .tmp; touch -d @1000000000 .tmp; mv .tmp final");
    assert_eq!(mount.sh("stat -c '%a %Y' final"), "750 1000000000\n");
    mount.settle();
    assert_eq!((mode(&bench, "final"), meta(&bench, "final", "mtime").as_deref()), (Some(0o750), Some("1000000000")));
    assert_eq!(bench.server.get("final").as_deref(), Some(&b"content\n"[..]));

    mount.sh("echo inner > d/inner; chmod 711 d/inner; mv d e");
    mount.settle();
    assert_eq!(mode(&bench, "e/inner"), Some(0o711));
    assert_eq!(mount.sh("stat -c %a e/inner"), "711\n");
}

#[test]
fn what_is_written_next_takes_them_along() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    mount.sh("echo one > f; echo one > g; echo one > h; chmod 604 f; echo two > f; chmod 605 g; echo two >> g");
    mount.sh("chmod 606 h; rm h; echo new > h");
    mount.settle();
    assert_eq!((mode(&bench, "f"), bench.server.get("f").unwrap()), (Some(0o604), b"two\n".to_vec()));
    assert_eq!((mode(&bench, "g"), bench.server.get("g").unwrap()), (Some(0o605), b"one\ntwo\n".to_vec()));
    assert_eq!((mode(&bench, "h"), bench.server.get("h").unwrap()), (Some(0o644), b"new\n".to_vec()));
    assert_eq!(mount.sh("stat -c %a f g h"), "604\n605\n644\n");
}

#[test]
fn writing_waits_for_the_copy_that_is_under_way() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    mount.sh("echo one > f");
    bench.server.hold("CopyObject", 0);
    fs::set_permissions(mount.path("f"), fs::Permissions::from_mode(0o604)).unwrap();
    bench.server.wait_for_held();
    let path = mount.path("f");
    let writer = std::thread::spawn(move || fs::write(path, "two\n"));
    bench.server.clear_faults();
    writer.join().unwrap().unwrap();
    mount.settle();
    assert_eq!((mode(&bench, "f"), bench.server.get("f").unwrap()), (Some(0o604), b"two\n".to_vec()));
}

#[test]
fn another_clients_object_gets_the_mode_and_keeps_its_time() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    mount.sh("echo one > f");
    bench.server.hold("CopyObject", 0);
    mount.sh("chmod 604 f; touch -d @1000000000 f");
    bench.server.wait_for_held();
    bench.server.put("f", b"theirs");
    bench.server.clear_faults();
    mount.settle();
    assert_eq!((mode(&bench, "f"), meta(&bench, "f", "mtime")), (Some(0o604), None));
    assert_eq!(bench.server.get("f").as_deref(), Some(&b"theirs"[..]));
    assert_eq!(mount.sh("cat f; stat -c ' %a' f"), "theirs 604\n");
}

#[test]
fn a_time_that_was_set_ends_with_the_next_write_also_for_the_next_process() {
    let Some(bench) = Bench::new() else { return };
    let first = bench.mount(&[]);
    let file = fs::File::create(first.path("f")).unwrap();
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    (&file).write_all(b"one").unwrap();
    file.set_modified(old).unwrap();
    assert_eq!(fs::metadata(first.path("f")).unwrap().modified().unwrap(), old);
    (&file).write_all(b" two").unwrap();
    file.sync_all().unwrap();
    first.kill();
    drop(file);
    bench.server.let_the_dead_go();
    let second = bench.mount(&[]);
    second.settle();
    assert_eq!(bench.server.get("f").as_deref(), Some(&b"one two"[..]));
    assert_ne!(meta(&bench, "f", "mtime").as_deref(), Some("1000000000"));
}

#[test]
fn an_open_file_without_a_name_has_no_links() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    mount.sh("echo clean > clean");
    let clean = fs::File::open(mount.path("clean")).unwrap();
    let dirty = fs::File::create(mount.path("dirty")).unwrap();
    assert_eq!((clean.metadata().unwrap().nlink(), dirty.metadata().unwrap().nlink()), (1, 1));
    mount.sh("rm clean dirty");
    assert_eq!((clean.metadata().unwrap().nlink(), dirty.metadata().unwrap().nlink()), (0, 0));
    clean.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(clean.metadata().unwrap().permissions().mode() & 0o777, 0o600);
}
