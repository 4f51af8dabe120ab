//! The service: its name, its address, TLS, the clock, the keys, and each right that a mount needs.

use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::{Check, Error};
use crate::base::caller::{Patience, within};
use crate::base::time::{micros, now};
use crate::base::{ByteRange, ObjectKey, SessionId};
use crate::config::{ConnectionConfig, Environment, Layers, Target, resolve_connection};
use crate::oss::{self, Body, Client, ErrorKind, GetOptions, ListRequest, PutHeaders};
use crate::worker::connect;

/// How long a name or a connection may take, and how long a request that fails is tried again.
const PATIENCE: Duration = Duration::from_secs(10);
/// The service refuses requests whose time is off by more than a quarter of an hour.
const SKEW_WORTH_A_WORD: Duration = Duration::from_secs(60);
const CONTENT: &[u8] = b"ossfuse doctor";

type Tell<'t> = dyn FnMut(Check) -> Result<(), Error> + 't;

/// Checks the way to a bucket; what hangs on something that failed is left out.
pub(super) fn check(
    layers: &Layers,
    environment: &Environment,
    target: &Target,
    tell: &mut Tell<'_>,
) -> Result<(), Error> {
    let connection = match resolve_connection(&layers.raw, environment, target) {
        Ok(connection) => connection,
        Err(problem) => {
            return tell(Check::fail("configuration", format!("{}: {}", problem.what, problem.why), problem.mend));
        }
    };
    let runtime = tokio::runtime::Runtime::new().map_err(|error| Error::new("the network threads", error, ""))?;
    runtime.block_on(async {
        if !reach(&connection, tell).await? {
            return Ok(());
        }
        let client = match connect(&connection).await {
            Ok((client, keeper)) => {
                tell(Check::ok("credentials", format!("from {}", keeper.source())))?;
                client
            }
            Err(error) => return tell(Check::fail("credentials", error.to_string(), "see --credentials")),
        };
        within(Patience::Brief(PATIENCE), rights(&client, &connection, tell)).await
    })
}

/// DNS and a connection.
async fn reach(connection: &ConnectionConfig, tell: &mut Tell<'_>) -> Result<bool, Error> {
    let endpoint = &connection.endpoint;
    let port = endpoint.port.unwrap_or(if endpoint.https { 443 } else { 80 });
    let host = endpoint.host.trim_start_matches('[').trim_end_matches(']');
    let found = tokio::time::timeout(PATIENCE, tokio::net::lookup_host((host, port))).await;
    let addresses: Vec<_> = match found {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => {
            tell(Check::fail("DNS", format!("{host} is not found: {error}"), "check --endpoint, --region and DNS"))?;
            return Ok(false);
        }
        Err(_) => Vec::new(),
    };
    if addresses.is_empty() {
        tell(Check::fail("DNS", format!("{host} has no address"), "check --endpoint, --region and DNS"))?;
        return Ok(false);
    }
    let count = if addresses.len() == 1 { "1 address".to_owned() } else { format!("{} addresses", addresses.len()) };
    tell(Check::ok("DNS", format!("{host} has {count}")))?;
    let connected = tokio::time::timeout(PATIENCE, tokio::net::TcpStream::connect(&*addresses)).await;
    let why = match connected {
        Ok(Ok(_)) => {
            tell(Check::ok("endpoint", format!("{endpoint} takes connections")))?;
            return Ok(true);
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
    };
    tell(Check::fail("endpoint", format!("{endpoint}: {why}"), "check the network, a firewall, or --internal"))?;
    Ok(false)
}

/// One request of each kind, the way a mount makes them.
async fn rights(client: &Client, connection: &ConnectionConfig, tell: &mut Tell<'_>) -> Result<(), Error> {
    let list = ListRequest { prefix: connection.prefix.as_str().to_owned(), max_keys: 1, ..ListRequest::default() };
    let listed = client.list_objects(&list).await.map(drop);
    if let Err(error) = &listed
        && let Some(check) = fundamental(error, connection)
    {
        return tell(check);
    }
    if connection.endpoint.https {
        tell(Check::ok("TLS", "the certificate is good"))?;
    }
    tell(of_right("list", "oss:ListObjects", listed))?;
    let name = format!("{}.ossfuse-tmp/doctor-{}", connection.prefix.as_str(), SessionId::generate(micros(now())));
    let Ok(key) = ObjectKey::parse(&name) else {
        return tell(Check::fail("put", "the prefix leaves no room for a key", "mount a shorter prefix"));
    };
    let put = client.put_object(&key, &Body::Bytes(Bytes::from_static(CONTENT)), &PutHeaders::default()).await;
    let date = put.as_ref().ok().and_then(|receipt| receipt.date);
    let was_put = put.is_ok();
    tell(of_right("put", "oss:PutObject", put.map(drop)))?;
    tell(clock(date))?;
    if was_put {
        let options = GetOptions { range: Some(ByteRange::new(0, CONTENT.len() as u64)), ..GetOptions::default() };
        tell(of_right("get", "oss:GetObject", client.get_object(&key, &options).await.map(drop)))?;
    }
    let begun = client.initiate_upload(&key, &PutHeaders::default()).await;
    let ended = match begun {
        Ok(upload) => client.abort_upload(&key, &upload).await,
        Err(error) => Err(error),
    };
    tell(of_right("multipart", "oss:PutObject and oss:AbortMultipartUpload", ended))?;
    if was_put {
        tell(of_right("delete", "oss:DeleteObject", client.delete_object(&key).await))?;
    }
    Ok(())
}

/// What makes every other answer meaningless.
fn fundamental(error: &oss::Error, connection: &ConnectionConfig) -> Option<Check> {
    let told = error.code.as_deref().unwrap_or(&error.message).to_owned();
    match error.kind {
        ErrorKind::Transport if error.message.contains("certificate") => {
            Some(Check::fail("TLS", error.message.clone(), "check the certificate, the clock, and --ca-file"))
        }
        _ if error.is_outage() => {
            let mend =
                if connection.endpoint.https { "check --endpoint, and that it speaks TLS" } else { "check --endpoint" };
            Some(Check::fail("endpoint", format!("it does not answer as it should ({told})"), mend))
        }
        ErrorKind::NoSuchBucket => {
            Some(Check::fail("bucket", "there is no such bucket", "check its name and the region"))
        }
        ErrorKind::Credentials => {
            Some(Check::fail("credentials", format!("the key was refused ({told})"), "check the access key"))
        }
        _ => None,
    }
}

fn of_right(name: &'static str, right: &str, result: Result<(), oss::Error>) -> Check {
    match result {
        Ok(()) => Check::ok(name, "allowed"),
        Err(error) => {
            let told = error.code.as_deref().unwrap_or(&error.message);
            match error.kind {
                _ if error.is_outage() => {
                    let why = format!("the service does not answer as it should ({told})");
                    Check::fail(name, why, "try again, and look at the network")
                }
                ErrorKind::AccessDenied => {
                    Check::fail(name, format!("refused ({told})"), format!("the key needs {right} on the bucket"))
                }
                _ => {
                    Check::fail(name, format!("failed ({told})"), format!("see that the key has {right} on the bucket"))
                }
            }
        }
    }
}

fn clock(service: Option<SystemTime>) -> Check {
    const NAME: &str = "clock";
    let Some(service) = service else {
        return Check::warn(NAME, "the service did not tell its time", "see that this machine keeps its clock right");
    };
    let own = now();
    let skew = own.duration_since(service).or_else(|_| service.duration_since(own)).unwrap_or_default();
    if skew <= SKEW_WORTH_A_WORD {
        return Check::ok(NAME, format!("differs from the service's by {} s", skew.as_secs()));
    }
    let why = format!("differs from the service's by {} s", skew.as_secs());
    Check::warn(NAME, why, "set it right, by NTP for example; requests are signed with the service's time")
}
