//! The mount's end of the control socket.
//!
//! Reads one request a line, hands it to a closure, and writes what it answers; knows nothing of what a request
//! does. The socket's folder and the socket itself let in its owner alone, so no request is asked for a password.

use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};

use super::client;
use super::protocol::{Failure, Pending, REQUEST_BYTES_MAX, Request, Response};
use crate::config::create_private_dir;

/// Most commands that are answered at a time; others wait.
const CONNECTIONS_MAX: usize = 32;
/// Progress lines that wait for a slow reader; further ones are dropped.
const PROGRESS_QUEUE: usize = 16;

/// A socket that is bound and not yet served. The file goes with it, where it was bound here.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: Option<PathBuf>,
    busy: Busy,
}

/// Requests whose answers are not out yet.
#[derive(Debug, Clone, Default)]
pub struct Busy(Arc<AtomicUsize>);

impl Busy {
    /// Whether somebody still waits for an answer.
    pub fn is_busy(&self) -> bool {
        self.0.load(Ordering::Acquire) > 0
    }

    fn begin(&self) -> Answering {
        self.0.fetch_add(1, Ordering::AcqRel);
        Answering(self.clone())
    }
}

/// One request, until its answer is out or its asker gone.
struct Answering(Busy);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Tells the command how far its request has come.
#[derive(Clone)]
pub struct Progress(mpsc::Sender<Response>);

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress")
    }
}

impl Progress {
    /// Never waits; a reader that is too slow misses some.
    pub fn report(&self, pending: Pending) {
        // A full queue is a slow reader, a closed one has gone: neither is the request's concern.
        drop(self.0.try_send(Response::Progress { pending }));
    }

    /// Whether the command has gone away, by Ctrl-C for example.
    pub fn is_abandoned(&self) -> bool {
        self.0.is_closed()
    }
}

impl Server {
    /// Binds the socket, with its folder; must be called inside a tokio runtime.
    ///
    /// # Errors
    /// See [`bind`].
    pub fn bind(path: &Path) -> io::Result<Self> {
        let mut server = Self::adopt(bind(path)?)?;
        server.path = Some(path.to_owned());
        Ok(server)
    }

    /// Serves a socket that somebody else has bound, and takes away in the end; must be called inside a tokio
    /// runtime.
    ///
    /// # Errors
    /// It is no socket.
    pub fn adopt(listener: std::os::unix::net::UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener: UnixListener::from_std(listener)?, path: None, busy: Busy::default() })
    }

    /// Tells whether answers are still on their way: a process that ends must not cut them off.
    pub fn busy(&self) -> Busy {
        self.busy.clone()
    }

    /// Serves until the future is dropped. A handler whose command has gone away is not stopped.
    pub async fn serve<H, F>(self, handler: H)
    where
        H: Fn(Request, Progress) -> F + Send + Sync + 'static,
        F: Future<Output = Response> + Send + 'static,
    {
        let handler = Arc::new(handler);
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let permit = permits.clone().acquire_owned().await.expect("never closed");
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let (handler, busy) = (handler.clone(), self.busy.clone());
                    tokio::spawn(async move {
                        if let Err(error) = converse(stream, handler.as_ref(), &busy).await {
                            log::debug!("a command went away: {error}");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    log::warn!("control socket: {error}");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(path) = &self.path
            && let Err(error) = remove_if_there(path)
        {
            log::debug!("cannot remove {}: {error}", path.display());
        }
    }
}

/// Binds the control socket of a mount, with its folder. Whoever connects waits until it is served.
///
/// # Errors
/// `AddrInUse` where a live mount listens there already; whatever keeps the folder or the socket from being made.
pub fn bind(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    if let Some(parent) = path.parent() {
        create_private_dir(parent)?;
    }
    match client::Client::connect(path) {
        Err(client::Error::NotRunning) => remove_if_there(path)?,
        Err(client::Error::Io(error)) => return Err(error),
        _ => return Err(io::Error::from(io::ErrorKind::AddrInUse)),
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Answers the requests of one connection.
async fn converse<H, F>(stream: UnixStream, handler: &H, busy: &Busy) -> io::Result<()>
where
    H: Fn(Request, Progress) -> F,
    F: Future<Output = Response> + Send + 'static,
{
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        let size = (&mut reader).take(REQUEST_BYTES_MAX as u64).read_until(b'\n', &mut line).await?;
        if size == 0 {
            return Ok(());
        }
        let _answering = busy.begin();
        let request = match serde_json::from_slice::<Request>(&line) {
            Ok(request) => request,
            Err(error) => return write_line(&mut writer, &not_understood(&error)).await,
        };
        let (sender, mut progress) = mpsc::channel(PROGRESS_QUEUE);
        // A task of its own: a command that goes away must not cut off a request half-way.
        let mut answer = tokio::spawn(handler(request, Progress(sender)));
        let response = loop {
            tokio::select! {
                biased;
                Some(line) = progress.recv() => write_line(&mut writer, &line).await?,
                response = &mut answer => break response.map_err(io::Error::other)?,
            }
        };
        write_line(&mut writer, &response).await?;
    }
}

fn not_understood(error: &serde_json::Error) -> Response {
    Response::Failed(Failure {
        what: "the request".into(),
        why: format!("the mount does not understand it: {error}"),
        mend: "mount again with this version of ossfuse".into(),
    })
}

async fn write_line(writer: &mut (impl AsyncWriteExt + Unpin), response: &Response) -> io::Result<()> {
    let mut line = serde_json::to_vec(response)?;
    line.push(b'\n');
    writer.write_all(&line).await
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::time::Duration;

    use super::super::client::Client;
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    async fn answer(request: Request, progress: Progress) -> Response {
        match request {
            Request::Umount { timeout_ms, .. } => {
                for bytes in (0..timeout_ms).rev() {
                    progress.report(Pending { files: 1, bytes });
                }
                Response::Done
            }
            _ => Response::Busy,
        }
    }

    async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        tokio::task::spawn_blocking(work).await.unwrap()
    }

    #[tokio::test]
    async fn progress_comes_before_the_answer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/a.sock");
        let server = Server::bind(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(path.parent().unwrap().metadata().unwrap().mode() & 0o777, 0o700);
        let serving = tokio::spawn(server.serve(answer));
        let socket = path.clone();
        blocking(move || {
            let mut client = Client::connect(&socket).unwrap();
            client.send(&Request::Umount { timeout_ms: 2, force: false }).unwrap();
            let mut lines = || client.receive(PATIENCE).unwrap();
            let progress = |bytes| Response::Progress { pending: Pending { files: 1, bytes } };
            assert_eq!([lines(), lines(), lines()], [progress(1), progress(0), Response::Done]);
        })
        .await;
        serving.abort();
        assert!(serving.await.unwrap_err().is_cancelled());
        assert!(!path.exists(), "the file goes with the server");
    }

    #[tokio::test]
    async fn a_request_from_another_version_is_answered_and_does_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let serving = tokio::spawn(Server::bind(&path).unwrap().serve(answer));
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(b"{\"request\":\"dance\"}\n").await.unwrap();
        let mut line = String::new();
        stream.read_to_string(&mut line).await.unwrap();
        assert!(line.contains("does not understand it") && line.ends_with("\n"), "{line}");
        let socket = path.clone();
        let status = blocking(move || client::ask(&socket, &Request::Status, PATIENCE)).await.unwrap();
        assert_eq!(status, Response::Busy);
        serving.abort();
    }

    #[tokio::test]
    async fn a_second_mount_cannot_take_a_live_socket_but_a_dead_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let server = Server::bind(&path).unwrap();
        let second = Server::bind(&path).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        drop(server);
    }
}
