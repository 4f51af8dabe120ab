//! Files whose worker dies in the middle of a session's beginning or end, of a rename, of an exchange: what is written
//! on goes where it belongs.

use std::ffi::CString;
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};

use super::{dying_at, replace_worker};
use crate::harness::{Bench, KIB, assert_same, close, noise, signal, wait_until};
use crate::rename;

/// Killed before each of its copies takes effect, and before its delete: the exchange is done all the same, and who has
/// one of the files open goes on with that file.
#[test]
fn an_exchange_is_done_once_whenever_its_worker_dies() {
    for (operation, skip) in [("CopyObject", 0), ("CopyObject", 1), ("CopyObject", 2), ("DeleteObject", 0)] {
        let Some(bench) = Bench::new() else { return };
        bench.server.put("one", b"first");
        bench.server.put("two", b"the second");
        let mount = bench.mount(&[]);
        let mut open = fs::OpenOptions::new().read(true).write(true).open(mount.path("one")).unwrap();
        bench.server.hold(operation, skip);
        let (one, two) = (mount.path("one"), mount.path("two"));
        let renaming = std::thread::spawn(move || rename::exchange(&one, &two));
        bench.server.wait_for_held();
        signal(mount.worker_pid(), libc::SIGKILL);
        bench.server.clear_faults();
        renaming.join().unwrap().unwrap_or_else(|error| panic!("{operation} {skip}: {error}"));
        assert_eq!(mount.sh("cat one; echo; cat two"), "the second\nfirst", "{operation} {skip}");
        open.seek(SeekFrom::End(0)).unwrap();
        open.write_all(b", and more").unwrap();
        drop(open);
        mount.settle();
        let found = ["one", "two"].map(|key| bench.server.get(key).unwrap());
        assert_eq!(found, [&b"the second"[..], b"first, and more"], "{operation} {skip}");
        mount.umount();
    }
}

/// The same of files that nobody has open, whatever was on the disk when it died.
#[test]
fn an_exchange_is_neither_forgotten_nor_done_twice() {
    for point in
        ["intent-recorded", "exchange-saved", "begun", "exchange-one-copied", "exchange-shown", "intent-finished"]
    {
        let Some(bench) = Bench::new() else { return };
        bench.server.put("one", b"first");
        bench.server.put("two", b"the second");
        let mount = bench.mount_with(&[], &[("_OSSFUSE_CRASH_FILE", bench.path("crash").as_os_str())]);
        mount.sh("stat one two");
        dying_at(&bench, &mount, point, || rename::exchange(&mount.path("one"), &mount.path("two")).unwrap());
        assert_eq!(mount.sh("cat one; echo; cat two"), "the second\nfirst", "{point}");
        mount.settle();
        let found = ["one", "two"].map(|key| bench.server.get(key).unwrap());
        assert_eq!(found, [&b"the second"[..], b"first"], "{point}");
        assert_eq!(bench.server.keys(), ["one", "two"], "{point}");
    }
}

/// What is written after a worker has died changes the object: also where the dead one had hardly begun a session, or had
/// ended one.
#[test]
fn an_edit_stays_one_whenever_its_worker_dies() {
    let Some(bench) = Bench::new() else { return };
    let content = noise(9, 150 * KIB);
    bench.server.put("appended", &content);
    bench.server.put("edited", &content);
    let variables = [("_OSSFUSE_CRASH_FILE", bench.path("crash"))];
    let variables = variables.each_ref().map(|(name, path)| (*name, path.as_os_str()));
    let mount = bench.mount_with(&["--fsync", "remote", "--part-size", "100KiB"], &variables);
    let mut appended = fs::OpenOptions::new().append(true).open(mount.path("appended")).unwrap();
    dying_at(&bench, &mount, "session-folder-made", || appended.write_all(b"more").unwrap());
    close(appended).unwrap();
    assert_same(&bench.server.get("appended").unwrap(), &[&content[..], b"more"].concat(), "appended");

    let edited = fs::OpenOptions::new().read(true).write(true).open(mount.path("edited")).unwrap();
    edited.write_all_at(b"one", 5).unwrap();
    dying_at(&bench, &mount, "done-noted", || edited.sync_all().unwrap());
    let mut start = [0; 8];
    edited.read_exact_at(&mut start, 0).unwrap();
    edited.write_all_at(b"two", 20).unwrap();
    close(edited).unwrap();
    let mut wanted = content;
    wanted[5..8].copy_from_slice(b"one");
    assert_eq!(start, wanted[..8]);
    wanted[20..23].copy_from_slice(b"two");
    assert_same(&bench.server.get("edited").unwrap(), &wanted, "edited");
}

/// A rename of a file that is being edited takes the edits along, though a look at the new name shows the copy already.
#[test]
fn a_renamed_edit_is_not_taken_for_what_it_replaces() {
    for point in ["rename-session-moved", "rename-shown", "rename-deleted"] {
        let Some(bench) = Bench::new() else { return };
        let mut content = noise(9, 150 * KIB);
        bench.server.put("old", &content);
        let mount = bench.mount_with(&[], &[("_OSSFUSE_CRASH_FILE", bench.path("crash").as_os_str())]);
        let edited = fs::OpenOptions::new().write(true).open(mount.path("old")).unwrap();
        edited.write_all_at(b"changed", 5).unwrap();
        dying_at(&bench, &mount, point, || fs::rename(mount.path("old"), mount.path("new")).unwrap());
        close(edited).unwrap();
        content[5..12].copy_from_slice(b"changed");
        assert_same(&bench.server.get("new").unwrap(), &content, point);
        assert_eq!(bench.server.keys(), ["new"], "{point}");
    }
}

/// What was set of a file before its rename is what is seen of it afterwards, by its name and by who has it open, though
/// the worker that has copied it is not the one that shows the new name.
#[test]
fn a_renamed_file_keeps_what_was_set_of_it() {
    for (point, is_open) in
        ["rename-copied", "rename-shown", "rename-deleted"].map(|point| [(point, true), (point, false)]).as_flattened()
    {
        let Some(bench) = Bench::new() else { return };
        bench.server.put("other", b"");
        let mount = bench.mount_with(&[], &[("_OSSFUSE_CRASH_FILE", bench.path("crash").as_os_str())]);
        mount.sh("umask 077; echo text > old; ls -l");
        let open = is_open.then(|| fs::File::open(mount.path("old")).unwrap());
        mount.sh("touch -d @1000000000 old; chmod 644 old");
        dying_at(&bench, &mount, point, || fs::rename(mount.path("old"), mount.path("new")).unwrap());
        let opened = open.as_ref().map(|open| ("opened", open.metadata()));
        for (what, seen) in opened.into_iter().chain([("named", fs::metadata(mount.path("new")))]) {
            let seen = seen.unwrap_or_else(|error| panic!("{point}, {what}: {error}"));
            assert_eq!((seen.mode() & 0o777, seen.mtime(), seen.nlink()), (0o644, 1_000_000_000, 1), "{point}, {what}");
        }
        assert_eq!(mount.sh("cat new; ls"), "text\nnew\nother\n", "{point}");
        if let Some(open) = open {
            assert_eq!(std::io::read_to_string(open).unwrap(), "text\n", "{point}");
        }
    }
}

/// The same where the new name was told already, and the old one stands when the next worker begins.
#[test]
fn a_rename_that_was_shown_is_not_done_with_another_inode() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("other", b"");
    let mount = bench.mount(&[]);
    mount.sh("umask 077; echo text > old; ls -l; touch -d @1000000000 old; chmod 644 old");
    bench.server.hold("DeleteObject", 0);
    let (old, new) = (mount.path("old"), mount.path("new"));
    let renaming = std::thread::spawn(move || fs::rename(old, new));
    bench.server.wait_for_held();
    // An answer writes down what was noted of the rename too.
    mount.sh("cat other");
    replace_worker(&mount);
    bench.server.wait_for_held();
    mount.sh("cat other");
    bench.server.clear_faults();
    renaming.join().unwrap().unwrap();
    let seen = fs::metadata(mount.path("new")).unwrap();
    assert_eq!((seen.mode() & 0o777, seen.mtime(), seen.nlink()), (0o644, 1_000_000_000, 1));
    assert_eq!(mount.sh("cat new; ls"), "text\nnew\nother\n");
}

/// What was sent is noted when it has rested for a moment; what is written after that counts all the same.
#[test]
fn a_part_that_was_noted_and_is_written_again_is_sent_again() {
    let Some(bench) = Bench::new() else { return };
    let variables = [("_OSSFUSE_CRASH_FILE", bench.path("crash"))];
    let variables = variables.each_ref().map(|(name, path)| (*name, path.as_os_str()));
    let mount = bench.mount_with(&["--part-size", "100KiB"], &variables);
    let mut content = noise(9, 350 * KIB);
    let file = fs::File::create(mount.path("f")).unwrap();
    dying_at(&bench, &mount, "part-stable", || {
        file.write_all_at(&content, 0).unwrap();
        wait_until("a part is noted", || !bench.path("crash").exists());
    });
    file.write_all_at(b"changed", 5).unwrap();
    content[5..12].copy_from_slice(b"changed");
    close(file).unwrap();
    assert_same(&bench.server.get("f").unwrap(), &content, "f");
}

/// A name that was free when a file was made is expected to be free by the next worker too.
#[test]
fn what_must_be_new_must_be_new_for_the_next_worker_too() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&["--exclusive-create", "remote", "--part-size", "100KiB"]);
    mount.sh("ls");
    let options = || fs::OpenOptions::new().write(true).clone();
    let mut exclusive = options().create_new(true).open(mount.path("exclusive")).unwrap();
    let mut large = options().create_new(true).open(mount.path("large")).unwrap();
    large.write_all(&noise(4, 350 * KIB)).unwrap();
    let mut joined = options().create(true).append(true).open(mount.path("joined")).unwrap();
    joined.write_all(b"one ").unwrap();
    replace_worker(&mount);
    for key in ["exclusive", "large", "joined"] {
        bench.server.put(key, b"theirs ");
    }
    exclusive.write_all(b"ours").unwrap();
    joined.write_all(b"two").unwrap();
    for file in [exclusive, large] {
        assert_eq!(close(file).unwrap_err().raw_os_error(), Some(libc::EEXIST));
    }
    close(joined).unwrap();
    let found = ["exclusive", "large", "joined"].map(|key| bench.server.get(key).unwrap());
    assert_eq!(found, [&b"theirs "[..], b"theirs ", b"theirs one two"]);
}

/// The next worker goes on with the truncation of a file that nobody has open.
#[test]
fn a_truncation_by_name_is_finished_whenever_its_worker_dies() {
    for point in ["session-begun", "upload-noted", "closing-recorded", "complete-answered", "session-ended"] {
        let Some(bench) = Bench::new() else { return };
        let content = noise(9, 350 * KIB);
        bench.server.put("f", &content);
        let variables = [("_OSSFUSE_CRASH_FILE", bench.path("crash"))];
        let variables = variables.each_ref().map(|(name, path)| (*name, path.as_os_str()));
        let mount = bench.mount_with(&["--part-size", "100KiB"], &variables);
        let path = CString::new(mount.path("f").into_os_string().into_encoded_bytes()).unwrap();
        dying_at(&bench, &mount, point, || {
            // SAFETY: a terminated string that lives through the call.
            let done = unsafe { libc::truncate(path.as_ptr(), 150_000) };
            assert_eq!(done, 0, "{point}: {}", std::io::Error::last_os_error());
        });
        mount.settle();
        assert_same(&bench.server.get("f").unwrap(), &content[..150_000], point);
        assert_eq!(bench.server.uploads(), [serde_json::Value::Null; 0], "{point}");
        mount.umount();
    }
}

/// Nobody lived to note what the session has become: a look by name must find the same file all the same.
#[test]
fn a_file_whose_session_has_ended_unseen_keeps_its_inode() {
    for point in ["session-ended", "done-noted", "retired"] {
        let Some(bench) = Bench::new() else { return };
        let variables = [("_OSSFUSE_CRASH_FILE", bench.path("crash"))];
        let variables = variables.each_ref().map(|(name, path)| (*name, path.as_os_str()));
        let mount = bench.mount_with(&["--fsync", "remote", "--attr-ttl", "0s"], &variables);
        let file = fs::File::create(mount.path("f")).unwrap();
        let inode = file.metadata().unwrap().ino();
        file.write_all_at(b"content", 0).unwrap();
        dying_at(&bench, &mount, point, || file.sync_all().unwrap());
        assert_eq!(fs::metadata(mount.path("f")).unwrap().ino(), inode, "{point}");
        assert_eq!(file.metadata().unwrap().ino(), inode, "{point}");
        file.write_all_at(b", more", 7).unwrap();
        close(file).unwrap();
        assert_eq!(bench.server.get("f").unwrap(), b"content, more", "{point}");
        mount.umount();
    }
}

/// Bytes that are in an upload alone are changed where the session file says they are, and nowhere else.
#[test]
fn what_has_left_the_disk_is_changed_whenever_its_worker_dies() {
    for point in ["leaving-noted", "part-left", "hidden-noted", "hidden-completed", "hidden-base-noted", "hidden-done"]
    {
        let Some(bench) = Bench::new() else { return };
        let mut content = noise(3, 1100 * KIB);
        let variables = [("_OSSFUSE_CRASH_FILE", bench.path("crash"))];
        let variables = variables.each_ref().map(|(name, path)| (*name, path.as_os_str()));
        let mount = bench.mount_with(&["--part-size", "100KiB", "--spill-limit", "500KiB"], &variables);
        let file = fs::File::create(mount.path("f")).unwrap();
        dying_at(&bench, &mount, point, || {
            for (at, chunk) in content.chunks(40 * KIB).enumerate() {
                file.write_all_at(chunk, (at * 40 * KIB) as u64).unwrap();
            }
            file.write_all_at(b"changed", 150 << 10).unwrap();
        });
        close(file).unwrap();
        content[150 << 10..][..7].copy_from_slice(b"changed");
        assert_same(&bench.server.get("f").unwrap(), &content, point);
        wait_until("nothing is left over", || bench.server.keys() == ["f"] && bench.server.uploads().is_empty());
        mount.umount();
        assert_eq!(bench.recover_list(), [serde_json::Value::Null; 0], "{point}");
    }
}
