//! What belongs to a mount beyond any single process: handed to each worker, and to the next supervisor.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::base::checked;
use crate::fuse::MountPlan;

/// All of it but the descriptors.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Estate {
    pub mount: MountPlan,
    /// Where the control socket lies.
    pub socket: PathBuf,
    /// The binary on disk, for upgrades.
    pub program: PathBuf,
    /// The command line that the mount was started with, as bytes: what `ps` shows.
    pub arguments: Vec<Vec<u8>>,
    /// The kernel's INIT, and the reply to it that the kernel has got or will get; its flags hold for good.
    pub init: Option<Vec<u8>>,
    pub init_reply: Option<Vec<u8>>,
    /// Tells this kernel connection from every other one.
    pub connection: u64,
    /// Workers that were started on it.
    pub incarnation: u64,
    /// Workers that were started in the place of one that had served.
    pub restarts: u64,
    /// The worker ends with its supervisor; for tests that must leave nothing behind.
    pub tied: bool,
}

impl Estate {
    pub fn arguments(&self) -> Vec<OsString> {
        self.arguments.iter().map(|argument| OsString::from_vec(argument.clone())).collect()
    }

    /// The command line of this process.
    pub fn own_arguments() -> Vec<Vec<u8>> {
        std::env::args_os().map(|argument| argument.as_bytes().to_vec()).collect()
    }
}

/// The descriptors of an estate, in the order in which they are handed over.
#[derive(Debug)]
pub struct Descriptors {
    /// What the mount was told, as its worker wants it; sealed from the sight of others.
    pub settings: OwnedFd,
    /// A slot for each request in work.
    pub slots: OwnedFd,
    /// The control socket; whoever connects while nobody serves waits.
    pub listener: Option<OwnedFd>,
    /// The kernel's connection.
    pub kernel: Option<OwnedFd>,
}

impl Descriptors {
    pub(super) fn raw(&self) -> Vec<RawFd> {
        let all = [Some(&self.settings), Some(&self.slots), self.listener.as_ref(), self.kernel.as_ref()];
        all.into_iter().flatten().map(AsRawFd::as_raw_fd).collect()
    }

    /// What came over a link.
    pub fn of(received: Vec<OwnedFd>) -> io::Result<Self> {
        let mut received = received.into_iter();
        let (Some(settings), Some(slots)) = (received.next(), received.next()) else {
            return Err(io::Error::other("descriptors are missing"));
        };
        Ok(Self { settings, slots, listener: received.next(), kernel: received.next() })
    }
}

/// A file in memory that holds `bytes`, not inherited.
pub fn memory_file(name: &std::ffi::CStr, bytes: &[u8]) -> io::Result<OwnedFd> {
    // SAFETY: a terminated string; the descriptor is ours from then on.
    let fd = checked(unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) })?;
    // SAFETY: made just now.
    let mut file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.write_all(bytes)?;
    Ok(file.into())
}

/// All bytes of a file in memory. Its position is shared by all who have it, so it is set first.
pub fn read_memory_file(fd: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut file = File::from(fd.try_clone()?);
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}
