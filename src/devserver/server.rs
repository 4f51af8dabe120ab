//! Listening, connections, and their end: graceful by HTTP, or reset when a fault asks for it.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::auth::Credentials;
use super::request::check_bucket;
use super::service::{self, Shared};
use super::store::Store;
use crate::base::limits::PART_BYTES_MIN;

/// Headers of a request, metadata included, are at most so many.
const HEADERS_MAX: usize = 512;

/// How to run a server.
#[derive(Clone)]
pub struct Options {
    /// Where everything is kept; made if missing. One server at a time.
    pub data: PathBuf,
    /// Port 0: any free one.
    pub listen: SocketAddr,
    /// Buckets to make if missing; others that the folder holds are served too.
    pub buckets: Vec<String>,
    pub access_key_id: String,
    pub access_key_secret: String,
    /// As V4 signatures name it: `cn-hangzhou`.
    pub region: String,
    /// Smallest part but the last, in bytes, checked at Complete.
    pub min_part: u64,
    /// Whether clients of S3 are served too, without a look at their signatures.
    pub s3: bool,
}

impl Options {
    /// The defaults: any port of the loopback, no bucket, `test-ak`, `test-sk`, `cn-hangzhou`, parts of 100 KiB.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self {
            data: data.into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            buckets: Vec::new(),
            access_key_id: "test-ak".into(),
            access_key_secret: "test-sk".into(),
            region: "cn-hangzhou".into(),
            min_part: PART_BYTES_MIN,
            s3: false,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("data", &self.data)
            .field("listen", &self.listen)
            .field("buckets", &self.buckets)
            .field("access_key_id", &self.access_key_id)
            .field("region", &self.region)
            .field("min_part", &self.min_part)
            .field("s3", &self.s3)
            .finish_non_exhaustive()
    }
}

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    addr: SocketAddr,
    shared: Arc<Shared>,
    bucket: Option<String>,
}

impl Server {
    /// Opens the data and the port; connections wait until [`Self::run`].
    ///
    /// Fails with `InvalidInput` on a bad bucket name, `WouldBlock` where another server uses the data,
    /// `InvalidData` on data that cannot be read.
    pub async fn bind(options: Options) -> io::Result<Self> {
        for bucket in &options.buckets {
            check_bucket(bucket)
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("`{bucket}` is not a bucket name")))?;
        }
        let data = options.data;
        let store = tokio::task::spawn_blocking(move || Store::open(&data)).await.map_err(io::Error::other)??;
        let credentials = Credentials {
            access_key_id: options.access_key_id,
            access_key_secret: options.access_key_secret,
            security_token: None,
        };
        let shared = Shared::new(store, credentials, options.region, options.min_part, options.s3);
        for bucket in &options.buckets {
            shared.store.create_bucket(bucket, shared.now()).map_err(io::Error::other)?;
        }
        let listener = TcpListener::bind(options.listen).await?;
        let addr = listener.local_addr()?;
        let bucket = options.buckets.into_iter().next().or_else(|| Some(shared.store.buckets().first()?.0.clone()));
        Ok(Self { listener, addr, shared: Arc::new(shared), bucket })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The command that mounts the first bucket, for people to copy.
    pub fn mount_line(&self) -> String {
        let credentials = self.shared.credentials.read();
        format!(
            "OSS_ACCESS_KEY_ID={} OSS_ACCESS_KEY_SECRET={} ossfuse mount {} MOUNTPOINT --endpoint http://{} --region {}",
            credentials.access_key_id,
            credentials.access_key_secret,
            self.bucket.as_deref().unwrap_or("BUCKET"),
            self.addr,
            self.shared.region,
        )
    }

    /// Serves until `stop`; connections that are open then are closed.
    pub async fn run(self, stop: impl Future<Output = ()>) -> io::Result<()> {
        let mut connections = JoinSet::new();
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => drop(connections.spawn(connect(self.shared.clone(), stream))),
                    // A connection that was gone before it was taken, or no descriptor left: neither ends a server.
                    Err(error) => {
                        log::warn!("cannot accept a connection: {error}");
                        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                    }
                },
                Some(_) = connections.join_next() => {}
                () = &mut stop => break,
            }
        }
        connections.shutdown().await;
        Ok(())
    }
}

async fn connect(shared: Arc<Shared>, stream: TcpStream) {
    let _counted = shared.stats.connected();
    if let Err(error) = stream.set_nodelay(true) {
        log::debug!("cannot set TCP_NODELAY: {error}");
    }
    let reset = Arc::new(AtomicBool::new(false));
    let socket = Socket { stream, reset: reset.clone() };
    let service = service_fn(move |request| {
        let (shared, reset) = (shared.clone(), reset.clone());
        async move {
            let reply = service::serve(shared, request).await;
            if reply.is_err() {
                reset.store(true, Ordering::Relaxed);
            }
            reply
        }
    });
    let served = http1::Builder::new().max_headers(HEADERS_MAX).serve_connection(TokioIo::new(socket), service).await;
    if let Err(error) = served {
        log::debug!("a connection ended: {error}");
    }
}

/// A connection that says RST instead of FIN at its end when told to.
#[derive(Debug)]
struct Socket {
    stream: TcpStream,
    reset: Arc<AtomicBool>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.reset.load(Ordering::Relaxed)
            && let Err(error) = self.stream.set_zero_linger()
        {
            log::debug!("cannot reset a connection: {error}");
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.reset.load(Ordering::Relaxed) {
            // A FIN now would turn the reset into an orderly end.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
