//! Ranges, conditions, symlinks.

use super::server::{TestServer, pattern};

#[test]
fn ranges_follow_the_table_of_the_manual() {
    let server = TestServer::start();
    let body = pattern(1000);
    server.put("k", &body);
    // range, default status and bytes, standard status and bytes
    let cases = [
        ("bytes=0-499", (206, 0..500usize), (206, 0..500usize)),
        ("bytes=500-2000", (200, 0..1000), (206, 500..1000)),
        ("bytes=1000-2000", (200, 0..1000), (416, 0..0)),
        ("bytes=999-", (206, 999..1000), (206, 999..1000)),
        ("bytes=-500", (206, 500..1000), (206, 500..1000)),
        ("bytes=-2000", (200, 0..1000), (206, 0..1000)),
        ("bytes=0-1,5-6", (200, 0..1000), (200, 0..1000)),
        ("bytes=9-1", (200, 0..1000), (200, 0..1000)),
    ];
    for (range, default, standard) in cases {
        let behaviours: [(&[(&str, &str)], _); 2] =
            [(&[], default), (&[("x-oss-range-behavior", "standard")], standard)];
        for (behaviour, (status, bytes)) in behaviours {
            let headers = [behaviour, &[("Range", range)]].concat();
            let reply = server.send("GET", "k", &headers, b"");
            assert_eq!(reply.status, status, "{range} {behaviour:?}");
            let content_range = format!("bytes {}-{}/1000", bytes.start, bytes.end.saturating_sub(1));
            match status {
                206 => assert_eq!(reply.header("content-range"), Some(content_range.as_str())),
                416 => assert_eq!(reply.element("Code").as_deref(), Some("InvalidRange")),
                _ => assert_eq!(reply.header("content-range"), None),
            }
            if status != 416 {
                assert!(reply.body == body[bytes], "{range} {behaviour:?}");
                assert_eq!(reply.header("x-oss-hash-crc64ecma"), server.head("k").header("x-oss-hash-crc64ecma"));
            }
        }
    }
}

#[test]
fn large_ranges_cross_the_pieces_of_an_object() {
    let server = TestServer::start();
    let body = pattern(34_000_000);
    server.put("k", &body);
    for (first, last) in [(0, 33_999_999), (16_777_000, 16_778_000), (1, 33_999_998), (16_777_216, 33_554_431)] {
        let reply = server.send("GET", "k", &[("Range", &format!("bytes={first}-{last}"))], b"");
        assert_eq!(reply.status, 206);
        assert!(reply.body == body[first..=last]);
    }
}

#[test]
fn conditions_pin_a_version() {
    let server = TestServer::start();
    server.put("k", b"one");
    let etag = server.head("k").header("etag").unwrap().to_owned();
    for method in ["GET", "HEAD"] {
        let status = |name, value: &str| server.send(method, "k", &[(name, value)], b"").status;
        assert_eq!(status("If-Match", &etag), 200);
        assert_eq!(status("If-None-Match", &etag), 304);
        assert_eq!(status("If-None-Match", "\"other\""), 200);
    }
    server.put("k", b"two");
    let changed = server.send("GET", "k", &[("If-Match", &etag)], b"");
    assert_eq!(changed.error(), (412, "PreconditionFailed".into()));
    let unchanged = server.send("GET", "k", &[("If-None-Match", server.head("k").header("etag").unwrap())], b"");
    assert_eq!((unchanged.status, unchanged.body.len()), (304, 0));
}

#[test]
fn parameters_replace_headers_of_the_reply() {
    let server = TestServer::start();
    server.put("k", b"x");
    let reply = server.get("k?response-content-type=text%2Fy&response-cache-control=no-store");
    assert_eq!(reply.header("content-type"), Some("text/y"));
    assert_eq!(reply.header("cache-control"), Some("no-store"));
}

#[test]
fn reads_follow_symlinks_and_stats_do_not() {
    let server = TestServer::start();
    server.send("PUT", "target%20%E6%96%87", &[("x-oss-meta-t", "1"), ("Content-Type", "text/t")], b"pointed at");
    let link = [("x-oss-symlink-target", "target%20%E6%96%87"), ("x-oss-meta-l", "2")];
    assert_eq!(server.send("PUT", "link?symlink", &link, b"").status, 200);

    let shown = server.send("GET", "link?symlink", &[], b"");
    assert_eq!(shown.header("x-oss-symlink-target"), Some("target%20%E6%96%87"));
    assert_eq!(shown.header("x-oss-meta-l"), Some("2"));

    let followed = server.get("link");
    assert_eq!(followed.body, b"pointed at");
    assert_eq!(followed.header("etag"), server.head("target%20%E6%96%87").header("etag"));
    assert_eq!(followed.header("x-oss-object-type"), Some("Symlink"));
    assert_eq!(followed.header("x-oss-meta-l"), Some("2"));
    assert_eq!(followed.header("x-oss-meta-t"), None);
    assert_eq!(server.head("link").header("content-length"), Some("10"));

    let meta = server.send("HEAD", "link?objectMeta", &[], b"");
    assert_eq!(meta.header("x-oss-object-type"), Some("Symlink"));
    assert_eq!(meta.header("content-length"), Some("10"));
    assert_eq!(meta.header("etag"), shown.header("etag"));
    let listed = server.send("GET", "?list-type=2&prefix=link", &[], b"");
    assert_eq!((listed.element("Type").as_deref(), listed.element("Size").as_deref()), (Some("Symlink"), Some("10")));
}

#[test]
fn links_that_lead_nowhere_say_so() {
    let server = TestServer::start();
    server.send("PUT", "dangling?symlink", &[("x-oss-symlink-target", "none")], b"");
    assert_eq!(server.get("dangling").error(), (404, "SymlinkTargetNotExist".into()));
    assert_eq!(server.head("dangling").status, 404);
    server.send("PUT", "chain?symlink", &[("x-oss-symlink-target", "dangling")], b"");
    assert_eq!(server.get("chain").error(), (400, "InvalidTargetType".into()));
    server.put("normal", b"");
    assert_eq!(server.send("GET", "normal?symlink", &[], b"").error(), (400, "NotSymlink".into()));
    let forbid = [("x-oss-symlink-target", "none"), ("x-oss-forbid-overwrite", "true")];
    assert_eq!(server.send("PUT", "normal?symlink", &forbid, b"").error(), (409, "FileAlreadyExists".into()));
    for bad in ["", "/absolute", "%FF"] {
        assert_eq!(server.send("PUT", "l?symlink", &[("x-oss-symlink-target", bad)], b"").error().0, 400);
    }
}
