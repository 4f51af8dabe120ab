//! The log: nothing but start, stop and trouble; each failure with all that is known of it, in every form; repetitions
//! folded.

use std::fs;
use std::os::unix::fs::MetadataExt;

use serde_json::{Value, json};

use super::harness::{Bench, noise, wait_until};

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
            assert!(line.contains(" WARN  GetObject f: AccessDenied: ") && line.contains(" (request "), "{line}");
        } else {
            let log = &log[log.find('{').expect("the log goes on in JSON")..];
            let events = events(log);
            let event = events.iter().find(|event| event["code"] == "AccessDenied").expect("a line");
            assert_eq!([&event["operation"], &event["path"], &event["level"]], ["GetObject", "f", "warn"]);
            assert!(event["request_id"].is_string() && event["duration_ms"].is_u64(), "{event}");
            assert!(event["at"].as_str().unwrap().ends_with('Z') && event["message"].is_string(), "{event}");
        }
        mount.umount();
    }
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
    let told = |log: &str| log.lines().filter(|line| line.contains("WARN  GetObject f")).count();
    let log = mount.path("").with_extension("log");
    assert_eq!(told(&mount.log()), 10, "{}", mount.log());
    mount.umount();
    let text = fs::read_to_string(log).unwrap();
    let folded = text.lines().find(|line| line.contains(" more like this within 60 s, the last: GetObject f"));
    assert!(folded.is_some_and(|line| line.contains("AccessDenied")), "{text}");
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
    assert!(text.starts_with("<6>") && text.contains("\n<4>GetObject f: AccessDenied"), "{text}");
    mount.umount();
}
