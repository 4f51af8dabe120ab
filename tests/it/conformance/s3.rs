//! Clients of S3 (`--s3`): their dress at the door, the same objects behind it, and strictness for all others.

use md5::{Digest, Md5};

use super::server::{BUCKET, TestServer};
use super::wire::{self, Reply, Request};

/// Sends a request as a client of S3 does: signed by whoever, with S3's names.
fn send(server: &TestServer, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    let mut request = Request::new(method, &format!("/{BUCKET}{target}"), headers, body);
    request.push("Authorization", "AWS4-HMAC-SHA256 Credential=any/20260101/any/s3/aws4_request, Signature=0");
    request.push("x-amz-date", "20260101T000000Z");
    request.push("x-amz-content-sha256", "UNSIGNED-PAYLOAD");
    wire::send(server.addr, &request).unwrap()
}

fn quoted_md5(bytes: &[u8]) -> String {
    let hex: String = Md5::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("\"{hex}\"")
}

#[test]
fn objects_come_and_go_in_the_dress_of_s3() {
    let server = TestServer::start_with(true);
    let headers = [("x-amz-meta-mtime", "12.5"), ("x-amz-acl", "private"), ("x-amz-storage-class", "STANDARD")];
    let reply = send(&server, "PUT", "/d/k", &headers, b"hello world");
    assert_eq!(
        (reply.status, reply.header("etag")),
        (200, Some(quoted_md5(b"hello world").as_str())),
        "{}",
        reply.text()
    );

    let reply = send(&server, "HEAD", "/d/k", &[], b"");
    assert_eq!(reply.header("x-amz-meta-mtime"), Some("12.5"));
    assert_eq!((reply.header("x-oss-meta-mtime"), reply.header("content-length")), (None, Some("11")));
    let reply = send(&server, "GET", "/d/k", &[("Range", "bytes=6-100")], b"");
    assert_eq!((reply.status, reply.body.as_slice()), (206, &b"world"[..]), "a range past the end is cut");

    let source = format!("{BUCKET}/d/k");
    let replace =
        [("x-amz-copy-source", source.as_str()), ("x-amz-metadata-directive", "REPLACE"), ("x-amz-meta-mtime", "13")];
    let reply = send(&server, "PUT", "/copy", &replace, b"");
    let etag = reply.element("ETag").map(|etag| etag.replace("&quot;", "\""));
    assert_eq!((reply.status, etag), (200, Some(quoted_md5(b"hello world"))), "a copy keeps the MD5");
    assert_eq!(server.head("copy").header("x-oss-meta-mtime"), Some("13"), "the service's own dress shows the same");

    assert_eq!(send(&server, "DELETE", "/copy", &[], b"").status, 204);
    assert_eq!(send(&server, "GET", "/copy", &[], b"").error(), (404, "NoSuchKey".into()));
    assert_eq!(send(&server, "HEAD", "/copy", &[], b"").status, 404);
    assert_eq!(send(&server, "HEAD", "", &[], b"").status, 200, "the bucket is there");
}

#[test]
fn listings_name_etags_as_clients_of_s3_compare_them() {
    let server = TestServer::start_with(true);
    (0..120).for_each(|number| drop(server.put(&format!("k{number:03}"), b"x")));
    for target in ["/?list-type=2&prefix=k", "/?prefix=k"] {
        let reply = send(&server, "GET", target, &[], b"");
        assert_eq!(reply.elements("Key").len(), 120, "a page has 1,000 items: {target}");
        assert_eq!(reply.element("ETag").map(|etag| etag.replace("&quot;", "\"")), Some(quoted_md5(b"x")));
    }
}

#[test]
fn parts_make_an_object() {
    let server = TestServer::start_with(true);
    server.put("source", &[7; 5000]);
    let initiated = send(&server, "POST", "/k?uploads=", &[("x-amz-meta-mode", "1")], b"");
    let id = initiated.element("UploadId").unwrap();
    let first = send(&server, "PUT", &format!("/k?partNumber=1&uploadId={id}"), &[], &[1; 3000]);
    let source = format!("/{BUCKET}/source");
    let ranged = [("x-amz-copy-source", source.as_str()), ("x-amz-copy-source-range", "bytes=0-99")];
    let second = send(&server, "PUT", &format!("/k?partNumber=2&uploadId={id}"), &ranged, b"");
    let etags = [first.header("etag").unwrap().to_owned(), second.element("ETag").unwrap()];
    let part =
        |(at, etag): (usize, &String)| format!("<Part><PartNumber>{}</PartNumber><ETag>{etag}</ETag></Part>", at + 1);
    let parts: String = etags.iter().enumerate().map(part).collect();
    let body = format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>");
    let done = send(&server, "POST", &format!("/k?uploadId={id}"), &[], body.as_bytes());
    assert_eq!(done.status, 200, "{}", done.text());
    let got = send(&server, "GET", "/k", &[], b"");
    assert_eq!(got.body, [vec![1; 3000], vec![7; 100]].concat());
    assert_eq!(got.header("x-amz-meta-mode"), Some("1"));
}

#[test]
fn only_who_speaks_s3_goes_unchecked_and_only_when_told() {
    let server = TestServer::start_with(true);
    let mut request = Request::new("PUT", &format!("/{BUCKET}/k"), &[], b"x");
    request.push("Authorization", "OSS test-ak:wrong");
    assert_eq!(wire::send(server.addr, &request).unwrap().status, 403);
    let framed = Request::new(
        "PUT",
        &format!("/{BUCKET}/k"),
        &[("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD")],
        b"x",
    );
    assert_eq!(wire::send(server.addr, &framed).unwrap().error(), (400, "NotImplemented".into()));
    let strict = TestServer::start();
    assert_eq!(wire::send(strict.addr, &Request::new("PUT", &format!("/{BUCKET}/k"), &[], b"x")).unwrap().status, 403);
}
