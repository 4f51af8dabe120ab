//! The control endpoints: what goes wrong on demand, what is counted, what another client sees.

use std::io::ErrorKind;

use serde_json::{Value, json};

use super::server::{MIN_PART, TestServer, pattern, wait_until};
use super::wire::{self, Request};

fn with_rules(rules: Value) -> TestServer {
    let server = TestServer::start();
    server.control("POST", "faults", &rules.to_string());
    server
}

#[test]
fn a_status_is_answered_in_its_turn() {
    let action = json!({"status": 503, "code": "TotalQpsLimitExceeded", "headers": {"x-oss-qos-delay-time": "5"}});
    let server = with_rules(json!([{"operation": "PutObject", "key": "bad", "skip": 1, "times": 1, "action": action}]));
    server.put("good", b"1");
    server.put("bad", b"1");
    let struck = server.send("PUT", "bad", &[], b"2");
    assert_eq!(struck.error(), (503, "TotalQpsLimitExceeded".into()));
    assert_eq!(struck.header("x-oss-qos-delay-time"), Some("5"));
    assert_eq!(server.get("bad").body, b"1");
    server.put("bad", b"3");
    assert_eq!(server.ask("faults")[0]["applied"], 1);
}

#[test]
fn a_reset_comes_before_or_after_the_deed() {
    let rule = |key: &str, when: &str| json!({"operation": "*", "key": key, "times": 1, "action": {"reset": when}});
    let server = with_rules(json!([rule("before", "before"), rule("after", "after")]));
    for key in ["before", "after"] {
        let error = server.try_send("PUT", key, &[], b"x").unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error:?}");
    }
    assert_eq!(server.get("before").status, 404);
    assert_eq!(server.get("after").body, b"x");
}

#[test]
fn a_completed_upload_may_go_unanswered() {
    let server =
        with_rules(json!([{"operation": "CompleteMultipartUpload", "times": 1, "action": {"reset": "after"}}]));
    let id = server.initiate("k");
    server.upload_part("k", &id, 1, b"x");
    let complete = || server.try_send("POST", &format!("k?uploadId={id}"), &[("x-oss-complete-all", "yes")], b"");
    complete().unwrap_err();
    assert_eq!(complete().unwrap().error(), (404, "NoSuchUpload".into()));
    assert_eq!(server.get("k").body, b"x");
}

#[test]
fn bodies_break_off_and_rot() {
    let body = pattern(1_000_000);
    let server = with_rules(json!([
        {"operation": "GetObject", "times": 1, "action": {"truncate_body": 1000}},
        {"operation": "GetObject", "times": 1, "action": {"corrupt_body": true}},
        {"operation": "GetObject", "times": 1, "action": {"corrupt_crc": true}},
    ]));
    server.put("k", &body);
    let error = server.try_send("GET", "k", &[], b"").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    let rotten = server.get("k");
    assert_eq!(rotten.body.len(), body.len());
    assert_eq!(rotten.body.iter().zip(&body).filter(|(a, b)| a != b).count(), 1);
    let wrong = server.get("k");
    let right = server.get("k");
    assert!(wrong.body == body);
    assert_ne!(wrong.header("x-oss-hash-crc64ecma"), right.header("x-oss-hash-crc64ecma"));
}

#[test]
fn what_rots_on_the_way_in_is_acknowledged_with_its_own_sum() {
    let server = with_rules(json!([{"operation": "UploadPart", "part": 2, "action": {"corrupt_body": true}}]));
    let id = server.initiate("k");
    let body = pattern(MIN_PART);
    let crc = |number: u32| {
        let reply = server.send("PUT", &format!("k?partNumber={number}&uploadId={id}"), &[], &body);
        reply.header("x-oss-hash-crc64ecma").unwrap().to_owned()
    };
    assert_eq!(crc(1), ossfuse::base::crc64::checksum(&body).to_string());
    assert_ne!(crc(2), crc(1));
}

#[test]
fn garbage_is_no_reply_of_the_service() {
    let server = with_rules(json!([
        {"operation": "ListObjectsV2", "times": 1, "action": {"garbage": "html"}},
        {"operation": "ListObjectsV2", "times": 1, "action": {"garbage": "html", "status": 200}},
        {"operation": "ListObjectsV2", "times": 1, "action": {"garbage": "xml"}},
        {"operation": "ListObjectsV2", "times": 1, "action": {"garbage": "empty"}},
    ]));
    let list = || server.get("?list-type=2");
    assert_eq!(list().status, 502);
    assert_eq!((list().status, list().status), (200, 200));
    assert_eq!(list().text(), "");
    assert_eq!(list().element("KeyCount").as_deref(), Some("0"));
}

#[test]
fn a_gate_holds_requests_until_it_opens() {
    let server = with_rules(json!([
        {"operation": "PutObject", "key": "first", "action": {"hold": "before"}},
        {"operation": "PutObject", "key": "second", "action": {"hold_after": "after"}},
    ]));
    std::thread::scope(|scope| {
        let held = ["first", "second"].map(|key| {
            let server = &server;
            scope.spawn(move || server.put(key, b"x"))
        });
        let waiting = |gate: &str| server.ask("gates")[gate]["waiting"] == 1;
        wait_until("both wait", || waiting("before") && waiting("after"));
        assert_eq!(server.get("first").status, 404);
        assert_eq!(server.get("second").status, 200);
        assert!(held.iter().all(|held| !held.is_finished()));
        server.control("POST", "gates/before/open", "");
        server.control("DELETE", "faults", "");
        held.into_iter().for_each(|held| drop(held.join().unwrap()));
    });
    assert_eq!(server.get("first").status, 200);
}

#[test]
fn in_an_outage_every_connection_is_reset() {
    let server = with_rules(json!([{"operation": "PutObject", "action": {"hold": "gate"}}]));
    std::thread::scope(|scope| {
        let held = scope.spawn(|| server.try_send("PUT", "k", &[], b"x"));
        wait_until("it waits", || server.ask("gates")["gate"]["waiting"] == 1);
        server.control("POST", "outage", r#"{"on": true}"#);
        held.join().unwrap().unwrap_err();
    });
    server.try_send("GET", "k", &[], b"").unwrap_err();
    server.control("DELETE", "faults", "");
    server.control("POST", "outage", r#"{"on": false}"#);
    server.put("k", b"x");
}

#[test]
fn a_slow_line_is_still_a_right_one() {
    let server = TestServer::start();
    server.control("POST", "bandwidth", r#"{"bytes_per_second": 5000000}"#);
    server.control("POST", "latency", r#"{"ms": 1}"#);
    let body = pattern(600_000);
    server.put("k", &body);
    assert!(server.get("k").body == body);
    server.control("POST", "bandwidth", r#"{"bytes_per_second": null}"#);
}

#[test]
fn requests_are_counted_by_operation() {
    let server = TestServer::start();
    server.put("k", b"12345");
    server.get("k");
    server.get("none");
    server.send("GET", "k", &[("Range", "bytes=1-2")], b"");
    let stats = server.ask("stats");
    assert_eq!(stats["total"], 4);
    assert_eq!(stats["requests"]["PutObject"]["bytes_in"], 5);
    let gets = &stats["requests"]["GetObject"];
    assert_eq!((&gets["ok"], &gets["error"]), (&json!(2), &json!(1)));

    let log = server.control("GET", "log?since=1", "");
    let entries: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(entries.len(), 3);
    assert_eq!(entries[1]["code"], "NoSuchKey");
    assert_eq!((&entries[2]["range"], &entries[2]["bytes_out"]), (&json!("bytes=1-2"), &json!(2)));
    server.control("POST", "stats/reset", "");
    assert_eq!(server.ask("stats")["total"], 0);
}

#[test]
fn another_client_needs_no_signature_and_is_not_counted() {
    let server = with_rules(json!([{"operation": "*", "action": {"status": 500}}]));
    server.control("PUT", "object/test-bucket/dir/a%20b%3F", "bytes");
    assert_eq!(server.control("GET", "object/test-bucket/dir/a%20b%3F", ""), "bytes");
    let objects = server.ask("objects/test-bucket?prefix=dir%2F");
    assert_eq!((&objects[0]["key"], &objects[0]["size"]), (&json!("dir/a b?"), &json!(5)));
    assert_eq!(objects[0]["crc64"], ossfuse::base::crc64::checksum(b"bytes").to_string());
    server.control("DELETE", "object/test-bucket/dir/a%20b%3F", "");
    assert_eq!(server.ask("objects/test-bucket"), json!([]));
    server.control("DELETE", "faults", "");
    let id = server.initiate("up");
    server.upload_part("up", &id, 4, b"part");
    let uploads = server.ask("uploads/test-bucket");
    assert_eq!((&uploads[0]["upload_id"], &uploads[0]["parts"][0]["part_number"]), (&json!(id), &json!(4)));
    assert_eq!(server.ask("stats")["total"], 2);
}

#[test]
fn orders_that_make_no_sense_are_refused() {
    let server = TestServer::start();
    for (path, body) in [
        ("faults", r#"[{"operation": "Nope", "action": {"status": 500}}]"#),
        ("faults", "nonsense"),
        ("outage", r#"{"off": true}"#),
        ("nothing", ""),
    ] {
        let request = Request::new("POST", &format!("/_dev/{path}"), &[], body.as_bytes());
        assert!(wire::send(server.addr, &request).unwrap().status >= 400, "{path}");
    }
}
