//! Who is let in.

use super::server::{BUCKET, TestServer};
use super::sign::{Signer, Version};
use super::wire::{self, Reply, Request};

const BOTH: [Version; 2] = [Version::V1, Version::V4];

fn send_as(server: &TestServer, signer: &Signer, version: Version, method: &str, target: &str) -> Reply {
    let mut request = Request::new(method, &format!("/{BUCKET}/{target}"), &[("x-oss-meta-a", "1")], b"");
    signer.sign(&mut request, version);
    wire::send(server.addr, &request).unwrap()
}

#[test]
fn both_versions_are_accepted_for_keys_of_any_kind() {
    let server = TestServer::start();
    for version in BOTH {
        for key in ["k", "a%20b%2Bc%25d~e", "%E6%96%87//x/../y", "q%3Fx%3D1%26y", "%01%0A"] {
            assert_eq!(send_as(&server, &server.signer, version, "PUT", key).status, 200, "{key}");
            assert_eq!(send_as(&server, &server.signer, version, "GET", key).status, 200, "{key}");
        }
    }
    let reply = send_as(&server, &server.signer, Version::V1, "POST", "k?uploads&encoding-type=url");
    assert_eq!(reply.status, 200);
}

#[test]
fn wrong_keys_are_told_what_was_signed() {
    let server = TestServer::start();
    for version in BOTH {
        let signer = Signer { secret: "wrong".into(), ..Signer::default() };
        let reply = send_as(&server, &signer, version, "GET", "k");
        assert_eq!(reply.error(), (403, "SignatureDoesNotMatch".into()));
        assert!(reply.element("StringToSign").is_some());
        assert_eq!(reply.element("CanonicalRequest").is_some(), version == Version::V4);

        let signer = Signer { key_id: "nobody".into(), ..Signer::default() };
        assert_eq!(send_as(&server, &signer, version, "GET", "k").error(), (403, "InvalidAccessKeyId".into()));
    }
    let signer = Signer { region: "cn-beijing".into(), ..Signer::default() };
    let reply = send_as(&server, &signer, Version::V4, "GET", "k");
    assert_eq!(reply.header("x-oss-ec"), Some("0002-00000228"));
    let unsigned = wire::send(server.addr, &Request::new("GET", &format!("/{BUCKET}/k"), &[], b"")).unwrap();
    assert_eq!(unsigned.error(), (403, "AccessDenied".into()));
}

#[test]
fn a_clock_off_by_more_than_a_quarter_of_an_hour_is_refused_with_the_servers_time() {
    let server = TestServer::start();
    for version in BOTH {
        for (skew, status) in [(-890, 404), (890, 404), (-910, 403), (910, 403)] {
            let signer = Signer { skew, ..Signer::default() };
            let reply = send_as(&server, &signer, version, "GET", "k");
            assert_eq!(reply.status, status, "{skew}");
            assert!(reply.header("date").is_some());
            if status == 403 {
                assert_eq!(reply.element("Code").unwrap(), "RequestTimeTooSkewed");
            }
        }
    }
}

#[test]
fn the_servers_clock_can_be_set() {
    let server = TestServer::start();
    server.control("POST", "clock", r#"{"offset_seconds": 3600}"#);
    let reply = server.get("k");
    assert_eq!(reply.error(), (403, "RequestTimeTooSkewed".into()));
    let date = ossfuse::base::time::parse_http_date(reply.header("date").unwrap()).unwrap();
    assert!(date > ossfuse::base::time::now() + std::time::Duration::from_secs(3000));
    let signer = Signer { skew: 3600, ..Signer::default() };
    assert_eq!(send_as(&server, &signer, Version::V4, "GET", "k").status, 404);
}

#[test]
fn rotated_credentials_replace_the_old_ones() {
    let server = TestServer::start();
    let json = r#"{"access_key_id": "STS.x", "access_key_secret": "new", "security_token": "token"}"#;
    server.control("POST", "credentials", json);
    assert_eq!(server.get("k").error(), (403, "InvalidAccessKeyId".into()));
    let mut signer = Signer { key_id: "STS.x".into(), secret: "new".into(), ..Signer::default() };
    for version in BOTH {
        assert_eq!(send_as(&server, &signer, version, "GET", "k").error(), (403, "InvalidSecurityToken".into()));
    }
    signer.token = Some("token".into());
    for version in BOTH {
        assert_eq!(send_as(&server, &signer, version, "GET", "k").error(), (404, "NoSuchKey".into()));
    }
}

#[test]
fn presigned_urls_let_in_for_a_while() {
    let server = TestServer::start();
    server.put("k%2B", b"bytes");
    for version in BOTH {
        let presigned = |seconds, skew| {
            let mut request = Request::new("GET", &format!("/{BUCKET}/k%2B"), &[], b"");
            Signer { skew, ..Signer::default() }.presign(&mut request, version, seconds);
            request
        };
        let reply = wire::send(server.addr, &presigned(60, 0)).unwrap();
        assert_eq!((reply.status, reply.text()), (200, "bytes".into()));
        let expired = wire::send(server.addr, &presigned(60, -100)).unwrap();
        assert_eq!(expired.error(), (403, "AccessDenied".into()));
        let mut changed = presigned(60, 0);
        changed.method = "PUT".into();
        assert_eq!(wire::send(server.addr, &changed).unwrap().error(), (403, "SignatureDoesNotMatch".into()));
    }
}

#[test]
fn the_bucket_may_stand_in_the_host() {
    let server = TestServer::start();
    let host = format!("{BUCKET}.oss-cn-hangzhou.aliyuncs.com");
    for version in BOTH {
        for target in ["/_dev/stats", "/%E6%96%87"] {
            let mut request = Request::new("PUT", target, &[("Host", &host)], b"x");
            server.signer.sign_as(&mut request, version, &format!("/{BUCKET}{target}"));
            assert_eq!(wire::send(server.addr, &request).unwrap().status, 200);
        }
        let mut request = Request::new("GET", "/?list-type=2", &[("Host", &host)], b"");
        server.signer.sign_as(&mut request, version, &format!("/{BUCKET}/?list-type=2"));
        let reply = wire::send(server.addr, &request).unwrap();
        assert_eq!(reply.elements("Key"), ["_dev/stats", "文"]);
    }
}
