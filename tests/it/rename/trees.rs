//! Directories: what they cost, what goes along with them, and what is refused.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::thread;

use serde_json::json;

use super::{errno, keys_under, no_intents, read, reread};
use crate::harness::{Bench, Finally, KIB, MIB, assert_same, forget_pages, noise, shell, signal, wait_until};

#[test]
fn a_directory_of_a_thousand_files_costs_what_is_promised() {
    let Some(bench) = Bench::new() else { return };
    bench.server.fill(1000, |n| (format!("d/{n:04}"), format!("content {n}")));
    let mount = bench.mount_quiet(&[]);
    assert_eq!(fs::read_dir(mount.path("d")).unwrap().count(), 1000);
    let counts = bench.counting(|| fs::rename(mount.path("d"), mount.path("e")).unwrap());
    assert!(counts.number("ListObjectsV2") <= 3, "{counts:?}");
    assert_eq!(counts.number("CopyObject"), 1000, "{counts:?}");
    assert!((1..=3).contains(&counts.number("DeleteMultipleObjects")), "{counts:?}");
    assert!(counts.total() <= 1006, "{counts:?}");
    assert_eq!(keys_under(&bench, "e/").len(), 1000);
    assert_eq!(keys_under(&bench, "d/").len(), 0);
    assert_eq!(errno(fs::metadata(mount.path("d"))), Some(libc::ENOENT));
    assert_eq!(fs::read_dir(mount.path("e")).unwrap().count(), 1000);
    for n in [0, 1, 500, 999] {
        assert_eq!(read(&mount.path(&format!("e/{n:04}"))), format!("content {n}").as_bytes());
    }
    assert!(no_intents(&bench));
}

#[test]
fn a_tree_moves_with_all_that_is_in_it() {
    let Some(bench) = Bench::new() else { return };
    for key in ["t/a//b", "t/ctl\u{1}x", "t/<&>\"'", "t/sub/deep/er/f", "t2/near", "other/x"] {
        bench.server.put(key, key.as_bytes());
    }
    let mount = bench.mount(&[]);
    mount
        .sh("mkdir -p t/empty t/sub/made; echo own > t/sub/made/file; chmod 600 t/sub/made/file; ls -lR t > /dev/null");
    mount.sh("mv t other/moved");
    let mut wanted = vec!["a//b", "ctl\u{1}x", "<&>\"'", "sub/deep/er/f", "empty/", "sub/made/", "sub/made/file"];
    wanted.sort_unstable();
    assert_eq!(keys_under(&bench, "other/moved/"), wanted);
    assert_eq!(bench.server.get("t2/near").as_deref(), Some(&b"t2/near"[..]));
    assert_eq!(keys_under(&bench, "t/"), [""; 0]);
    assert_eq!(mount.sh("cat other/moved/sub/deep/er/f; stat -c %a other/moved/sub/made/file"), "t/sub/deep/er/f600\n");
    mount.sh("test ! -e t; cd other/moved/sub; echo more >> made/file; mv made ../../up; cat ../../up/file");
    assert_eq!(bench.server.get("other/up/file").as_deref(), Some(&b"own\nmore\n"[..]));
    let before = mount.sh("cd other; find . | sort");
    mount.umount();
    let mount = bench.mount(&[]);
    assert_eq!(mount.sh("cd other; find . | sort"), before);
}

#[test]
fn an_empty_directory_is_cheap() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount_quiet(&[]);
    mount.sh("mkdir a");
    let counts = bench.counting(|| fs::rename(mount.path("a"), mount.path("b")).unwrap());
    assert_eq!(counts.all(), [("CopyObject", 1), ("DeleteObject", 1), ("ListObjectsV2", 1)]);
    assert_eq!(bench.server.keys(), ["b/"]);
}

#[test]
fn the_new_name_of_a_directory_must_be_free_or_an_empty_directory() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    mount.sh("mkdir d empty full; echo 1 > d/f; echo 2 > full/g; echo 3 > file; mkdir d/sub");
    let path = |name| mount.path(name);
    assert_eq!(errno(fs::rename(path("d"), path("full"))), Some(libc::ENOTEMPTY));
    assert_eq!(errno(fs::rename(path("d"), path("file"))), Some(libc::ENOTDIR));
    assert_eq!(errno(fs::rename(path("file"), path("d"))), Some(libc::EISDIR));
    assert_eq!(errno(fs::rename(path("d"), path("d/sub/x"))), Some(libc::EINVAL));
    assert_eq!(errno(fs::rename(path("gone"), path("x"))), Some(libc::ENOENT));
    let no_replace = "mv --no-clobber --no-target-directory d empty; test -e d/f; test ! -e empty/f";
    mount.sh(no_replace);
    fs::rename(path("d"), path("d")).unwrap();
    let unsent = File::create(path("empty/unsent")).unwrap();
    assert_eq!(errno(fs::rename(path("d"), path("empty"))), Some(libc::ENOTEMPTY));
    drop(unsent);
    fs::remove_file(path("empty/unsent")).unwrap();
    fs::rename(path("d"), path("empty")).unwrap();
    assert_eq!(mount.sh("find . | sort | tr '\\n' ' '"), ". ./empty ./empty/f ./empty/sub ./file ./full ./full/g ");
    assert_eq!(bench.server.keys(), ["empty/", "empty/f", "empty/sub/", "file", "full/", "full/g"]);
}

#[test]
fn a_name_that_would_be_too_long_is_refused_before_anything_moves() {
    let Some(bench) = Bench::new() else { return };
    let long = format!("d/{0}/{0}/{0}/{0}", "n".repeat(250));
    bench.server.put(&long, b"x");
    bench.server.put("d/a", b"a");
    let mount = bench.mount(&[]);
    let target = mount.path(&"t".repeat(100));
    assert_eq!(errno(fs::rename(mount.path("d"), target)), Some(libc::ENAMETOOLONG));
    assert_eq!(bench.server.keys(), ["d/a".to_owned(), long]);
    assert!(no_intents(&bench));
}

#[test]
fn open_files_move_with_their_directory() {
    let Some(bench) = Bench::new() else { return };
    let (large, edited) = (noise(1, 3 * MIB), noise(2, 3 * MIB));
    bench.server.put("d/sub/read", &large);
    bench.server.put("d/sub/edited", &edited);
    let mount = bench.mount(&["--part-size", "1MiB"]);
    let mut reader = File::open(mount.path("d/sub/read")).unwrap();
    let mut start = vec![0; 100 * KIB];
    reader.read_exact(&mut start).unwrap();
    let mut editor = File::options().read(true).write(true).open(mount.path("d/sub/edited")).unwrap();
    editor.write_all_at(b"patched", 2 * MIB as u64 + 5).unwrap();
    let mut fresh = File::create(mount.path("d/fresh")).unwrap();
    fresh.write_all(&noise(3, 2 * MIB + 17)).unwrap();
    fs::rename(mount.path("d"), mount.path("e")).unwrap();
    assert_eq!(keys_under(&bench, "d/"), [""; 0]);
    forget_pages(&reader);
    assert_same(&reread(&mut reader), &large, "read on");
    fresh.write_all(b"more").unwrap();
    editor.write_all_at(b"again", 10).unwrap();
    let mut wanted = edited.clone();
    wanted[2 * MIB + 5..2 * MIB + 12].copy_from_slice(b"patched");
    wanted[10..15].copy_from_slice(b"again");
    assert_same(&reread(&mut editor), &wanted, "edited, through the handle");
    drop((reader, fresh, editor));
    let mut new = noise(3, 2 * MIB + 17);
    new.extend_from_slice(b"more");
    assert_same(&bench.server.get("e/fresh").unwrap(), &new, "fresh");
    assert_same(&bench.server.get("e/sub/edited").unwrap(), &wanted, "edited");
    assert_same(&read(&mount.path("e/sub/edited")), &wanted, "edited, by name");
    mount.settle();
    assert_eq!(bench.server.keys(), ["e/fresh", "e/sub/edited", "e/sub/read"]);
    assert_eq!(bench.server.uploads().len(), 0);
}

#[test]
fn what_goes_on_in_a_tree_waits_for_its_move() {
    let Some(bench) = Bench::new() else { return };
    bench.server.fill(20, |n| (format!("d/{n}"), noise(n as u64, 200 * KIB)));
    let mount = bench.mount(&[]);
    mount.sh("ls -l d > /dev/null");
    let mut writer = File::create(mount.path("d/written")).unwrap();
    let mut reader = File::open(mount.path("d/7")).unwrap();
    bench.server.hold("CopyObject", 3);
    thread::scope(|scope| {
        // Also where something here fails: nobody must wait for the others.
        let _free = Finally(|| bench.server.clear_faults());
        let mover = scope.spawn(|| fs::rename(mount.path("d"), mount.path("e")));
        bench.server.wait_for_held();
        writer.write_all(b"while it moves").unwrap();
        let closer = scope.spawn(move || drop(writer));
        assert_same(&reread(&mut reader), &noise(7, 200 * KIB), "read while it moves");
        bench.server.clear_faults();
        mover.join().unwrap().unwrap();
        closer.join().unwrap();
    });
    assert_eq!(bench.server.get("e/written").as_deref(), Some(&b"while it moves"[..]));
    assert_eq!(keys_under(&bench, "d/"), [""; 0]);
    assert_eq!(keys_under(&bench, "e/").len(), 21);
    forget_pages(&reader);
    assert_same(&reread(&mut reader), &noise(7, 200 * KIB), "read on");
}

#[test]
fn a_move_that_fails_leaves_both_trees_and_goes_on() {
    let Some(bench) = Bench::new() else { return };
    bench.server.fill(40, |n| (format!("d/{n:02}"), n.to_string()));
    let mount = bench.mount(&[]);
    mount.sh("ls d > /dev/null");
    bench
        .server
        .faults(&json!([{"operation": "CopyObject", "key": "/33", "action": {"status": 403, "code": "AccessDenied"}}]));
    assert_eq!(errno(fs::rename(mount.path("d"), mount.path("e"))), Some(libc::EACCES));
    assert!(mount.log().contains("goes on in the background"), "{}", mount.log());
    assert_eq!(keys_under(&bench, "d/").len(), 40);
    assert_eq!(errno(fs::rename(mount.path("d"), mount.path("f"))), Some(libc::EBUSY));
    assert_eq!(read(&mount.path("d/33")), b"33");
    let mut open = File::open(mount.path("d/05")).unwrap();
    bench.server.clear_faults();
    wait_until("the move is finished", || no_intents(&bench));
    assert_eq!((keys_under(&bench, "d/").len(), keys_under(&bench, "e/").len()), (0, 40));
    assert_eq!(reread(&mut open), b"5");
    assert_eq!(read(&mount.path("e/33")), b"33");
}

/// What a killed writer left goes along with the directory it was written in.
#[test]
fn kept_bytes_go_along_with_their_directory() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    mount.sh("mkdir d; echo x > d/g; mkfifo ../never");
    let mut writer = shell(&mount.path("d"), "exec > f; echo half; read < ../../never");
    let mut writer = writer.spawn().unwrap();
    wait_until("it is written", || fs::metadata(mount.path("d/f")).is_ok_and(|meta| meta.len() == 5));
    signal(writer.id(), libc::SIGKILL);
    writer.wait().unwrap();
    wait_until("it is kept", || bench.recover_list().len() == 1);
    fs::rename(mount.path("d"), mount.path("e")).unwrap();
    assert_eq!(bench.recover_list()[0]["key"], "e/f");
    mount.umount();
}
