//! Renames and unlinks, of trees and of open files: what moves is whole, whoever has it open notices nothing, and
//! what a crash cuts off is finished by the next mount.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;

use serde_json::json;

use super::harness::{BUCKET, Bench, Finally, KIB, MIB, Mount, assert_same, noise, wait_until};

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> Option<i32> {
    result.unwrap_err().raw_os_error()
}

/// Sorted keys under a prefix, without it.
fn keys_under(bench: &Bench, prefix: &str) -> Vec<String> {
    bench.server.keys().iter().filter_map(|key| key.strip_prefix(prefix).map(str::to_owned)).collect()
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Bytes read on through an open file, from its start.
fn reread(file: &mut File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Has the kernel forget the pages of a file, so that reads come through.
fn forget_pages(file: &File) {
    use std::os::fd::AsRawFd;
    // SAFETY: a plain call on a descriptor that lives through it.
    assert_eq!(unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) }, 0);
}

fn no_intents(bench: &Bench) -> bool {
    fs::read_dir(bench.state().join("intents")).unwrap().count() == 0
}

#[test]
fn a_directory_of_a_thousand_files_costs_what_is_promised() {
    let Some(bench) = Bench::new() else { return };
    for n in 0..1000 {
        bench.server.put(&format!("d/{n:04}"), format!("content {n}").as_bytes());
    }
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
    for n in 0..20 {
        bench.server.put(&format!("d/{n}"), &noise(n, 200 * KIB));
    }
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

/// Begins a rename, and kills the whole mount once it waits at the gate for an operation of which `skip` have passed.
fn killed_renaming(
    bench: &Bench,
    mount: Mount<'_>,
    [from, to]: [&str; 2],
    (operation, skip): (&str, u64),
    rename: fn(&Path, &Path) -> std::io::Result<()>,
) {
    bench.server.hold(operation, skip);
    let (from, to) = (mount.path(from), mount.path(to));
    let renaming = thread::spawn(move || rename(&from, &to));
    bench.server.wait_for_held();
    mount.kill();
    assert!(renaming.join().unwrap().is_err());
    bench.server.let_the_dead_go();
}

/// Fills a tree, has `mv` held at some request of an operation, kills the mount, and looks at the next one.
fn cut_off(operation: &str, skip: u64) {
    let Some(bench) = Bench::new() else { return };
    let content = |n: usize| noise(n as u64, 1000 + n);
    for n in 0..150 {
        bench.server.put(&format!("d/{}/{n:03}", n % 3), &content(n));
    }
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
    for n in 0..100 {
        bench.server.put(&format!("d/{n:03}"), b"x");
    }
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
fn a_move_that_fails_leaves_both_trees_and_goes_on() {
    let Some(bench) = Bench::new() else { return };
    for n in 0..40 {
        bench.server.put(&format!("d/{n:02}"), format!("{n}").as_bytes());
    }
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

#[test]
fn an_object_too_large_for_one_copy_is_copied_in_parts() {
    let Some(bench) = Bench::new() else { return };
    let content = noise(5, 2 * MIB);
    bench.server.put("big", &content);
    let mount = bench.mount(&[]);
    mount.sh("chmod 640 big");
    let refuse = json!([{"operation": "CopyObject", "action": {"status": 400, "code": "EntityTooLarge"}}]);
    bench.server.faults(&refuse);
    fs::rename(mount.path("big"), mount.path("moved")).unwrap();
    assert_same(&bench.server.get("moved").unwrap(), &content, "moved");
    assert_eq!(fs::metadata(mount.path("moved")).unwrap().mode() & 0o777, 0o640);
    assert_eq!(bench.server.keys(), ["moved"]);
    assert_eq!(bench.server.uploads().len(), 0);
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

#[test]
fn a_log_is_rotated_under_its_writer() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("log", &noise(1, 150 * KIB));
    let mount = bench.mount(&["--part-size", "100KiB"]);
    let append = |name: &str| File::options().append(true).create(true).open(mount.path(name)).unwrap();
    let mut old = append("log");
    old.write_all(b"before\n").unwrap();
    fs::rename(mount.path("log"), mount.path("log.1")).unwrap();
    let mut new = append("log");
    old.write_all(b"still the old one\n").unwrap();
    new.write_all(b"the new one\n").unwrap();
    drop(new);
    drop(old);
    let mut wanted = noise(1, 150 * KIB);
    wanted.extend_from_slice(b"before\nstill the old one\n");
    assert_same(&bench.server.get("log.1").unwrap(), &wanted, "log.1");
    assert_eq!(bench.server.get("log").as_deref(), Some(&b"the new one\n"[..]));
    mount.settle();
    assert_same(&read(&mount.path("log.1")), &wanted, "log.1, through the mount");
    assert_eq!(bench.server.keys(), ["log", "log.1"]);
}

#[test]
fn a_file_begun_anew_keeps_its_old_object_under_the_new_name() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("f", b"old content");
    let mount = bench.mount(&[]);
    let mut file = File::options().write(true).truncate(true).open(mount.path("f")).unwrap();
    file.write_all(b"new").unwrap();
    fs::rename(mount.path("f"), mount.path("g")).unwrap();
    assert_eq!(bench.server.keys(), ["g"]);
    assert_eq!(bench.server.get("g").as_deref(), Some(&b"old content"[..]), "until the new one is whole");
    drop(file);
    assert_eq!(bench.server.get("g").as_deref(), Some(&b"new"[..]));
    assert_eq!(read(&mount.path("g")), b"new");
}

#[test]
fn open_files_are_read_on_when_renamed() {
    let Some(bench) = Bench::new() else { return };
    let content = noise(9, 3 * MIB);
    bench.server.put("f", &content);
    let mount = bench.mount_quiet(&[]);
    let mut reader = File::options().read(true).custom_flags(libc::O_NOATIME).open(mount.path("f")).unwrap();
    reader.read_exact(&mut [0; 10]).unwrap();
    let counts = bench.counting(|| fs::rename(mount.path("f"), mount.path("g")).unwrap());
    assert_eq!((counts.number("CopyObject"), counts.number("DeleteObject")), (1, 1));
    assert!(counts.number("HeadObject") <= 1 && counts.total() <= 4, "{counts:?}");
    forget_pages(&reader);
    assert_same(&reread(&mut reader), &content, "read on");
    assert_same(&read(&mount.path("g")), &content, "by its new name");
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

/// What a killed writer left goes along with the directory it was written in.
#[test]
fn kept_bytes_go_along_with_their_directory() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    mount.sh("mkdir d; echo x > d/g; mkfifo ../never");
    let mut writer = super::harness::shell(&mount.path("d"), "exec > f; echo half; read < ../../never");
    let mut writer = writer.spawn().unwrap();
    wait_until("it is written", || fs::metadata(mount.path("d/f")).is_ok_and(|meta| meta.len() == 5));
    super::harness::signal(writer.id(), libc::SIGKILL);
    writer.wait().unwrap();
    wait_until("it is kept", || bench.recover_list().len() == 1);
    fs::rename(mount.path("d"), mount.path("e")).unwrap();
    assert_eq!(bench.recover_list()[0]["key"], "e/f");
    mount.umount();
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

/// `renameat2` with RENAME_EXCHANGE.
pub(super) fn exchange(one: &Path, two: &Path) -> std::io::Result<()> {
    let [one, two] = [one, two].map(|path| CString::new(path.as_os_str().as_bytes()).unwrap());
    // SAFETY: terminated strings that live through the call.
    match unsafe { libc::renameat2(libc::AT_FDCWD, one.as_ptr(), libc::AT_FDCWD, two.as_ptr(), libc::RENAME_EXCHANGE) }
    {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[test]
fn two_files_change_places() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("one", b"first");
    let mount = bench.mount(&[]);
    mount.sh("mkdir d; ls -l");
    let mut open = fs::File::create(mount.path("d/two")).unwrap();
    open.write_all(b"second").unwrap();
    mount.sh("chmod 600 one");
    exchange(&mount.path("one"), &mount.path("d/two")).unwrap();
    assert_eq!(mount.sh("cat one d/two; stat -c ' %a' d/two"), "secondfirst 600\n");
    open.write_all(b", and more").unwrap();
    drop(open);
    mount.settle();
    assert_eq!(bench.server.get("one").as_deref(), Some(&b"second, and more"[..]));
    assert_eq!(bench.server.get("d/two").as_deref(), Some(&b"first"[..]));
    assert_eq!(bench.server.keys(), ["d/", "d/two", "one"]);
    let missing = exchange(&mount.path("one"), &mount.path("absent")).unwrap_err();
    assert_eq!(missing.raw_os_error(), Some(libc::ENOENT));
    mount.umount();
}

/// One that fails half way is finished in the background, and those who read the files read on.
#[test]
fn an_exchange_that_fails_is_finished_later() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("one", b"first");
    bench.server.put("two", b"the second");
    let mount = bench.mount(&[]);
    let mut open = ["one", "two"].map(|name| File::open(mount.path(name)).unwrap());
    open.iter_mut().for_each(|file| drop(reread(file)));
    let refuse = json!([{"operation": "CopyObject", "skip": 2, "action": {"status": 403, "code": "AccessDenied"}}]);
    bench.server.faults(&refuse);
    assert_eq!(errno(exchange(&mount.path("one"), &mount.path("two"))), Some(libc::EACCES));
    bench.server.clear_faults();
    wait_until("it is finished", || no_intents(&bench));
    open.iter().for_each(forget_pages);
    let read = [0, 1].map(|at| reread(&mut open[at]));
    assert_eq!(read, [&b"first"[..], b"the second"], "the files that were opened");
    let found = ["one", "two"].map(|key| bench.server.get(key).unwrap());
    assert_eq!(found, [&b"the second"[..], b"first"]);
    drop(open);
    assert_eq!(mount.sh("ls; cat one; echo; cat two"), "one\ntwo\nthe second\nfirst");
    mount.umount();
}

#[test]
fn an_exchange_that_is_killed_loses_neither() {
    let Some(bench) = Bench::new() else { return };
    // Killed at each of its three copies, before it takes effect; and at the delete.
    for (step, operation, skip) in
        [(0, "CopyObject", 0), (1, "CopyObject", 1), (2, "CopyObject", 2), (3, "DeleteObject", 0)]
    {
        bench.server.put("one", b"first");
        bench.server.put("two", b"the second");
        let mount = bench.mount(&[]);
        mount.sh("stat one two");
        killed_renaming(&bench, mount, ["one", "two"], (operation, skip), exchange);
        let mount = bench.mount(&[]);
        let intents = bench.state().join("intents");
        wait_until("it is settled", || fs::read_dir(&intents).unwrap().count() == 0);
        mount.sh("ls");
        let found = [bench.server.get("one").unwrap(), bench.server.get("two").unwrap()];
        let wanted = if step == 0 { ["first", "the second"] } else { ["the second", "first"] };
        assert_eq!(found, wanted.map(|text| text.as_bytes().to_vec()), "step {step}");
        assert_eq!(bench.server.keys(), ["one", "two"], "step {step}");
        mount.umount();
    }
}
