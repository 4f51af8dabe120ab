//! Files that stay open reach the bucket when asked for (`ossfuse sync`), or by the clock (`--publish-after`).

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::process::Output;

use super::harness::{Bench, KIB, Mount, assert_same, noise, told, wait_until};

/// `ossfuse sync` of something in the mount.
fn sync(bench: &Bench, mount: &Mount<'_>, name: &str, options: &[&str]) -> Output {
    bench.ossfuse(["sync"]).arg(mount.path(name)).args(options).output().unwrap()
}

#[track_caller]
fn synced(bench: &Bench, mount: &Mount<'_>, name: &str) {
    let output = sync(bench, mount, name, &[]);
    assert!(output.status.success(), "{}", told(&output));
}

#[test]
fn a_log_that_stays_open_is_sent_and_goes_on() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&["--part-size", "100KiB"]);
    mount.sh("mkdir d");
    let mut log = fs::File::options().create(true).append(true).open(mount.path("d/log")).unwrap();
    let mut other = fs::File::create(mount.path("other")).unwrap();
    let mut wanted = noise(1, 350 * KIB);
    log.write_all(&wanted).unwrap();
    other.write_all(b"not asked for").unwrap();
    assert_eq!(bench.server.get("d/log"), None);
    synced(&bench, &mount, "d");
    assert_same(&bench.server.get("d/log").unwrap(), &wanted, "all that was written");
    assert_eq!(bench.server.get("other"), None, "it lies elsewhere");

    let more = noise(2, 10 * KIB);
    log.write_all(&more).unwrap();
    wanted.extend(&more);
    let counts = bench.counting(|| synced(&bench, &mount, "d/log"));
    assert_same(&bench.server.get("d/log").unwrap(), &wanted, "with what was appended");
    assert!(counts.total() <= 10 && counts.moved() < 150 * KIB as u64, "an append: {:?}", counts.all());
    let counts = bench.counting(|| synced(&bench, &mount, "d/log"));
    assert_eq!(counts.total(), 0, "nothing is new: {:?}", counts.all());

    log.write_all(b"the end").unwrap();
    wanted.extend(b"the end");
    drop(log);
    assert_same(&bench.server.get("d/log").unwrap(), &wanted, "closed");
    synced(&bench, &mount, "");
    assert_eq!(bench.server.get("other").as_deref(), Some(&b"not asked for"[..]));
    other.write_all(b", at first").unwrap();
    drop(other);
    assert_eq!(bench.server.get("other").as_deref(), Some(&b"not asked for, at first"[..]));
    mount.umount();
}

#[test]
fn what_is_not_sent_in_time_is_told() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    let mut file = fs::File::create(mount.path("f")).unwrap();
    file.write_all(b"content").unwrap();
    bench.server.hold("PutObject", 0);
    let output = sync(&bench, &mount, "f", &["--timeout", "300ms"]);
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    let line = String::from_utf8(output.stderr).unwrap();
    assert!(line.contains("1 file (7 B)"), "{line}");
    bench.server.clear_faults();
    synced(&bench, &mount, "");
    assert_eq!(bench.server.get("f").as_deref(), Some(&b"content"[..]));

    let output = bench.ossfuse(["sync"]).arg(bench.path("")).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    let output = sync(&bench, &mount, "absent", &[]);
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
}

#[test]
fn files_that_stay_open_are_sent_by_the_clock() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&["--publish-after", "300ms"]);
    let mut file = fs::File::options().create_new(true).read(true).write(true).open(mount.path("f")).unwrap();
    file.write_all(b"one").unwrap();
    wait_until("it is sent", || bench.server.get("f").as_deref() == Some(b"one"));
    file.write_all(b" two").unwrap();
    wait_until("it is sent again", || bench.server.get("f").as_deref() == Some(b"one two"));
    let mut all = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut all).unwrap();
    assert_eq!(all, "one two");
}
