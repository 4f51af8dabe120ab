//! What is mounted, as the kernel tells it, and getting rid of a mount that nobody serves any more.

use std::ffi::{CString, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// The file system type of this program's mounts.
const FS_TYPE: &str = "fuse.ossfuse";
/// How long a mount may take to tell its size before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(3);

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mounted {
    pub(super) path: PathBuf,
    pub(super) fs_type: String,
    pub(super) source: String,
}

impl Mounted {
    pub(super) fn is_ours(&self) -> bool {
        self.fs_type == FS_TYPE
    }
}

/// How a mount answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pulse {
    Alive,
    /// Nobody serves it any more.
    Dead,
    Hanging,
}

/// Everything that is mounted in this namespace, in the order of mounting.
///
/// # Errors
/// /proc cannot be read.
pub(super) fn all() -> io::Result<Vec<Mounted>> {
    Ok(std::fs::read("/proc/self/mountinfo")?.split(|b| *b == b'\n').filter_map(parse_line).collect())
}

/// What is mounted at `path`, the topmost.
///
/// # Errors
/// As [`all`].
pub(super) fn at(path: &Path) -> io::Result<Option<Mounted>> {
    Ok(all()?.into_iter().rfind(|mounted| mounted.path == path))
}

/// `ID PARENT MAJOR:MINOR ROOT PATH OPTIONS [TAG]... - TYPE SOURCE SUPER` (proc(5)).
fn parse_line(line: &[u8]) -> Option<Mounted> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let text = |field: Option<&&[u8]>| Some(String::from_utf8_lossy(&unescape(field?)).into_owned());
    Some(Mounted {
        path: OsString::from_vec(unescape(fields.get(4)?)).into(),
        fs_type: text(fields.get(dash + 1))?,
        source: text(fields.get(dash + 2))?,
    })
}

/// Space, tab, newline and backslash stand there as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if first == b'\\' => {
                out.push(byte);
                rest = &tail[3..];
            }
            _ => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

/// Asks the mount at `path` for its size, which no cache answers.
pub(super) fn pulse(path: &Path) -> Pulse {
    let (sender, receiver) = mpsc::channel();
    let path = path.to_owned();
    // A thread of its own: the call may never come back.
    std::thread::spawn(move || drop(sender.send(statfs(&path))));
    match receiver.recv_timeout(PATIENCE) {
        Err(_) => Pulse::Hanging,
        Ok(Err(error)) if matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED)) => Pulse::Dead,
        Ok(_) => Pulse::Alive,
    }
}

fn statfs(path: &Path) -> io::Result<libc::statfs> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all zeros is a valid value of this plain structure.
    let mut out: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a terminated string and a place for the result, both alive during the call.
    match unsafe { libc::statfs(path.as_ptr(), &mut out) } {
        0 => Ok(out),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether what is written at `path` stays in memory only.
///
/// # Errors
/// As `statfs(2)`.
pub(super) fn is_in_memory(path: &Path) -> io::Result<bool> {
    /// RAMFS_MAGIC and TMPFS_MAGIC of linux/magic.h.
    const IN_MEMORY: [i64; 2] = [0x8584_58f6, 0x0102_1994];
    // The field's type differs by architecture.
    let kind = statfs(path)?.f_type as i64;
    Ok(IN_MEMORY.contains(&kind))
}

/// Bytes that a user may still write to the file system of a path.
pub(super) fn room(path: &Path) -> io::Result<u64> {
    let found = statfs(path)?;
    Ok(found.f_bavail.saturating_mul(u64::try_from(found.f_bsize).unwrap_or_default()))
}

/// Takes the mount out of the tree at once, whoever uses it; without root by way of fusermount.
///
/// # Errors
/// It is another user's, or the helper is missing.
pub(super) fn detach(path: &Path) -> io::Result<()> {
    let text = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: a terminated string that is alive during the call.
    if unsafe { libc::umount2(text.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::EPERM) {
        return Err(error);
    }
    let helped = ["fusermount3", "fusermount"].iter().any(|helper| {
        let mut command = Command::new(helper);
        command.args(["-u", "-z", "-q", "--"]).arg(path).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    });
    if helped { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_with_and_without_tags_and_escapes() {
        let line =
            br"36 35 98:0 / /mnt/a\040b\134c rw,noatime master:1 shared:2 - fuse.ossfuse photos:a\040b rw,user_id=0";
        let mounted = parse_line(line).unwrap();
        assert_eq!(mounted.path, Path::new(r"/mnt/a b\c"));
        assert_eq!((mounted.source.as_str(), mounted.is_ours()), ("photos:a b", true));
        let plain = parse_line(b"22 1 0:20 / /proc rw - proc proc rw").unwrap();
        assert_eq!((plain.path.as_path(), plain.is_ours()), (Path::new("/proc"), false));
        assert_eq!(parse_line(b""), None);
        assert_eq!(parse_line(b"1 2 3:4 / /x rw"), None);
        assert_eq!(unescape(br"\9x\04"), br"\9x\04");
    }

    #[test]
    fn the_kernel_is_understood() {
        assert!(at(Path::new("/proc")).unwrap().is_some_and(|mounted| mounted.fs_type == "proc"));
        assert!(at(Path::new("/nonexistent")).unwrap().is_none());
        assert_eq!(pulse(Path::new("/proc")), Pulse::Alive);
        assert!(!is_in_memory(Path::new("/proc")).unwrap());
        assert!(detach(Path::new("/nonexistent")).is_err());
    }
}
