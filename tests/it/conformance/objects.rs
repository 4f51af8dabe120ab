//! Writing, metadata, deleting.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest, Md5};
use ossfuse::base::crc64::checksum;

use super::server::{BUCKET, TestServer, pattern, wait_until};
use super::sign::Version;
use super::wire::{self, Request};

fn md5_of(bytes: &[u8]) -> String {
    STANDARD.encode(Md5::digest(bytes))
}

#[test]
fn a_put_is_acknowledged_with_its_sums() {
    let server = TestServer::start();
    // Below and above the size from which a body goes to disk in the background.
    for len in [0, 1, 200_000, 3_000_000, 17_000_000] {
        let body = pattern(len);
        let reply = server.put("k", &body);
        let etag: String = Md5::digest(&body).iter().map(|byte| format!("{byte:02X}")).collect();
        assert_eq!(reply.header("etag"), Some(format!("\"{etag}\"").as_str()));
        assert_eq!(reply.header("content-md5"), Some(md5_of(&body).as_str()));
        assert_eq!(reply.header("x-oss-hash-crc64ecma"), Some(checksum(&body).to_string().as_str()));
        assert_eq!(reply.header("x-oss-request-id").unwrap().len(), 24);
        assert_eq!(reply.header("server"), Some("AliyunOSS"));
        assert!(server.get("k").body == body);
    }
}

#[test]
fn a_body_may_come_in_chunks_but_must_have_an_end() {
    let server = TestServer::start();
    let chunked = b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n";
    let reply = server.send("PUT", "k", &[("Transfer-Encoding", "chunked")], chunked);
    assert_eq!(reply.status, 200);
    assert_eq!(server.get("k").body, b"hello world");
}

#[test]
fn a_body_that_breaks_off_leaves_nothing() {
    let server = TestServer::start();
    server.put("k", b"before");
    let mut request =
        Request::new("PUT", &format!("/{BUCKET}/k"), &[("Content-Length", "9000000")], &pattern(4_000_000));
    request.says_length = false;
    server.signer.sign(&mut request, Version::V4);
    wire::send_and_leave(server.addr, &request).unwrap();
    let received = || server.ask("stats")["requests"]["PutObject"]["bytes_in"].as_u64();
    wait_until("all of it came", || received() == Some(4_000_006));
    wait_until("what came is removed", || server.files() == (1, 6));
    assert_eq!(server.get("k").body, b"before");
}

#[test]
fn sums_that_do_not_match_are_refused() {
    let server = TestServer::start();
    let other = md5_of(b"other");
    assert_eq!(server.send("PUT", "k", &[("Content-MD5", &other)], b"x").error(), (400, "InvalidDigest".into()));
    let crc = [("x-oss-hash-crc64ecma", "1")];
    assert_eq!(server.send("PUT", "k", &crc, b"x").error(), (400, "InvalidCRC64".into()));
    assert_eq!(server.get("k").status, 404);
    assert_eq!(server.send("PUT", "k", &[("Content-MD5", &md5_of(b"x"))], b"x").status, 200);
}

#[test]
fn metadata_comes_back_in_lower_case() {
    let server = TestServer::start();
    let headers = [("X-Oss-Meta-Mode", "33188"), ("Content-Type", "text/x"), ("Cache-Control", "no-cache")];
    assert_eq!(server.send("PUT", "k", &headers, b"x").status, 200);
    for reply in [server.head("k"), server.get("k")] {
        assert_eq!(reply.header("x-oss-meta-mode"), Some("33188"));
        assert_eq!(reply.header("content-type"), Some("text/x"));
        assert_eq!(reply.header("cache-control"), Some("no-cache"));
        assert_eq!(reply.header("x-oss-object-type"), Some("Normal"));
        assert_eq!(reply.header("x-oss-storage-class"), Some("Standard"));
    }
    let meta = server.send("HEAD", "k?objectMeta", &[], b"");
    assert_eq!(meta.header("content-length"), Some("1"));
    assert!(meta.header("x-oss-meta-mode").is_none() && meta.header("content-type").is_none());
}

#[test]
fn limits_of_metadata_and_keys_hold() {
    let server = TestServer::start();
    let large = "v".repeat(8192);
    assert_eq!(server.send("PUT", "k", &[("x-oss-meta-a", &large)], b"").error().0, 400);
    assert_eq!(server.send("PUT", "k", &[("x-oss-meta-a", &large[1..])], b"").status, 200);
    assert_eq!(server.send("PUT", "k", &[("x-oss-meta-a_b", "1")], b"").error().0, 400);
    assert_eq!(server.send("PUT", &"k".repeat(1023), &[], b"").status, 200);
    let invalid = ["k".repeat(1024), "/k".into(), "%5Ck".into()];
    for key in invalid {
        assert_eq!(server.send("PUT", &key, &[], b"").error(), (400, "InvalidObjectName".into()));
    }
}

#[test]
fn create_only_refuses_what_exists() {
    let server = TestServer::start();
    let forbid = [("x-oss-forbid-overwrite", "true")];
    assert_eq!(server.send("PUT", "k", &forbid, b"1").status, 200);
    let refused = server.send("PUT", "k", &forbid, b"2");
    assert_eq!(refused.error(), (409, "FileAlreadyExists".into()));
    assert_eq!(refused.header("x-oss-ec"), Some("0026-00000002"));
    assert_eq!(server.get("k").body, b"1");
}

#[test]
fn conditions_on_writes_are_not_offered() {
    let server = TestServer::start();
    for header in [("If-Match", "\"x\""), ("If-None-Match", "*")] {
        assert_eq!(server.send("PUT", "k", &[header], b"").error(), (400, "NotImplemented".into()));
    }
}

#[test]
fn a_put_needs_a_length() {
    let server = TestServer::start();
    let mut request = Request::new("PUT", &format!("/{BUCKET}/k"), &[], b"");
    request.says_length = false;
    server.signer.sign(&mut request, Version::V4);
    assert_eq!(wire::send(server.addr, &request).unwrap().error(), (411, "MissingContentLength".into()));
}

#[test]
fn errors_of_head_are_in_a_header() {
    let server = TestServer::start();
    let reply = server.head("none");
    assert_eq!(reply.status, 404);
    assert_eq!(reply.header("x-oss-ec"), Some("0026-00000001"));
    let xml = String::from_utf8(STANDARD.decode(reply.header("x-oss-err").unwrap()).unwrap()).unwrap();
    assert!(xml.contains("<Code>NoSuchKey</Code>") && xml.contains(reply.header("x-oss-request-id").unwrap()));
}

#[test]
fn deleting_what_is_not_there_succeeds() {
    let server = TestServer::start();
    server.put("k", b"x");
    for _ in 0..2 {
        assert_eq!(server.send("DELETE", "k", &[], b"").status, 204);
    }
    assert_eq!(server.get("k").error(), (404, "NoSuchKey".into()));
}

#[test]
fn many_are_deleted_at_once() {
    let server = TestServer::start();
    server.put("a%26b", b"x");
    server.put("%0A", b"x");
    server.put("kept", b"x");
    let delete = |body: &str, md5: &str| {
        server.send("POST", "?delete&encoding-type=url", &[("Content-MD5", md5)], body.as_bytes())
    };
    let object = |key: &str| format!("<Object><Key>{key}</Key></Object>");
    let body = format!("<Delete><Quiet>false</Quiet>{}{}{}</Delete>", object("a&amp;b"), object("&#xA;"), object("no"));
    let reply = delete(&body, &md5_of(body.as_bytes()));
    assert_eq!(reply.elements("Key"), ["a%26b", "%0A", "no"]);
    assert_eq!(server.send("GET", "?list-type=2", &[], b"").elements("Key"), ["kept"]);

    let quiet = format!("<Delete><Quiet>true</Quiet>{}</Delete>", object("kept"));
    let reply = delete(&quiet, &md5_of(quiet.as_bytes()));
    assert_eq!((reply.status, reply.body.len()), (200, 0));

    assert_eq!(delete(&body, &md5_of(b"other")).error(), (400, "InvalidDigest".into()));
    assert_eq!(server.send("POST", "?delete", &[], body.as_bytes()).error().0, 400);
    let many = format!("<Delete>{}</Delete>", object("k").repeat(1001));
    assert_eq!(delete(&many, &md5_of(many.as_bytes())).error(), (400, "MalformedXML".into()));
    let most = format!("<Delete>{}</Delete>", object("k").repeat(1000));
    assert_eq!(delete(&most, &md5_of(most.as_bytes())).status, 200);
}

#[test]
fn appends_go_on_where_the_object_ends() {
    let server = TestServer::start();
    let append = |position: u64, body: &[u8]| {
        server.send("POST", &format!("log?append&position={position}"), &[("x-oss-meta-a", "1")], body)
    };
    assert_eq!(append(0, b"hello ").header("x-oss-next-append-position"), Some("6"));
    let reply = append(6, b"world");
    assert_eq!(reply.header("x-oss-hash-crc64ecma"), Some(checksum(b"hello world").to_string().as_str()));
    let refused = append(6, b"again");
    assert_eq!(refused.error(), (409, "PositionNotEqualToLength".into()));
    assert_eq!(refused.header("x-oss-next-append-position"), Some("11"));
    let head = server.head("log");
    assert_eq!(head.header("x-oss-object-type"), Some("Appendable"));
    assert_eq!(head.header("x-oss-meta-a"), Some("1"));
    assert_eq!(server.get("log").body, b"hello world");
    server.put("normal", b"");
    let refused = server.send("POST", "normal?append&position=0", &[], b"x");
    assert_eq!(refused.error(), (409, "ObjectNotAppendable".into()));
}

#[test]
fn buckets_that_are_not_there_are_named() {
    let server = TestServer::start();
    for target in ["/other-bucket/k", "/other-bucket/?list-type=2", "/other-bucket/?bucketInfo"] {
        let mut request = Request::new("GET", target, &[], b"");
        server.signer.sign(&mut request, Version::V4);
        assert_eq!(wire::send(server.addr, &request).unwrap().error(), (404, "NoSuchBucket".into()));
    }
}

#[test]
fn the_bucket_tells_of_itself() {
    let server = TestServer::start();
    server.put("k", b"12345");
    server.initiate("u");
    let info = server.send("GET", "?bucketInfo", &[], b"");
    assert_eq!(info.element("Name").as_deref(), Some(BUCKET));
    assert_eq!(info.element("Location").as_deref(), Some("oss-cn-hangzhou"));
    let stat = server.send("GET", "?stat", &[], b"");
    let figures = ["Storage", "ObjectCount", "MultipartUploadCount"].map(|name| stat.element(name).unwrap());
    assert_eq!(figures, ["5", "1", "1"]);
    let location = server.send("GET", "?location", &[], b"");
    assert_eq!(location.element("LocationConstraint").as_deref(), Some("oss-cn-hangzhou"));
}

#[test]
fn objects_survive_a_restart() {
    let mut server = TestServer::start();
    server.send("PUT", "a%0Ab", &[("x-oss-meta-a", "1")], b"bytes");
    server.put("over", b"old");
    server.put("over", b"new");
    server.put("gone", b"x");
    server.send("DELETE", "gone", &[], b"");
    let modified = server.head("a%0Ab").header("last-modified").unwrap().to_owned();
    server.restart();
    let head = server.head("a%0Ab");
    assert_eq!(head.header("x-oss-meta-a"), Some("1"));
    assert_eq!(head.header("last-modified"), Some(modified.as_str()));
    assert_eq!(server.get("a%0Ab").body, b"bytes");
    assert_eq!(server.get("over").body, b"new");
    assert_eq!(server.get("gone").status, 404);
}
