//! What a kill of the whole mount cuts off: the next one finishes it.

use std::fs::{self, File};
use std::io::Write;

use super::{keys_under, killed_renaming, no_intents, read};
use crate::harness::{BUCKET, Bench, Mount, assert_same, noise, wait_until};

/// Fills a tree, has `mv` held at some request of an operation, kills the mount, and looks at the next one.
fn cut_off(operation: &str, skip: u64) {
    let Some(bench) = Bench::new() else { return };
    let content = |n: usize| noise(n as u64, 1000 + n);
    bench.server.fill(150, |n| (format!("d/{}/{n:03}", n % 3), content(n)));
    let mount = bench.mount(&[]);
    mount.sh("ls -R d > /dev/null");
    let mut unsent = File::create(mount.path("d/1/unsent")).unwrap();
    unsent.write_all(b"promised").unwrap();
    unsent.sync_all().unwrap();
    killed_renaming(&bench, mount, ["d", "e"], (operation, skip), |from, to| fs::rename(from, to));
    drop(unsent);
    let mount = bench.mount(&[]);
    wait_until("the move is finished", || no_intents(&bench));
    mount.settle();
    assert_eq!(keys_under(&bench, "d/"), [""; 0]);
    let names = keys_under(&bench, "e/");
    assert_eq!(names.len(), 151, "{names:?}");
    for n in 0..150 {
        assert_same(&read(&mount.path(&format!("e/{}/{n:03}", n % 3))), &content(n), "moved");
    }
    assert_eq!(read(&mount.path("e/1/unsent")), b"promised");
    mount.sh("test ! -e d; test $(find e -type f | wc -l) = 151");
}

#[test]
fn a_move_killed_at_its_first_copy_is_finished() {
    cut_off("CopyObject", 0);
}

#[test]
fn a_move_killed_among_its_copies_is_finished() {
    cut_off("CopyObject", 70);
}

#[test]
fn a_move_killed_before_its_deletes_is_finished() {
    cut_off("DeleteMultipleObjects", 0);
}

#[test]
fn a_resumed_move_repeats_no_copy() {
    let Some(bench) = Bench::new() else { return };
    bench.server.fill(100, |n| (format!("d/{n:03}"), b"x"));
    let mount = bench.mount(&[]);
    mount.sh("ls d > /dev/null");
    killed_renaming(&bench, mount, ["d", "e"], ("DeleteMultipleObjects", 0), |from, to| fs::rename(from, to));
    bench.server.reset_counts();
    let _mount = bench.mount(&[]);
    wait_until("the move is finished", || no_intents(&bench));
    assert_eq!(bench.server.counts().number("CopyObject"), 0);
    assert_eq!((keys_under(&bench, "d/").len(), keys_under(&bench, "e/").len()), (0, 100));
}

#[test]
fn a_rename_of_a_file_cut_off_before_its_delete_is_finished() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("a", b"content");
    let mount = bench.mount(&[]);
    mount.sh("cat a > /dev/null");
    killed_renaming(&bench, mount, ["a", "b"], ("DeleteObject", 0), |from, to| fs::rename(from, to));
    let mount = bench.mount(&[]);
    wait_until("the rename is finished", || no_intents(&bench));
    assert_eq!(bench.server.keys(), ["b"]);
    assert_eq!(read(&mount.path("b")), b"content");
}

#[test]
fn an_intent_of_a_newer_version_is_refused() {
    let Some(bench) = Bench::new() else { return };
    bench.mount(&[]).umount();
    let intent = bench.state().join("intents").join("0123456789abcdef01234567");
    fs::write(&intent, [b"OSFI".as_slice(), &[9; 40]].concat()).unwrap();
    let refused = Mount::command(&bench, BUCKET, &bench.folder("mnt"), &[]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("newer version"), "{refused:?}");
    assert!(intent.exists(), "nothing was touched");
}
