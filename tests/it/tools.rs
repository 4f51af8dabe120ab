//! The tools of every day, through the mount: what they wrote is on the server, what is on the server they read.
//!
//! Content is compared on both sides of the mount in every test.

use serde_json::Value;

use super::harness::{BUCKET, Bench, KIB, assert_same, noise, sh, told};

/// Parts so small that a file of half a megabyte has several.
const SMALL_PARTS: [&str; 2] = ["--part-size", "100KiB"];

#[test]
fn a_tree_is_copied_in_and_out() {
    let Some(bench) = Bench::new() else { return };
    let tree = bench.folder("tree");
    sh(
        &tree,
        "mkdir -p a/b/c d; seq 1000 > a/one; seq 50000 > a/b/two; : > a/b/c/empty; seq 7 > d/three; chmod 600 d/three",
    );
    let mount = bench.mount(&SMALL_PARTS);
    mount.sh("cp -r ../tree in && diff -r ../tree in");
    sh(&bench.path(""), "cp -r mnt/in out && diff -r tree out");
    for (path, key) in [("a/one", "in/a/one"), ("a/b/two", "in/a/b/two"), ("a/b/c/empty", "in/a/b/c/empty")] {
        assert_same(&bench.server.get(key).unwrap(), &std::fs::read(tree.join(path)).unwrap(), key);
    }
    mount.umount();
    // Another mount, with nothing in memory, finds the same.
    let mount = bench.mount(&[]);
    mount.sh("diff -r ../tree in; test $(stat -c %a in/d/three) = 600; rm -r in; test -z \"$(ls -A)\"");
    assert_eq!(bench.server.keys(), [""; 0]);
}

#[test]
fn objects_of_other_clients_are_files() {
    let Some(bench) = Bench::new() else { return };
    let large = noise(1, 700 * KIB);
    bench.server.put("top", b"hello\n");
    bench.server.put("deep/er/large", &large);
    bench.server.put("deep/marker/", b"");
    let mount = bench.mount(&SMALL_PARTS);
    assert_eq!(mount.sh("find . | sort"), ".\n./deep\n./deep/er\n./deep/er/large\n./deep/marker\n./top\n");
    assert_eq!(mount.sh("cat top; stat -c %s deep/er/large"), format!("hello\n{}\n", large.len()));
    assert_same(&mount.read("deep/er/large"), &large, "large");
    let file = bench.file("large", &large);
    let sums = sh(&bench.path(""), &format!("sha256sum < {} && sha256sum < mnt/deep/er/large", file.display()));
    let mut sums = sums.lines();
    assert_eq!(sums.next(), sums.next());
}

#[test]
fn dd_writes_at_any_place() {
    let Some(bench) = Bench::new() else { return };
    let mut content = noise(2, 550 * KIB);
    bench.file("source", &content);
    bench.file("patch", &noise(3, 4 * KIB));
    let mount = bench.mount(&SMALL_PARTS);
    mount.sh("dd if=../source of=f bs=7000 status=none");
    assert_same(&bench.server.get("f").unwrap(), &content, "written in odd blocks");
    mount.sh("dd if=../patch of=f bs=1k seek=233 conv=notrunc status=none");
    content[233 * KIB..237 * KIB].copy_from_slice(&noise(3, 4 * KIB));
    assert_same(&bench.server.get("f").unwrap(), &content, "patched in the middle");
    mount.sh("dd if=../patch of=f bs=512 oflag=append conv=notrunc status=none");
    content.extend_from_slice(&noise(3, 4 * KIB));
    assert_same(&bench.server.get("f").unwrap(), &content, "appended");
    assert_same(&mount.read("f"), &content, "read back");
    mount.sh("dd if=f of=g bs=64k skip=2 count=3 status=none");
    assert_same(&bench.server.get("g").unwrap(), &content[128 * KIB..320 * KIB], "taken out");
}

#[test]
fn what_is_appended_is_added() {
    let Some(bench) = Bench::new() else { return };
    let mut large = noise(4, 450 * KIB);
    bench.server.put("large", &large);
    let mount = bench.mount(&SMALL_PARTS);
    mount.sh("echo one >> log; echo two >> log; for i in $(seq 20); do echo $i >> log; done");
    let wanted = sh(&bench.path(""), "echo one; echo two; seq 20");
    assert_eq!(bench.server.get("log").unwrap(), wanted.as_bytes());
    mount.sh("echo more >> large; echo again >> large");
    large.extend_from_slice(b"more\nagain\n");
    assert_same(&bench.server.get("large").unwrap(), &large, "an object of many parts");
    assert_same(&mount.read("large"), &large, "through the mount");
}

#[test]
fn the_middle_of_a_file_is_overwritten() {
    let Some(bench) = Bench::new() else { return };
    let files = [("small", 10 * KIB), ("large", 455 * KIB + 17)];
    for (name, len) in files {
        bench.server.put(name, &noise(5, len));
    }
    let mount = bench.mount(&SMALL_PARTS);
    for (name, len) in files {
        let mut content = noise(5, len);
        for at in [len / 2, 0, len - 5, len / 3] {
            mount.sh(&format!("printf 12345 | dd of={name} bs=1 seek={at} conv=notrunc status=none"));
            content[at..at + 5].copy_from_slice(b"12345");
            assert_same(&bench.server.get(name).unwrap(), &content, name);
        }
        assert_same(&mount.read(name), &content, name);
    }
    assert_eq!(bench.server.uploads(), [Value::Null; 0], "no upload is left over");
}

#[test]
fn truncate_takes_and_adds() {
    let Some(bench) = Bench::new() else { return };
    let source = noise(6, 450 * KIB);
    bench.server.put("closed", &source);
    bench.server.put("open", &source);
    let mount = bench.mount(&SMALL_PARTS);
    let mut wanted = source.clone();
    for size in [449 * KIB, 250 * KIB + 1, 460 * KIB, 100 * KIB, 0, 3] {
        mount.sh(&format!("truncate -s {size} closed; test $(stat -c %s closed) = {size}"));
        wanted.resize(size, 0);
        assert_same(&bench.server.get("closed").unwrap(), &wanted, &format!("closed, {size} bytes"));
    }
    assert_same(&mount.read("closed"), &wanted, "through the mount");
    // Descriptor 3 is open for writing all the while: the object changes when it is closed.
    mount.sh("exec 3<>open; truncate -s 200000 open; printf end >&3; truncate -s 300000 open; exec 3>&-");
    let mut wanted = source[..200_000].to_vec();
    wanted[..3].copy_from_slice(b"end");
    wanted.resize(300_000, 0);
    assert_same(&bench.server.get("open").unwrap(), &wanted, "open");
    assert_same(&mount.read("open"), &wanted, "open, through the mount");
}

#[test]
fn holes_are_zeros() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&SMALL_PARTS);
    mount.sh("printf head > f; printf tail | dd of=f bs=1 seek=350000 conv=notrunc status=none");
    mount.sh("printf x | dd of=new bs=1 seek=150000 status=none; truncate -s 250K zeros");
    let mut wanted = vec![0; 350_000];
    wanted[..4].copy_from_slice(b"head");
    wanted.extend_from_slice(b"tail");
    assert_same(&bench.server.get("f").unwrap(), &wanted, "f");
    assert_same(&mount.read("f"), &wanted, "f");
    let mut wanted = vec![0; 150_000];
    wanted.push(b'x');
    assert_same(&bench.server.get("new").unwrap(), &wanted, "new");
    assert_same(&bench.server.get("zeros").unwrap(), &[0; 250 * KIB], "zeros");
}

#[test]
fn files_are_moved_and_removed() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&SMALL_PARTS);
    mount.sh("mkdir d e; echo a > a; mv a b; mv b d/c; echo old > e/c; mv d/c e/c");
    assert_eq!(bench.server.get("e/c").unwrap(), b"a\n");
    assert_eq!(mount.sh("cat e/c; find . -type f"), "a\n./e/c\n");
    mount.sh("rm e/c; rmdir d; ! rmdir d 2>/dev/null; mkdir -p x/y; echo 1 > x/y/z; ! rmdir x 2>/dev/null");
    assert!(!bench.server.keys().iter().any(|key| key.starts_with("d/") || key == "e/c"), "{:?}", bench.server.keys());
    mount.sh("rm -r x; test ! -e x; find . | sort > ../found");
    assert_eq!(std::fs::read_to_string(bench.path("found")).unwrap(), ".\n./e\n");
    assert_eq!(bench.server.keys(), ["e/"]);
}

#[test]
fn an_empty_directory_stays_when_its_files_go() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("implied/only", b"x");
    let mount = bench.mount(&[]);
    mount.sh("rm implied/only; test -d implied; echo 1 > implied/again");
    assert_eq!(bench.server.get("implied/again").unwrap(), b"1\n");
}

#[test]
fn two_hundred_files_come_from_four_processes_at_once() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    mount.sh("for p in 1 2 3 4; do (mkdir p$p; for i in $(seq 50); do seq $p $((i * 100)) > p$p/f$i; done) & done; \
         for job in $(jobs -p); do wait $job; done");
    assert_eq!(mount.sh("find . -type f | wc -l").trim(), "200");
    for (p, i) in [(1, 1), (2, 50), (3, 17), (4, 33)] {
        let wanted = sh(&bench.path(""), &format!("seq {p} {}", i * 100));
        assert_eq!(bench.server.get(&format!("p{p}/f{i}")).unwrap(), wanted.as_bytes(), "p{p}/f{i}");
    }
    assert_eq!(bench.server.keys().iter().filter(|key| !key.ends_with('/')).count(), 200);
}

#[test]
fn a_file_is_read_while_it_is_written() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&SMALL_PARTS);
    let seen = mount.sh("exec 3>f; seq 60000 >&3; sha256sum < f; exec 3>&-; sha256sum < f; seq 60000 | sha256sum");
    let sums: Vec<&str> = seen.lines().collect();
    assert_eq!(sums[0], sums[2]);
    assert_eq!(sums[1], sums[2]);
    assert_eq!(bench.server.get("f").unwrap(), sh(&bench.path(""), "seq 60000").as_bytes());
}

#[test]
fn df_shows_the_bucket() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("f", &noise(7, 300 * KIB));
    let mount = bench.mount(&["--capacity", "1TiB"]);
    super::harness::wait_until("the use is known", || mount.sh("df --output=used -B1 . | tail -1").trim() != "0");
    let shown = mount.sh("df --output=source,fstype,size,used -B1 . | tail -1");
    let columns: Vec<&str> = shown.split_whitespace().collect();
    assert_eq!(columns[..3], [BUCKET, "fuse.ossfuse", "1099511627776"], "{shown}");
    let used: usize = columns[3].parse().unwrap();
    assert!((300 * KIB..310 * KIB).contains(&used), "{used}");
}

#[test]
fn a_read_only_mount_changes_nothing() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("d/f", b"as it was\n");
    let mount = bench.mount(&["--read-only"]);
    assert_eq!(mount.sh("cat d/f"), "as it was\n");
    for script in
        ["echo x > d/f", "echo x > new", "rm d/f", "mkdir e", "mv d/f g", "truncate -s 0 d/f", "chmod 600 d/f"]
    {
        let output = mount.try_sh(script);
        assert!(!output.status.success(), "{script}");
        assert!(told(&output).contains("Read-only file system"), "{script}: {}", told(&output));
    }
    assert_eq!(bench.server.keys(), ["d/f"]);
    assert_eq!(bench.server.get("d/f").unwrap(), b"as it was\n");
    assert_eq!(mount.status()["state"], "read-only");
}

#[test]
fn a_prefix_is_a_mount_of_its_own() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("other/f", b"other");
    bench.server.put("here/there/f", b"mine");
    let spec = format!("{BUCKET}:here/there");
    let mount = bench.mount_at(&spec, "mnt", &[]);
    assert_eq!(mount.sh("cat f; ls -A"), "minef\n");
    mount.sh("echo new > g; mkdir d; echo deep > d/h; mv g d/g; rm f");
    assert_eq!(bench.server.get("here/there/d/g").unwrap(), b"new\n");
    assert_eq!(bench.server.get("here/there/d/h").unwrap(), b"deep\n");
    assert_eq!(bench.server.get("here/there/f"), None);
    assert_eq!(bench.server.get("other/f").unwrap(), b"other");
    assert_eq!(mount.status()["prefix"], "here/there/");
    // The whole bucket beside it, with a state folder of its own in the same place.
    let whole = bench.mount_at(BUCKET, "whole", &[]);
    assert_eq!(whole.sh("cat here/there/d/h other/f"), "deep\nother");
}

#[test]
fn attributes_are_kept_with_posix_and_not_with_plain() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    mount.sh("umask 027; echo x > f; chmod 640 f; touch -d '2001-02-03 04:05:06.789 UTC' t; mkdir -m 750 d");
    mount.umount();
    let mount = bench.mount(&[]);
    assert_eq!(
        mount.sh("stat -c '%a %s' f; stat -c %a d; TZ=UTC stat -c %y t").lines().collect::<Vec<_>>(),
        ["640 2", "750", "2001-02-03 04:05:06.789000000 +0000"]
    );
    mount.umount();
    let plain = bench.mount(&["--metadata", "plain", "--file-mode", "0604", "--dir-mode", "0705"]);
    assert_eq!(plain.sh("stat -c %a f d; cat f"), "604\n705\nx\n");
    plain.sh("echo y > g");
    let meta = |key: &str| {
        let objects = bench.server.objects();
        objects.iter().find(|object| object["key"] == key).unwrap()["meta"].as_object().unwrap().len()
    };
    assert_eq!(meta("g"), 0, "plain stores nothing");
    assert_ne!(meta("f"), 0);
}
