//! The n-th request fails, for every n until a run meets no fault: whatever fails and however, the tools' exit status
//! and the bucket agree.
//!
//! One fault that passes never fails a tool: it is tried again. Every kind of work runs under every kind of fault; with
//! `OSSFUSE_FAULTS_LONG=1` (or `scripts/faults`) once more with two requests that fail in a row, the second of which is
//! mostly the repetition of the first.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::harness::{Bench, KIB, Mount, assert_same, noise, told, wait_until};

/// More requests than any piece of work here makes.
const REQUESTS_MAX: u64 = 60;
/// Pairs of work and fault at a time: most of their time they wait for what fails.
const AT_ONCE: usize = 4;

/// A key, and what it holds; nothing where there is no object.
type Wanted = (&'static str, Option<Vec<u8>>);

/// Work on a bucket that [`prepare`] has filled: a script in the mount, and what the bucket holds when it is done.
struct Work {
    name: &'static str,
    script: &'static str,
    /// Whether the script can tell that a reply's body was changed on its way.
    checked: bool,
    done: fn() -> Vec<Wanted>,
}

fn old(len: usize) -> Vec<u8> {
    noise(81, len)
}

fn new(len: usize) -> Vec<u8> {
    noise(82, len)
}

fn edited(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut content = old(350 * KIB);
    content[at..at + bytes.len()].copy_from_slice(bytes);
    content
}

const WORKS: &[Work] = &[
    Work {
        name: "a new small file",
        script: "cp ../small w/f",
        checked: true,
        done: || vec![("w/f", Some(new(9 * KIB)))],
    },
    Work {
        name: "a new large file",
        script: "cp ../large w/f",
        checked: true,
        done: || vec![("w/f", Some(new(350 * KIB)))],
    },
    Work {
        name: "an overwrite",
        script: "cp ../large w/old",
        checked: true,
        done: || vec![("w/old", Some(new(350 * KIB)))],
    },
    Work {
        name: "an append",
        script: "echo more >> w/old",
        checked: false,
        done: || vec![("w/old", Some([old(350 * KIB), b"more\n".to_vec()].concat()))],
    },
    Work {
        name: "an edit in the middle",
        script: "printf X | dd of=w/old bs=1 seek=150000 conv=notrunc status=none",
        checked: false,
        done: || vec![("w/old", Some(edited(150_000, b"X")))],
    },
    Work {
        name: "a truncation",
        script: "truncate -s 150000 w/old",
        checked: false,
        done: || vec![("w/old", Some(old(350 * KIB)[..150_000].to_vec()))],
    },
    Work {
        name: "a rename",
        script: "mv w/old w/new",
        checked: true,
        done: || vec![("w/old", None), ("w/new", Some(old(350 * KIB)))],
    },
    Work {
        name: "a rename over another",
        script: "mv w/old w/small",
        checked: true,
        done: || vec![("w/old", None), ("w/small", Some(old(350 * KIB)))],
    },
    Work {
        name: "a rename of a directory",
        script: "mv w v",
        checked: false,
        done: || vec![("w/old", None), ("w/small", None), ("v/old", Some(old(350 * KIB))), ("v/small", Some(old(5)))],
    },
    Work {
        name: "listing and reading",
        script: "ls w | tr '\\n' ' ' | grep -x 'old small '; cmp ../old w/old; cmp ../tiny w/small",
        checked: false,
        done: || vec![("w/old", Some(old(350 * KIB)))],
    },
    Work {
        name: "attributes, a directory and deleting",
        script: "chmod 600 w/small; mkdir w/d; rmdir w/d; rm w/old",
        checked: false,
        done: || vec![("w/old", None), ("w/small", Some(old(5))), ("w/d/", None)],
    },
];

fn faults() -> Vec<(&'static str, Value)> {
    vec![
        ("500", json!({"status": 500, "code": "InternalError"})),
        ("503", json!({"status": 503, "code": "ServiceUnavailable"})),
        ("a reset before", json!({"reset": "before"})),
        ("a reset after", json!({"reset": "after"})),
        ("a truncated body", json!({"truncate_body": 20})),
        ("a changed body", json!({"corrupt_body": true})),
        ("a timeout", json!({"hold_after": "never"})),
    ]
}

/// The bucket as every run finds it.
fn prepare(bench: &Bench) {
    bench.server.clear_faults();
    for object in bench.server.keys() {
        bench.server.delete(&object);
    }
    bench.server.put("w/old", &old(350 * KIB));
    bench.server.put("w/small", &old(5));
}

/// Runs the work with its n-th request struck, and those after it; whether any was struck at all.
fn run(bench: &Bench, mount: &Mount<'_>, work: &Work, (fault, action): &(&str, Value), n: u64, times: u64) -> bool {
    let about = format!("{} under {fault} of request {n}, {times} times", work.name);
    prepare(bench);
    bench.server.faults(&json!([{"operation": "*", "skip": n, "times": times, "action": action}]));
    let output = mount.try_sh(work.script);
    assert!(output.status.success(), "{about}: {}", told(&output));
    let struck = bench.server.applied() > 0;
    // The exit status is what the tools rely on: what it says is so by then, not some time later.
    for (key, content) in (work.done)() {
        match content {
            Some(content) => {
                assert_same(&bench.server.get(key).unwrap_or_else(|| panic!("{about}: no {key}")), &content, &about);
            }
            None => assert!(bench.server.get(key).is_none(), "{about}: {key} is still there"),
        }
    }
    bench.server.clear_faults();
    wait_until("all is settled", || mount.status()["pending"]["files"] == 0);
    struck
}

/// Every request of the work fails in its turn, and as many as are told in a row; how many there were.
fn each_request_fails(work: &Work, fault: &(&str, Value), times: u64) -> u64 {
    let Some(bench) = Bench::new() else { return 0 };
    for (name, content) in
        [("small", new(9 * KIB)), ("large", new(350 * KIB)), ("old", old(350 * KIB)), ("tiny", old(5))]
    {
        bench.file(name, &content);
    }
    for n in 0..REQUESTS_MAX {
        prepare(&bench);
        // A mount of its own each time: nothing of the run before is known.
        // Only where an answer never comes is there anything to be gained by impatience.
        let patience = if fault.0 == "a timeout" { "1s" } else { "20s" };
        let mount = bench.mount(&["--part-size", "100KiB", "--try-timeout", patience]);
        let struck = run(&bench, &mount, work, fault, n, times);
        mount.umount();
        if !struck {
            assert_eq!(bench.recover_list(), [Value::Null; 0], "{}", work.name);
            return n;
        }
    }
    panic!("{}: it never ends", work.name);
}

fn is_long() -> bool {
    std::env::var("OSSFUSE_FAULTS_LONG").is_ok_and(|value| value == "1")
}

/// A piece of work, a fault, and how many requests it strikes in a row.
type Job<'f> = (&'static Work, &'f (&'static str, Value), u64);

fn jobs<'f>(faults: &'f [(&'static str, Value)]) -> Vec<Job<'f>> {
    let mut jobs = Vec::new();
    for times in 1..=if is_long() { 2 } else { 1 } {
        for work in WORKS {
            let applies = |fault: &&(&str, Value)| fault.0 != "a changed body" || work.checked;
            jobs.extend(faults.iter().filter(applies).map(|fault| (work, fault, times)));
        }
    }
    jobs
}

#[test]
fn one_fault_never_fails_a_tool() {
    let faults = faults();
    let jobs = jobs(&faults);
    let (next, struck) = (AtomicUsize::new(0), AtomicU64::new(0));
    // What fails in one thread is told at the end; the others go on.
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((work, fault, times)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let requests = each_request_fails(work, fault, *times);
                    struck.fetch_add(requests, Ordering::Relaxed);
                    println!("{} under {}: {requests} requests failed in turn, {times} in a row", work.name, fault.0);
                }
            });
        }
    });
    println!("{} pairs of work and fault, {} requests failed in turn", jobs.len(), struck.into_inner());
}

#[test]
fn a_state_folder_that_is_gone_fails_the_writer_and_not_the_mount() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("old", b"old\n");
    let mount = bench.mount(&[]);
    let (state, away) = (bench.state(), bench.path("away"));
    std::fs::rename(&state, &away).unwrap();
    let output = mount.try_sh("echo lost > new");
    assert!(told(&output).contains("Input/output error"), "{}", told(&output));
    assert_eq!(mount.sh("cat old"), "old\n");
    std::fs::rename(&away, &state).unwrap();
    mount.sh("echo kept > new2");
    assert_eq!(bench.server.get("new2").unwrap(), b"kept\n");
    assert!(!mount.log().contains("panicked"), "{}", mount.log());
}

#[test]
fn clocks_that_jump_cost_one_request_and_nothing_else() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    for (at, offset) in [3_600, -7_200, 0].into_iter().enumerate() {
        bench.server.clock(offset);
        mount.sh(&format!("echo {at} > f{at}; cat f{at}"));
        assert_eq!(bench.server.get(&format!("f{at}")).unwrap(), format!("{at}\n").into_bytes());
    }
    assert!(mount.log().contains("the clock differs"), "{}", mount.log());
    assert_eq!(mount.status()["pending"]["files"], 0);
}
