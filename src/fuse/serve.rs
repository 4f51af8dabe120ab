//! Serving a connection that may have been served before.
//!
//! fuser begins every session with the kernel's INIT, which comes once in the life of a mount. So it is handed a
//! socket in which a copy of that request waits; its reply is read there; then the kernel's connection takes the
//! socket's place under the same descriptor number, before the first thread reads from it. Asked by RESEND, the kernel
//! queues every request again that was not answered, with the top bit of its number set.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use fuser::{Config, InitFlags, Session, SessionACL};

use super::Adapter;
use crate::base::checked;

/// Threads that decode and dispatch requests.
const THREADS: usize = 4;
/// Code of the notification by which the kernel is asked for all requests again (uapi/linux/fuse.h,
/// FUSE_NOTIFY_RESEND).
const NOTIFY_RESEND: i32 = 7;
/// Size of `struct fuse_out_header`.
const OUT_HEADER: usize = 16;
/// Size of `struct fuse_in_header`; of `struct fuse_init_in`: major, minor, max_readahead, flags, flags2, unused.
const IN_HEADER: usize = 40;
const REPLY_BYTES_MAX: usize = 4096;
/// Has a kernel pass for one that cannot send requests again; for tests.
const NO_RESEND_VARIABLE: &str = "_OSSFUSE_NO_RESEND";

/// The first exchange on a connection.
#[derive(Debug, Clone)]
pub struct Greeting {
    /// The kernel's INIT.
    pub init: Vec<u8>,
    /// The reply of the process that served first. The kernel goes by it for good.
    pub reply: Option<Vec<u8>>,
}

/// Whether the kernel that sent this INIT can send requests again, so that the death of a worker is not seen.
pub fn recovery_is_transparent(init: &[u8]) -> bool {
    if std::env::var_os(NO_RESEND_VARIABLE).is_some() {
        return false;
    }
    flags(init, IN_HEADER + 12, IN_HEADER + 16).contains(InitFlags::FUSE_HAS_RESEND)
}

/// The flags that the kernel goes by, as the first reply told them.
pub(super) fn agreed(reply: &[u8]) -> InitFlags {
    // After major, minor and max_readahead; the second half after the fields of older kernels.
    flags(reply, OUT_HEADER + 12, OUT_HEADER + 32)
}

fn flags(message: &[u8], low: usize, high: usize) -> InitFlags {
    let word = |at: usize| {
        let bytes = message.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        u64::from(bytes.map_or(0, u32::from_ne_bytes))
    };
    InitFlags::from_bits_retain(word(low) | word(high) << 32)
}

/// Answers the kernel until the mount is gone. `agree` is told the reply to INIT before the kernel is; `up` is called
/// once the first request can be answered.
///
/// # Errors
/// The kernel offers less than is needed, or its connection is none.
pub fn serve(
    mut adapter: Adapter,
    kernel: &OwnedFd,
    greeting: &Greeting,
    agree: impl FnOnce(&[u8]) -> io::Result<()>,
    up: impl FnOnce(),
) -> io::Result<()> {
    adapter.connect(kernel.try_clone()?, greeting.reply.as_deref().map(agreed));
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(THREADS);
    // A cloned descriptor has a queue of its own, which the kernel aborts with its owner.
    config.clone_fd = false;
    let (ours, fusers) = packet_pair()?;
    let place = fusers.as_raw_fd();
    write(&ours, &greeting.init)?;
    let session = Session::from_fd(adapter, fusers, SessionACL::All, config)?;
    let mut reply = vec![0; REPLY_BYTES_MAX];
    // SAFETY: the buffer lives through the call and is as long as is said.
    let size = checked(unsafe { libc::read(ours.as_raw_fd(), reply.as_mut_ptr().cast(), reply.len()) })?;
    reply.truncate(size as usize);
    // Both descriptors are open, and the session's stays its own: only what it leads to changes.
    // SAFETY: plain numbers.
    checked(unsafe { libc::dup3(kernel.as_raw_fd(), place, libc::O_CLOEXEC) })?;
    let gone = match &greeting.reply {
        None => {
            agree(&reply)?;
            write(kernel, &reply)
        }
        Some(first) => {
            // Whoever agreed to it may have died before the kernel heard of it. Said twice it is passed over.
            if let Err(error) = write(kernel, first) {
                log::trace!("the kernel has its reply: {error}");
            }
            write(kernel, &resend())
        }
    };
    match gone {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
        Err(error) if greeting.reply.is_some() => log::warn!("the kernel does not send its requests again: {error}"),
        other => other?,
    }
    up();
    session.run()
}

/// The notification by which the kernel is asked for all requests that were not answered.
fn resend() -> [u8; OUT_HEADER] {
    let mut note = [0; OUT_HEADER];
    note[..4].copy_from_slice(&(OUT_HEADER as u32).to_ne_bytes());
    note[4..8].copy_from_slice(&NOTIFY_RESEND.to_ne_bytes());
    note
}

fn write(to: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the buffer lives through the call and is as long as is said.
    let size = unsafe { libc::write(to.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    if size == bytes.len() as isize { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for the two descriptors, which are ours from then on.
    unsafe {
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        checked(libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()))?;
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}
