//! A service of one object for the tests of this module: serves ranges, counts them, and misbehaves as told.
//!
//! Speaks just enough HTTP for the client; signatures are not looked at.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::base::{ByteRange, crc64};

/// What to do with one GET of a range.
#[derive(Debug, Clone)]
pub(super) enum Act {
    Serve,
    /// Break the connection after this many bytes of the body.
    Break(u64),
    /// Send this many bytes of the body, the rest when the gate has a permit.
    Stall(u64, Arc<Semaphore>),
    /// Flip a bit of the byte at this offset of the object.
    Corrupt(u64),
    /// Look at the request only when the gate has a permit.
    Delay(Arc<Semaphore>),
    /// Answer with this status and nothing else.
    Refuse(u16, &'static str),
}

/// One request as it was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub method: String,
    pub path: String,
    pub range: Option<ByteRange>,
    pub status: u16,
    /// Bytes of the body that were sent.
    pub sent: u64,
}

/// Decides by the number of the GET, from 0, and the range it asks for.
type Plan = Box<dyn Fn(usize, ByteRange) -> Act + Send>;

pub(super) struct Object {
    pub size: u64,
    pub etag: String,
    pub crc64: u64,
}

/// The running double; ends with the runtime.
pub(super) struct ServiceDouble {
    pub port: u16,
    pub object: Mutex<Option<Object>>,
    plan: Mutex<Plan>,
    seen: Mutex<Vec<Seen>>,
    gets: Mutex<usize>,
    /// Connections on which the peer went away while a body was being sent.
    pub hung_up: Mutex<usize>,
    pattern: Bytes,
}

/// Coprime to every power of two, so that no shifted block looks like another.
const PERIOD: usize = (1 << 20) + 7;

fn pattern() -> Bytes {
    let mut x = 1u32;
    let bytes = std::iter::repeat_with(|| {
        x = x.wrapping_mul(1_103_515_245).wrapping_add(12_345);
        (x >> 16) as u8
    });
    bytes.take(PERIOD).collect()
}

/// The sum of the first `size` bytes of the repeated pattern.
fn sum(pattern: &[u8], size: u64) -> u64 {
    let period = pattern.len() as u64;
    let (one, mut whole) = (crc64::checksum(pattern), 0);
    for _ in 0..size / period {
        whole = crc64::combine(whole, one, period);
    }
    let rest = &pattern[..(size % period) as usize];
    crc64::combine(whole, crc64::checksum(rest), rest.len() as u64)
}

impl ServiceDouble {
    /// Serves an object of `size` bytes under any key.
    pub(super) async fn start(size: u64) -> Arc<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let pattern = pattern();
        let object = Object { size, etag: "V1".into(), crc64: sum(&pattern, size) };
        let double = Arc::new(Self {
            port: listener.local_addr().unwrap().port(),
            object: Mutex::new(Some(object)),
            plan: Mutex::new(Box::new(|_, _| Act::Serve)),
            seen: Mutex::default(),
            gets: Mutex::default(),
            hung_up: Mutex::default(),
            pattern,
        });
        let serving = Arc::clone(&double);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let double = Arc::clone(&serving);
                tokio::spawn(async move { double.serve(stream).await.ok() });
            }
        });
        double
    }

    pub(super) fn plan(&self, plan: impl Fn(usize, ByteRange) -> Act + Send + 'static) {
        *self.plan.lock() = Box::new(plan);
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    /// The bytes of the object in `range`.
    pub(super) fn content(&self, range: ByteRange) -> Vec<u8> {
        let mut out = Vec::with_capacity(range.len() as usize);
        let mut at = range.start;
        while at < range.end {
            let slice = self.slice(at, range.end);
            at += slice.len() as u64;
            out.extend_from_slice(&slice);
        }
        out
    }

    fn slice(&self, at: u64, end: u64) -> Bytes {
        let from = (at % PERIOD as u64) as usize;
        let len = (PERIOD - from).min((end - at) as usize).min(256 * 1024);
        self.pattern.slice(from..from + len)
    }

    async fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut input = Vec::new();
        loop {
            let head = loop {
                if let Some(end) = input.windows(4).position(|window| window == b"\r\n\r\n") {
                    let rest = input.split_off(end + 4);
                    break String::from_utf8(std::mem::replace(&mut input, rest)).unwrap();
                }
                if stream.read_buf(&mut input).await? == 0 {
                    return Ok(());
                }
            };
            if !self.answer(&mut stream, &head).await? {
                return Ok(());
            }
        }
    }

    /// Returns whether the connection goes on.
    async fn answer(&self, stream: &mut TcpStream, head: &str) -> std::io::Result<bool> {
        let mut words = head.split_ascii_whitespace();
        let method = words.next().unwrap_or_default().to_owned();
        let path = words.next().unwrap_or_default().to_owned();
        let range = field(head, "range").and_then(parse_range);
        let act = if method == "GET" { self.act(range) } else { Act::Serve };
        if let Act::Delay(gate) = &act {
            wait_for(stream, gate).await?;
        }
        let (status, code, headers, body) = self.judge(&method, head, range);
        let (status, code, headers, body) = match act {
            Act::Refuse(status, code) => (status, code, String::new(), ByteRange::at(0, 0)),
            _ => (status, code, headers, body),
        };
        let place = {
            let mut seen = self.seen.lock();
            seen.push(Seen { method: method.clone(), path, range, status, sent: 0 });
            seen.len() - 1
        };
        let error = format!("<Error><Code>{code}</Code><Message>told so</Message></Error>");
        let error = if status >= 400 && method == "GET" { error } else { String::new() };
        let length = match status {
            304 => String::new(),
            400.. => format!("Content-Length: {}\r\n", error.len()),
            _ => format!("Content-Length: {}\r\n", body.len()),
        };
        let head = format!("HTTP/1.1 {status} X\r\nx-oss-request-id: R{place}\r\n{length}{headers}\r\n{error}");
        stream.write_all(head.as_bytes()).await?;
        if method == "HEAD" || status != 206 {
            return Ok(true);
        }
        let sent = self.send(stream, body, &act, place).await;
        if sent.is_err() {
            *self.hung_up.lock() += 1;
        }
        sent.map(|()| !matches!(act, Act::Break(_)))
    }

    fn act(&self, range: Option<ByteRange>) -> Act {
        let mut gets = self.gets.lock();
        *gets += 1;
        (self.plan.lock())(*gets - 1, range.unwrap_or(ByteRange::at(0, u64::MAX)))
    }

    /// GETs that have come, answered or not.
    pub(super) fn gets(&self) -> usize {
        *self.gets.lock()
    }

    fn judge(&self, method: &str, head: &str, range: Option<ByteRange>) -> (u16, &'static str, String, ByteRange) {
        let object = self.object.lock();
        let none = ByteRange::at(0, 0);
        let Some(object) = &*object else { return (404, "NoSuchKey", String::new(), none) };
        let etag = format!("\"{}\"", object.etag);
        if field(head, "if-match").is_some_and(|wanted| wanted != etag) {
            return (412, "PreconditionFailed", String::new(), none);
        }
        let meta = format!(
            "ETag: {etag}\r\nLast-Modified: Thu, 07 Mar 2024 08:09:10 GMT\r\nx-oss-object-type: Normal\r\n\
             x-oss-hash-crc64ecma: {}\r\n",
            object.crc64
        );
        if field(head, "if-none-match").is_some_and(|held| held == etag) {
            return (304, "NotModified", meta, none);
        }
        let whole = ByteRange::new(0, object.size);
        match range {
            Some(range) if range.start >= object.size => (416, "InvalidRange", String::new(), none),
            Some(range) => {
                let part = range.intersect(&whole);
                let line = format!("Content-Range: bytes {}-{}/{}\r\n", part.start, part.end - 1, object.size);
                (206, "", meta + &line, part)
            }
            None if method == "HEAD" => (200, "", meta, whole),
            None => (400, "InvalidArgument", String::new(), none),
        }
    }

    async fn send(&self, stream: &mut TcpStream, body: ByteRange, act: &Act, place: usize) -> std::io::Result<()> {
        let mut at = body.start;
        let pause = match act {
            Act::Break(after) | Act::Stall(after, _) => body.start + after,
            _ => body.end,
        };
        while at < body.end {
            if at == pause {
                match act {
                    Act::Break(_) => return Ok(()),
                    Act::Stall(_, gate) => wait_for(stream, gate).await?,
                    _ => {}
                }
            }
            let slice = self.slice(at, if at < pause { pause.min(body.end) } else { body.end });
            let slice = match act {
                Act::Corrupt(offset) if ByteRange::at(at, slice.len() as u64).contains(*offset) => {
                    let mut bytes = slice.to_vec();
                    bytes[(offset - at) as usize] ^= 1;
                    bytes.into()
                }
                _ => slice,
            };
            // Counted first: the peer may be done with the last bytes before this task goes on.
            self.seen.lock()[place].sent += slice.len() as u64;
            stream.write_all(&slice).await?;
            at += slice.len() as u64;
        }
        Ok(())
    }
}

/// Waits for the gate, or for the peer to hang up.
async fn wait_for(stream: &mut TcpStream, gate: &Semaphore) -> std::io::Result<()> {
    let mut byte = [0];
    tokio::select! {
        permit = gate.acquire() => { permit.unwrap().forget(); Ok(()) }
        read = stream.read(&mut byte) => match read {
            Ok(0) => Err(std::io::ErrorKind::ConnectionAborted.into()),
            other => other.map(drop),
        },
    }
}

fn field<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    let line = head
        .lines()
        .find(|line| line.get(..name.len() + 1).is_some_and(|start| start.eq_ignore_ascii_case(&format!("{name}:"))))?;
    Some(line[name.len() + 1..].trim())
}

fn parse_range(text: &str) -> Option<ByteRange> {
    let (start, end) = text.strip_prefix("bytes=")?.split_once('-')?;
    Some(ByteRange::new(start.parse().ok()?, end.parse::<u64>().ok()? + 1))
}

/// Returns once `condition` holds; fails the test if that takes longer than any machine needs.
pub(super) async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
