//! Access keys from files, commands and nowhere; rotated under a mount; and shown to nobody.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::harness::{BUCKET, Bench, Mount, assert_same, noise, shell, told, wait_until};

/// A file of a mode, put in its place at once.
fn place(path: &Path, text: &str, mode: u32) {
    let next = path.with_extension("next");
    fs::write(&next, text).unwrap();
    fs::set_permissions(&next, fs::Permissions::from_mode(mode)).unwrap();
    fs::rename(next, path).unwrap();
}

/// Mounts in the background without keys in the environment, reads a file, unmounts.
#[track_caller]
fn mounts_with(bench: &Bench, options: &[&str]) {
    bench.server.put("f", b"content");
    let place = bench.folder("mnt");
    let mut command = Mount::command(bench, BUCKET, &place, options);
    let output = command.env_remove("OSS_ACCESS_KEY_ID").env_remove("OSS_ACCESS_KEY_SECRET").output().unwrap();
    assert!(output.status.success(), "{options:?}: {}", told(&output));
    assert_eq!(fs::read(place.join("f")).unwrap(), b"content");
    let output = bench.ossfuse(["umount"]).arg(&place).output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
}

#[test]
fn keys_come_from_the_files_of_other_tools_and_from_a_command() {
    let Some(bench) = Bench::new() else { return };
    let home = bench.path("home");
    let json = r#"{"current": "p", "profiles": [{"name": "p", "mode": "AK", "access_key_id": "test-ak",
        "access_key_secret": "test-sk"}]}"#;
    fs::create_dir(home.join(".aliyun")).unwrap();
    for (name, text) in [
        (".ossutilconfig", "[Credentials]\nlanguage=EN\naccessKeyID=test-ak\naccessKeySecret=test-sk\n"),
        (".aliyun/config.json", json),
        (".passwd-ossfs", "other:x:y\ntest-ak:test-sk\n"),
    ] {
        place(&home.join(name), text, 0o600);
        mounts_with(&bench, &[]);
        fs::remove_file(home.join(name)).unwrap();
        place(&bench.path("named"), text, 0o600);
        mounts_with(&bench, &["--credentials-file", bench.path("named").to_str().unwrap()]);
    }
    let command = r#"echo '{"AccessKeyId":"test-ak","AccessKeySecret":"test-sk"}'"#;
    mounts_with(&bench, &["--credential-process", command]);
    place(&bench.path("named"), "test-ak:test-sk", 0o644);
    let mut refused = Mount::command(&bench, BUCKET, &bench.path("mnt"), &[]);
    let output = refused.arg("--credentials-file").arg(bench.path("named")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(told(&output).contains("others can read it; run `chmod 600 "), "{}", told(&output));
}

/// A folder of the keys of some name, as the Kubernetes driver writes it: the id last.
fn rotate(folder: &Path, name: &str) {
    place(&folder.join("AccessKeySecret"), &format!("secret-{name}"), 0o600);
    place(&folder.join("SecurityToken"), &format!("token-{name}"), 0o600);
    place(&folder.join("Expiration"), "2099-01-01T00:00:00Z", 0o600);
    place(&folder.join("AccessKeyId"), &format!("STS.{name}"), 0o600);
}

/// Has the server accept these keys and no others.
fn accept(bench: &Bench, name: &str) {
    bench.server.accept_credentials(&json!({
        "access_key_id": format!("STS.{name}"),
        "access_key_secret": format!("secret-{name}"),
        "security_token": format!("token-{name}"),
    }));
}

#[test]
fn rotated_keys_are_taken_up_without_a_remount() {
    let Some(bench) = Bench::new() else { return };
    let folder: PathBuf = bench.folder("keys");
    rotate(&folder, "one");
    accept(&bench, "one");
    let mount = bench.mount(&["--credentials-file", folder.to_str().unwrap()]);
    fs::write(mount.path("before"), "content").unwrap();
    rotate(&folder, "two");
    wait_until("the mount has seen it", || mount.log().contains("new credentials"));
    accept(&bench, "two");
    fs::write(mount.path("after"), noise(1, 1000)).unwrap();
    assert_eq!(bench.server.keys(), ["after", "before"]);
    for secret in ["secret-one", "secret-two", "token-one", "token-two"] {
        assert!(!mount.log().contains(secret), "{}", mount.log());
    }
    mount.umount();
}

/// The keys change while many parts are on their way, and the old ones are refused from then on.
#[test]
fn keys_are_rotated_in_the_middle_of_a_large_upload() {
    let Some(bench) = Bench::new() else { return };
    let folder: PathBuf = bench.folder("keys");
    rotate(&folder, "one");
    accept(&bench, "one");
    let mount = bench.mount(&["--credentials-file", folder.to_str().unwrap(), "--part-size", "1MiB"]);
    let content = noise(3, 96 << 20);
    bench.file("source", &content);
    for name in ["two", "three"] {
        bench.server.hold("UploadPart", 20);
        let mut copy = shell(&mount.path(""), "cp ../source copy").spawn().unwrap();
        bench.server.wait_for_held();
        rotate(&folder, name);
        accept(&bench, name);
        bench.server.clear_faults();
        assert!(copy.wait().unwrap().success(), "rotation {name}: {}", mount.log());
        assert_same(&bench.server.get("copy").unwrap(), &content, "copy");
    }
    assert!(!mount.log().contains("secret-") && !mount.log().contains("token-"), "{}", mount.log());
    assert!(bench.server.uploads().is_empty());
    mount.umount();
}

/// Every file below a folder whose content has these bytes.
fn files_with(folder: &Path, needle: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_with(&path, needle));
        } else if fs::read(&path).is_ok_and(|bytes| bytes.windows(needle.len()).any(|part| part == needle)) {
            found.push(path);
        }
    }
    found
}

#[test]
fn no_secret_is_shown_anywhere() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&["--log-level", "trace"]);
    fs::write(mount.path("f"), noise(2, 300_000)).unwrap();
    assert_eq!(fs::read(mount.path("f")).unwrap().len(), 300_000);
    let status = bench.ossfuse(["status", "--json"]).output().unwrap();
    let details = bench.ossfuse(["status"]).arg(mount.path("")).output().unwrap();
    let cmdline = fs::read(format!("/proc/{}/cmdline", mount.pid())).unwrap();
    let limits = fs::read_to_string(format!("/proc/{}/limits", mount.pid())).unwrap();
    let said = [mount.log(), told(&status), told(&details), String::from_utf8_lossy(&cmdline).into_owned()];
    for text in said {
        assert!(!text.contains("test-sk"), "{text}");
    }
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("1"), "no core file: {core}");
    assert_eq!(files_with(&bench.path("state"), b"test-sk"), Vec::<PathBuf>::new());
    mount.umount();
}
