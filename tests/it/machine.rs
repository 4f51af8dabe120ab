//! The machine fails: the disk below the state folder, the descriptors. What was acknowledged is not lost, calls fail
//! with a number that a tool understands, and all is well again when the machine is.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;

use serde_json::json;

use super::disk::{Act, Disk, Fault};
use super::harness::{Bench, KIB, Mount, assert_same, close, noise, wait_until};

const OPTIONS: [&str; 2] = ["--part-size", "100KiB"];

/// A mount whose state folder lies on a disk that fails on demand.
fn on_disk(test: impl FnOnce(&Bench, &Disk, &Mount<'_>)) {
    let Some(bench) = Bench::new() else { return };
    let disk = Disk::mount(&bench.folder("state"));
    let mount = bench.mount(&OPTIONS);
    test(&bench, &disk, &mount);
    disk.faults(&[]);
    mount.umount();
    assert_eq!(bench.server.uploads().len(), 0);
}

/// A file that was just made, and written from its start.
fn begun(mount: &Mount<'_>, name: &str, content: &[u8]) -> File {
    let mut file = File::create(mount.path(name)).unwrap();
    file.write_all(content).unwrap();
    file
}

fn fault(act: Act, path: &'static str, errno: i32) -> Fault {
    Fault { act, path, errno }
}

#[track_caller]
fn assert_errno(result: std::io::Result<()>, errno: i32) {
    assert_eq!(result.map_err(|error| error.raw_os_error()), Err(Some(errno)));
}

#[test]
fn a_write_that_the_disk_refuses_fails_and_those_before_are_published() {
    on_disk(|bench, disk, mount| {
        let content = noise(1, 250 * KIB);
        let file = begun(mount, "f", &content);
        disk.faults(&[fault(Act::Write, "/spill/", libc::EIO)]);
        assert_errno(file.write_all_at(b"lost", 250 * KIB as u64), libc::EIO);
        assert_errno(file.write_all_at(&noise(2, 50 * KIB), 400 * KIB as u64), libc::EIO);
        disk.faults(&[]);
        drop(file);
        mount.settle();
        assert_same(&bench.server.get("f").unwrap(), &content, "what was acknowledged");
        assert!(disk.failed() >= 2);
    });
}

#[test]
fn a_sync_that_the_disk_refuses_fails_and_the_close_still_publishes() {
    on_disk(|bench, disk, mount| {
        let content = noise(3, 250 * KIB);
        let file = begun(mount, "f", &content);
        disk.faults(&[fault(Act::Sync, "/spill/", libc::EIO)]);
        assert_errno(file.sync_all(), libc::EIO);
        disk.faults(&[]);
        file.sync_all().unwrap();
        drop(file);
        mount.settle();
        assert_same(&bench.server.get("f").unwrap(), &content, "f");
    });
}

/// What cannot be read cannot be sent: the close fails, the bytes are kept and sent when the disk is well.
#[test]
fn bytes_that_the_disk_does_not_give_back_are_sent_when_it_does() {
    on_disk(|bench, disk, mount| {
        let content = noise(4, 60 * KIB);
        let file = begun(mount, "f", &content);
        disk.faults(&[fault(Act::Read, "/spill/", libc::EIO)]);
        assert_errno(close(file), libc::EIO);
        let status = mount.status();
        assert_eq!((&status["pending"]["files"], &status["uploads"][0]["state"]), (&json!(1), &json!("failed")));
        assert!(status["uploads"][0]["error"].is_string(), "{status}");
        assert_eq!(bench.server.get("f"), None);
        disk.faults(&[]);
        mount.settle();
        assert_same(&bench.server.get("f").unwrap(), &content, "f");
    });
}

#[test]
fn a_state_folder_that_turns_read_only_refuses_writers_and_serves_readers() {
    on_disk(|bench, disk, mount| {
        mount.sh("printf 'as it was' > there");
        let open = begun(mount, "open", b"acknowledged");
        disk.faults(&[fault(Act::Change, "", libc::EROFS)]);
        assert_eq!(mount.read("there"), b"as it was");
        assert_eq!(fs::write(mount.path("new"), b"new").unwrap_err().raw_os_error(), Some(libc::EROFS));
        assert_errno(open.write_all_at(b"more", 12), libc::EROFS);
        assert!(mount.sh("ls").contains("there"));
        assert_eq!(mount.status()["state"], "ok");
        disk.faults(&[]);
        open.write_all_at(b" and more", 12).unwrap();
        drop(open);
        fs::write(mount.path("new"), b"new").unwrap();
        mount.settle();
        assert_eq!(bench.server.get("open").unwrap(), b"acknowledged and more");
        assert_eq!(bench.server.get("new").unwrap(), b"new");
    });
}

#[test]
fn a_full_disk_lets_nothing_be_lost() {
    on_disk(|bench, disk, mount| {
        let content = noise(5, 90 * KIB);
        fs::write(mount.path("before"), &content).unwrap();
        let open = begun(mount, "open", &content);
        disk.limit(0);
        let refused = open.write_all_at(&content, 90 * KIB as u64).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::StorageFull, "{refused}");
        disk.limit(1 << 40);
        drop(open);
        mount.settle();
        assert_same(&bench.server.get("open").unwrap()[..90 * KIB], &content, "what was acknowledged");
    });
}

#[test]
fn descriptors_that_run_out_are_told_and_nothing_is_lost() {
    let Some(bench) = Bench::new() else { return };
    let program = bench
        .file("few", format!("#!/bin/bash\nulimit -n 160\nexec {} \"$@\"\n", env!("CARGO_BIN_EXE_ossfuse")).as_bytes());
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mount = bench.mount_by(&program, &OPTIONS);
    let (mut files, mut refused) = (Vec::new(), None);
    for number in 0..400 {
        let made = File::create(mount.path(&format!("f{number}")));
        match made.and_then(|mut file| file.write_all(format!("content {number}").as_bytes()).map(|()| file)) {
            Ok(file) => files.push((number, file)),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    if let Some(error) = refused {
        assert_eq!(
            error.raw_os_error(),
            Some(libc::EIO),
            "not EMFILE, which would be about the program itself: {error}"
        );
    }
    assert!(files.len() > 20, "{}", files.len());
    let kept: Vec<i32> = files.iter().map(|(number, _)| *number).collect();
    drop(files);
    mount.settle();
    for number in kept {
        let name = format!("f{number}");
        assert_eq!(bench.server.get(&name).unwrap(), format!("content {number}").as_bytes(), "{name}");
    }
    fs::write(mount.path("after"), b"works").unwrap();
    wait_until("it is there", || bench.server.get("after").is_some());
    mount.umount();
}
