//! `ossfuse doctor`, `log`, `status --watch`: what is wrong is found, and told with its mend.

use std::io::{BufRead, BufReader};
use std::process::{Output, Stdio};

use super::harness::{BUCKET, Bench, signal, told, wait_until};

fn doctor(bench: &Bench, arguments: &[&str]) -> Output {
    bench.ossfuse(["doctor"]).args(arguments).output().unwrap()
}

#[track_caller]
fn assert_lines(output: &Output, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stdout);
    for word in words {
        assert!(text.lines().any(|line| line.contains(word)), "{word:?} is missing: {}", told(output));
    }
    assert!(!text.contains('\u{1b}'), "no colours but on a terminal");
    assert!(!told(output).contains("test-sk"), "no secrets");
}

#[test]
fn a_sound_machine_and_bucket_are_told_so() {
    let Some(bench) = Bench::new() else { return };
    bench.folder("state");
    let connection = bench.connection();
    let arguments: Vec<&str> = [BUCKET].into_iter().chain(connection.iter().map(String::as_str)).collect();
    let output = doctor(&bench, &arguments);
    assert!(output.status.success(), "{}", told(&output));
    let wanted = [
        "ok    /dev/fuse",
        "  kernel: ",
        "  fusermount3: ",
        "  spill disk: ",
        "  spill fsync: ",
        "ok    stale mounts",
        "ok    DNS",
        "ok    endpoint",
        "ok    credentials: from the environment",
        "ok    list",
        "ok    put",
        "ok    clock",
        "ok    get",
        "ok    multipart",
        "ok    delete",
    ];
    assert_lines(&output, &wanted);
    assert!(bench.server.keys().is_empty() && bench.server.uploads().is_empty(), "nothing is left behind");
}

#[test]
fn what_is_wrong_is_named_with_its_mend() {
    let Some(bench) = Bench::new() else { return };
    let state = bench.folder("state").display().to_string();
    let url = bench.server.url();
    let at = |endpoint: &str, bucket: &str, secret: &str| {
        let mut command = bench.ossfuse(["doctor", bucket, "--endpoint", endpoint, "--region", "cn-hangzhou"]);
        command.args(["--state-dir", &state]).env("OSS_ACCESS_KEY_SECRET", secret).output().unwrap()
    };
    for (output, words) in [
        (at(&url, BUCKET, "wrong"), ["fail  credentials: the key was refused (SignatureDoesNotMatch);"]),
        (at(&url, "no-such-bucket", "test-sk"), ["fail  bucket: there is no such bucket;"]),
        (at("http://127.0.0.1:1", BUCKET, "test-sk"), ["fail  endpoint: "]),
    ] {
        assert_eq!(output.status.code(), Some(1), "{}", told(&output));
        assert_lines(&output, &words);
    }
    let output = doctor(&bench, &["--state-dir", &state]);
    assert_lines(&output, &["ossfuse doctor BUCKET"]);
}

#[test]
fn the_log_level_is_changed_at_run_time() {
    let Some(bench) = Bench::new() else { return };
    let config = bench.file("config.toml", b"log-level = 'info'\n");
    let mount = bench.mount(&["--config", config.to_str().unwrap()]);
    mount.sh("ls");
    let debug = |mount: &super::harness::Mount<'_>| mount.log().matches(" DEBUG ").count();
    assert_eq!(debug(&mount), 0, "{}", mount.log());
    let output = bench.ossfuse(["log", "debug"]).arg(mount.path("")).output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    mount.sh("echo hi > f; cat f");
    assert!(debug(&mount) > 0, "{}", mount.log());
    let output = bench.ossfuse(["log", "loud"]).arg(mount.path("")).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", told(&output));
    std::fs::write(&config, "log-level = 'warn'\n").unwrap();
    signal(mount.pid(), libc::SIGHUP);
    wait_until("it has read its file again", || {
        let before = debug(&mount);
        mount.sh("cat f; touch f");
        debug(&mount) == before
    });
    assert!(mount.log().contains("asked to read credentials and log level again"), "{}", mount.log());
    let nobody = bench.ossfuse(["log", "info", "/nonexistent"]).output().unwrap();
    assert_eq!(nobody.status.code(), Some(1), "{}", told(&nobody));
}

#[test]
fn status_is_shown_again_and_again_until_it_is_interrupted() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    let mut command = bench.ossfuse(["status", "--watch"]);
    let mut child = command.arg(mount.path("")).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        assert!(lines.any(|line| line.unwrap().starts_with("mounted ")), "a page");
    }
    signal(child.id(), libc::SIGINT);
    assert!(child.wait().unwrap().success());
}
