//! Faults of the service and of the way to it: what is repeated, what is not, and what remains in doubt.

use std::time::Duration;

use tokio::net::TcpListener;

use super::server::{Act, Server, error, options, reply};
use super::{OBJECT, key};
use crate::base::limits::XML_BYTES_MAX;
use crate::base::{ETag, PartNumber, UploadId, time};
use crate::oss::{Addressing, Body, Client, Error, ErrorKind, ListRequest, Operation, Outcome, PutHeaders};

async fn put(client: &Client) -> Result<(), Error> {
    client.put_object(&key("k"), &Body::Bytes("123456789".into()), &PutHeaders::default()).await.map(|_| ())
}

async fn complete(client: &Client) -> Result<(), Error> {
    let parts = [(PartNumber::new(1).unwrap(), ETag::new("P"))];
    client.complete_upload(&key("k"), &UploadId::new("U"), &parts, false).await.map(|_| ())
}

fn put_ok() -> Act {
    reply(200, "ETag: \"E\"\nx-oss-hash-crc64ecma: 11051210869376104954", "")
}

fn reset() -> Act {
    Act::ReplyAndClose(Vec::new())
}

#[tokio::test]
async fn a_sick_service_is_asked_four_times() {
    let sick = error(503, "ServiceUnavailable");
    let server = Server::with_acts(vec![sick.clone(), sick.clone(), sick.clone(), put_ok()]).await;
    let client = server.client();
    put(&client).await.unwrap();
    assert_eq!(server.seen().len(), 4);
    let stats = client.stats();
    assert_eq!((stats.requests[&Operation::PutObject].ok, stats.requests[&Operation::PutObject].error), (1, 3));
    assert_eq!((stats.retries, stats.bytes_up, stats.last_error), (3, 36, None));

    let server = Server::with_acts(vec![sick]).await;
    let client = server.client();
    let error = put(&client).await.unwrap_err();
    assert_eq!((error.kind, error.status, error.outcome), (ErrorKind::Server, 503, Outcome::Unknown));
    assert_eq!(error.request_id.as_deref(), Some("R"));
    assert_eq!(server.seen().len(), 4);
    let (_, shown) = client.stats().last_error.unwrap();
    assert_eq!((shown.subject.as_str(), shown.code.as_deref()), ("k", Some("ServiceUnavailable")));
}

#[tokio::test]
async fn refusals_are_not_repeated() {
    let server = Server::with_acts(vec![error(403, "AccessDenied")]).await;
    let error = put(&server.client()).await.unwrap_err();
    assert_eq!((error.kind, error.outcome), (ErrorKind::AccessDenied, Outcome::NotApplied));
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_lost_reply_is_asked_for_again_where_that_does_no_harm() {
    let server = Server::with_acts(vec![reset(), reset(), put_ok()]).await;
    put(&server.client()).await.unwrap();
    assert_eq!(server.seen().len(), 3);
    assert!(server.seen().iter().all(|seen| seen.body == b"123456789"));
}

#[tokio::test]
async fn what_a_lost_reply_left_in_doubt_stays_so() {
    let server = Server::with_acts(vec![reset(), error(409, "FileAlreadyExists")]).await;
    let error = put(&server.client()).await.unwrap_err();
    assert_eq!((error.kind, error.outcome), (ErrorKind::AlreadyExists, Outcome::Unknown));
}

#[tokio::test]
async fn a_lost_reply_to_complete_is_for_the_caller_to_settle() {
    let server = Server::with_acts(vec![reset()]).await;
    let lost = complete(&server.client()).await.unwrap_err();
    assert_eq!((lost.kind, lost.outcome), (ErrorKind::Transport, Outcome::Unknown));
    assert_eq!(server.seen().len(), 4);

    let server = Server::with_acts(vec![reset(), error(404, "NoSuchUpload")]).await;
    let lost = complete(&server.client()).await.unwrap_err();
    assert_eq!((lost.kind, lost.outcome), (ErrorKind::NoSuchUpload, Outcome::Unknown));

    let cut = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n<CompleteMultipart".to_vec();
    let server = Server::with_acts(vec![Act::ReplyAndClose(cut)]).await;
    let lost = complete(&server.client()).await.unwrap_err();
    assert_eq!((lost.kind, lost.outcome, lost.status), (ErrorKind::Transport, Outcome::Unknown, 200));

    let server = Server::with_acts(vec![error(500, "InternalError"), error(404, "NoSuchUpload")]).await;
    let gone = complete(&server.client()).await.unwrap_err();
    assert_eq!((gone.kind, gone.outcome), (ErrorKind::NoSuchUpload, Outcome::Unknown));

    let server = Server::with_acts(vec![error(404, "NoSuchUpload")]).await;
    assert_eq!(complete(&server.client()).await.unwrap_err().outcome, Outcome::NotApplied);
}

#[tokio::test]
async fn a_connection_never_made_leaves_no_doubt() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let client = Client::new(options(port, Addressing::Path, Duration::from_secs(5))).unwrap();
    let error = complete(&client).await.unwrap_err();
    assert_eq!((error.kind, error.outcome, error.status), (ErrorKind::Transport, Outcome::NotApplied, 0));
    assert_eq!(client.stats().retries, 3);
}

#[tokio::test]
async fn bytes_that_arrived_wrong_are_sent_again() {
    let wrong = reply(200, "ETag: \"E\"\nx-oss-hash-crc64ecma: 1", "");
    let server = Server::with_acts(vec![wrong.clone(), wrong.clone(), put_ok()]).await;
    put(&server.client()).await.unwrap();
    assert_eq!(server.seen().len(), 3);

    let server = Server::with_acts(vec![wrong]).await;
    let error = put(&server.client()).await.unwrap_err();
    assert_eq!((error.kind, error.outcome), (ErrorKind::Corrupt, Outcome::Unknown));
    let part = PartNumber::new(1).unwrap();
    let upload = UploadId::new("U");
    let error = server.client().upload_part(&key("k"), &upload, part, &Body::Bytes("x".into())).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt);
    assert_eq!(server.seen().len(), 8);
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let server = Server::start(|_, seen| {
        assert_eq!(seen.target(), "/bucket/k");
        let body = "<Error><Code>TemporaryRedirect</Code><Endpoint>elsewhere</Endpoint></Error>";
        reply(307, "Location: /elsewhere", body)
    })
    .await;
    let error = put(&server.client()).await.unwrap_err();
    assert_eq!((error.status, error.endpoint.as_deref()), (307, Some("elsewhere")));
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_wrong_clock_is_mended_from_the_reply() {
    let ahead = time::now() + Duration::from_secs(5 * 86_400);
    let skewed = {
        let body = "<Error><Code>RequestTimeTooSkewed</Code></Error>";
        reply(403, &format!("Date: {}", time::http_date(ahead)), body)
    };
    let server = Server::with_acts(vec![skewed.clone(), put_ok()]).await;
    let client = server.client();
    put(&client).await.unwrap();
    put(&client).await.unwrap();
    let seen = server.seen();
    assert_eq!(seen.len(), 3);
    let day = |index: usize| seen[index].header("x-oss-date").unwrap()[..8].to_owned();
    assert_eq!(day(1), time::basic_utc(ahead)[..8]);
    assert_eq!(day(1), day(2));
    assert_ne!(day(0), day(1));
    let scope = format!("Credential=ak/{}/cn-hangzhou/oss/aliyun_v4_request,", day(1));
    assert!(seen[1].header("authorization").unwrap().contains(&scope));

    let server = Server::with_acts(vec![skewed]).await;
    assert_eq!(put(&server.client()).await.unwrap_err().kind, ErrorKind::ClockSkew);
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn a_service_that_says_nothing_is_left() {
    let server = Server::with_acts(vec![Act::Silence]).await;
    let client = server.client_with(Addressing::Path, Duration::from_millis(200));
    let error = client.initiate_upload(&key("k"), &PutHeaders::default()).await.unwrap_err();
    assert_eq!((error.kind, error.outcome), (ErrorKind::Transport, Outcome::Unknown));
    assert_eq!(server.seen().len(), 4);
}

#[tokio::test]
async fn a_service_at_work_may_be_silent_for_longer() {
    let done = b"HTTP/1.1 200 OK\r\nContent-Length: 81\r\n\r\n<CompleteMultipartUploadResult><ETag>\"W-1\"</ETag>\
                 </CompleteMultipartUploadResult>";
    let server = Server::with_acts(vec![Act::Drip(vec![done.to_vec()], Duration::from_millis(1_000))]).await;
    complete(&server.client_with(Addressing::Path, Duration::from_millis(800))).await.unwrap();
}

#[tokio::test]
async fn a_connection_cut_before_the_request_was_read_is_in_doubt_all_the_same() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let cut = tokio::spawn(async move {
        for _ in 0..8 {
            drop(listener.accept().await.unwrap());
        }
    });
    let client = Client::new(options(port, Addressing::Path, Duration::from_secs(20))).unwrap();
    let error = complete(&client).await.unwrap_err();
    assert_eq!((error.kind, error.outcome, client.stats().retries), (ErrorKind::Transport, Outcome::Unknown, 3));
    let error = put(&client).await.unwrap_err();
    assert_eq!((error.kind, error.outcome, client.stats().retries), (ErrorKind::Transport, Outcome::Unknown, 6));
    cut.await.unwrap();
}

#[tokio::test]
async fn replies_that_make_no_sense_are_told_as_such() {
    let html = "<html><body>Please sign in</body></html>";
    for (status, body) in [(200, html.to_owned()), (200, String::new()), (404, html.to_owned())] {
        let server = Server::with_acts(vec![reply(status, "Content-Type: text/html", &body)]).await;
        let client = server.client();
        let error = client.list_objects(&ListRequest::default()).await.unwrap_err();
        assert_eq!((error.kind, error.status), (ErrorKind::Protocol, status), "{body}");
        // What a stranger answered in the service's place may be gone the next time.
        let tries = if status == 200 { 4 } else { 1 };
        assert_eq!(server.seen().len(), tries);
        assert_eq!(client.stats().requests[&Operation::ListObjectsV2].error, tries as u64);
    }
    let server = Server::with_acts(vec![reply(200, "", "")]).await;
    assert_eq!(server.client().head_object(&key("k")).await.unwrap_err().kind, ErrorKind::Protocol);
    assert_eq!(put(&server.client()).await.unwrap_err().outcome, Outcome::Unknown);
}

#[tokio::test]
async fn endless_replies_are_not_read_to_the_end() {
    let long = reply(200, "", vec![b' '; XML_BYTES_MAX + 1]);
    let server = Server::with_acts(vec![long]).await;
    let error = server.client().list_objects(&ListRequest::default()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Protocol);

    let mut head = b"HTTP/1.1 200 OK\r\nx: ".to_vec();
    head.resize(4 << 20, b'y');
    let server = Server::with_acts(vec![Act::ReplyAndClose(head)]).await;
    let error = complete(&server.client()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Transport);

    let many: String = (0..300).map(|index| format!("x-oss-meta-n{index}: v\n")).collect();
    let server = Server::with_acts(vec![reply(200, &format!("{OBJECT}\n{many}"), "")]).await;
    let meta = server.client().get_symlink(&key("k")).await;
    assert_eq!(meta.unwrap_err().kind, ErrorKind::Protocol);
}

#[tokio::test]
async fn other_credentials_sign_from_then_on() {
    let server = Server::with_acts(vec![put_ok()]).await;
    let client = server.client();
    put(&client).await.unwrap();
    let mut credentials = options(1, Addressing::Path, Duration::ZERO).credentials;
    credentials.access_key_id = "other".into();
    credentials.security_token = None;
    client.set_credentials(credentials).unwrap();
    put(&client).await.unwrap();
    let seen = server.seen();
    assert!(seen[1].header("authorization").unwrap().contains("Credential=other/"));
    assert_eq!(seen[1].header("x-oss-security-token"), None);
}
