//! The command's end of the control socket: blocking, one request a connection.
//!
//! Tells a socket that nobody listens at from one whose mount does not answer: the first is a leftover, the
//! second a fault.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::protocol::{RESPONSE_BYTES_MAX, Request, Response};

/// A connection to a mount.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

/// What is wrong with the other end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no socket, or nobody listens at it any more.
    #[error("no mount is running there")]
    NotRunning,
    #[error("the mount does not answer")]
    Silent,
    #[error("the mount ended before it answered")]
    Ended,
    #[error("the mount's answer makes no sense: {0}")]
    Protocol(serde_json::Error),
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Self::Silent,
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof => Self::Ended,
            _ => Self::Io(error),
        }
    }
}

impl Client {
    /// Connects to the mount that listens at `socket`.
    ///
    /// # Errors
    /// [`Error::NotRunning`] where nobody does, [`Error::Io`] where the socket is another user's.
    pub fn connect(socket: &Path) -> Result<Self, Error> {
        match UnixStream::connect(socket) {
            Ok(stream) => Ok(Self { stream: BufReader::new(stream) }),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                Err(Error::NotRunning)
            }
            Err(error) => Err(Error::Io(error)),
        }
    }

    /// The process that made the socket, which need not be the one that answers.
    pub fn listener_pid(&self) -> Option<u32> {
        let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
        let mut size = size_of::<libc::ucred>() as libc::socklen_t;
        // SAFETY: the struct lives through the call and is as long as is said.
        let done = unsafe {
            let fd = self.stream.get_ref().as_raw_fd();
            libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut peer).cast(), &raw mut size)
        };
        u32::try_from(peer.pid).ok().filter(|pid| done == 0 && *pid > 0)
    }

    /// Sends the one request of this connection.
    ///
    /// # Errors
    /// The mount ended meanwhile.
    pub fn send(&mut self, request: &Request) -> Result<(), Error> {
        let mut line = serde_json::to_vec(request).map_err(Error::Protocol)?;
        line.push(b'\n');
        Ok(self.stream.get_mut().write_all(&line)?)
    }

    /// The next line of the answer.
    ///
    /// # Errors
    /// [`Error::Silent`] after `patience` without one.
    pub fn receive(&mut self, patience: Duration) -> Result<Response, Error> {
        self.stream.get_mut().set_read_timeout(Some(patience.max(Duration::from_millis(1))))?;
        let mut line = Vec::new();
        let size = self.stream.by_ref().take(RESPONSE_BYTES_MAX as u64).read_until(b'\n', &mut line)?;
        if size == 0 || line.last() != Some(&b'\n') {
            return Err(Error::Ended);
        }
        serde_json::from_slice(&line).map_err(Error::Protocol)
    }

    /// Waits until the other end is gone, `patience` at most; whether it is.
    pub fn wait_for_end(mut self, patience: Duration) -> bool {
        let timeout = self.stream.get_mut().set_read_timeout(Some(patience.max(Duration::from_millis(1))));
        let mut rest = [0; 512];
        timeout.is_ok()
            && loop {
                match self.stream.read(&mut rest) {
                    Ok(0) => break true,
                    Ok(_) => {}
                    Err(error) => break error.kind() == ErrorKind::ConnectionReset,
                }
            }
    }
}

/// One request, one answer.
///
/// # Errors
/// As [`Client::connect`] and [`Client::receive`].
pub fn ask(socket: &Path, request: &Request, patience: Duration) -> Result<Response, Error> {
    let mut client = Client::connect(socket)?;
    client.send(request)?;
    client.receive(patience)
}

/// The sockets in `runtime_dir` at which somebody listens; files that nobody listens at are removed.
///
/// # Errors
/// The folder is there and cannot be read.
pub fn live_sockets(runtime_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(runtime_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut live = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "sock") && is_live(&path) {
            live.push(path);
        }
    }
    live.sort();
    Ok(live)
}

/// Whether somebody listens; removes the file of one that does no more.
fn is_live(socket: &Path) -> bool {
    let inode = |path: &Path| path.symlink_metadata().map(|metadata| metadata.ino()).ok();
    let before = inode(socket);
    match Client::connect(socket) {
        Err(Error::NotRunning) => {
            // The same file still: not that of a mount that has just come up in its place.
            if before.is_some()
                && inode(socket) == before
                && let Err(error) = std::fs::remove_file(socket)
            {
                log::debug!("cannot remove the stale socket {}: {error}", socket.display());
            }
            false
        }
        Err(_) | Ok(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_socket_that_nobody_listens_at_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (dead, live) = (dir.path().join("a.sock"), dir.path().join("b.sock"));
        drop(UnixListener::bind(&dead).unwrap());
        let _listener = UnixListener::bind(&live).unwrap();
        std::fs::write(dir.path().join("other"), "").unwrap();
        assert_eq!(live_sockets(dir.path()).unwrap(), [live]);
        assert!(!dead.exists() && dir.path().join("other").exists());
        assert!(live_sockets(&dir.path().join("none")).unwrap().is_empty());
    }

    #[test]
    fn each_fault_of_the_other_end_has_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let patience = Duration::from_millis(20);
        assert!(matches!(ask(&path, &Request::Status, patience), Err(Error::NotRunning)));
        let listener = UnixListener::bind(&path).unwrap();
        assert!(matches!(ask(&path, &Request::Status, patience), Err(Error::Silent)));
        let answer = |text: &'static str| {
            let listener = listener.try_clone().unwrap();
            let server = std::thread::spawn(move || {
                // The connection of the silent case waits first.
                loop {
                    let mut stream = listener.accept().unwrap().0;
                    let mut line = String::new();
                    let asked = BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
                    if asked > 0 && stream.write_all(text.as_bytes()).is_ok() {
                        break;
                    }
                }
            });
            let result = ask(&path, &Request::Status, Duration::from_secs(10));
            server.join().unwrap();
            result
        };
        drop(listener.accept().unwrap());
        assert!(matches!(answer(""), Err(Error::Ended)));
        assert!(matches!(answer("{\"response\":\"do"), Err(Error::Ended)));
        assert!(matches!(answer("what?\n"), Err(Error::Protocol(_))));
        assert_eq!(answer("{\"response\":\"done\"}\n").unwrap(), Response::Done);
    }
}
