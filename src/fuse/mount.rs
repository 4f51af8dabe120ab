//! The kernel's side of a mount: making it, and taking it away.
//!
//! Mounts by itself as root, by fusermount3 otherwise, and keeps the connection's descriptor: whoever holds that
//! keeps the mount alive.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::base::checked;

/// How long the kernel may take to greet a new mount, in milliseconds.
const GREETING_MS: libc::c_int = 10_000;
/// The kernel reads nothing into a smaller buffer than its largest request; INIT is small.
const INIT_BYTES_MAX: usize = 128 << 10;

/// How to mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MountPlan {
    pub mountpoint: PathBuf,
    /// The source shown in mountinfo: `BUCKET` or `BUCKET:PREFIX`, as it was given.
    pub source: String,
    pub read_only: bool,
    /// Everyone may use it (`allow_other`), not only who mounted it.
    pub allow_other: bool,
    /// Generic words: `noexec`, `exec`, `nosuid`, `suid`, `nodev`, `dev`, `noatime`, `atime`, `relatime`; a later one
    /// goes before an earlier.
    pub flags: Vec<String>,
}

/// The mount could not be made, or taken away.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("/dev/fuse: {0}")]
    Device(io::Error),
    #[error("mount: {0}")]
    Mount(io::Error),
    #[error("fusermount3: {0}")]
    Helper(String),
    #[error("umount: {0}")]
    Umount(io::Error),
}

/// A mount and its connection.
#[derive(Debug)]
pub struct KernelMount(OwnedFd);

impl KernelMount {
    /// Mounts. Nobody answers the kernel until the connection is served.
    pub fn make(plan: &MountPlan) -> Result<Self, MountError> {
        // SAFETY: a plain call without arguments.
        let connection = if unsafe { libc::geteuid() } == 0 { mount_as_root(plan)? } else { mount_by_helper(plan)? };
        Ok(Self(connection))
    }

    /// The connection, to be served.
    pub fn connection(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    /// Takes the kernel's first request (INIT), which every mount begins with.
    ///
    /// # Errors
    /// It does not come.
    pub fn read_init(&self) -> io::Result<Vec<u8>> {
        let mut polled = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: the struct lives through the call.
        if unsafe { libc::poll(&raw mut polled, 1, GREETING_MS) } <= 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel does not greet the mount"));
        }
        let mut init = vec![0; INIT_BYTES_MAX];
        // SAFETY: the buffer lives through the call and is as long as is said.
        let size = checked(unsafe { libc::read(self.0.as_raw_fd(), init.as_mut_ptr().cast(), init.len()) })?;
        init.truncate(size as usize);
        Ok(init)
    }
}

/// Takes the mount at a place away. With `detach` it goes at once, though it may be in use.
///
/// # Errors
/// `EBUSY` while it is in use.
pub fn unmount(mountpoint: &Path, detach: bool) -> Result<(), MountError> {
    // SAFETY: a plain call without arguments.
    if unsafe { libc::geteuid() } == 0 {
        let path = c_string(mountpoint.as_os_str()).map_err(MountError::Umount)?;
        let flags = if detach { libc::MNT_DETACH } else { 0 } | libc::UMOUNT_NOFOLLOW;
        // SAFETY: the path is a C string that lives through the call.
        return checked(unsafe { libc::umount2(path.as_ptr(), flags) }).map(drop).map_err(MountError::Umount);
    }
    let mut command = Command::new("fusermount3");
    command.arg("-u").args(detach.then_some("-z")).arg("--").arg(mountpoint);
    let output = command.output().map_err(|error| MountError::Helper(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if words.contains("busy") {
        return Err(MountError::Umount(io::Error::from_raw_os_error(libc::EBUSY)));
    }
    Err(MountError::Helper(words))
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn mount_as_root(plan: &MountPlan) -> Result<OwnedFd, MountError> {
    let device = File::options().read(true).write(true).open("/dev/fuse").map_err(MountError::Device)?;
    // SAFETY: plain calls without arguments.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    let allow_other = if plan.allow_other { ",allow_other" } else { "" };
    let data = format!(
        "fd={},rootmode=40000,user_id={uid},group_id={gid},default_permissions{allow_other}",
        device.as_raw_fd()
    );
    let read_only = if plan.read_only { libc::MS_RDONLY } else { 0 };
    let strings = || -> io::Result<[CString; 4]> {
        Ok([
            c_string(OsStr::new(&plan.source))?,
            c_string(plan.mountpoint.as_os_str())?,
            c_string(OsStr::new("fuse.ossfuse"))?,
            c_string(OsStr::new(&data))?,
        ])
    };
    let [source, target, kind, data] = strings().map_err(MountError::Mount)?;
    let flags = kernel_flags(&plan.flags) | read_only;
    // SAFETY: all pointers are C strings that live through the call.
    let result = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) };
    if result != 0 {
        return Err(MountError::Mount(io::Error::last_os_error()));
    }
    Ok(device.into())
}

/// The kernel's bits for generic words; without any, no set-user-id and no devices.
fn kernel_flags(words: &[String]) -> libc::c_ulong {
    words.iter().fold(libc::MS_NOSUID | libc::MS_NODEV, |flags, word| match word.as_str() {
        "noexec" => flags | libc::MS_NOEXEC,
        "exec" => flags & !libc::MS_NOEXEC,
        "nosuid" => flags | libc::MS_NOSUID,
        "suid" => flags & !libc::MS_NOSUID,
        "nodev" => flags | libc::MS_NODEV,
        "dev" => flags & !libc::MS_NODEV,
        "noatime" => (flags | libc::MS_NOATIME) & !libc::MS_RELATIME,
        "relatime" => (flags | libc::MS_RELATIME) & !libc::MS_NOATIME,
        "atime" => flags & !libc::MS_NOATIME,
        _ => flags,
    })
}

/// fusermount3 mounts for a user, and hands the connection over a socket.
fn mount_by_helper(plan: &MountPlan) -> Result<OwnedFd, MountError> {
    let broken = |error: io::Error| MountError::Helper(error.to_string());
    let (ours, theirs) = UnixDatagram::pair().map_err(broken)?;
    // The helper inherits its end; ours stays close-on-exec.
    // SAFETY: F_SETFD on a descriptor that is open.
    checked(unsafe { libc::fcntl(theirs.as_raw_fd(), libc::F_SETFD, 0) }).map_err(broken)?;
    let access = if plan.allow_other { ",allow_other" } else { "" };
    let mode = if plan.read_only { "ro" } else { "rw" };
    let source = plan.source.replace('\\', "\\\\").replace(',', "\\,");
    // What only root may ask for (suid, dev) the helper itself refuses.
    let flags: String = plan.flags.iter().filter(|word| !word.is_empty()).map(|word| format!(",{word}")).collect();
    let options = format!("{mode},nosuid,nodev,default_permissions,fsname={source},subtype=ossfuse{access}{flags}");
    let output = Command::new("fusermount3")
        .arg("-o")
        .arg(options)
        .arg("--")
        .arg(&plan.mountpoint)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .output()
        .map_err(|error| MountError::Helper(format!("{error}; install fuse3")))?;
    if !output.status.success() {
        return Err(MountError::Helper(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    drop(theirs);
    receive_descriptor(&ours).map_err(broken)
}

fn receive_descriptor(socket: &UnixDatagram) -> io::Result<OwnedFd> {
    let mut byte = [0u8; 1];
    let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    // Room for one descriptor, aligned as a control message must be.
    let mut control = [0u64; 8];
    // SAFETY: an all-zero msghdr is a valid empty one.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the message points to buffers that live through the call.
    checked(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) })?;
    // SAFETY: recvmsg has filled the message in.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    if header.is_null() {
        return Err(io::Error::other("no descriptor was handed over"));
    }
    // SAFETY: the header is not null and lies in `control`.
    let (level, kind) = unsafe { ((*header).cmsg_level, (*header).cmsg_type) };
    if level != libc::SOL_SOCKET || kind != libc::SCM_RIGHTS {
        return Err(io::Error::other("no descriptor was handed over"));
    }
    // SAFETY: an SCM_RIGHTS message carries at least one descriptor, which is ours from now on.
    unsafe { Ok(OwnedFd::from_raw_fd(std::ptr::read_unaligned(libc::CMSG_DATA(header).cast()))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_word_goes_before_an_earlier() {
        let bits = |text: &str| kernel_flags(&text.split(',').map(str::to_owned).collect::<Vec<_>>());
        let safe = libc::MS_NOSUID | libc::MS_NODEV;
        assert_eq!(bits(""), safe);
        assert_eq!(bits("noexec,noatime"), safe | libc::MS_NOEXEC | libc::MS_NOATIME);
        assert_eq!(bits("noexec,exec,suid,dev"), 0);
        assert_eq!(bits("noatime,relatime"), safe | libc::MS_RELATIME);
    }
}
