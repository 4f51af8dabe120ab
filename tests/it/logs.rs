//! The log: nothing but start, stop and trouble; each failure with all that is known of it, in every form; repetitions
//! folded.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::MetadataExt;

use serde_json::{Value, json};

use super::harness::{BUCKET, Bench, noise, told, wait_until};

/// The lines of a log in JSON.
fn events(log: &str) -> Vec<Value> {
    log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

fn refuse_reads(bench: &Bench) {
    let denied = json!({"status": 403, "code": "AccessDenied"});
    bench.server.faults(&json!([{"operation": "GetObject", "action": denied}]));
}

#[test]
fn a_quiet_mount_logs_its_start_and_its_end() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&["--part-size", "1MiB"]);
    fs::write(mount.path("big"), noise(1, 3 << 20)).unwrap();
    mount.sh("mkdir d; echo x > d/f; mv d/f d/g; chmod 600 d/g; cat d/g big > both; ls -lR; rm both; cat none || true");
    let log = mount.path("").with_extension("log");
    mount.umount();
    let text = fs::read_to_string(log).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].contains(" INFO  ") && lines[0].contains("is mounted at"), "{text}");
    assert!(lines[1].contains(" INFO  ") && lines[1].ends_with(": unmounted"), "{text}");
}

#[test]
fn a_failure_is_logged_with_all_that_is_known_of_it() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("f", b"content");
    for format in ["text", "json"] {
        let mount = bench.mount(&["--log-format", format]);
        refuse_reads(&bench);
        assert_eq!(fs::read(mount.path("f")).unwrap_err().raw_os_error(), Some(libc::EACCES));
        bench.server.clear_faults();
        let log = mount.log();
        if format == "text" {
            let line = log.lines().find(|line| line.contains("AccessDenied")).expect("a line");
            // Which of the two asks depends on how long ago the object was looked at.
            assert!(line.contains(" WARN  open: ") || line.contains(" WARN  read: "), "{line}");
            assert!(line.contains(": GetObject f: AccessDenied: ") && line.contains(" (request "), "{line}");
        } else {
            let log = &log[log.find('{').expect("the log goes on in JSON")..];
            let events = events(log);
            let event = events.iter().find(|event| event["code"] == "AccessDenied").expect("a line");
            assert_eq!([&event["operation"], &event["path"], &event["level"]], ["GetObject", "f", "warn"]);
            assert!(event["call"] == "open" || event["call"] == "read", "{event}");
            assert!(event["request_id"].is_string() && event["duration_ms"].is_u64(), "{event}");
            assert!(event["at"].as_str().unwrap().ends_with('Z') && event["message"].is_string(), "{event}");
        }
        mount.umount();
    }
}

/// The service has no part in it: the line tells the call and the key all the same.
#[test]
fn a_failure_of_a_call_names_the_call_and_the_key() {
    let Some(bench) = Bench::new() else { return };
    for format in ["text", "json"] {
        bench.server.put("some/d/f", &noise(1, 3 << 20));
        let mount = bench.mount_at(&format!("{BUCKET}:some"), "mnt", &["--part-size", "1MiB", "--log-format", format]);
        let mut file = fs::File::options().read(true).write(true).open(mount.path("d/f")).unwrap();
        file.seek(SeekFrom::Start(5)).unwrap();
        file.write_all(b"edited").unwrap();
        bench.server.put("some/d/f", b"of another client");
        // SAFETY: a descriptor that is open, and given away here.
        assert_eq!(unsafe { libc::close(file.into_raw_fd()) }, -1);
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::ESTALE));
        let log = mount.log();
        if format == "text" {
            let wanted = " WARN  flush some/d/f: another client changed the object that is being edited";
            assert!(log.contains(wanted), "{log}");
        } else {
            let events = events(&log[log.find('{').expect("the log goes on in JSON")..]);
            let event = events.iter().find(|event| event["operation"] == "flush").expect("a line");
            assert_eq!([&event["path"], &event["call"], &event["level"]], ["some/d/f", "flush", "warn"]);
        }
        let output = mount.umount_command(&["--force"]).output().unwrap();
        assert!(output.status.success(), "{}", told(&output));
    }
}

/// The bytes are not handed out, and the service's people can be told which request brought them.
#[test]
fn bytes_that_broke_on_the_way_are_logged_with_the_request() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("f", &noise(7, 300_000));
    let mount = bench.mount(&[]);
    bench.server.faults(&json!([{"operation": "GetObject", "action": {"corrupt_body": true}}]));
    assert_eq!(fs::read(mount.path("f")).unwrap_err().raw_os_error(), Some(libc::EIO));
    bench.server.clear_faults();
    let log = mount.log();
    let line = log.lines().find(|line| line.contains("do not have the CRC64")).unwrap_or_else(|| panic!("{log}"));
    let id = line.split("(request ").nth(1).and_then(|rest| rest.strip_suffix(')')).unwrap_or_else(|| panic!("{line}"));
    assert!(bench.server.log().iter().any(|entry| entry["request_id"] == id), "{line}");
    mount.umount();
}

/// One that is done, and took longer than a user would wait without a word.
#[test]
fn a_request_that_takes_long_is_logged() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("f", b"content");
    let mount = bench.mount(&[]);
    bench.server.faults(&json!([{"operation": "GetObject", "action": {"delay_ms": 10_200}}]));
    assert_eq!(fs::read(mount.path("f")).unwrap(), b"content");
    let log = mount.log();
    let line = log.lines().find(|line| line.ends_with(": that is slow")).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains(" WARN  GetObject f: ") && line.contains("(request ") && line.contains("10."), "{line}");
    mount.umount();
}

#[test]
fn an_archived_object_is_refused_and_the_log_says_how_to_restore_it() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("d/old", b"content");
    let mount = bench.mount(&[]);
    let refuse = json!([{"operation": "GetObject", "action": {"status": 403, "code": "InvalidObjectState"}}]);
    bench.server.faults(&refuse);
    let error = fs::read(mount.path("d/old")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    assert!(mount.log().contains("`ossutil restore oss://BUCKET/d/old`"), "{}", mount.log());
    mount.umount();
}

#[test]
fn repeated_trouble_is_folded() {
    let Some(bench) = Bench::new() else { return };
    bench.server.fill(40, |n| (format!("f{n}"), b"content"));
    let mount = bench.mount(&[]);
    refuse_reads(&bench);
    mount.try_sh("cat f* 2>/dev/null");
    bench.server.clear_faults();
    let told =
        |log: &str| log.lines().filter(|line| line.contains(" WARN  ") && line.contains(": GetObject f")).count();
    let log = mount.path("").with_extension("log");
    assert_eq!(told(&mount.log()), 10, "{}", mount.log());
    mount.umount();
    let text = fs::read_to_string(log).unwrap();
    let folded = text.lines().find(|line| line.contains(" more like this within 60 s, the last: "));
    assert!(folded.is_some_and(|line| line.contains(": GetObject f") && line.contains("AccessDenied")), "{text}");
}

#[test]
fn systemd_gets_levels_and_has_its_own_times() {
    let Some(bench) = Bench::new() else { return };
    let log = bench.file("mnt.log", b"").metadata().unwrap();
    let journal = format!("{}:{}", log.dev(), log.ino());
    bench.server.put("f", b"content");
    let mount = bench.mount_with(&[], &[("JOURNAL_STREAM", journal.as_ref())]);
    refuse_reads(&bench);
    fs::read(mount.path("f")).unwrap_err();
    bench.server.clear_faults();
    wait_until("both lines", || mount.log().lines().count() >= 2);
    let text = mount.log();
    assert!(
        text.starts_with("<6>") && text.contains("\n<4>") && text.contains(": GetObject f: AccessDenied"),
        "{text}"
    );
    mount.umount();
}
