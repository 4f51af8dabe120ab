//! Which flush is a close: what `/proc` tells of the process that a request comes from.
//!
//! A flush comes for every descriptor that is closed, in every process that has one. It publishes when it comes
//! from the process that opened the file, and that process has no other descriptor on it. Facts measured: the
//! closing descriptor is gone from `fdinfo` already; field 9 of `stat` has PF_EXITING, its last field the signal.
//!
//! exec closes descriptors too, and whoever reads `stat`, `exe` or `fdinfo` of a process in exec waits for the end
//! of that exec, which waits for the answer to the flush. `status` never waits. So nothing but `status` is read of
//! other processes than the opener, and the rest is read where it may hang.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use tokio::runtime::Handle as Runtime;

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

/// How often is looked whether a reader of `/proc` hangs, and how often in a row it must be found hanging.
const HANG_LOOK: Duration = Duration::from_millis(20);
const HANG_LOOKS: u32 = 5;

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
        if tid == 0 {
            return None;
        }
        let tgid = tgid_of(tid)?;
        Self::with_stat(tgid, &small(&format!("/proc/{tgid}/stat"))?)
    }

    fn with_stat(tgid: u32, stat: &str) -> Option<Self> {
        Some(Self { tgid, started: field(stat, 22)?.parse().ok()? })
    }

    /// As it was noted by [`Self::noted`].
    pub(super) fn restored((tgid, started): (u32, u64)) -> Self {
        Self { tgid, started }
    }

    /// Thread group id and start time.
    pub(super) fn noted(self) -> (u32, u64) {
        (self.tgid, self.started)
    }

    /// Whether the process has a descriptor on the inode of this mount.
    fn holds(&self, ino: u64, mount_id: Option<u64>) -> bool {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.tgid)).into_iter().flatten().flatten();
        entries.filter(|entry| fs::read_link(entry.path()).is_ok_and(|to| is_maybe_a_file(&to))).any(|entry| {
            let info = small(&format!("/proc/{}/fdinfo/{}", self.tgid, entry.file_name().display()));
            info.is_some_and(|info| is_on(&info, ino, mount_id))
        })
    }
}

/// Whether what a descriptor leads to may be a file of a mount. Most of a process are not, and need no second look.
fn is_maybe_a_file(to: &Path) -> bool {
    const NONE: [&[u8]; 5] = [b"pipe:", b"socket:", b"anon_inode:", b"/dev/pts/", b"/dev/null"];
    !NONE.iter().any(|start| to.as_os_str().as_bytes().starts_with(start))
}

/// The beginning of a file of `/proc`, as far as anything is looked for in it, by one read: such a file tells no
/// length, and is made anew at each. A name in it may be no UTF-8, and is not looked at.
fn small(path: &str) -> Option<String> {
    let mut bytes = [0; 4096];
    let len = File::open(path).and_then(|mut file| file.read(&mut bytes)).ok()?;
    Some(String::from_utf8_lossy(&bytes[..len]).into_owned())
}

/// The thread group of a thread.
fn tgid_of(tid: u32) -> Option<u32> {
    let status = small(&format!("/proc/{tid}/status"))?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
}

/// Tells what a flush from thread `tid` means for a file that `opener` opened. `mount_id` is that of the mount,
/// where it is known. An opener that closes the file by an exec passes: what follows its exec is the release.
pub(super) async fn classify(
    runtime: &Runtime,
    tid: u32,
    opener: Option<Process>,
    ino: u64,
    mount_id: Option<u64>,
) -> FlushKind {
    let Some(tgid) = Some(tid).filter(|tid| *tid != 0).and_then(tgid_of) else { return FlushKind::Close };
    if opener.is_some_and(|opener| opener.tgid != tgid) {
        return FlushKind::Passing;
    }
    let reader = Arc::new(AtomicI32::new(0));
    let mut work = runtime.spawn_blocking({
        let reader = reader.clone();
        move || {
            // SAFETY: a plain call without arguments.
            reader.store(unsafe { libc::gettid() }, Ordering::Relaxed);
            classify_now(tid, tgid, opener, ino, mount_id)
        }
    });
    let mut hanging = 0;
    loop {
        match tokio::time::timeout(HANG_LOOK, &mut work).await {
            Ok(kind) => return kind.unwrap_or(FlushKind::Close),
            Err(_) if hangs(reader.load(Ordering::Relaxed)) => hanging += 1,
            Err(_) => hanging = 0,
        }
        if hanging == HANG_LOOKS {
            return FlushKind::Passing;
        }
    }
}

/// Whether a thread of this process sleeps inside the kernel, in a read that is not from a disk.
fn hangs(tid: i32) -> bool {
    let status = small(&format!("/proc/self/task/{tid}/status")).unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("State:")).is_some_and(|state| state.trim().starts_with('D'))
}

fn classify_now(tid: u32, tgid: u32, opener: Option<Process>, ino: u64, mount_id: Option<u64>) -> FlushKind {
    let stat = small(&format!("/proc/{tgid}/stat"));
    let Some(closing) = stat.as_ref().and_then(|stat| Process::with_stat(tgid, stat)) else { return FlushKind::Close };
    if opener.is_some_and(|opener| opener != closing) {
        return FlushKind::Passing;
    }
    let of_thread = if tid == tgid { stat } else { small(&format!("/proc/{tid}/stat")) };
    match of_thread {
        Some(stat) if is_killed(&stat) => FlushKind::Killed,
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

    #[test]
    fn a_descriptor_is_found_by_inode_and_mount() {
        let file = tempfile::tempfile().unwrap();
        let ino = file.metadata().unwrap().ino();
        let own = Process::of(std::process::id()).unwrap();
        assert!(own.holds(ino, None));
        assert!(!own.holds(ino, Some(u64::MAX)));
        let pid = std::process::id();
        let classify_now = |opener| classify_now(pid, pid, Some(opener), ino, None);
        assert_eq!(classify_now(own), FlushKind::Passing);
        drop(file);
        assert_eq!(classify_now(own), FlushKind::Close);
        assert_eq!(classify_now(Process { tgid: 1, started: 0 }), FlushKind::Passing);
    }

    #[test]
    fn a_pipe_and_a_terminal_are_no_files_of_a_mount() {
        for none in ["pipe:[17]", "socket:[4]", "anon_inode:[eventpoll]", "/dev/null", "/dev/pts/0"] {
            assert!(!is_maybe_a_file(Path::new(none)), "{none}");
        }
        for file in ["/mnt/bucket/f", "/mnt/bucket/f (deleted)", "(unreachable)/f", "/dev/shm/m/f"] {
            assert!(is_maybe_a_file(Path::new(file)), "{file}");
        }
    }

    #[test]
    fn a_process_is_found_whatever_its_name() {
        let temp = tempfile::tempdir().unwrap();
        let named = temp.path().join(std::ffi::OsStr::from_bytes(b"\xff\xfe"));
        fs::copy("/bin/sleep", &named).unwrap();
        let mut child = std::process::Command::new(&named).arg("60").spawn().unwrap();
        let found = Process::of(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found.map(|process| process.tgid), Some(child.id()));
    }
}
