//! `ossfuse uploads`: what stands in a bucket is listed, and only what is nobody's is aborted.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::{Output, Stdio};
use std::time::Duration;

use ossfuse::base::{ObjectKey, UploadId};
use ossfuse::oss::{Addressing, Client, ClientOptions, Credentials, Endpoint, Limits, PutHeaders, SignatureVersion};
use serde_json::{Value, json};

use super::harness::{BUCKET, Bench, KIB, noise, shell, told, wait_until};

/// Begins an upload as another client would.
fn begin_upload(bench: &Bench, key: &str) -> UploadId {
    let url = bench.server.url();
    let (host, port) = url.trim_start_matches("http://").split_once(':').unwrap();
    let options = ClientOptions {
        endpoint: Endpoint { https: false, host: host.to_owned(), port: Some(port.parse().unwrap()) },
        bucket: BUCKET.to_owned(),
        region: Some("cn-hangzhou".to_owned()),
        addressing: Addressing::Path,
        signature: SignatureVersion::V4,
        credentials: Credentials {
            access_key_id: "test-ak".into(),
            access_key_secret: "test-sk".into(),
            security_token: None,
        },
        try_timeout: Duration::from_secs(20),
        outage_timeout: Duration::ZERO,
        limits: Limits::default(),
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let key = ObjectKey::parse(key).unwrap();
    runtime
        .block_on(async { Client::new(options).unwrap().initiate_upload(&key, &PutHeaders::default()).await.unwrap() })
}

fn uploads(bench: &Bench, arguments: &[&str]) -> Output {
    let mut command = bench.ossfuse(["uploads"]);
    command.args(arguments).args(bench.connection()).output().unwrap()
}

#[track_caller]
fn listed(bench: &Bench, arguments: &[&str]) -> Vec<(String, bool)> {
    let output = uploads(bench, &[&["list"], arguments, &["--json"]].concat());
    assert!(output.status.success(), "{}", told(&output));
    let found: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    for upload in &found {
        assert!(upload["upload_id"].is_string() && upload["initiated"].is_string(), "{upload}");
    }
    found
        .iter()
        .map(|upload| (upload["key"].as_str().unwrap().to_owned(), upload["owned"].as_bool().unwrap()))
        .collect()
}

#[track_caller]
fn aborted(bench: &Bench, arguments: &[&str]) -> String {
    let output = uploads(bench, &[&["abort"], arguments].concat());
    assert!(output.status.success(), "{}", told(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn pairs(of: &[(&str, bool)]) -> Vec<(String, bool)> {
    of.iter().map(|(key, owned)| ((*key).to_owned(), *owned)).collect()
}

#[test]
fn only_old_uploads_of_nobody_are_aborted() {
    let Some(bench) = Bench::new() else { return };
    begin_upload(&bench, "theirs");
    begin_upload(&bench, "folder/theirs");
    bench.file("source", &noise(3, 450 * KIB));
    let mount = bench.mount(&["--part-size", "100KiB"]);
    bench.server.hold("CompleteMultipartUpload", 0);
    let mut writer =
        shell(&mount.path(""), "cp ../source ours").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    bench.server.wait_for_held();
    let all = pairs(&[("folder/theirs", false), ("ours", true), ("theirs", false)]);
    assert_eq!(listed(&bench, &[BUCKET]), all);
    assert_eq!(listed(&bench, &[&format!("{BUCKET}:folder")]), pairs(&[("folder/theirs", false)]));
    assert_eq!(listed(&bench, &[BUCKET, "--older-than", "1h"]), []);

    let said = aborted(&bench, &[BUCKET]);
    assert!(said.contains("no uploads that are older than 1d"), "{said}");
    assert_eq!(bench.server.uploads().len(), 3, "all are too young");
    let said = aborted(&bench, &[BUCKET, "--older-than", "0s"]);
    assert_eq!(said, "aborted folder/theirs\naborted theirs\n1 belongs to a mount of this user and stays\n");
    bench.server.clear_faults();
    assert!(writer.wait().unwrap().success(), "the upload of the mount was not touched");
    assert_eq!(bench.server.uploads().len(), 0);
}

#[test]
fn an_upload_that_a_journal_owns_stays_also_without_its_mount() {
    let Some(bench) = Bench::new() else { return };
    bench.file("source", &noise(3, 450 * KIB));
    let mount = bench.mount(&["--part-size", "100KiB"]);
    bench.server.hold("CompleteMultipartUpload", 0);
    let mut writer =
        shell(&mount.path(""), "cp ../source ours").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    bench.server.wait_for_held();
    mount.kill();
    bench.server.let_the_dead_go();
    writer.wait().unwrap();
    assert_eq!(listed(&bench, &[BUCKET]), pairs(&[("ours", true)]));
    let said = aborted(&bench, &[BUCKET, "--older-than", "0s"]);
    assert!(said.contains("1 belongs to a mount of this user"), "{said}");
    assert_eq!(bench.server.uploads().len(), 1);
    assert_eq!(aborted(&bench, &[BUCKET, "--force"]), "aborted ours\n");
    wait_until("it is gone", || bench.server.uploads().is_empty());
}

/// It stays known whose it is until nothing is left of it.
#[test]
fn an_upload_that_cannot_be_given_up_is_left_to_the_next_mount() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&["--part-size", "100KiB"]);
    let mut file = File::create(mount.path("f")).unwrap();
    file.write_all(&noise(4, 350 * KIB)).unwrap();
    wait_until("parts are under way", || !bench.server.uploads().is_empty());
    let refuse = json!([{"operation": "AbortMultipartUpload", "action": {"status": 403, "code": "AccessDenied"}}]);
    bench.server.faults(&refuse);
    fs::remove_file(mount.path("f")).unwrap();
    drop(file);
    wait_until("it was refused", || mount.log().contains("until it is aborted"));
    mount.umount();
    assert_eq!(listed(&bench, &[BUCKET]), pairs(&[("f", true)]));
    bench.server.clear_faults();
    let _next = bench.mount(&[]);
    wait_until("it is given up", || bench.server.uploads().is_empty());
}

/// A file gets another name while its parts are being sent: the upload at the old name is nobody's from then on, and must
/// not be forgotten before it is aborted.
#[test]
fn an_upload_that_was_given_up_is_aborted_by_the_next_mount() {
    let Some(bench) = Bench::new() else { return };
    let keys = || -> Vec<String> {
        let with_parts = |upload: &&Value| upload["parts"].as_array().is_some_and(|parts| !parts.is_empty());
        bench.server.uploads().iter().filter(with_parts).map(|upload| upload["key"].as_str().unwrap().into()).collect()
    };
    let mount = bench.mount(&["--part-size", "100KiB"]);
    let file = File::create(mount.path("f")).unwrap();
    file.write_all_at(&noise(1, 350 * KIB), 0).unwrap();
    wait_until("a part of it is sent", || keys() == ["f"]);
    let fault = json!({"operation": "AbortMultipartUpload", "action": {"reset": "before"}});
    bench.server.faults(&json!([fault]));
    fs::rename(mount.path("f"), mount.path("g")).unwrap();
    file.write_all_at(&noise(2, 350 * KIB), 350 << 10).unwrap();
    wait_until("a part is sent to the new name", || keys() == ["f", "g"]);
    mount.kill();
    bench.server.let_the_dead_go();
    assert_eq!(keys(), ["f", "g"]);
    let mount = bench.mount(&["--part-size", "100KiB", "--recover", "safe"]);
    // What is kept keeps its upload.
    wait_until("the one at the old name is aborted", || keys() == ["g"]);
    mount.umount();
    let kept = bench.recover_list();
    assert_eq!(kept.len(), 1, "{kept:?}");
}
