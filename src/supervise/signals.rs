//! Signals of the supervisor as events, and the clearing of what children must not inherit.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::base::checked;

/// The signals that are waited for; all others do what they do.
const WATCHED: [libc::c_int; 4] = [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// A descriptor that becomes readable when a watched signal has come.
#[derive(Debug)]
pub(super) struct Signals(File);

impl Signals {
    /// Blocks the watched signals from now on.
    pub(super) fn watch() -> io::Result<Self> {
        let set = set_of(&WATCHED);
        // SAFETY: the set lives through the calls; the descriptor is ours from then on.
        unsafe {
            checked(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()))?;
            let fd = checked(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
            Ok(Self(OwnedFd::from_raw_fd(fd).into()))
        }
    }

    /// The signals that have come since the last look.
    pub(super) fn take(&self) -> Vec<libc::c_int> {
        let mut found = Vec::new();
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        while (&self.0).read_exact(&mut info).is_ok() {
            // The number is the first field.
            let number = u32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
            found.push(number as libc::c_int);
        }
        found
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Lets all signals through again: between fork and exec, as a mask is inherited.
pub(super) fn unblock_all() -> io::Result<()> {
    let set = set_of(&[]);
    // SAFETY: the set lives through the call.
    checked(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()) }).map(drop)
}

fn set_of(signals: &[libc::c_int]) -> libc::sigset_t {
    // SAFETY: sigemptyset makes the set before anything is added to it.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        set
    }
}
