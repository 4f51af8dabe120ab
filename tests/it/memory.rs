//! Memory stays within its limit, whatever the sizes of files and the number of names.

use std::fs;
use std::os::unix::fs::FileExt;

use super::harness::{Bench, KIB, MIB, Mount, assert_same, noise};

/// The most that was ever resident, of all processes of a mount, in bytes.
fn peak(mount: &Mount<'_>) -> usize {
    let peak_of = |pid: u32| -> usize {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * KIB
    };
    [mount.pid(), mount.worker_pid()].into_iter().map(peak_of).sum()
}

/// Contract: under `--memory-limit` plus 64 MiB.
#[test]
fn what_is_resident_stays_under_the_limit() {
    const LIMIT: usize = 32 * MIB;
    const LARGE: usize = 96 * MIB;
    const NAMES: usize = 1_500;
    let Some(bench) = Bench::new() else { return };
    bench.server.fill(NAMES, |n| (format!("many/name-{n:06}"), b"x"));
    let content = noise(5, LARGE);
    bench.file("source", &content);
    let mount = bench.mount(&["--memory-limit", "32MiB"]);
    mount.sh("cp ../source f");
    assert_same(&bench.server.get("f").unwrap(), &content, "written");
    mount.sh("cmp ../source f & cmp ../source f; wait; ls -l many | wc -l");
    let file = fs::File::open(mount.path("f")).unwrap();
    let mut found = vec![0; 64 * KIB];
    for roll in noise(6, 400).chunks_exact(2) {
        let at = usize::from(u16::from_le_bytes([roll[0], roll[1]])) * (LARGE - found.len()) / usize::from(u16::MAX);
        file.read_exact_at(&mut found, at as u64).unwrap();
        assert_same(&found, &content[at..at + found.len()], "read anywhere");
    }
    let edited = fs::File::options().write(true).open(mount.path("f")).unwrap();
    for at in (0..LARGE).step_by(12 * MIB) {
        edited.write_all_at(b"changed", at as u64).unwrap();
    }
    drop(edited);
    let peak = peak(&mount);
    assert!(peak <= LIMIT + 64 * MIB, "{} MiB were resident", peak / MIB);
}
