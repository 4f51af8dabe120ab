//! CopyObject and UploadPartCopy.

use ossfuse::base::crc64::checksum;

use super::server::{BUCKET, MIN_PART, TestServer, pattern, wait_until};
use super::wire::Reply;

/// Copies `source`, both keys escaped.
fn copy(server: &TestServer, source: &str, target: &str, headers: &[(&str, &str)]) -> Reply {
    let source = format!("/{BUCKET}/{source}");
    server.send("PUT", target, &[headers, &[("x-oss-copy-source", &source)]].concat(), b"")
}

#[test]
fn a_copy_has_bytes_and_metadata_of_its_source() {
    let server = TestServer::start();
    server.send("PUT", "a%2B%E6%96%87", &[("x-oss-meta-a", "1"), ("Content-Type", "text/a")], b"bytes");
    let reply = copy(&server, "a%2B%E6%96%87", "b", &[]);
    assert_eq!(reply.status, 200);
    let head = server.head("b");
    assert_eq!(reply.element("ETag").map(|etag| etag.replace("&quot;", "\"")).as_deref(), head.header("etag"));
    assert_ne!(head.header("etag"), server.head("a%2B%E6%96%87").header("etag"));
    assert_eq!(head.header("x-oss-meta-a"), Some("1"));
    assert_eq!(head.header("content-type"), Some("text/a"));
    assert_eq!(head.header("x-oss-hash-crc64ecma"), Some(checksum(b"bytes").to_string().as_str()));
    server.send("DELETE", "a%2B%E6%96%87", &[], b"");
    assert_eq!(server.get("b").body, b"bytes");

    server.put("c", b"other");
    let replace = [("x-oss-metadata-directive", "REPLACE"), ("x-oss-meta-b", "2")];
    assert_eq!(copy(&server, "b", "c", &replace).status, 200);
    let head = server.head("c");
    assert_eq!((head.header("x-oss-meta-a"), head.header("x-oss-meta-b")), (None, Some("2")));
    assert_eq!(head.header("content-type"), Some("application/octet-stream"));
}

#[test]
fn a_copy_onto_itself_takes_the_metadata_of_the_request_whatever_the_directive() {
    let server = TestServer::start();
    server.send("PUT", "k", &[("x-oss-meta-a", "1"), ("Content-Type", "text/a")], b"bytes");
    let before = server.head("k");
    for directive in [&[][..], &[("x-oss-metadata-directive", "COPY")]] {
        let headers = [directive, &[("x-oss-meta-b", "2")]].concat();
        assert_eq!(copy(&server, "k", "k", &headers).status, 200);
        let after = server.head("k");
        assert_eq!(after.header("etag"), before.header("etag"));
        assert_eq!((after.header("x-oss-meta-a"), after.header("x-oss-meta-b")), (None, Some("2")));
        assert_eq!(after.header("content-type"), Some("application/octet-stream"));
        assert_eq!(server.get("k").body, b"bytes");
    }
}

#[test]
fn conditions_on_the_source_hold() {
    let server = TestServer::start();
    server.put("a", b"1");
    let etag = server.head("a").header("etag").unwrap().to_owned();
    let status = |name: &str, value: &str| copy(&server, "a", "b", &[(name, value)]).status;
    assert_eq!(status("x-oss-copy-source-if-match", &etag), 200);
    assert_eq!(status("x-oss-copy-source-if-match", "\"0\""), 412);
    assert_eq!(status("x-oss-copy-source-if-none-match", &etag), 304);
    assert_eq!(status("x-oss-forbid-overwrite", "true"), 409);
    assert_eq!(copy(&server, "none", "b", &[]).error(), (404, "NoSuchKey".into()));
    let elsewhere = server.send("PUT", "b", &[("x-oss-copy-source", "/other-bucket/a")], b"");
    assert_eq!(elsewhere.error(), (404, "NoSuchBucket".into()));
    assert_eq!(server.send("PUT", "b", &[("x-oss-copy-source", "nonsense")], b"").error().0, 400);
}

#[test]
fn a_link_is_copied_as_a_link() {
    let server = TestServer::start();
    server.put("target", b"x");
    server.send("PUT", "link?symlink", &[("x-oss-symlink-target", "target")], b"");
    assert_eq!(copy(&server, "link", "copy", &[]).status, 200);
    let shown = server.send("GET", "copy?symlink", &[], b"");
    assert_eq!(shown.header("x-oss-symlink-target"), Some("target"));
}

#[test]
fn parts_are_copied_from_ranges() {
    let server = TestServer::start();
    let body = pattern(20_000_000);
    server.put("source", &body);
    let id = server.initiate("k");
    let source = format!("/{BUCKET}/source");
    let copy_part = |number: u32, range: &str| {
        let headers = [("x-oss-copy-source", source.as_str()), ("x-oss-copy-source-range", range)];
        server.send("PUT", &format!("k?partNumber={number}&uploadId={id}"), &headers, b"")
    };
    let reply = copy_part(1, "bytes=16000000-17999999");
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("x-oss-hash-crc64ecma"), None);
    // Outside the source: all of it, without a word.
    assert_eq!(copy_part(2, "bytes=19999999-20000000").status, 200);
    assert_eq!(copy_part(3, "bytes=0-2").status, 200);
    let listed = server.get(&format!("k?uploadId={id}"));
    assert_eq!(listed.elements("Size"), ["2000000", "20000000", "3"]);
    let expected = [&body[16_000_000..18_000_000], &body[..], &body[..3]].concat();
    let all = [("x-oss-complete-all", "yes")];
    let done = server.send("POST", &format!("k?uploadId={id}"), &all, b"");
    assert_eq!(done.header("x-oss-hash-crc64ecma"), Some(checksum(&expected).to_string().as_str()));
    server.send("DELETE", "source", &[], b"");
    assert!(server.get("k").body == expected);
}

#[test]
fn some_sources_are_refused() {
    let server = TestServer::start();
    server.send("POST", "appended?append&position=0", &[], &pattern(MIN_PART));
    let id = server.initiate("k");
    let source = format!("/{BUCKET}/appended");
    let target = format!("k?partNumber=1&uploadId={id}");
    let reply = server.send("PUT", &target, &[("x-oss-copy-source", &source)], b"");
    assert_eq!(reply.error(), (400, "OperationNotSupported".into()));
    let stale = [("x-oss-copy-source", source.as_str()), ("x-oss-copy-source-if-match", "\"0\"")];
    assert_eq!(server.send("PUT", &target, &stale, b"").error(), (412, "PreconditionFailed".into()));
}

#[test]
fn neither_copies_nor_completions_move_bytes() {
    let server = TestServer::start();
    let id = server.initiate("k");
    let etags = [1, 2].map(|number| server.upload_part("k", &id, number, &pattern(1_000_000)));
    assert_eq!(server.complete("k", &id, &[(1, &etags[0]), (2, &etags[1])]).status, 200);
    assert_eq!(copy(&server, "k", "copy", &[]).status, 200);
    let id = server.initiate("parts");
    let source = format!("/{BUCKET}/k");
    for number in [1, 2] {
        let headers = [("x-oss-copy-source", source.as_str()), ("x-oss-copy-source-range", "bytes=500000-1499999")];
        assert_eq!(server.send("PUT", &format!("parts?partNumber={number}&uploadId={id}"), &headers, b"").status, 200);
    }
    assert_eq!(server.files(), (2, 2_000_000));
    for target in ["k", "copy"] {
        server.send("DELETE", target, &[], b"");
    }
    assert_eq!(server.files(), (2, 2_000_000));
    server.send("DELETE", &format!("parts?uploadId={id}"), &[], b"");
    wait_until("the files go with their last user", || server.files() == (0, 0));
}
