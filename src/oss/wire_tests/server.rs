//! A raw TCP server for tests: records every request verbatim and answers by script, so that what it sees is what
//! stood on the wire and not what some HTTP library made of it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::oss::{Addressing, Client, ClientOptions, Credentials, Endpoint, Limits, SignatureVersion};

/// A request as it came.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) line: String,
    headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(seen, _)| seen.eq_ignore_ascii_case(name));
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} stands twice");
        value
    }

    /// What stands between the method and the version.
    pub(super) fn target(&self) -> &str {
        self.line.split(' ').nth(1).unwrap()
    }
}

/// What the server does with a request.
#[derive(Debug, Clone)]
pub(super) enum Act {
    Reply(Vec<u8>),
    /// Sends these bytes and closes the connection.
    ReplyAndClose(Vec<u8>),
    /// Sends the pieces with a pause before each.
    Drip(Vec<Vec<u8>>, Duration),
    /// Says nothing for ever.
    Silence,
}

pub(super) fn reply(status: u16, headers: &str, body: impl AsRef<[u8]>) -> Act {
    let body = body.as_ref();
    let mut out = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n", body.len());
    for line in headers.lines() {
        out.push_str(line.trim());
        out.push_str("\r\n");
    }
    out.push_str("\r\n");
    let mut out = out.into_bytes();
    out.extend_from_slice(body);
    Act::Reply(out)
}

pub(super) fn error(status: u16, code: &str) -> Act {
    let body = format!("<Error><Code>{code}</Code><Message>m</Message><RequestId>R</RequestId></Error>");
    reply(status, "", body)
}

type Script = dyn Fn(usize, &Seen) -> Act + Send + Sync;

/// Answers the n-th request (from 0) as the script says.
pub(super) struct Server {
    port: u16,
    state: Arc<State>,
}

struct State {
    script: Box<Script>,
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    /// Pause before each read of at most 256 KiB.
    read_pause: Duration,
}

impl Server {
    pub(super) async fn start(script: impl Fn(usize, &Seen) -> Act + Send + Sync + 'static) -> Self {
        Self::start_reading_slowly(Duration::ZERO, script).await
    }

    pub(super) async fn start_reading_slowly(
        read_pause: Duration,
        script: impl Fn(usize, &Seen) -> Act + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (seen, connections) = (Mutex::default(), AtomicUsize::new(0));
        let state = Arc::new(State { script: Box::new(script), seen, connections, read_pause });
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                shared.connections.fetch_add(1, SeqCst);
                tokio::spawn(serve(stream, shared.clone()));
            }
        });
        Self { port, state }
    }

    /// Answers with the acts in turn, then with the last one for ever.
    pub(super) async fn with_acts(acts: Vec<Act>) -> Self {
        Self::start(move |index, _| acts[index.min(acts.len() - 1)].clone()).await
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().clone()
    }

    pub(super) fn connections(&self) -> usize {
        self.state.connections.load(SeqCst)
    }

    pub(super) fn client(&self) -> Client {
        self.client_with(Addressing::Path, Duration::from_secs(20))
    }

    pub(super) fn client_with(&self, addressing: Addressing, try_timeout: Duration) -> Client {
        Client::new(options(self.port, addressing, try_timeout)).unwrap()
    }
}

pub(super) fn options(port: u16, addressing: Addressing, try_timeout: Duration) -> ClientOptions {
    ClientOptions {
        endpoint: Endpoint { https: false, host: "127.0.0.1".into(), port: Some(port) },
        bucket: "bucket".into(),
        region: Some("cn-hangzhou".into()),
        addressing,
        signature: SignatureVersion::V4,
        credentials: Credentials {
            access_key_id: "ak".into(),
            access_key_secret: "sk".into(),
            security_token: Some("token".into()),
        },
        try_timeout,
        outage_timeout: Duration::ZERO,
        limits: Limits::default(),
    }
}

async fn serve(mut stream: TcpStream, state: Arc<State>) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        let head_len = loop {
            match buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                Some(at) => break at + 4,
                None => read_more(&mut stream, &mut buffer, &state).await?,
            }
        };
        let mut seen = parse(&buffer[..head_len]);
        let body_len = seen.header("content-length").map_or(0, |text| text.parse::<usize>().unwrap());
        while buffer.len() < head_len + body_len {
            read_more(&mut stream, &mut buffer, &state).await?;
        }
        seen.body = buffer[head_len..head_len + body_len].to_vec();
        buffer.drain(..head_len + body_len);
        let index = {
            let mut all = state.seen.lock();
            all.push(seen.clone());
            all.len() - 1
        };
        if !act(&mut stream, (state.script)(index, &seen)).await? {
            return Ok(());
        }
    }
}

async fn read_more(stream: &mut TcpStream, buffer: &mut Vec<u8>, state: &State) -> io::Result<()> {
    if !state.read_pause.is_zero() {
        tokio::time::sleep(state.read_pause).await;
    }
    let mut chunk = vec![0; 256 << 10];
    match stream.read(&mut chunk).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        count => {
            buffer.extend_from_slice(&chunk[..count]);
            Ok(())
        }
    }
}

/// Whether the connection goes on.
async fn act(stream: &mut TcpStream, act: Act) -> io::Result<bool> {
    match act {
        Act::Reply(bytes) => stream.write_all(&bytes).await.map(|()| true),
        Act::ReplyAndClose(bytes) => stream.write_all(&bytes).await.map(|()| false),
        Act::Drip(pieces, pause) => {
            for piece in pieces {
                tokio::time::sleep(pause).await;
                stream.write_all(&piece).await?;
            }
            Ok(true)
        }
        Act::Silence => std::future::pending().await,
    }
}

fn parse(head: &[u8]) -> Seen {
    let head = String::from_utf8(head.to_vec()).unwrap();
    let mut lines = head.trim_end().split("\r\n");
    let line = lines.next().unwrap().to_owned();
    let headers = lines.map(|line| line.split_once(": ").unwrap()).map(|(n, v)| (n.into(), v.into())).collect();
    Seen { line, headers, body: Vec::new() }
}
