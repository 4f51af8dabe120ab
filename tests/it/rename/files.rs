//! Files that are given another name, while they are read, written, or lie there.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use serde_json::json;

use super::{read, reread};
use crate::harness::{Bench, KIB, MIB, assert_same, forget_pages, noise};

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
