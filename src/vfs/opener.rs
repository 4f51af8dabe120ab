//! Which flush is a close: what `/proc` tells of the process that a request comes from.
//!
//! A flush comes for every descriptor that is closed, in every process that has one. It publishes when it comes
//! from the process that opened the file, and that process has no other descriptor on it. Facts measured: the
//! closing descriptor is gone from `fdinfo` already; field 9 of `stat` has PF_EXITING, its last field the signal.
//! And: a process inside execve(2) closes its close-on-exec descriptors under a lock that reading its `stat` waits
//! for, while that close waits for us. So what may wait is read in a thread of its own and given up in time.

use std::fs;
use std::path::Path;
use std::time::Duration;

/// A process, told apart from a later one with the same number by its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    /// Thread group id.
    tgid: u32,
    /// Clock ticks since boot.
    started: u64,
}

/// The flag of a process that is ending, in field 9 of `/proc/PID/stat`.
const PF_EXITING: u64 = 4;

/// What a flush means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FlushKind {
    /// The opener is done with the file.
    Close,
    /// Another descriptor or process goes on.
    Passing,
    /// The opener dies of a signal.
    Killed,
}

impl Process {
    /// The process that a request's thread belongs to; `None` for pid 0 (a request of the kernel's own, or from
    /// outside this pid namespace) and for what is gone.
    pub(super) fn of(tid: u32) -> Option<Self> {
        let tgid = thread_group(tid)?;
        let stat = fs::read_to_string(format!("/proc/{tgid}/stat")).ok()?;
        Some(Self { tgid, started: field(&stat, 22)?.parse().ok()? })
    }

    /// Whether the process has a descriptor on the inode of this mount.
    fn holds(&self, ino: u64, mount_id: Option<u64>) -> bool {
        let folder = format!("/proc/{}/fdinfo", self.tgid);
        let entries = fs::read_dir(Path::new(&folder)).into_iter().flatten().flatten();
        entries.filter_map(|entry| fs::read_to_string(entry.path()).ok()).any(|info| is_on(&info, ino, mount_id))
    }
}

/// How long a look at a process may take before it counts as being inside execve(2).
const LOOK_MAX: Duration = Duration::from_millis(200);

/// Tells what a flush from thread `tid` means for a file that `opener` opened. `mount_id` is that of the mount,
/// where it is known.
pub(super) async fn classify(tid: u32, opener: Option<Process>, ino: u64, mount_id: Option<u64>) -> FlushKind {
    let Some(tgid) = thread_group(tid) else { return FlushKind::Close };
    if opener.is_some_and(|opener| opener.tgid != tgid) {
        return FlushKind::Passing;
    }
    let look = tokio::task::spawn_blocking(move || look_at(tid, opener, ino, mount_id));
    match tokio::time::timeout(LOOK_MAX, look).await {
        Ok(Ok(kind)) => kind,
        // The opener becomes another program, which does not get this descriptor.
        _ => FlushKind::Close,
    }
}

/// The process that a thread belongs to. Never waits, whatever that process does.
fn thread_group(tid: u32) -> Option<u32> {
    if tid == 0 {
        return None;
    }
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
}

/// The part of [`classify`] that may wait.
fn look_at(tid: u32, opener: Option<Process>, ino: u64, mount_id: Option<u64>) -> FlushKind {
    let Some(closing) = Process::of(tid) else { return FlushKind::Close };
    if opener.is_some_and(|opener| opener != closing) {
        return FlushKind::Passing;
    }
    match fs::read_to_string(format!("/proc/{tid}/stat")) {
        Ok(stat) if is_killed(&stat) => FlushKind::Killed,
        _ if closing.holds(ino, mount_id) => FlushKind::Passing,
        _ => FlushKind::Close,
    }
}

/// A field of `/proc/PID/stat`, counted from 1; the name, field 2, may hold blanks and brackets.
fn field(stat: &str, number: usize) -> Option<&str> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(number.checked_sub(3)?)
}

fn is_killed(stat: &str) -> bool {
    let flags: u64 = field(stat, 9).and_then(|f| f.parse().ok()).unwrap_or(0);
    let exit_code: u64 = stat.split_ascii_whitespace().last().and_then(|f| f.parse().ok()).unwrap_or(0);
    flags & PF_EXITING != 0 && exit_code & 0x7f != 0
}

fn is_on(fdinfo: &str, ino: u64, mount_id: Option<u64>) -> bool {
    let value =
        |name: &str| fdinfo.lines().find_map(|line| line.strip_prefix(name)).and_then(|v| v.trim().parse::<u64>().ok());
    value("ino:") == Some(ino) && mount_id.is_none_or(|id| value("mnt_id:") == Some(id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn fields_are_counted_after_a_name_with_brackets() {
        let stat = "12 (a) b) (c) S 1 12 12 0 -1 4194560 5 0 0 0 1 2 0 0 20 0 1 0 777 10 20 15";
        assert_eq!(field(stat, 3), Some("S"));
        assert_eq!(field(stat, 9), Some("4194560"));
        assert_eq!(field(stat, 22), Some("777"));
        assert!(!is_killed(stat), "not exiting");
        assert!(is_killed(&stat.replace("4194560", "4194564")), "exiting with SIGTERM");
        assert!(!is_killed("1 (x) Z 1 1 1 0 -1 4 0 768"), "exit(3) is no signal");
    }

    #[tokio::test]
    async fn a_descriptor_is_found_by_inode_and_mount() {
        let file = tempfile::tempfile().unwrap();
        let ino = file.metadata().unwrap().ino();
        let own = Process::of(std::process::id()).unwrap();
        assert!(own.holds(ino, None));
        assert!(!own.holds(ino, Some(u64::MAX)));
        assert_eq!(classify(std::process::id(), Some(own), ino, None).await, FlushKind::Passing);
        drop(file);
        assert_eq!(classify(std::process::id(), Some(own), ino, None).await, FlushKind::Close);
        let other = Process { tgid: 1, started: 0 };
        assert_eq!(classify(std::process::id(), Some(other), ino, None).await, FlushKind::Passing);
        assert_eq!(classify(0, Some(own), ino, None).await, FlushKind::Close);
    }
}
