//! Large objects for other tests, made on the server from a small one: no test can wait for a gibibyte to be sent.

use std::net::SocketAddr;

use super::sign::{Signer, Version};
use super::wire::{self, Reply, Request};

/// Makes `key` out of `times` copies of the object `source`.
pub(crate) fn repeat(addr: &str, bucket: &str, source: &str, key: &str, times: u32) {
    let addr: SocketAddr = addr.parse().unwrap();
    let send = |method: &str, query: &str, headers: &[(&str, &str)], body: &str| -> Reply {
        let mut request = Request::new(method, &format!("/{bucket}/{key}?{query}"), headers, body.as_bytes());
        Signer::default().sign(&mut request, Version::V4);
        let reply = wire::send(addr, &request).unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply
    };
    let id = send("POST", "uploads", &[], "").element("UploadId").unwrap();
    let copied = format!("/{bucket}/{source}");
    let part = |number: u32| {
        let query = format!("partNumber={number}&uploadId={id}");
        let etag = send("PUT", &query, &[("x-oss-copy-source", &copied)], "").element("ETag").unwrap();
        format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>")
    };
    let parts: String = (1..=times).map(part).collect();
    let body = format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>");
    send("POST", &format!("uploadId={id}"), &[], &body);
}
