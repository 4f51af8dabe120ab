//! HTTP as bytes: a request goes out exactly as it is written here, one connection each.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Long enough for the slowest machine; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A request.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: String,
    /// Path and query as they stand on the request line.
    pub(super) target: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// Whether `Content-Length` is added.
    pub(super) says_length: bool,
}

impl Request {
    pub(super) fn new(method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { method: method.into(), target: target.into(), headers, body: body.into(), says_length: true }
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    pub(super) fn push(&mut self, name: &str, value: impl Into<String>) {
        self.headers.push((name.into(), value.into()));
    }
}

/// A reply.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Reply {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The texts of all elements of this name, as they stand there.
    pub(super) fn elements(&self, name: &str) -> Vec<String> {
        let (open, close) = (format!("<{name}>"), format!("</{name}>"));
        let text = self.text();
        let behind = text.split(&open).skip(1);
        behind.filter_map(|rest| Some(rest.split_once(&close)?.0.to_owned())).collect()
    }

    /// The text of the first element of this name.
    pub(super) fn element(&self, name: &str) -> Option<String> {
        self.elements(name).into_iter().next()
    }

    /// Status and error code.
    pub(super) fn error(&self) -> (u16, String) {
        (self.status, self.element("Code").unwrap_or_default())
    }
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// Sends a request and reads its reply to the end of the connection.
///
/// Fails with `ConnectionReset` where the server resets it, `UnexpectedEof` where it closes too early.
pub(super) fn send(addr: SocketAddr, request: &Request) -> io::Result<Reply> {
    let mut stream = write(addr, request)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    parse(&bytes, request.method == "HEAD")
}

/// Sends a request and closes the connection without waiting for the reply.
pub(super) fn send_and_leave(addr: SocketAddr, request: &Request) -> io::Result<()> {
    write(addr, request).map(drop)
}

fn write(addr: SocketAddr, request: &Request) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut head = format!("{} {} HTTP/1.1\r\nConnection: close\r\n", request.method, request.target);
    if request.header("host").is_none() {
        head += &format!("Host: {addr}\r\n");
    }
    if request.says_length && request.header("transfer-encoding").is_none() {
        head += &format!("Content-Length: {}\r\n", request.body.len());
    }
    for (name, value) in &request.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    stream.write_all(&request.body)?;
    Ok(stream)
}

fn parse(bytes: &[u8], is_head: bool) -> io::Result<Reply> {
    let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").ok_or_else(short)?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).ok_or_else(short)?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    let body = bytes[end + 4..].to_vec();
    let expected = find(&headers, "content-length").and_then(|len| len.parse().ok()).unwrap_or(0);
    if !is_head && body.len() < expected {
        return Err(short());
    }
    Ok(Reply { status, headers, body })
}
