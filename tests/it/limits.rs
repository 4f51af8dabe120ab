//! Limits, and what goes on in the background: the spill, rates, `--close local`, `sync`, sparse files.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::harness::{Bench, Finally, KIB, MIB, Mount, assert_same, mount_tmpfs, noise, wait_until};

/// The spill files of a mount, as `status` shows them.
fn spilled(mount: &Mount<'_>) -> u64 {
    mount.status()["spill"]["bytes"].as_u64().unwrap()
}

/// What lies in the spill files of a bench's only mount, as the disk shows it.
fn on_disk(bench: &Bench) -> u64 {
    let files = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let sessions = files(&bench.state().join("spill")).flat_map(|session| files(&session.path()));
    sessions.filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).sum()
}

/// Runs `action` and gives the most that lay in spill files meanwhile.
fn watching_spill(bench: &Bench, action: impl FnOnce()) -> u64 {
    let (done, most) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                most.fetch_max(on_disk(bench), Ordering::AcqRel);
            }
        });
        let _end = Finally(|| done.store(true, Ordering::Release));
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
    let most = watching_spill(&bench, || std::fs::write(mount.path("big"), &content).unwrap());
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
    // By small writes: what a failed one gives back makes no room for a session file.
    let mut file = File::create(mount.path("f")).unwrap();
    content.chunks(4 * KIB).for_each(|chunk| file.write_all(chunk).unwrap());
    drop(file);
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

#[test]
fn a_tebibyte_of_nothing_crosses_no_wire() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    let (a, b) = (noise(8, 4096), noise(9, 3000));
    let counts = bench.counting(|| {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(mount.path("f")).unwrap();
        file.set_len(1 << 40).unwrap();
        file.write_all_at(&a, (700 << 30) + 77).unwrap();
        file.write_all_at(&b, 5 << 20).unwrap();
    });
    assert!(counts.moved() < 64 * MIB as u64, "{} bytes moved", counts.moved());
    assert!(counts.total() < 320, "{:?}", counts.all());
    let object = &bench.server.objects()[0];
    assert_eq!((object["key"].as_str(), object["size"].as_u64()), (Some("f"), Some(1 << 40)));
    assert_eq!(bench.server.objects().len(), 1, "no object of zeros stays behind");
    let file = File::open(mount.path("f")).unwrap();
    for (at, content) in [((700 << 30) + 77, &a), (5 << 20, &b), (900 << 30, &vec![0; 5000])] {
        let mut back = vec![0; content.len()];
        file.read_exact_at(&mut back, at).unwrap();
        assert_same(&back, content, "read back");
    }
    assert!(bench.server.uploads().is_empty());
    drop(file);
    mount.umount();
}

#[test]
fn holes_in_a_new_file_are_sent_once_at_most() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&["--part-size", "1MiB"]);
    let mut content = vec![0; 90 * MIB + 5];
    let data = noise(10, 3 * MIB);
    let counts = bench.counting(|| {
        let file = File::create(mount.path("f")).unwrap();
        file.set_len(content.len() as u64).unwrap();
        file.write_all_at(&data, 40 * MIB as u64 + 10).unwrap();
    });
    content[40 * MIB + 10..43 * MIB + 10].copy_from_slice(&data);
    assert!(counts.moved() < 14 * MIB as u64, "{} bytes moved", counts.moved());
    assert_same(&bench.server.get("f").unwrap(), &content, "the object");
    assert_eq!(bench.server.keys(), ["f"]);
    mount.umount();
}

#[test]
fn a_kill_while_a_large_file_is_closed_loses_nothing() {
    let Some(bench) = Bench::new() else { return };
    let content = noise(11, 20 * MIB + 3);
    // Before the last bytes are made an object at a key of the program's own, and before that is copied to its name.
    for (name, operation) in [("a", "CompleteMultipartUpload"), ("b", "CopyObject")] {
        let mount = bench.mount(&SMALL_SPILL);
        let mut file = File::create(mount.path(name)).unwrap();
        file.write_all(&content).unwrap();
        bench.server.hold(operation, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| drop(file));
            bench.server.wait_for_held();
            mount.kill();
        });
        bench.server.clear_faults();
        bench.server.let_the_dead_go();
        let mount = bench.mount(&SMALL_SPILL);
        mount.settle();
        wait_until("it is published", || bench.server.get(name).is_some());
        mount.settle();
        assert_same(&bench.server.get(name).unwrap(), &content, name);
        assert!(bench.server.uploads().is_empty());
        wait_until("nothing else is left", || bench.server.keys().iter().all(|key| !key.contains("ossfuse-tmp")));
        mount.umount();
    }
}

#[test]
fn a_header_that_is_written_last_costs_one_part() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&["--part-size", "1MiB"]);
    let mut content = noise(12, 16 * MIB);
    let counts = bench.counting(|| {
        let mut file = File::create(mount.path("f")).unwrap();
        file.write_all(&content).unwrap();
        file.write_all_at(&noise(13, 64 * KIB), 0).unwrap();
    });
    content[..64 * KIB].copy_from_slice(&noise(13, 64 * KIB));
    assert!(counts.number("UploadPart") <= 17, "{:?}", counts.all());
    assert_same(&bench.server.get("f").unwrap(), &content, "the object");
    mount.umount();
}

#[test]
fn without_a_word_half_of_the_free_disk_may_be_used() {
    let Some(bench) = Bench::new() else { return };
    mount_tmpfs(&bench.folder("state"), "64M");
    let mount = bench.mount(&[]);
    let limit = mount.status()["spill"]["limit"].as_u64().unwrap();
    assert!(limit > 16 * MIB as u64 && limit <= 32 * MIB as u64, "{limit}");
    let content = noise(14, 48 * MIB);
    std::fs::write(mount.path("f"), &content).unwrap();
    assert_same(&bench.server.get("f").unwrap(), &content, "the object");
    mount.umount();
}
