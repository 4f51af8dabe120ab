//! Requests as they stand on the wire.

use std::time::Duration;

use super::server::{Act, Server, error, options, reply};
use super::{OBJECT, key};
use crate::base::{ByteRange, ETag, PartNumber, UploadId};
use crate::oss::{
    Addressing, Body, Client, CopyOptions, ErrorKind, GetOptions, ListRequest, ObjectKind, Operation, PutHeaders,
    SignatureVersion,
};

fn put_ok() -> Act {
    reply(200, "ETag: \"E\"", "")
}

#[tokio::test]
async fn paths_are_sent_exactly_as_signed() {
    let server = Server::start(|_, _| put_ok()).await;
    let keys = [
        ("plain", "/plain"),
        ("a//b///c/", "/a//b///c/"),
        ("a b+c%2F%25~*!'()", "/a%20b%2Bc%252F%2525~%2A%21%27%28%29"),
        ("?q#f&g=h;i", "/%3Fq%23f%26g%3Dh%3Bi"),
        ("目录/文件 名", "/%E7%9B%AE%E5%BD%95/%E6%96%87%E4%BB%B6%20%E5%90%8D"),
        ("a/.../.b/c./..d", "/a/.../.b/c./..d"),
        ("%2e%2e/%2E", "/%252e%252e/%252E"),
        ("a\\..\\b", "/a%5C..%5Cb"),
        ("c\u{1}\t\n\u{7f}", "/c%01%09%0A%7F"),
        (" lead and trail ", "/%20lead%20and%20trail%20"),
        ("x:y@z|[]{}<>\"^`$,", "/x%3Ay%40z%7C%5B%5D%7B%7D%3C%3E%22%5E%60%24%2C"),
    ];
    let cname = server.client_with(Addressing::Cname, Duration::from_secs(20));
    for (text, path) in keys {
        server.client().put_object(&key(text), &Body::Bytes("".into()), &PutHeaders::default()).await.unwrap();
        cname.delete_object(&key(text)).await.unwrap();
        let seen = server.seen();
        let [.., put, delete] = &seen[..] else { panic!("two requests") };
        assert_eq!(put.line, format!("PUT /bucket{path} HTTP/1.1"));
        assert_eq!(delete.line, format!("DELETE {path} HTTP/1.1"));
    }
}

#[tokio::test]
async fn keys_that_a_url_would_fold_are_not_sent() {
    let server = Server::start(|_, _| put_ok()).await;
    for text in [".", "..", "a/./b", "a/../b", "a/.."] {
        let error = server.client().delete_object(&key(text)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsendable);
    }
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn an_upload_carries_its_length_its_type_and_nothing_unsigned() {
    let server = Server::start(|_, _| put_ok()).await;
    let headers = PutHeaders {
        content_type: Some("text/plain; charset=utf-8".into()),
        user_meta: [("mode".into(), "33188".into())].into(),
        ..PutHeaders::default()
    };
    server.client().put_object(&key("k"), &Body::Bytes("hello".into()), &headers).await.unwrap();
    server.client().put_object(&key("k"), &Body::Bytes("".into()), &PutHeaders::default()).await.unwrap();
    let seen = server.seen();
    assert_eq!(seen[0].body, b"hello");
    assert_eq!(seen[0].header("content-length"), Some("5"));
    assert_eq!(seen[0].header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(seen[0].header("x-oss-meta-mode"), Some("33188"));
    assert_eq!(seen[0].header("x-oss-security-token"), Some("token"));
    assert_eq!(seen[0].header("x-oss-content-sha256"), Some("UNSIGNED-PAYLOAD"));
    for name in ["transfer-encoding", "accept-encoding", "expect", "content-encoding"] {
        assert_eq!(seen[0].header(name), None, "{name}");
    }
    let authorization = seen[0].header("authorization").unwrap();
    assert!(authorization.starts_with("OSS4-HMAC-SHA256 Credential=ak/"), "{authorization}");
    assert_eq!(seen[1].header("content-length"), Some("0"));
    assert_eq!(seen[1].header("content-type"), Some("application/octet-stream"));
}

#[tokio::test]
async fn the_old_signature_carries_no_header_of_its_own() {
    let server = Server::start(|_, _| put_ok()).await;
    let mut options = options(server.port(), Addressing::Path, Duration::from_secs(20));
    (options.signature, options.region) = (SignatureVersion::V1, None);
    let client = Client::new(options).unwrap();
    client.put_object(&key("k"), &Body::Bytes("".into()), &PutHeaders::default()).await.unwrap();
    let seen = &server.seen()[0];
    assert!(seen.header("authorization").unwrap().starts_with("OSS ak:"));
    assert!(seen.header("date").unwrap().ends_with(" GMT"));
    assert_eq!((seen.header("x-oss-date"), seen.header("x-oss-content-sha256")), (None, None));
    assert_eq!(seen.header("x-oss-security-token"), Some("token"));
}

#[tokio::test]
async fn a_ranged_get_is_pinned_and_standard() {
    let server =
        Server::start(|_, _| reply(206, &format!("{OBJECT}\nContent-Range: bytes 2-5/6\nx-oss-meta-a: b"), "cdef"))
            .await;
    let options = GetOptions {
        range: Some(ByteRange::new(2, 100)),
        if_match: Some(ETag::new("E")),
        if_none_match: Some(ETag::new("F")),
    };
    let reply = server.client().get_object(&key("k"), &options).await.unwrap();
    assert_eq!((reply.meta.size, reply.range), (6, ByteRange::new(2, 6)));
    assert_eq!(reply.meta.headers.user_meta["a"], "b");
    let seen = &server.seen()[0];
    assert_eq!(seen.header("range"), Some("bytes=2-99"));
    assert_eq!(seen.header("x-oss-range-behavior"), Some("standard"));
    assert_eq!(seen.header("if-match"), Some("\"E\""));
    assert_eq!(seen.header("if-none-match"), Some("\"F\""));
    assert_eq!(seen.header("content-length"), None);
}

#[tokio::test]
async fn conditions_that_do_not_hold_have_their_kinds() {
    let acts = vec![
        Act::Reply(b"HTTP/1.1 304 Not Modified\r\nETag: \"E\"\r\n\r\n".to_vec()),
        error(412, "PreconditionFailed"),
        error(416, "InvalidRange"),
    ];
    let server = Server::with_acts(acts).await;
    let client = server.client();
    for kind in [ErrorKind::NotModified, ErrorKind::PreconditionFailed, ErrorKind::InvalidRange] {
        assert_eq!(client.get_object(&key("k"), &GetOptions::default()).await.unwrap_err().kind, kind);
    }
    let stats = client.stats();
    assert_eq!((stats.requests[&Operation::GetObject].ok, stats.last_error), (3, None));
}

#[tokio::test]
async fn heads_read_sizes_from_headers() {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: 12345678901\r\n{}\r\n\r\n", OBJECT.replace('\n', "\r\n"));
    let server = Server::start(move |_, _| Act::Reply(head.clone().into_bytes())).await;
    let client = server.client();
    assert_eq!(client.head_object(&key("k")).await.unwrap().size, 12_345_678_901);
    assert_eq!(client.get_object_meta(&key("k")).await.unwrap().kind, ObjectKind::Normal);
    let seen = server.seen();
    assert_eq!(seen[0].line, "HEAD /bucket/k HTTP/1.1");
    assert_eq!(seen[1].target(), "/bucket/k?objectMeta");
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn copies_name_their_source_encoded() {
    let copied = "<CopyObjectResult><ETag>\"E\"</ETag><LastModified>2024-03-07T08:09:10.000Z</LastModified>\
                  </CopyObjectResult>";
    let server = Server::start(move |_, _| reply(200, "x-oss-hash-crc64ecma: 7", copied)).await;
    let client = server.client();
    let plain = client.copy_object(&key("a b/../c+"), &key("t"), &CopyOptions::default()).await.unwrap();
    assert_eq!(plain.crc64, Some(7));
    let replace = PutHeaders { user_meta: [("mode".into(), "1".into())].into(), ..PutHeaders::default() };
    let options = CopyOptions { if_match: Some(ETag::new("E")), replace: Some(replace), forbid_overwrite: true };
    client.copy_object(&key("s"), &key("t"), &options).await.unwrap();
    let seen = server.seen();
    assert_eq!(seen[0].header("x-oss-copy-source"), Some("/bucket/a%20b/../c%2B"));
    assert_eq!(seen[0].header("x-oss-metadata-directive"), Some("COPY"));
    assert_eq!(seen[0].header("content-length"), Some("0"));
    assert_eq!(seen[1].header("x-oss-metadata-directive"), Some("REPLACE"));
    assert_eq!(seen[1].header("x-oss-copy-source-if-match"), Some("\"E\""));
    assert_eq!(seen[1].header("x-oss-meta-mode"), Some("1"));
    assert_eq!(seen[1].header("x-oss-forbid-overwrite"), Some("true"));
    assert_eq!(seen[1].header("content-type"), None);
}

#[tokio::test]
async fn lists_name_what_they_ask_for_and_nothing_empty() {
    let page = "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";
    let server = Server::start(move |_, _| reply(200, "", page)).await;
    let request = ListRequest {
        prefix: "d e/".into(),
        delimiter: Some("/".into()),
        continuation_token: Some("T+/=".into()),
        max_keys: 2,
        ..ListRequest::default()
    };
    server.client().list_objects(&request).await.unwrap();
    server.client().list_objects(&ListRequest::default()).await.unwrap();
    let seen = server.seen();
    assert_eq!(
        seen[0].target(),
        "/bucket/?continuation-token=T%2B%2F%3D&delimiter=%2F&encoding-type=url&list-type=2&max-keys=2&prefix=d%20e%2F"
    );
    assert_eq!(seen[1].target(), "/bucket/?encoding-type=url&list-type=2&max-keys=1000");
}

#[tokio::test]
async fn keys_that_xml_cannot_carry_are_deleted_alone() {
    let server = Server::start(|_, seen| match seen.line.split(' ').next() {
        Some("DELETE") => Act::Reply(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()),
        _ => reply(
            200,
            "",
            "<DeleteResult><EncodingType>url</EncodingType><Deleted><Key>a%2B</Key></Deleted></DeleteResult>",
        ),
    })
    .await;
    let gone = server.client().delete_objects(&[key("a+"), key("b\u{1}"), key("left out")]).await.unwrap();
    assert_eq!(gone, ["a+", "b\u{1}"]);
    let seen = server.seen();
    assert_eq!(seen[0].target(), "/bucket/?delete&encoding-type=url");
    assert!(seen[0].header("content-md5").is_some());
    assert_eq!(
        String::from_utf8_lossy(&seen[0].body),
        "<Delete><Quiet>false</Quiet><Object><Key>a+</Key></Object><Object><Key>left out</Key></Object></Delete>"
    );
    assert_eq!(seen[1].line, "DELETE /bucket/b%01 HTTP/1.1");
}

#[tokio::test]
async fn an_upload_in_parts_goes_from_begin_to_end() {
    let server = Server::start(|index, _| match index {
        0 => reply(200, "", "<InitiateMultipartUploadResult><UploadId>U/1</UploadId></InitiateMultipartUploadResult>"),
        1 => reply(200, "ETag: \"P1\"\nx-oss-hash-crc64ecma: 11051210869376104954", ""),
        2 => reply(200, "", "<CopyPartResult><ETag>\"P2\"</ETag></CopyPartResult>"),
        3 => reply(
            200,
            "x-oss-hash-crc64ecma: 42",
            "<CompleteMultipartUploadResult><ETag>\"W-2\"</ETag></CompleteMultipartUploadResult>",
        ),
        _ => error(404, "NoSuchUpload"),
    })
    .await;
    let client = server.client();
    let key = key("big file");
    let upload = client.initiate_upload(&key, &PutHeaders::default()).await.unwrap();
    assert_eq!(upload, UploadId::new("U/1"));
    let part = |number| PartNumber::new(number).unwrap();
    let sent = client.upload_part(&key, &upload, part(1), &Body::Bytes("123456789".into())).await.unwrap();
    assert_eq!((sent.crc64, sent.size), (11_051_210_869_376_104_954, 9));
    let range = ByteRange::new(0, 1 << 30);
    let copied = client.upload_part_copy(&key, &upload, part(2), &key, range, &ETag::new("O")).await.unwrap();
    let whole = client.complete_upload(&key, &upload, &[(part(1), sent.etag), (part(2), copied)], true).await.unwrap();
    assert_eq!((whole.etag, whole.crc64), (ETag::new("W-2"), Some(42)));
    client.abort_upload(&key, &upload).await.unwrap();
    let seen = server.seen();
    let lines: Vec<&str> = seen.iter().map(|seen| seen.line.trim_end_matches(" HTTP/1.1")).collect();
    assert_eq!(
        lines,
        [
            "POST /bucket/big%20file?encoding-type=url&uploads",
            "PUT /bucket/big%20file?partNumber=1&uploadId=U%2F1",
            "PUT /bucket/big%20file?partNumber=2&uploadId=U%2F1",
            "POST /bucket/big%20file?encoding-type=url&uploadId=U%2F1",
            "DELETE /bucket/big%20file?uploadId=U%2F1",
        ]
    );
    assert_eq!(seen[0].header("content-type"), Some("application/octet-stream"));
    assert_eq!(seen[1].header("content-type"), None);
    assert_eq!(seen[2].header("x-oss-copy-source-range"), Some("bytes=0-1073741823"));
    assert_eq!(seen[2].header("x-oss-copy-source-if-match"), Some("\"O\""));
    assert_eq!(seen[3].header("x-oss-forbid-overwrite"), Some("true"));
    assert!(String::from_utf8_lossy(&seen[3].body).contains("<PartNumber>2</PartNumber><ETag>\"P2\"</ETag>"));
}

#[tokio::test]
async fn links_carry_their_target_encoded() {
    let server = Server::start(|_, _| reply(200, &format!("{OBJECT}\nx-oss-symlink-target: d%2F%E6%96%87"), "")).await;
    let client = server.client();
    client.put_symlink(&key("l"), "d/文", &PutHeaders::default()).await.unwrap();
    let (target, meta) = client.get_symlink(&key("l")).await.unwrap();
    assert_eq!((target.as_str(), meta.size, meta.kind), ("d/文", 5, ObjectKind::Symlink));
    let seen = server.seen();
    assert_eq!(seen[0].line, "PUT /bucket/l?symlink HTTP/1.1");
    assert_eq!(seen[0].header("x-oss-symlink-target"), Some("d%2F%E6%96%87"));
    assert_eq!(seen[1].line, "GET /bucket/l?symlink HTTP/1.1");
}
