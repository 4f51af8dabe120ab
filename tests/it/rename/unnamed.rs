//! Open files that lose their name, by an unlink or to another file: they are read and written on, and leave nothing.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::thread;

use serde_json::json;

use super::{errno, keys_under, no_intents, read, reread};
use crate::harness::{Bench, KIB, MIB, Mount, assert_same, forget_pages, noise, wait_until};

/// Takes the name from files that are open, by `part`, and reads on.
fn read_on(part: impl Fn(&Mount<'_>, &str)) {
    let Some(bench) = Bench::new() else { return };
    let (small, large) = (noise(1, 300 * KIB), noise(2, 5 * MIB));
    bench.server.put("small", &small);
    bench.server.put("large", &large);
    bench.server.put("untouched", &small);
    bench.server.put("empty", b"");
    let mount = bench.mount(&[]);
    let mut files = ["small", "large", "untouched", "empty"].map(|name| File::open(mount.path(name)).unwrap());
    files[0].read_exact(&mut [0; 10]).unwrap();
    files[1].read_exact(&mut [0; 10]).unwrap();
    for name in ["small", "large", "untouched", "empty"] {
        part(&mount, name);
    }
    for (file, wanted) in files.iter_mut().zip([&small, &large, &small, &Vec::new()]) {
        forget_pages(file);
        assert_eq!(file.metadata().unwrap().len(), wanted.len() as u64);
        assert_same(&reread(file), wanted, "read on");
    }
    let hidden = keys_under(&bench, ".ossfuse-tmp/");
    assert_eq!(hidden.len(), 1, "only the large one is kept there: {hidden:?}");
    drop(files);
    wait_until("what was kept is deleted", || keys_under(&bench, ".ossfuse-tmp/").is_empty());
    wait_until("nothing is left to do", || no_intents(&bench));
}

#[test]
fn an_unlinked_file_is_read_on() {
    read_on(|mount, name| {
        fs::remove_file(mount.path(name)).unwrap();
        assert_eq!(errno(fs::metadata(mount.path(name))), Some(libc::ENOENT));
    });
}

#[test]
fn a_replaced_file_is_read_on() {
    read_on(|mount, name| {
        fs::write(mount.path("new"), "new").unwrap();
        fs::rename(mount.path("new"), mount.path(name)).unwrap();
        assert_eq!(read(&mount.path(name)), b"new");
    });
}

#[test]
fn a_file_replaced_by_an_unsent_one_is_read_on() {
    let Some(bench) = Bench::new() else { return };
    let large = noise(2, 3 * MIB);
    bench.server.put("f", &large);
    let mount = bench.mount(&[]);
    let mut reader = File::open(mount.path("f")).unwrap();
    let mut writer = File::create(mount.path("new")).unwrap();
    writer.write_all(b"unsent").unwrap();
    fs::rename(mount.path("new"), mount.path("f")).unwrap();
    forget_pages(&reader);
    assert_same(&reread(&mut reader), &large, "read on");
    drop(writer);
    assert_eq!(bench.server.get("f").as_deref(), Some(&b"unsent"[..]));
    assert_same(&reread(&mut reader), &large, "read on");
    assert_eq!(read(&mount.path("f")), b"unsent");
}

#[test]
fn an_unlinked_file_is_edited_on() {
    let Some(bench) = Bench::new() else { return };
    for (name, size) in [("small", 200 * KIB), ("large", 3 * MIB)] {
        let mut content = noise(7, size);
        for began_before in [true, false] {
            bench.server.put(name, &content);
            let mount = bench.mount(&["--part-size", "1MiB"]);
            let mut file = File::options().read(true).write(true).open(mount.path(name)).unwrap();
            if began_before {
                file.write_all_at(b"first", 100).unwrap();
            }
            fs::remove_file(mount.path(name)).unwrap();
            file.write_all_at(b"first", 100).unwrap();
            file.write_all_at(b"second", size as u64 - 3).unwrap();
            content[100..105].copy_from_slice(b"first");
            let mut wanted = content.clone();
            wanted.truncate(size - 3);
            wanted.extend_from_slice(b"second");
            assert_eq!(file.metadata().unwrap().len(), wanted.len() as u64);
            forget_pages(&file);
            assert_same(&reread(&mut file), &wanted, name);
            file.set_len(0).unwrap();
            file.write_all_at(b"anew", 0).unwrap();
            assert_eq!(reread(&mut file), b"anew");
            drop(file);
            wait_until("nothing is left", || bench.server.keys().is_empty() && no_intents(&bench));
            mount.umount();
            assert!(bench.recover_list().is_empty());
        }
    }
}

#[test]
fn hidden_copies_of_a_killed_mount_are_deleted_by_the_next() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("large", &noise(1, 2 * MIB));
    bench.server.put(".ossfuse-tmp/foreign", b"of another mount");
    let mount = bench.mount(&[]);
    let file = File::open(mount.path("large")).unwrap();
    fs::remove_file(mount.path("large")).unwrap();
    assert_eq!(keys_under(&bench, ".ossfuse-tmp/").len(), 2);
    assert_eq!(mount.sh("ls -A"), "");
    mount.kill();
    drop(file);
    let _mount = bench.mount(&[]);
    wait_until("the stale copy is deleted", || bench.server.keys() == [".ossfuse-tmp/foreign"]);
}

#[test]
fn an_unlink_that_fails_takes_nothing_away() {
    let Some(bench) = Bench::new() else { return };
    let content = noise(3, 2 * MIB);
    bench.server.put("f", &content);
    let mount = bench.mount(&["--part-size", "1MiB"]);
    let mut file = File::options().read(true).write(true).open(mount.path("f")).unwrap();
    file.write_all_at(b"changed", 0).unwrap();
    let refuse = json!([{"operation": "DeleteObject", "key": "f", "action": {"status": 403, "code": "AccessDenied"}}]);
    bench.server.faults(&refuse);
    assert_eq!(errno(fs::remove_file(mount.path("f"))), Some(libc::EACCES));
    bench.server.clear_faults();
    let mut wanted = content;
    wanted[..7].copy_from_slice(b"changed");
    assert_same(&reread(&mut file), &wanted, "through the handle");
    drop(file);
    assert_same(&bench.server.get("f").unwrap(), &wanted, "published");
    mount.settle();
    wait_until("the kept copy goes", || bench.server.keys() == ["f"]);
}

/// A small file whose name is gone is written by two at once: they write to one and the same.
#[test]
fn writers_of_a_file_without_a_name_share_it() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    for round in 0..10 {
        fs::write(mount.path("f"), noise(round, 1000)).unwrap();
        let files = [0, 1].map(|_| File::options().read(true).write(true).open(mount.path("f")).unwrap());
        fs::remove_file(mount.path("f")).unwrap();
        thread::scope(|scope| {
            for (at, file) in files.iter().enumerate() {
                scope.spawn(move || file.write_all_at(&[at as u8 + 1; 100], at as u64 * 500).unwrap());
            }
        });
        let mut wanted = noise(round, 1000);
        wanted[..100].fill(1);
        wanted[500..600].fill(2);
        for mut file in files {
            assert_same(&reread(&mut file), &wanted, "by either");
        }
    }
    mount.settle();
    assert_eq!(bench.server.keys(), [""; 0]);
    mount.umount();
    assert_eq!(bench.recover_list(), [serde_json::Value::Null; 0]);
}
