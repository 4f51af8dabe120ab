//! Limits, and what goes on in the background: the spill, rates, `--close local`, `sync`, sparse files.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::harness::{Bench, MIB, Mount, assert_same, mount_tmpfs, noise, wait_until};

/// The spill files of a mount, as `status` shows them.
fn spilled(mount: &Mount<'_>) -> u64 {
    mount.status()["spill"]["bytes"].as_u64().unwrap()
}

/// Says so when it goes, also by a panic.
struct Defer<'a>(&'a AtomicBool);

impl Drop for Defer<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Runs `action` and gives the most that lay in spill files meanwhile.
fn watching_spill(mount: &Mount<'_>, action: impl FnOnce()) -> u64 {
    let (done, most) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                most.fetch_max(spilled(mount), Ordering::AcqRel);
            }
        });
        let _end = Defer(&done);
        action();
    });
    most.into_inner()
}

const SMALL_SPILL: [&str; 4] = ["--part-size", "1MiB", "--spill-limit", "8MiB"];

#[test]
fn a_file_larger_than_the_spill_streams_through_it() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&SMALL_SPILL);
    let content = noise(1, 24 * MIB + 17);
    let most = watching_spill(&mount, || std::fs::write(mount.path("big"), &content).unwrap());
    assert!(most <= (8 + 8) * MIB as u64, "{most} bytes on the disk");
    assert_eq!(mount.status()["spill"]["limit"], 8 * MIB as u64);
    assert_same(&bench.server.get("big").unwrap(), &content, "the object");
    assert_eq!(bench.server.keys(), ["big"], "no passing object stays behind");
    assert!(bench.server.uploads().is_empty());
    assert_eq!(spilled(&mount), 0);
    assert_same(&mount.read("big"), &content, "read back");
    let sent = bench.server.counts().of("UploadPart").bytes_in;
    assert!(sent < 26 * MIB as u64, "{sent} bytes were sent");
    mount.umount();
}

#[test]
fn what_has_left_the_disk_is_read_and_rewritten() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&SMALL_SPILL);
    let mut content = noise(2, 20 * MIB);
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(mount.path("f")).unwrap();
    for (number, chunk) in content.chunks(MIB).enumerate() {
        file.write_all_at(chunk, (number * MIB) as u64).unwrap();
    }
    let mut back = vec![0; 3 * MIB];
    file.read_exact_at(&mut back, (5 * MIB) as u64).unwrap();
    assert_same(&back, &content[5 * MIB..8 * MIB], "a part that has left");
    assert!(bench.server.get("f").is_none(), "nothing half-written at the name");

    let (patch, more) = (noise(3, 100), noise(4, 15 * MIB));
    file.write_all_at(&patch, (9 * MIB + 5) as u64).unwrap();
    content[9 * MIB + 5..][..100].copy_from_slice(&patch);
    for (number, chunk) in more.chunks(MIB).enumerate() {
        file.write_all_at(chunk, (content.len() + number * MIB) as u64).unwrap();
    }
    content.extend_from_slice(&more);
    let cut = content.len() - 10 * MIB - 7;
    file.set_len(cut as u64).unwrap();
    content.truncate(cut);
    let mut back = vec![0; content.len()];
    file.read_exact_at(&mut back, 0).unwrap();
    assert_same(&back, &content, "the whole file, open");
    drop(file);
    assert_same(&bench.server.get("f").unwrap(), &content, "the object");
    assert_eq!(bench.server.keys(), ["f"]);
    assert!(bench.server.uploads().is_empty());
    mount.umount();
}

#[test]
fn a_file_whose_parts_have_left_is_renamed_and_replayed() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&SMALL_SPILL);
    let content = noise(5, 20 * MIB);
    let mut file = File::create(mount.path("a")).unwrap();
    file.write_all(&content).unwrap();
    std::fs::rename(mount.path("a"), mount.path("b")).unwrap();
    file.sync_all().unwrap();
    mount.kill();
    drop(file);
    assert!(bench.server.get("b").is_none());
    let mount = bench.mount(&SMALL_SPILL);
    wait_until("it is published", || bench.server.get("b").is_some());
    assert_same(&bench.server.get("b").unwrap(), &content, "the object");
    mount.settle();
    assert_eq!(bench.server.keys(), ["b"]);
    assert!(bench.server.uploads().is_empty());
    mount.umount();
}

#[test]
fn many_files_at_once_share_the_spill() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&SMALL_SPILL);
    std::thread::scope(|scope| {
        for number in 0..12 {
            let path = mount.path(&format!("f{number}"));
            scope.spawn(move || std::fs::write(path, noise(number, 5 * MIB)).unwrap());
        }
    });
    for number in 0..12 {
        let object = bench.server.get(&format!("f{number}")).unwrap();
        assert_same(&object, &noise(number, 5 * MIB), "an object");
    }
    assert_eq!(bench.server.keys().len(), 12);
    assert_eq!(spilled(&mount), 0);
    mount.umount();
}

#[test]
fn a_file_written_back_to_front_passes_a_small_spill() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&SMALL_SPILL);
    let content = noise(6, 20 * MIB);
    let file = File::create(mount.path("f")).unwrap();
    for (number, chunk) in content.chunks(MIB / 2).enumerate().rev() {
        file.write_all_at(chunk, (number * MIB / 2) as u64).unwrap();
    }
    drop(file);
    assert_same(&bench.server.get("f").unwrap(), &content, "the object");
    mount.umount();
}

#[test]
fn a_full_disk_makes_writers_wait_for_uploads() {
    let Some(bench) = Bench::new() else { return };
    mount_tmpfs(&bench.folder("state"), "16M");
    let mount = bench.mount(&["--part-size", "1MiB", "--spill-limit", "1GiB"]);
    let content = noise(7, 40 * MIB);
    std::fs::write(mount.path("f"), &content).unwrap();
    assert_same(&bench.server.get("f").unwrap(), &content, "the object");
    let mut back = Vec::new();
    File::open(mount.path("f")).unwrap().read_to_end(&mut back).unwrap();
    assert_same(&back, &content, "read back");
    mount.umount();
}

#[test]
fn a_child_that_is_started_while_a_file_is_open_hangs_nobody() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    let mut file = File::create(mount.path("f")).unwrap();
    file.write_all(b"one").unwrap();
    // Its exec closes the descriptor that it inherited.
    assert!(std::process::Command::new("true").status().unwrap().success());
    file.write_all(b" two").unwrap();
    assert!(bench.server.get("f").is_none(), "the writer has not closed it");
    drop(file);
    assert_eq!(bench.server.get("f").unwrap(), b"one two");
    mount.umount();
}
