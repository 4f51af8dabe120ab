//! How long a client tries, on whose behalf, and what it does while the service is out.

use std::sync::Arc;
use std::time::Duration;

use super::key;
use super::server::{Act, Server, error, options, reply};
use crate::base::caller::{Caller, Patience, within};
use crate::oss::types::{BreakerState, CredentialSource, Credentials, Limits};
use crate::oss::{Addressing, Body, Client, ClientOptions, Error, ErrorKind, Outcome, PutHeaders};

const LONG: Duration = Duration::from_secs(3600);

fn patient(server: &Server) -> Client {
    Client::new(ClientOptions { outage_timeout: LONG, ..options(server.port(), Addressing::Path, LONG) }).unwrap()
}

async fn put(client: &Client) -> Result<(), Error> {
    client.put_object(&key("k"), &Body::Bytes("123456789".into()), &PutHeaders::default()).await.map(|_| ())
}

fn put_ok() -> Act {
    reply(200, "ETag: \"E\"\nx-oss-hash-crc64ecma: 11051210869376104954", "")
}

#[tokio::test]
async fn a_sick_service_is_asked_until_it_is_well() {
    let mut acts = vec![error(503, "ServiceUnavailable"); 5];
    acts.push(put_ok());
    let server = Server::with_acts(acts).await;
    let client = patient(&server);
    put(&client).await.unwrap();
    assert_eq!(server.seen().len(), 6);
    let stats = client.stats();
    assert_eq!((stats.retries, stats.breaker, stats.degraded_since), (5, BreakerState::Closed, None));
    assert!(stats.last_error.is_some(), "what is past its fast tries is shown");
}

#[tokio::test]
async fn who_is_in_a_hurry_fails_sooner_than_the_outage() {
    let server = Server::with_acts(vec![error(503, "ServiceUnavailable")]).await;
    let client = patient(&server);
    for patience in [Patience::Brief(Duration::from_millis(300)), Patience::Strict(Duration::from_millis(300))] {
        let error = within(patience, put(&client)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Server, "{patience:?}");
    }
    let silent = Server::with_acts(vec![Act::Silence]).await;
    let error = within(Patience::Strict(Duration::from_millis(300)), put(&patient(&silent))).await.unwrap_err();
    assert_eq!((error.kind, error.outcome), (ErrorKind::Transport, Outcome::Unknown));
}

#[tokio::test]
async fn an_interrupted_caller_gets_away_from_a_silent_service() {
    let silent = Server::with_acts(vec![Act::Silence]).await;
    let client = patient(&silent);
    let caller = Caller::new(Patience::Outage);
    let waiting = tokio::spawn(caller.clone().scope(async move { put(&client).await }));
    while silent.seen().is_empty() {
        tokio::task::yield_now().await;
    }
    caller.interrupt();
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!((error.kind, error.outcome), (ErrorKind::Interrupted, Outcome::Unknown));
}

/// Hands out a key, or none.
#[derive(Debug)]
struct Source(Option<Credentials>);

impl CredentialSource for Source {
    fn reread(&self) -> std::pin::Pin<Box<dyn Future<Output = Option<Credentials>> + Send + '_>> {
        Box::pin(async { self.0.clone() })
    }
}

#[tokio::test]
async fn refused_credentials_are_read_again_once() {
    let fresh = Credentials { access_key_id: "fresh".into(), access_key_secret: "s".into(), security_token: None };
    for code in ["InvalidAccessKeyId", "SignatureDoesNotMatch", "SecurityTokenExpired"] {
        let server = Server::start(move |_, seen| {
            let is_fresh = seen.header("authorization").is_some_and(|text| text.contains("Credential=fresh/"));
            if is_fresh { put_ok() } else { error(403, code) }
        })
        .await;
        let client = patient(&server);
        assert_eq!(put(&client).await.unwrap_err().kind, ErrorKind::Credentials);
        client.set_credential_source(Arc::new(Source(None)));
        assert_eq!(put(&client).await.unwrap_err().kind, ErrorKind::Credentials);
        assert_eq!(server.seen().len(), 2);
        client.set_credential_source(Arc::new(Source(Some(fresh.clone()))));
        put(&client).await.unwrap();
        put(&client).await.unwrap();
        assert_eq!(server.seen().len(), 5);
    }
    let refusing = Server::with_acts(vec![error(403, "InvalidAccessKeyId")]).await;
    let client = patient(&refusing);
    client.set_credential_source(Arc::new(Source(Some(fresh))));
    assert_eq!(put(&client).await.unwrap_err().kind, ErrorKind::Credentials);
    assert_eq!(refusing.seen().len(), 2);
}

/// Never hands out anything.
#[derive(Debug)]
struct Hanging;

impl CredentialSource for Hanging {
    fn reread(&self) -> std::pin::Pin<Box<dyn Future<Output = Option<Credentials>> + Send + '_>> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn credentials_that_do_not_come_are_not_waited_for_longer_than_anything_else() {
    let refusing = Server::with_acts(vec![error(403, "InvalidAccessKeyId")]).await;
    let client = patient(&refusing);
    client.set_credential_source(Arc::new(Hanging));
    let brief = within(Patience::Strict(Duration::from_millis(300)), put(&client)).await;
    assert_eq!(brief.unwrap_err().kind, ErrorKind::Credentials);
    let caller = Caller::new(Patience::Outage);
    let waiting = tokio::spawn(caller.clone().scope(async move { put(&client).await }));
    caller.interrupt();
    assert_eq!(waiting.await.unwrap().unwrap_err().kind, ErrorKind::Interrupted);
}

#[tokio::test]
async fn the_service_may_ask_for_a_pause() {
    let busy = reply(503, "x-oss-qos-delay-time: 300", "<Error><Code>UploadTrafficRateLimitExceeded</Code></Error>");
    let server = Server::with_acts(vec![busy, put_ok()]).await;
    let begun = tokio::time::Instant::now();
    put(&patient(&server)).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(300), "no sooner than it was asked for");
}

#[tokio::test]
async fn requests_keep_to_their_limit() {
    let server = Server::with_acts(vec![put_ok()]).await;
    let limits = Limits { requests: Some(5), ..Limits::default() };
    let client = Client::new(ClientOptions { limits, ..options(server.port(), Addressing::Path, LONG) }).unwrap();
    let begun = tokio::time::Instant::now();
    for _ in 0..11 {
        put(&client).await.unwrap();
    }
    assert!(begun.elapsed() >= Duration::from_secs(2), "eleven requests at five a second");
}
