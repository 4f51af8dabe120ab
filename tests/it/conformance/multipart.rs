//! Multipart uploads.

use ossfuse::base::crc64::checksum;

use super::server::{MIN_PART, TestServer, pattern};

#[test]
fn parts_become_an_object_in_their_order() {
    let server = TestServer::start();
    let reply = server.send("POST", "a%20b?uploads&encoding-type=url", &[("x-oss-meta-a", "1")], b"");
    assert_eq!(reply.element("Key").as_deref(), Some("a%20b"));
    let id = reply.element("UploadId").unwrap();
    let (first, last) = (pattern(MIN_PART), b"last".to_vec());
    let last_etag = server.upload_part("a%20b", &id, 7, &last);
    server.upload_part("a%20b", &id, 2, b"replaced");
    let first_etag = server.upload_part("a%20b", &id, 2, &first);
    assert_eq!(server.get("a%20b").status, 404);

    let done = server.complete("a%20b", &id, &[(2, &first_etag), (7, last_etag.trim_matches('"'))]);
    assert_eq!(done.status, 200, "{}", done.text());
    let whole = [first, last].concat();
    assert_eq!(done.header("x-oss-hash-crc64ecma"), Some(checksum(&whole).to_string().as_str()));
    assert!(done.element("ETag").unwrap().contains("-2"));
    let got = server.get("a%20b");
    assert!(got.body == whole);
    assert_eq!(got.header("x-oss-object-type"), Some("Multipart"));
    assert_eq!(got.header("x-oss-meta-a"), Some("1"));
    assert_eq!(got.header("content-md5"), None);

    // The reply may be lost: a second try finds the upload gone.
    let again = server.complete("a%20b", &id, &[(2, &first_etag), (7, &last_etag)]);
    assert_eq!(again.error(), (404, "NoSuchUpload".into()));
}

#[test]
fn lists_of_parts_that_are_wrong_are_refused() {
    let server = TestServer::start();
    let id = server.initiate("k");
    let small = server.upload_part("k", &id, 1, &pattern(MIN_PART - 1));
    let etag = server.upload_part("k", &id, 2, &pattern(MIN_PART));
    let code = |parts: &[(u32, &str)]| server.complete("k", &id, parts).error();
    assert_eq!(code(&[(1, &small), (2, &etag)]), (400, "EntityTooSmall".into()));
    assert_eq!(code(&[(2, &etag), (1, &small)]), (400, "InvalidPartOrder".into()));
    assert_eq!(code(&[(2, &etag), (2, &etag)]), (400, "InvalidPartOrder".into()));
    assert_eq!(code(&[(3, &etag)]), (400, "InvalidPart".into()));
    assert_eq!(code(&[(2, &small)]), (400, "InvalidPart".into()));
    assert_eq!(code(&[]), (400, "MalformedXML".into()));
    assert_eq!(
        server.send("POST", &format!("k?uploadId={id}"), &[], b"nonsense").error(),
        (400, "MalformedXML".into())
    );
    // None of this ends the upload.
    assert_eq!(code(&[(2, &etag)]), (200, String::new()));
}

#[test]
fn everything_that_was_uploaded_can_be_completed_at_once() {
    let server = TestServer::start();
    let id = server.initiate("k");
    let complete =
        |body: &[u8]| server.send("POST", &format!("k?uploadId={id}"), &[("x-oss-complete-all", "yes")], body);
    assert_eq!(complete(b"").error().0, 400);
    server.upload_part("k", &id, 3, b"end");
    server.upload_part("k", &id, 1, &pattern(MIN_PART));
    assert_eq!(complete(b"<x/>").error(), (400, "InvalidArgument".into()));
    assert_eq!(complete(b"").status, 200);
    assert!(server.get("k").body == [&pattern(MIN_PART)[..], b"end"].concat());
}

#[test]
fn part_numbers_run_from_1_to_10000() {
    let server = TestServer::start();
    let id = server.initiate("k");
    for number in ["=0", "=10001", "=-1", "=x", ""] {
        let reply = server.send("PUT", &format!("k?partNumber{number}&uploadId={id}"), &[], b"x");
        assert_eq!(reply.error(), (400, "InvalidArgument".into()));
        assert_eq!(reply.header("x-oss-ec"), Some("0017-00000220"));
    }
    server.upload_part("k", &id, 10_000, b"x");
}

#[test]
fn create_only_is_checked_at_both_ends() {
    let server = TestServer::start();
    let id = server.initiate("k");
    let etag = server.upload_part("k", &id, 1, b"x");
    server.put("k", b"meanwhile");
    let forbid = [("x-oss-forbid-overwrite", "true")];
    assert_eq!(server.send("POST", "k?uploads", &forbid, b"").error(), (409, "FileAlreadyExists".into()));
    let body = format!(
        "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part></CompleteMultipartUpload>"
    );
    let refused = server.send("POST", &format!("k?uploadId={id}"), &forbid, body.as_bytes());
    assert_eq!(refused.error(), (409, "FileAlreadyExists".into()));
    assert_eq!(refused.header("x-oss-ec"), Some("0042-00000214"));
    assert_eq!(server.get("k").body, b"meanwhile");
    assert_eq!(server.complete("k", &id, &[(1, &etag)]).status, 200);
    assert_eq!(server.get("k").body, b"x");
}

#[test]
fn an_aborted_upload_is_gone() {
    let server = TestServer::start();
    let id = server.initiate("k");
    server.upload_part("k", &id, 1, b"x");
    // An id belongs to its key.
    assert_eq!(server.send("DELETE", &format!("other?uploadId={id}"), &[], b"").error(), (404, "NoSuchUpload".into()));
    assert_eq!(server.send("DELETE", &format!("k?uploadId={id}"), &[], b"").status, 204);
    assert_eq!(server.send("DELETE", &format!("k?uploadId={id}"), &[], b"").error(), (404, "NoSuchUpload".into()));
    let late = server.send("PUT", &format!("k?partNumber=1&uploadId={id}"), &[], b"x");
    assert_eq!(late.error(), (404, "NoSuchUpload".into()));
}

#[test]
fn parts_are_listed_in_pages() {
    let server = TestServer::start();
    let id = server.initiate("k");
    for number in [1, 5, 9] {
        server.upload_part("k", &id, number, &pattern(number as usize));
    }
    let first = server.get(&format!("k?uploadId={id}&max-parts=2"));
    assert_eq!(first.elements("PartNumber"), ["1", "5"]);
    assert_eq!(first.element("IsTruncated").as_deref(), Some("true"));
    assert_eq!(first.element("NextPartNumberMarker").as_deref(), Some("5"));
    assert_eq!(first.elements("HashCrc64ecma"), [checksum(&pattern(1)).to_string(), checksum(&pattern(5)).to_string()]);
    let second = server.get(&format!("k?uploadId={id}&max-parts=2&part-number-marker=5"));
    assert_eq!(second.elements("PartNumber"), ["9"]);
    assert_eq!(second.element("IsTruncated").as_deref(), Some("false"));
    assert_eq!(server.get("k?uploadId=none").error(), (404, "NoSuchUpload".into()));
}

#[test]
fn uploads_are_listed_by_key_and_id() {
    let server = TestServer::start();
    let mut expected: Vec<(String, String)> =
        ["b", "a", "a", "d/1", "d/2"].iter().map(|key| ((*key).to_owned(), server.initiate(key))).collect();
    expected.sort();
    let (mut seen, mut marker) = (Vec::new(), String::new());
    loop {
        let page = server.get(&format!("?uploads&max-uploads=2{marker}"));
        seen.extend(page.elements("Key").into_iter().zip(page.elements("UploadId")));
        if page.element("IsTruncated").as_deref() != Some("true") {
            break;
        }
        let next = |name| page.element(name).unwrap().replace('/', "%2F");
        marker = format!("&key-marker={}&upload-id-marker={}", next("NextKeyMarker"), next("NextUploadIdMarker"));
    }
    assert_eq!(seen, expected);
    let grouped = server.get("?uploads&delimiter=%2F");
    assert_eq!(grouped.elements("Key"), ["a", "a", "b"]);
    assert!(grouped.text().contains("<CommonPrefixes><Prefix>d/</Prefix></CommonPrefixes>"));
    assert_eq!(server.get("?uploads&prefix=d%2F").elements("Key"), ["d/1", "d/2"]);
}

#[test]
fn open_uploads_survive_a_restart() {
    let mut server = TestServer::start();
    let reply = server.send("POST", "k?uploads", &[("x-oss-meta-a", "1")], b"");
    let id = reply.element("UploadId").unwrap();
    let first = server.upload_part("k", &id, 1, &pattern(MIN_PART));
    server.restart();
    let second = server.upload_part("k", &id, 2, b"after");
    assert_eq!(server.complete("k", &id, &[(1, &first), (2, &second)]).status, 200);
    server.restart();
    assert!(server.get("k").body == [&pattern(MIN_PART)[..], b"after"].concat());
    assert_eq!(server.head("k").header("x-oss-meta-a"), Some("1"));
    assert_eq!(server.get("?uploads").elements("UploadId"), [""; 0]);
}
