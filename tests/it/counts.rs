//! What each action costs in requests, counted by the server: the rows of the contract's table.
//!
//! Default options but for the part size, so that a large file is one of 16 MiB; bounds are the contract's.

use std::fs;
use std::os::unix::fs::FileExt;

use super::harness::{Bench, Counts, KIB, MIB, Mount, assert_same, noise, wait_until};

/// The requests of an action, those included that follow it.
fn cost(bench: &Bench, mount: &Mount<'_>, action: impl FnOnce()) -> Counts {
    bench.counting(|| {
        action();
        mount.settle();
    })
}

#[track_caller]
fn assert_all(counts: &Counts, wanted: &[(&str, u64)]) {
    assert_eq!(counts.all(), wanted);
}

#[test]
fn a_new_file_is_one_put() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("d/there", b"x");
    let mount = bench.mount_quiet(&["--part-size", "1MiB"]);
    mount.sh("ls d");
    let small = noise(1, 5 * KIB);
    let full = noise(2, MIB);
    for (name, content) in [("d/small", &small), ("d/full", &full), ("top", &small), ("d/empty", &Vec::new())] {
        let source = bench.file("source", content);
        let counts = cost(&bench, &mount, || assert!(fs::copy(&source, mount.path(name)).is_ok()));
        assert_all(&counts, &[("PutObject", 1)]);
        assert_eq!(counts.of("PutObject").bytes_in, content.len() as u64, "{name}");
        assert_same(&bench.server.get(name).unwrap(), content, name);
    }
}

#[test]
fn a_copy_with_its_attributes_is_one_put() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount_quiet(&[]);
    mount.sh("ls");
    bench.file("source", b"x\n");
    let counts = cost(&bench, &mount, || {
        mount.sh("chmod 600 ../source; touch -d '2001-02-03 04:05:06 UTC' ../source; cp -p ../source copy");
    });
    assert_all(&counts, &[("PutObject", 1)]);
    assert_eq!(mount.sh("TZ=UTC stat -c '%a %y' copy"), "600 2001-02-03 04:05:06.000000000 +0000\n");
}

#[test]
fn what_a_listing_tells_is_not_asked() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("d/f", b"content");
    let mount = bench.mount_quiet(&["--attr-ttl", "1h", "--list-ttl", "1h"]);
    mount.sh("ls d");
    let counts = cost(&bench, &mount, || drop(mount.sh("test ! -e d/absent; test ! -e absent; test ! -e d/absent2")));
    assert_all(&counts, &[]);
    let counts = cost(&bench, &mount, || assert_eq!(mount.sh("stat -c %s d/f"), "7\n"));
    assert_all(&counts, &[("HeadObject", 1)]);
    let counts = cost(&bench, &mount, || drop(mount.sh("stat d/f; stat d/f; ls -l d")));
    assert_all(&counts, &[]);
    mount.umount();
    let mount = bench.mount_quiet(&["--metadata", "plain"]);
    mount.sh("ls d");
    let counts = cost(&bench, &mount, || assert_eq!(mount.sh("stat -c %s d/f"), "7\n"));
    assert_all(&counts, &[]);
}

#[test]
fn a_file_of_a_mebibyte_is_read_with_one_get() {
    let Some(bench) = Bench::new() else { return };
    let content = noise(3, MIB);
    bench.server.put("f", &content);
    let mount = bench.mount_quiet(&[]);
    mount.sh("stat f");
    // Opening looks at the object unless that was done within the last second.
    let counts = cost(&bench, &mount, || assert_same(&mount.read("f"), &content, "f"));
    assert_all(&counts, &[("GetObject", 1)]);
    assert_eq!(counts.of("GetObject").bytes_out, content.len() as u64);
}

#[test]
fn reading_again_moves_no_data() {
    let Some(bench) = Bench::new() else { return };
    let content = noise(4, 512 * KIB);
    bench.server.put("f", &content);
    let mount = bench.mount_quiet(&[]);
    assert_same(&mount.read("f"), &content, "f");
    // A look within the last second spares the request; sooner or later one is made, and answered 304. A kernel that
    // is short of memory, or reclaims ahead of need, may have dropped the pages: then once more.
    wait_until("an open asks and moves no data", || {
        let counts = cost(&bench, &mount, || assert_same(&mount.read("f"), &content, "f"));
        assert!(counts.total() <= 2, "{counts:?}");
        counts.number("GetObject") == 1 && counts.moved() == 0
    });
    let last = bench.server.log().pop().unwrap();
    assert_eq!((last["operation"].as_str(), last["status"].as_u64()), (Some("GetObject"), Some(304)));
}

#[test]
fn a_large_file_is_sent_once() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount_quiet(&["--part-size", "1MiB"]);
    mount.sh("ls");
    let content = noise(5, 16 * MIB + 5);
    let source = bench.file("source", &content);
    let counts = cost(&bench, &mount, || assert!(fs::copy(&source, mount.path("f")).is_ok()));
    assert_all(&counts, &[("CompleteMultipartUpload", 1), ("InitiateMultipartUpload", 1), ("UploadPart", 17)]);
    assert_eq!(counts.of("UploadPart").bytes_in, content.len() as u64, "each byte once");
    assert_same(&bench.server.get("f").unwrap(), &content, "f");
}

#[test]
fn a_large_file_is_read_once() {
    let Some(bench) = Bench::new() else { return };
    let content = noise(6, 32 * MIB);
    bench.server.put("f", &content);
    let mount = bench.mount_quiet(&[]);
    let counts = cost(&bench, &mount, || assert_same(&mount.read("f"), &content, "f"));
    assert_eq!(counts.of("GetObject").bytes_out, content.len() as u64, "each byte once");
    assert!(counts.number("GetObject") <= 10, "{:?}", counts.all());
}

/// Parts of 512 KiB of a file of 64 MiB stand for parts of 8 MiB of one of 1 GiB: bytes are bounded in parts.
#[test]
fn a_small_change_of_a_large_object_moves_little() {
    let Some(bench) = Bench::new() else { return };
    let mut content = noise(7, 64 * MIB);
    bench.server.put("f", &content);
    let mount = bench.mount_quiet(&["--part-size", "512KiB"]);
    mount.sh("stat f");

    let counts = cost(&bench, &mount, || drop(mount.sh("head -c 1024 /dev/zero >> f")));
    content.resize(content.len() + KIB, 0);
    assert_same(&bench.server.get("f").unwrap(), &content, "appended");
    assert!(counts.total() <= 4 && counts.moved() < 64 * KIB as u64, "{:?}, {} bytes", counts.all(), counts.moved());

    let counts = cost(&bench, &mount, || {
        let file = fs::File::options().write(true).open(mount.path("f")).unwrap();
        file.write_all_at(b"!", 30 * MIB as u64 + 12_345).unwrap();
    });
    content[30 * MIB + 12_345] = b'!';
    assert_same(&bench.server.get("f").unwrap(), &content, "changed in the middle");
    assert!(counts.total() <= 8 && counts.moved() < MIB as u64, "{:?}, {} bytes", counts.all(), counts.moved());

    let counts = cost(&bench, &mount, || drop(mount.sh("truncate -s -1000 f")));
    content.truncate(content.len() - 1000);
    assert_same(&bench.server.get("f").unwrap(), &content, "truncated");
    assert!(counts.total() <= 8 && counts.moved() < MIB as u64, "{:?}, {} bytes", counts.all(), counts.moved());
    assert_same(&mount.read("f"), &content, "through the mount");
}

#[test]
fn a_rename_is_a_copy_and_a_delete() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("a", &noise(8, 300 * KIB));
    let mount = bench.mount_quiet(&[]);
    mount.sh("stat a");
    let counts = cost(&bench, &mount, || fs::rename(mount.path("a"), mount.path("b")).unwrap());
    assert_eq!((counts.number("CopyObject"), counts.number("DeleteObject")), (1, 1), "{:?}", counts.all());
    assert!(counts.number("HeadObject") <= 1 && counts.total() <= 3, "{:?}", counts.all());
    assert_eq!(counts.moved() - counts.of("CopyObject").bytes_out, 0, "no data crosses the wire");
    assert_eq!(bench.server.keys(), ["b"]);
    assert_same(&mount.read("b"), &noise(8, 300 * KIB), "b");
}

/// A gibibyte and default parts, as the contract says it.
#[test]
fn a_gibibyte_is_changed_for_the_price_of_a_piece() {
    let Some(bench) = Bench::new() else { return };
    let gib = 1024 * MIB as u64;
    bench.server.put("source", &noise(12, 16 * MIB));
    bench.server.repeat("source", "f", 64);
    let mount = bench.mount_quiet(&[]);
    mount.sh("stat f");
    let size = || {
        let objects = bench.server.objects();
        objects.iter().find(|object| object["key"] == "f").unwrap()["size"].as_u64().unwrap()
    };
    assert_eq!(size(), gib);
    let cases: [(&str, u64, u64, u64); 4] = [
        ("head -c 1024 /dev/zero >> f", 10, 16, gib + 1024),
        ("printf x | dd of=f bs=1 seek=500000000 conv=notrunc status=none", 16, 24, gib + 1024),
        ("truncate -s -2000 f", 16, 24, gib - 976),
        ("truncate -s 700M f", 16, 24, 700 * MIB as u64),
    ];
    for (script, requests, mebibytes, wanted) in cases {
        let counts = cost(&bench, &mount, || drop(mount.sh(script)));
        let (total, moved) = (counts.total(), counts.moved());
        assert!(total <= requests && moved < mebibytes * MIB as u64, "{script}: {:?}, {moved} bytes", counts.all());
        assert_eq!(size(), wanted, "{script}");
    }
    let at = 500_000_000 % (16 * MIB);
    let mut around = noise(12, 16 * MIB)[at - 1..at + 2].to_vec();
    around[1] = b'x';
    let mut found = [0; 3];
    fs::File::open(mount.path("f")).unwrap().read_exact_at(&mut found, 499_999_999).unwrap();
    assert_eq!(found, around[..]);
}

#[test]
fn attributes_of_a_finished_file_are_changed_with_few_requests() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("f", &noise(9, 300 * KIB));
    let mount = bench.mount_quiet(&[]);
    mount.sh("stat f");
    let counts = cost(&bench, &mount, || drop(mount.sh("chmod 600 f; touch -d @1000 f")));
    assert!(counts.total() <= 4, "{:?}", counts.all());
    assert_eq!(counts.of("PutObject").bytes_in + counts.of("GetObject").bytes_out, 0, "no content moves");
    // On a file that is being written they ride along.
    let counts = cost(&bench, &mount, || drop(mount.sh("exec 3>g; echo x >&3; chmod 600 g; touch -d @7 g; exec 3>&-")));
    assert_all(&counts, &[("PutObject", 1)]);
}

#[test]
fn what_changes_nothing_costs_nothing() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount_quiet(&["--attr-ttl", "1h", "--list-ttl", "1h"]);
    mount.sh("echo x > f; mkdir d; ls");
    // Files that are opened for writing, synced, locked and closed again.
    let script = "exec 3>>f; sync -d f 2>/dev/null || :; flock 3; exec 3>&-; python3 - <<'P'\nimport os\n\
                  f = os.open('f', os.O_RDWR); os.fsync(f); os.close(os.dup(f)); os.close(f)\nP\n";
    let counts = cost(&bench, &mount, || drop(mount.sh(script)));
    // Opening may look whether the object is as it was.
    assert!(counts.total() <= 3 && counts.number("PutObject") == 0 && counts.moved() < 1000, "{:?}", counts.all());
    // Fsync is local by default: one PUT, at the close.
    let counts =
        cost(&bench, &mount, || drop(mount.sh("dd if=/dev/zero of=g bs=1k count=5 conv=fsync oflag=sync status=none")));
    assert_all(&counts, &[("PutObject", 1)]);
}

#[test]
fn a_copy_inside_the_mount_is_made_by_the_service() {
    let Some(bench) = Bench::new() else { return };
    let content = noise(10, 5 * MIB);
    bench.server.put("f", &content);
    let mount = bench.mount_quiet(&["--part-size", "1MiB"]);
    mount.sh("stat f");
    let counts = cost(&bench, &mount, || drop(mount.sh("cp --reflink=auto f g")));
    assert!(counts.of("UploadPart").bytes_in + counts.of("PutObject").bytes_in == 0, "{:?}", counts.all());
    assert!(counts.total() <= 12, "{:?}", counts.all());
    assert_same(&bench.server.get("g").unwrap(), &content, "g");
}

/// With k of n parts at the service, what remains after a crash are n − k parts and three requests more, the listing
/// of the parts, and what the mount asks for itself.
#[test]
fn after_a_crash_only_what_is_missing_is_sent() {
    let Some(bench) = Bench::new() else { return };
    const PARTS: u64 = 12;
    let options = ["--part-size", "256KiB", "--upload-workers", "2", "--recover", "publish"];
    let content = noise(11, PARTS as usize * 256 * KIB);
    let source = bench.file("source", &content);
    let mount = bench.mount_quiet(&options);
    bench.server.hold("UploadPart", 7);
    let target = mount.path("f");
    let copy = std::thread::spawn(move || drop(fs::copy(source, target)));
    bench.server.wait_for_held();
    let len = content.len() as u64;
    wait_until("all is written", || fs::metadata(mount.path("f")).is_ok_and(|found| found.len() == len));
    mount.kill();
    // Rust's copy does not look at what close says.
    copy.join().unwrap();
    bench.server.let_the_dead_go();
    let there = bench.server.uploads()[0]["parts"].as_array().unwrap().len() as u64;
    assert!((7..PARTS).contains(&there), "{there}");
    bench.server.reset_counts();
    let mount = bench.mount_quiet(&options);
    mount.settle();
    let counts = bench.server.counts();
    assert_same(&bench.server.get("f").unwrap(), &content, "f");
    let of_the_mount = counts.number("GetBucketStat") + counts.number("ListObjectsV2");
    assert_eq!(counts.number("UploadPart"), PARTS - there, "{:?}", counts.all());
    assert!(counts.number("ListParts") <= 1, "{:?}", counts.all());
    let rest = counts.total() - of_the_mount - counts.number("UploadPart") - counts.number("ListParts");
    assert!(rest <= 3, "{:?}", counts.all());
}

/// Contract: 10 LIST for 10,000 entries; with all their attributes again, once the listing is old and nothing has
/// changed, the same.
#[test]
fn a_listing_is_a_request_a_page() {
    let Some(bench) = Bench::new() else { return };
    bench.server.fill(1_100, |n| (format!("{n:04}"), b"x"));
    let mount = bench.mount_quiet(&["--list-ttl", "5s", "--attr-ttl", "5s"]);
    let counts = cost(&bench, &mount, || assert_eq!(mount.sh("ls | wc -l"), "1100\n"));
    assert_all(&counts, &[("ListObjectsV2", 2)]);
    mount.sh("ls -l");
    wait_until("all are looked at again", || {
        let counts = bench.counting(|| assert_eq!(mount.sh("ls -l | wc -l"), "1101\n"));
        counts.all() == [("ListObjectsV2", 2)]
    });
}

/// `ls -l` waits for the service a few times, not once a file; and asks about each of them once.
#[test]
fn attributes_are_asked_for_side_by_side() {
    let Some(bench) = Bench::new() else { return };
    bench.server.fill(200, |n| (format!("d/{n:03}"), n.to_string()));
    let mount = bench.mount_quiet(&[]);
    let counts = cost(&bench, &mount, || {
        bench.server.hold("HeadObject", 50);
        std::thread::scope(|scope| {
            let listed = scope.spawn(|| mount.sh("ls -l d | wc -l"));
            wait_until("many are under way", || bench.server.held() >= 16);
            bench.server.clear_faults();
            assert_eq!(listed.join().unwrap(), "201\n");
        });
    });
    // What has become old while the server was slow is asked for once more.
    assert!((200..264).contains(&counts.number("HeadObject")), "{:?}", counts.all());
    // What was told ahead is not believed once this mount has changed something.
    mount.sh("for i in $(seq 100 119); do stat -c %s d/$i > /dev/null; echo longer than before > d/$((i + 5)); done");
    assert_eq!(mount.sh("stat -c %s d/105 d/124"), "19\n19\n");
}
