//! Write-back (`--close local`): a close is safe on the local disk, and the bucket equals the files soon after.

use std::fs;
use std::io::Write;

use serde_json::json;

use super::harness::{Bench, KIB, Mount, assert_same, noise, told, wait_until};

const LOCAL: [&str; 4] = ["--close", "local", "--part-size", "100KiB"];

fn mount(bench: &Bench) -> Mount<'_> {
    mount_with(bench, &[])
}

fn mount_with<'b>(bench: &'b Bench, more: &[&str]) -> Mount<'b> {
    let mount = bench.mount(&[&LOCAL, more].concat());
    wait_until("the bucket's use is known", || bench.server.counts().number("GetBucketStat") > 0);
    mount
}

#[track_caller]
fn sync(bench: &Bench, mount: &Mount<'_>) {
    let output = bench.ossfuse(["sync"]).arg(mount.path("")).output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
}

#[test]
fn a_close_does_not_wait_and_the_file_is_what_was_written() {
    let Some(bench) = Bench::new() else { return };
    let mount = mount(&bench);
    bench.server.faults(&json!([{"operation": "PutObject", "action": {"hold": "gate"}},
        {"operation": "CompleteMultipartUpload", "action": {"hold": "gate"}}]));
    let large = noise(1, 450 * KIB);
    bench.file("large", &large);
    mount.sh("echo small > small; cp ../large large; : > empty");
    assert_eq!(mount.sh("cat small; ls; stat -c %s large empty"), "small\nempty\nlarge\nsmall\n460800\n0\n");
    assert_same(&mount.read("large"), &large, "read before it is sent");
    let status = mount.status();
    assert_eq!(status["pending"]["files"], 3, "{status}");
    assert_eq!(bench.server.keys(), [""; 0]);
    bench.server.clear_faults();
    sync(&bench, &mount);
    assert_eq!(bench.server.get("small").as_deref(), Some(&b"small\n"[..]));
    assert_same(&bench.server.get("large").unwrap(), &large, "large");
    assert_eq!(bench.server.get("empty").as_deref(), Some(&b""[..]));
    assert_eq!(mount.status()["pending"]["files"], 0);
}

#[test]
fn a_file_that_gets_its_name_before_it_is_sent_is_one_put() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("old", b"old content");
    let mount = mount_with(&bench, &["--send-after", "60s"]);
    mount.sh("ls -l");
    let counts = bench.counting(|| {
        mount.sh("echo new > tmp; mv tmp final; echo gone > other; rm other; echo x > tmp2; mv tmp2 old");
        assert_eq!(mount.sh("cat final old; ls"), "new\nx\nfinal\nold\n");
        assert_eq!(bench.server.get("old").as_deref(), Some(&b"old content"[..]), "until the new one is complete");
        sync(&bench, &mount);
    });
    assert_eq!(counts.all(), [("PutObject", 2)]);
    assert_eq!(bench.server.get("final").as_deref(), Some(&b"new\n"[..]));
    assert_eq!(bench.server.get("old").as_deref(), Some(&b"x\n"[..]));
    assert_eq!(bench.server.keys(), ["final", "old"]);
}

#[test]
fn what_was_closed_renamed_and_deleted_survives_a_kill() {
    let Some(bench) = Bench::new() else { return };
    let first = mount(&bench);
    bench.server.hold("PutObject", 0);
    let content = noise(2, 30 * KIB);
    bench.file("source", &content);
    first.sh("cp ../source tmp; mv tmp final; echo gone > gone; rm gone; for i in 1 2 3 4 5; do echo $i > f$i; done");
    first.sh("chmod 640 final");
    first.kill();
    bench.server.let_the_dead_go();
    let second = mount(&bench);
    second.settle();
    assert_eq!(bench.server.keys(), ["f1", "f2", "f3", "f4", "f5", "final"]);
    assert_same(&bench.server.get("final").unwrap(), &content, "final");
    assert_eq!(second.sh("stat -c %a final; cat f3"), "640\n3\n");
    assert_eq!(bench.recover_list().len(), 0);
}

#[test]
fn a_failing_upload_is_tried_until_it_succeeds() {
    let Some(bench) = Bench::new() else { return };
    let mount = mount(&bench);
    bench.server.faults(&json!([{"operation": "PutObject", "times": 4,
        "action": {"status": 403, "code": "AccessDenied"}}]));
    mount.sh("echo content > f");
    wait_until("it has failed", || mount.status()["uploads"][0]["state"] == "failed");
    assert_eq!(mount.sh("cat f"), "content\n");
    assert_eq!(mount.status()["pending"]["files"], 1);
    mount.umount();
    assert_eq!(bench.server.get("f").as_deref(), Some(&b"content\n"[..]));
}

#[test]
fn a_file_that_is_closed_again_and_again_is_sent_as_it_is_last() {
    let Some(bench) = Bench::new() else { return };
    let mount = mount(&bench);
    let counts = bench.counting(|| {
        mount.sh("for i in $(seq 20); do echo $i >> log; done");
        let mut late = fs::File::options().append(true).open(mount.path("log")).unwrap();
        late.write_all(b"late\n").unwrap();
        drop(late);
        sync(&bench, &mount);
    });
    assert!(counts.number("PutObject") <= 3, "{:?}", counts.all());
    let wanted = mount.sh("seq 20; echo late");
    assert_eq!(bench.server.get("log").unwrap(), wanted.as_bytes());
}

#[test]
fn many_small_files_are_all_sent() {
    let Some(bench) = Bench::new() else { return };
    let mount = mount(&bench);
    mount.sh("ls");
    let counts = bench.counting(|| {
        mount.sh("for i in $(seq 200); do echo $i > f$i; done");
        mount.settle();
    });
    assert_eq!(counts.all(), [("PutObject", 200)]);
    assert_eq!(bench.server.keys().len(), 200);
    assert_eq!(bench.server.get("f123").as_deref(), Some(&b"123\n"[..]));
}
