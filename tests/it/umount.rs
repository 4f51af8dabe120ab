//! Unmounting sends what is pending; a mount in use stays; `status` tells of it all.

use std::fs;
use std::process::Stdio;

use serde_json::{Value, json};

use super::harness::{BUCKET, Bench, KIB, Mount, assert_same, is_mounted, noise, shell, signal, told, wait_until};

const SMALL_PARTS: [&str; 2] = ["--part-size", "100KiB"];

/// A mount with a closed file that is held back at the server; the writer is still waiting for its close.
fn with_a_file_pending<'b>(bench: &'b Bench, options: &[&str]) -> (Mount<'b>, std::process::Child) {
    bench.file("source", &noise(31, 450 * KIB));
    let mount = bench.mount(&[&SMALL_PARTS[..], options].concat());
    bench.server.hold("CompleteMultipartUpload", 0);
    let writer = shell(&bench.path(""), "cat source > mnt/f").spawn().unwrap();
    bench.server.wait_for_held();
    (mount, writer)
}

#[test]
fn umount_sends_what_is_pending() {
    let Some(bench) = Bench::new() else { return };
    let (mut mount, mut writer) = with_a_file_pending(&bench, &[]);
    let mut umount = mount.umount_command(&[]).spawn().unwrap();
    wait_until("it drains", || mount.status()["state"] == "draining");
    assert!(is_mounted(&mount.path("")));
    bench.server.clear_faults();
    assert!(writer.wait().unwrap().success());
    // The writer has ended by now or is about to: a busy mount is tried again by hand.
    if !umount.wait().unwrap().success() {
        assert!(mount.umount_command(&[]).status().unwrap().success());
    }
    assert!(mount.wait().success());
    assert!(!is_mounted(&mount.path("")));
    assert_same(&bench.server.get("f").unwrap(), &noise(31, 450 * KIB), "f");
}

#[test]
fn umount_over_its_time_says_what_is_pending() {
    let Some(bench) = Bench::new() else { return };
    let (mount, mut writer) = with_a_file_pending(&bench, &[]);
    let output = mount.umount_command(&["--timeout", "200ms"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    let line = String::from_utf8(output.stderr).unwrap();
    assert!(line.contains("1 file") && line.contains("it stays mounted"), "{line}");
    assert!(is_mounted(&mount.path("")));
    bench.server.clear_faults();
    assert!(writer.wait().unwrap().success());
    mount.umount();
}

#[test]
fn umount_by_force_keeps_what_is_pending_for_the_next_mount() {
    let Some(bench) = Bench::new() else { return };
    let (mut mount, mut writer) = with_a_file_pending(&bench, &[]);
    let output = mount.umount_command(&["--force"]).output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    mount.wait();
    assert!(!is_mounted(&mount.path("")));
    bench.server.clear_faults();
    assert!(!writer.wait().unwrap().success(), "its close was not done");
    let mount = bench.mount(&SMALL_PARTS);
    mount.settle();
    assert_same(&bench.server.get("f").unwrap(), &noise(31, 450 * KIB), "f");
}

#[test]
fn a_mount_in_use_says_by_whom_and_stays() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    mount.sh("echo x > f");
    let mut holder = shell(&mount.path(""), "exec 3<f; read");
    let mut holder = holder.stdin(Stdio::piped()).spawn().unwrap();
    wait_until("it holds the file", || mount.status()["open_handles"] == 1);
    let output = mount.umount_command(&[]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    let line = String::from_utf8(output.stderr).unwrap();
    assert!(line.contains("busy") && line.contains(&format!("bash ({})", holder.id())), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    assert_eq!(mount.sh("cat f; echo y > g; cat g"), "x\ny\n");
    drop(holder.stdin.take());
    holder.wait().unwrap();
    mount.umount();
}

/// A file that is on its way between two processes is nobody's: such a use passes, and is not worth an error.
#[test]
fn a_use_that_passes_is_waited_out() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    mount.sh("echo x > f");
    let script = "import os, socket, time
a, b = socket.socketpair()
f = os.open('f', os.O_RDONLY)
socket.send_fds(a, [b'f'], [f])
os.close(f)
os.chdir('/')
open(os.environ['READY'], 'w').close()
time.sleep(0.5)";
    let mut holder = std::process::Command::new("python3");
    let ready = bench.path("ready");
    let mut holder = holder.args(["-c", script]).current_dir(mount.path("")).env("READY", &ready).spawn().unwrap();
    wait_until("the file is under way", || ready.exists());
    mount.umount();
    assert!(holder.wait().unwrap().success());
}

#[test]
fn sigterm_drains_and_ends() {
    let Some(bench) = Bench::new() else { return };
    let (mut mount, mut writer) = with_a_file_pending(&bench, &[]);
    signal(mount.pid(), libc::SIGTERM);
    wait_until("it drains", || mount.status()["state"] == "draining");
    bench.server.clear_faults();
    assert!(writer.wait().unwrap().success());
    // A writer that has not ended yet when all is sent keeps the mount busy; then it stays, as `umount` says.
    wait_until("it ends or says that it is busy", || {
        !is_mounted(&mount.path("")) || mount.log().contains("the mount is in use")
    });
    if is_mounted(&mount.path("")) {
        assert!(mount.umount_command(&[]).status().unwrap().success());
    }
    assert!(mount.wait().success());
    assert_same(&bench.server.get("f").unwrap(), &noise(31, 450 * KIB), "f");
}

/// Contract: a second one is `--force`.
#[test]
fn a_second_sigterm_ends_at_once_and_keeps_what_is_pending() {
    let Some(bench) = Bench::new() else { return };
    let (mut mount, mut writer) = with_a_file_pending(&bench, &[]);
    signal(mount.pid(), libc::SIGTERM);
    wait_until("it drains", || mount.status()["state"] == "draining");
    signal(mount.pid(), libc::SIGTERM);
    mount.wait();
    assert!(!is_mounted(&mount.path("")));
    assert!(!writer.wait().unwrap().success(), "its close did not end well");
    bench.server.let_the_dead_go();
    let next = bench.mount(&SMALL_PARTS);
    next.settle();
    assert_same(&bench.server.get("f").unwrap(), &noise(31, 450 * KIB), "f");
}

#[test]
fn sigterm_of_a_quiet_mount_ends_it() {
    let Some(bench) = Bench::new() else { return };
    let mut mount = bench.mount(&[]);
    mount.sh("echo x > f");
    signal(mount.pid(), libc::SIGTERM);
    assert!(mount.wait().success());
    assert!(!is_mounted(&mount.path("")));
    let output = bench.ossfuse(["status", "--json"]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["mounts"], json!([]));
    let output = bench.ossfuse(["status"]).arg(mount.path("")).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
}

#[test]
fn a_mount_in_the_background_is_up_when_the_command_returns() {
    let Some(bench) = Bench::new() else { return };
    let place = bench.folder("mnt");
    let output = Mount::command(&bench, BUCKET, &place, &[]).output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{}", told(&output));
    fs::write(place.join("f"), "content").unwrap();
    assert_eq!(bench.server.get("f").unwrap(), b"content");
    let output = bench.ossfuse(["umount"]).arg(&place).output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    assert!(!is_mounted(&place));
    assert!(bench.state().join("log").exists());
}

#[test]
fn status_keeps_its_names() {
    let Some(bench) = Bench::new() else { return };
    let (mount, mut writer) = with_a_file_pending(&bench, &["--memory-limit", "256MiB"]);
    let status = mount.status();
    let wanted = [
        "mountpoint",
        "bucket",
        "prefix",
        "endpoint",
        "state",
        "supervisor_pid",
        "worker_pid",
        "worker_restarts",
        "recovery",
        "started_at",
        "pending",
        "kept",
        "uploads",
        "spill",
        "cache",
        "memory",
        "inodes",
        "open_handles",
        "hidden_keys",
        "breaker",
        "requests",
        "retries",
        "bytes_up",
        "bytes_down",
        "degraded_since",
        "last_error",
    ];
    for name in wanted {
        assert!(status.get(name).is_some(), "{name} is missing: {status}");
    }
    assert_eq!(status["mountpoint"], json!(mount.path("")));
    assert_eq!((&status["bucket"], &status["prefix"]), (&json!(BUCKET), &json!("")));
    assert!(status["endpoint"].as_str().unwrap().starts_with(&bench.server.url()));
    assert_eq!(status["supervisor_pid"], json!(mount.pid()));
    assert!(status["worker_pid"].as_u64().is_some_and(|pid| pid != u64::from(mount.pid())));
    assert_eq!(status["memory"]["limit"], json!(256 << 20));
    assert_eq!(status["pending"]["files"], 1);
    assert_eq!(status["kept"], json!({"files": 0, "bytes": 0}));
    let upload = &status["uploads"][0];
    for name in [
        "session",
        "key",
        "upload_id",
        "state",
        "size",
        "part_size",
        "parts_done",
        "parts_total",
        "bytes_done",
        "created_at",
        "error",
    ] {
        assert!(upload.get(name).is_some(), "{name} is missing: {upload}");
    }
    assert_eq!((&upload["key"], &upload["size"]), (&json!("f"), &json!(450 * KIB)));
    assert_eq!((&upload["parts_done"], &upload["parts_total"]), (&json!(5), &json!(5)));
    assert_eq!(upload["upload_id"], bench.server.uploads()[0]["upload_id"]);
    assert_eq!(status["requests"]["UploadPart"]["ok"], 5);
    assert!(status["bytes_up"].as_u64() >= Some(450 * KIB as u64));
    bench.server.clear_faults();
    assert!(writer.wait().unwrap().success());
    mount.settle();
    assert_eq!(mount.status()["uploads"], json!([]));
}
