//! The service is gone for a while: calls wait or fail as promised, can be ended, and nothing that was written is lost.

use std::process::{Child, Output, Stdio};

use serde_json::{Value, json};

use super::harness::{BUCKET, Bench, KIB, Mount, assert_same, is_mounted, noise, shell, signal, told, wait_until};

const SIZE: usize = 500 * KIB;

fn start(bench: &Bench, script: &str) -> Child {
    shell(&bench.path(""), script).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Ends with an errno's text on stderr.
#[track_caller]
fn assert_fails(output: &Output, text: &str) {
    assert!(!output.status.success() && told(output).contains(text), "{}", told(output));
}

fn wait_for_breaker(mount: &Mount<'_>, state: &str) {
    wait_until(&format!("the breaker is {state}"), || mount.status()["breaker"] == state);
}

#[test]
fn a_copy_waits_for_the_end_of_an_outage() {
    let Some(bench) = Bench::new() else { return };
    bench.file("source", &noise(61, SIZE));
    let mount = bench.mount(&["--part-size", "100KiB"]);
    bench.server.hold("UploadPart", 2);
    let copy = start(&bench, "cp source mnt/f");
    bench.server.wait_for_held();
    bench.server.outage(true);
    bench.server.clear_faults();
    wait_until("it has been missed", || mount.status()["state"] == "degraded");
    let status = mount.status();
    assert!(status["degraded_since"].is_string() && status["retries"].as_u64() > Some(2), "{status}");
    assert!(status["last_error"]["message"].is_string(), "{status}");
    assert_eq!(bench.server.get("f"), None);
    bench.server.outage(false);
    let output = copy.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    assert_same(&bench.server.get("f").unwrap(), &noise(61, SIZE), "f");
    wait_until("all is well", || mount.status()["state"] == "ok");
    assert_eq!(mount.status()["degraded_since"], Value::Null);
    mount.umount();
}

#[test]
fn after_a_long_outage_a_close_fails_and_the_bytes_are_sent_later() {
    let Some(bench) = Bench::new() else { return };
    bench.file("source", &noise(62, SIZE));
    let mount = bench.mount(&["--part-size", "100KiB", "--outage-timeout", "2s", "--list-ttl", "1ms"]);
    mount.sh("mkdir d; echo known > d/known; ls d");
    bench.server.put("d/unread", b"never read before");
    mount.sh("ls d; ls -l d/unread; cat d/known");
    bench.server.outage(true);
    assert_fails(&start(&bench, "cp source mnt/f").wait_with_output().unwrap(), "Input/output error");
    let status = mount.status();
    assert_eq!((&status["pending"]["files"], &status["state"]), (&json!(1), &json!("degraded")), "{status}");
    assert_eq!(status["uploads"][0]["state"], "failed", "{status}");
    assert_fails(&mount.try_sh("cat d/unread"), "Connection timed out");

    wait_for_breaker(&mount, "open");
    // What is known is served, what must be asked for is not waited for while a directory is locked.
    assert_eq!(mount.sh("ls d; cat d/known; df . > /dev/null; stat -c %s d/unread"), "known\nunread\nknown\n17\n");
    assert_fails(&mount.try_sh("mkdir e"), "Connection timed out");
    assert_fails(&mount.try_sh("rm d/known"), "Connection timed out");
    assert_fails(&mount.try_sh("mv d/known d/other"), "Connection timed out");
    // Writing goes on: only the close waits.
    assert_eq!(mount.sh("exec 3> d/new; echo local >&3; cat d/new"), "local\n");

    bench.server.outage(false);
    wait_for_breaker(&mount, "closed");
    mount.settle();
    assert_same(&bench.server.get("f").unwrap(), &noise(62, SIZE), "f");
    assert_eq!(bench.server.get("d/new").unwrap(), b"local\n");
    assert_eq!(mount.sh("cat d/unread; mv d/known d/other; mkdir e; ls"), "never read befored\ne\nf\n");
}

#[test]
fn unmounting_in_an_outage_says_what_is_pending_and_keeps_it() {
    let Some(bench) = Bench::new() else { return };
    bench.file("source", &noise(63, SIZE));
    let mount = bench.mount(&["--part-size", "100KiB", "--outage-timeout", "1s"]);
    bench.server.outage(true);
    assert_fails(&start(&bench, "cp source mnt/f").wait_with_output().unwrap(), "Input/output error");
    let output = mount.umount_command(&["--timeout", "300ms"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    assert!(told(&output).contains("1 file") && is_mounted(&mount.path("")), "{}", told(&output));
    bench.server.outage(false);
    mount.settle();
    assert_same(&bench.server.get("f").unwrap(), &noise(63, SIZE), "f");
    assert_eq!(mount.sh("wc -c < f").trim(), SIZE.to_string());
    mount.umount();
    assert_eq!(bench.recover_list(), [Value::Null; 0]);
}

/// A process that waits for a request that is held is sent a signal: it ends, before anything is let go.
fn ended_by(signal_number: libc::c_int, operation: &str, script: &str) -> (Bench, Vec<Value>) {
    let bench = Bench::new().unwrap();
    bench.file("source", &noise(64, 50 * KIB));
    bench.server.put("d/old", b"old");
    let mount = bench.mount(&[]);
    bench.server.hold(operation, 0);
    let mut process = start(&bench, &format!("exec {script}"));
    bench.server.wait_for_held();
    signal(process.id(), signal_number);
    wait_until("it ends", || process.try_wait().unwrap().is_some());
    wait_until("its handles are closed", || mount.status()["open_handles"] == 0);
    bench.server.clear_faults();
    mount.settle();
    mount.umount();
    let left = bench.recover_list();
    (bench, left)
}

fn skipped() -> bool {
    Bench::new().is_none()
}

#[test]
fn a_stuck_copy_can_be_interrupted_and_killed() {
    if skipped() {
        return;
    }
    for number in [libc::SIGINT, libc::SIGKILL, libc::SIGTERM] {
        let (bench, left) = ended_by(number, "PutObject", "cp source mnt/d/old");
        assert_eq!(left.len(), 1, "the bytes are kept: {left:?}");
        assert_eq!((&left[0]["state"], &left[0]["size"]), (&json!("kept"), &json!(50 * KIB)));
        // The request was at the server already: what it holds is the one or the other, never a mixture.
        let object = bench.server.get("d/old").unwrap();
        assert!(object == b"old" || object == noise(64, 50 * KIB), "{} bytes", object.len());
    }
}

#[test]
fn whatever_waits_can_be_interrupted() {
    if skipped() {
        return;
    }
    for (operation, script) in [
        ("GetObject", "cat mnt/d/old"),
        ("ListObjectsV2", "ls mnt/d"),
        ("HeadObject", "stat mnt/d/old"),
        ("CopyObject", "mv mnt/d/old mnt/d/new"),
        ("DeleteObject", "rm mnt/d/old"),
    ] {
        let (bench, left) = ended_by(libc::SIGINT, operation, script);
        assert_eq!(left, [Value::Null; 0], "{script}");
        let keys = bench.server.keys();
        assert!(
            keys.iter().any(|key| key == "d/old" || key == "d/new") || operation == "DeleteObject",
            "{script}: {keys:?}"
        );
    }
}

#[test]
fn a_mount_waits_for_the_service_or_does_not() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("f", b"content\n");
    bench.server.outage(true);
    bench.folder("mnt");
    let mut refused = Mount::command(&bench, BUCKET, &bench.path("mnt"), &["--offline", "fail"]);
    let output = refused.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1, "{}", told(&output));

    let mount = bench.mount(&["--offline", "mount"]);
    assert_eq!(mount.status()["state"], "offline");
    assert_fails(&mount.try_sh("echo written > unsent"), "Connection timed out");
    bench.server.outage(false);
    wait_until("it has connected", || mount.status()["state"] == "ok");
    assert_eq!(mount.sh("cat f; echo written > unsent; cat unsent"), "content\nwritten\n");
    mount.umount();

    bench.server.outage(true);
    let waiting = Mount::command(&bench, BUCKET, &bench.path("mnt"), &[]).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("it waits", || {
        std::fs::read_to_string(bench.state().join("log")).is_ok_and(|log| log.contains("waiting"))
    });
    bench.server.outage(false);
    let output = waiting.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    assert!(bench.ossfuse(["umount"]).arg(bench.path("mnt")).status().unwrap().success());
}

/// Nothing answers, and nobody knows yet that nothing will: what is known is answered all the same.
#[test]
fn what_is_known_is_answered_while_the_service_hangs() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    mount.sh("mkdir d; echo known > d/known; ls -l d; df . > /dev/null");
    wait_until("the bucket's use is known", || bench.server.counts().number("GetBucketStat") > 0);
    mount.settle();
    bench.server.hold("*", 0);
    let mut waiting = start(&bench, "echo x > mnt/d/new");
    bench.server.wait_for_held();
    assert_eq!(mount.sh("ls d; stat -c %s d/known; df . > /dev/null"), "known\nnew\n6\n");
    assert!(mount.status()["worker_pid"].is_u64());
    assert!(waiting.try_wait().unwrap().is_none(), "it waits still");
    bench.server.clear_faults();
    waiting.wait().unwrap();
    mount.settle();
    assert_eq!(bench.server.get("d/new").unwrap(), b"x\n");
    mount.umount();
}
