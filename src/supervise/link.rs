//! The line between a supervisor and its worker: whole messages and descriptors over a socket pair.
//!
//! Both ends may be of different builds for a moment, so messages are JSON, and what is unknown is passed over.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::estate::Estate;
use crate::base::checked;

/// Most bytes of a message: the kernel's INIT and its reply are small.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Most descriptors with a message.
const DESCRIPTORS_MAX: usize = 8;

/// What a supervisor says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "order", content = "with")]
pub enum Order {
    /// The first word, with the descriptors of the estate.
    Welcome {
        estate: Box<Estate>,
        /// The process id of who speaks.
        supervisor: u32,
        /// How the worker before this one has ended.
        epitaph: Option<String>,
        /// Requests that are to be refused: each has killed too many workers.
        suspects: Vec<u64>,
        /// What lies on disk may be what the worker before this one has died of.
        careful: bool,
    },
    /// The mount that was asked for stands; with its descriptor.
    Mounted {
        init: Vec<u8>,
    },
    /// It could not be made; the line says why.
    NotMounted {
        line: String,
    },
    Ping,
    /// Send what is pending, then unmount.
    Drain,
    /// Detach at once.
    Force,
    /// Read credentials again.
    Reload,
    /// Go: nobody asks for this mount any more.
    Farewell,
    #[serde(other)]
    Unknown,
}

/// What a worker says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "report", content = "with")]
pub enum Report {
    /// It could serve now: mount.
    Mount,
    /// The answer to INIT that the kernel is about to get.
    InitReply(Vec<u8>),
    /// It answers the kernel.
    Up,
    /// It cannot serve; the line says why.
    Failed(String),
    Pong,
    /// The mount is gone and nothing is pending: it ends for good. Answered with [`Order::Farewell`].
    Ending,
    /// Replace everything by the binary on disk.
    Upgrade,
    #[serde(other)]
    Unknown,
}

/// One end.
#[derive(Debug)]
pub struct Link(OwnedFd);

impl Link {
    /// Both ends; neither is inherited.
    pub fn pair() -> io::Result<(Self, Self)> {
        let mut ends = [0; 2];
        // SAFETY: the array has room for the two descriptors, which are ours from then on.
        unsafe {
            let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
            checked(libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()))?;
            Ok((Self(OwnedFd::from_raw_fd(ends[0])), Self(OwnedFd::from_raw_fd(ends[1]))))
        }
    }

    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Sends a message, with descriptors that stay open here.
    ///
    /// # Errors
    /// The other end is gone, or does not read.
    pub fn send(&self, message: &impl Serialize, descriptors: &[RawFd]) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(message).map_err(io::Error::other)?;
        let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // Aligned as a control message must be, with room for all descriptors.
        let mut control = [0u64; 16];
        // SAFETY: an all-zero msghdr is a valid empty one.
        let mut head: libc::msghdr = unsafe { std::mem::zeroed() };
        (head.msg_iov, head.msg_iovlen) = (&raw mut part, 1);
        let size = size_of_val(descriptors);
        if !descriptors.is_empty() {
            head.msg_control = control.as_mut_ptr().cast();
            // SAFETY: computes sizes; the header lies in `control`, which is large enough for DESCRIPTORS_MAX.
            unsafe {
                assert!(descriptors.len() <= DESCRIPTORS_MAX, "a fixed number of descriptors");
                head.msg_controllen = libc::CMSG_SPACE(size as u32) as usize;
                let header = libc::CMSG_FIRSTHDR(&raw const head);
                (*header).cmsg_level = libc::SOL_SOCKET;
                (*header).cmsg_type = libc::SCM_RIGHTS;
                (*header).cmsg_len = libc::CMSG_LEN(size as u32) as usize;
                std::ptr::copy_nonoverlapping(descriptors.as_ptr().cast(), libc::CMSG_DATA(header), size);
            }
        }
        // SAFETY: the message points to buffers that live through the call.
        checked(unsafe { libc::sendmsg(self.0.as_raw_fd(), &raw const head, libc::MSG_NOSIGNAL) }).map(drop)
    }

    /// Waits for a message; `None` once the other end is gone.
    ///
    /// # Errors
    /// What was received makes no sense.
    pub fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        self.receive_with(0)
    }

    /// Takes a message that is there already; `WouldBlock` where there is none.
    ///
    /// # Errors
    /// See [`Self::receive`].
    pub fn receive_now<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        self.receive_with(libc::MSG_DONTWAIT)
    }

    fn receive_with<T: DeserializeOwned>(&self, flags: libc::c_int) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut bytes = vec![0u8; MESSAGE_BYTES_MAX];
        let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        let mut control = [0u64; 16];
        // SAFETY: an all-zero msghdr is a valid empty one.
        let mut head: libc::msghdr = unsafe { std::mem::zeroed() };
        (head.msg_iov, head.msg_iovlen) = (&raw mut part, 1);
        (head.msg_control, head.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control));
        let size = loop {
            // SAFETY: the message points to buffers that live through the call.
            let size = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut head, flags | libc::MSG_CMSG_CLOEXEC) };
            match size {
                0 => return Ok(None),
                1.. => break size as usize,
                _ => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error if error.raw_os_error() == Some(libc::ECONNRESET) => return Ok(None),
                    error => return Err(error),
                },
            }
        };
        let descriptors = taken(&head);
        serde_json::from_slice(&bytes[..size]).map(|message| Some((message, descriptors))).map_err(io::Error::other)
    }
}

/// The descriptors that came with a message.
fn taken(head: &libc::msghdr) -> Vec<OwnedFd> {
    let mut found = Vec::new();
    // SAFETY: recvmsg has filled the message in; headers and data lie in its control buffer, and the descriptors are
    // ours from now on.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(std::ptr::from_ref(head));
        if !header.is_null() && (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
            let bytes = (*header).cmsg_len - libc::CMSG_LEN(0) as usize;
            let data: *const RawFd = libc::CMSG_DATA(header).cast();
            for at in 0..bytes / size_of::<RawFd>() {
                found.push(OwnedFd::from_raw_fd(std::ptr::read_unaligned(data.add(at))));
            }
        }
    }
    found
}

impl AsRawFd for Link {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_descriptors_come_whole_and_the_end_is_told() {
        let (ours, theirs) = Link::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        ours.send(&Report::InitReply(vec![1, 2, 3]), &[file.as_raw_fd(), file.as_raw_fd()]).unwrap();
        ours.send(&Report::Pong, &[]).unwrap();
        ours.send(&serde_json::json!({"report": "SomethingNewer"}), &[]).unwrap();
        let (first, descriptors) = theirs.receive::<Report>().unwrap().unwrap();
        assert!(matches!(first, Report::InitReply(bytes) if bytes == [1, 2, 3]));
        assert_eq!(descriptors.len(), 2);
        assert!(matches!(theirs.receive::<Report>().unwrap().unwrap().0, Report::Pong));
        assert!(matches!(theirs.receive::<Report>().unwrap().unwrap().0, Report::Unknown));
        assert_eq!(theirs.receive_now::<Report>().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(ours);
        assert!(theirs.receive::<Report>().unwrap().is_none());
    }
}
