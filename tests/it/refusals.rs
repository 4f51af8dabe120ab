//! What cannot be mounted is refused: one line on stderr that says what, why and how to mend it, and the status.
//!
//! And a full disk: it stops who writes, not the mount.

use std::fs;
use std::process::Output;

use super::harness::{BUCKET, Bench, MIB, Mount, is_mounted, mount_tmpfs, noise, told, wait_until};

/// One line on stderr that has these words, and this status.
#[track_caller]
fn assert_refused(output: &Output, status: i32, words: &[&str]) {
    let said = told(output);
    assert_eq!(output.status.code(), Some(status), "{said}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.starts_with("ossfuse: "), "{said}");
    if status == 1 {
        assert_eq!(errors.lines().count(), 1, "{said}");
    }
    assert!(output.stdout.is_empty(), "{said}");
    for word in words {
        assert!(errors.contains(word), "{word:?} is missing: {said}");
    }
    assert!(!errors.contains("test-sk") && !errors.contains("wrong-sk"), "no secrets: {said}");
}

fn refused(bench: &Bench, spec: &str, place: &str, options: &[&str], status: i32, words: &[&str]) {
    let output = Mount::command(bench, spec, &bench.path(place), options).output().unwrap();
    assert_refused(&output, status, words);
    assert!(!is_mounted(&bench.path(place)), "{place}");
}

#[test]
fn a_wrong_secret_is_named() {
    let Some(bench) = Bench::new() else { return };
    bench.folder("mnt");
    for (id, secret, code) in
        [("test-ak", "wrong-sk", "SignatureDoesNotMatch"), ("unknown-ak", "test-sk", "InvalidAccessKeyId")]
    {
        let mut command = Mount::command(&bench, BUCKET, &bench.path("mnt"), &[]);
        let output = command.env("OSS_ACCESS_KEY_ID", id).env("OSS_ACCESS_KEY_SECRET", secret).output().unwrap();
        assert_refused(&output, 1, &["access key", code, "OSS_ACCESS_KEY_SECRET"]);
    }
    let output = Mount::command(&bench, BUCKET, &bench.path("mnt"), &[]).env_remove("OSS_ACCESS_KEY_ID").output();
    assert_refused(&output.unwrap(), 1, &["OSS_ACCESS_KEY_ID"]);
}

#[test]
fn a_missing_bucket_is_named() {
    let Some(bench) = Bench::new() else { return };
    bench.folder("mnt");
    refused(&bench, "no-such-bucket", "mnt", &[], 1, &["no-such-bucket: there is no such bucket"]);
}

#[test]
fn a_mount_point_is_an_empty_folder_that_is_there() {
    let Some(bench) = Bench::new() else { return };
    refused(&bench, BUCKET, "missing", &[], 1, &["/missing: the mount point does not exist", "mkdir -p"]);
    bench.file("file", b"");
    refused(&bench, BUCKET, "file", &[], 1, &["/file: the mount point is no folder"]);
    bench.folder("full");
    bench.file("full/something", b"");
    refused(&bench, BUCKET, "full", &[], 1, &["/full: the folder has files in it", "--nonempty"]);
    assert!(bench.path("full/something").exists());
    let mount = bench.mount_at(BUCKET, "full", &["--nonempty"]);
    assert_eq!(mount.sh("ls -A"), "");
}

#[test]
fn a_place_is_mounted_once() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    let other = bench.path("other-state").display().to_string();
    let output = Mount::command(&bench, BUCKET, &mount.path(""), &["--state-dir", &other]).output().unwrap();
    assert_refused(&output, 1, &["is mounted there already", "ossfuse umount"]);
    mount.sh("echo still works > f");
}

#[test]
fn a_dead_mount_makes_way() {
    let Some(bench) = Bench::new() else { return };
    let mut mount = bench.mount(&[]);
    mount.die();
    assert!(is_mounted(&mount.path("")));
    assert!(fs::read_dir(mount.path("")).is_err());
    let again = bench.mount(&[]);
    again.sh("echo works > f");
}

#[test]
fn a_config_that_cannot_be_read_is_named() {
    let Some(bench) = Bench::new() else { return };
    bench.folder("mnt");
    let config = |name: &str, text: &str| bench.file(name, text.as_bytes()).display().to_string();
    let broken = config("broken.toml", "part-size = = 1\n");
    refused(&bench, BUCKET, "mnt", &["--config", &broken], 1, &["broken.toml"]);
    let unknown = config("unknown.toml", "part-sise = \"1MiB\"\n");
    refused(&bench, BUCKET, "mnt", &["--config", &unknown], 1, &["part-sise", "part-size"]);
    refused(&bench, BUCKET, "mnt", &["--config", "/nonexistent/config.toml"], 1, &["/nonexistent/config.toml"]);
    let open = config("open.toml", "access-key-secret = \"test-sk\"\n");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(&open, mode).unwrap();
    refused(&bench, BUCKET, "mnt", &["--config", &open], 1, &["open.toml", "chmod"]);
}

#[test]
fn wrong_usage_is_status_2() {
    let Some(bench) = Bench::new() else { return };
    bench.folder("mnt");
    refused(&bench, BUCKET, "mnt", &["--part-sise", "1MiB"], 2, &["--part-sise", "--part-size"]);
    refused(&bench, BUCKET, "mnt", &["--part-size", "1"], 2, &["part-size"]);
    refused(&bench, BUCKET, "mnt", &["-o", "no_such_option"], 2, &["no_such_option"]);
    refused(&bench, "Not_A_Bucket", "mnt", &[], 2, &["Not_A_Bucket"]);
}

#[test]
fn an_open_wire_is_refused() {
    let Some(bench) = Bench::new() else { return };
    bench.folder("mnt");
    refused(&bench, BUCKET, "mnt", &["--endpoint", "http://192.0.2.1"], 1, &["http://", "--allow-http"]);
}

#[test]
fn a_service_that_does_not_answer_is_named() {
    let Some(bench) = Bench::new() else { return };
    bench.folder("mnt");
    // It was free a moment ago, and nothing listens there now.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = format!("http://{}", port.local_addr().unwrap());
    drop(port);
    let options = ["--endpoint", &closed, "--mount-timeout", "1s"];
    refused(&bench, BUCKET, "mnt", &options, 1, &[&closed, "--endpoint"]);
}

#[test]
fn a_full_disk_stops_the_writer_and_not_the_mount() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("old", b"old\n");
    let small = bench.folder("small-disk");
    mount_tmpfs(&small, "8m");
    let state = small.join("state").display().to_string();
    let mount = bench.mount(&["--state-dir", &state, "--part-size", "16MiB"]);
    bench.file("source", &noise(21, 16 * MIB));
    let output = mount.try_sh("dd if=../source of=large bs=256k status=none");
    assert!(!output.status.success());
    assert!(told(&output).contains("No space left on device"), "{}", told(&output));
    let output = mount.try_sh("dd if=../source of=old bs=256k status=none");
    assert!(!output.status.success());
    assert!(!mount.log().contains("panicked"), "{}", mount.log());
    // What did fit was closed, and a close publishes what the writer was told is written, no more.
    mount.sh("rm -f large old; ls > /dev/null");
    mount.settle();
    wait_until("there is room again", || mount.try_sh("head -c 300000 ../source > small").status.success());
    assert_eq!(bench.server.get("small").unwrap(), noise(21, 300_000));
    assert_eq!(mount.sh("cat small | wc -c"), "300000\n");
    assert!(bench.server.get("large").is_none());
    assert_eq!(mount.status()["pending"]["files"], 0);
}
