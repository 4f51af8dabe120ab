//! A mount of a test: `ossfuse mount -f` as a child, watched, killed and taken away.
//!
//! What is dropped is killed, never asked: a test that fails must not hang on what it has found to be broken.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output};

use serde_json::Value;

use super::{Bench, end_with_parent, sh, told, try_sh, wait_for, wait_until};

/// A live mount.
#[derive(Debug)]
pub(crate) struct Mount<'b> {
    bench: &'b Bench,
    child: Child,
    path: PathBuf,
    log: PathBuf,
}

impl<'b> Mount<'b> {
    /// Mounts and waits until the mount answers.
    pub(super) fn start(
        bench: &'b Bench,
        spec: &str,
        path: &Path,
        options: &[&str],
        variables: &[(&str, &OsStr)],
    ) -> Self {
        Self::start_by(Path::new(env!("CARGO_BIN_EXE_ossfuse")), bench, spec, path, options, variables)
    }

    /// The same by another binary.
    pub(super) fn start_by(
        program: &Path,
        bench: &'b Bench,
        spec: &str,
        path: &Path,
        options: &[&str],
        variables: &[(&str, &OsStr)],
    ) -> Self {
        let log = path.with_extension("log");
        let usual = Self::command(bench, spec, path, options);
        let mut command = Command::new(program);
        command.args(usual.get_args()).env_clear();
        command
            .envs(usual.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .stdin(std::process::Stdio::null());
        let file = std::fs::File::options().append(true).create(true).open(&log).unwrap();
        command.envs(variables.iter().copied());
        command.arg("--foreground").stdout(file.try_clone().unwrap()).stderr(file);
        end_with_parent(&mut command);
        let mut mount = Self { bench, child: command.spawn().unwrap(), path: path.to_owned(), log };
        wait_until("the mount is up", || {
            if let Some(status) = mount.child.try_wait().unwrap() {
                panic!("the mount ended ({status})");
            }
            mount.is_up()
        });
        mount
    }

    /// `ossfuse mount`, not run yet.
    pub(crate) fn command(bench: &Bench, spec: &str, path: &Path, options: &[&str]) -> Command {
        let mut command = bench.ossfuse(["mount", spec]);
        command.arg(path).args(bench.connection()).args(options);
        command
    }

    fn is_up(&self) -> bool {
        is_mounted(&self.path) && self.bench.ossfuse(["status"]).arg(&self.path).output().unwrap().status.success()
    }

    /// The mount point, or what is in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        if name.is_empty() { self.path.clone() } else { self.path.join(name) }
    }

    /// The supervisor: the process that holds the mount.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process that serves it, as `status` tells.
    pub(crate) fn worker_pid(&self) -> u32 {
        u32::try_from(self.status()["worker_pid"].as_u64().expect("a worker")).unwrap()
    }

    /// Runs a script in the mount; it must succeed.
    pub(crate) fn sh(&self, script: &str) -> String {
        sh(&self.path, script)
    }

    /// Runs a script in the mount.
    pub(crate) fn try_sh(&self, script: &str) -> Output {
        try_sh(&self.path, script)
    }

    /// The bytes of a file, by the kernel.
    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// What `status --json` says of it.
    pub(crate) fn status(&self) -> Value {
        let output = self.bench.ossfuse(["status", "--json"]).arg(&self.path).output().unwrap();
        assert!(output.status.success(), "{}", told(&output));
        let mut report: Value = serde_json::from_slice(&output.stdout).unwrap();
        report["mounts"][0].take()
    }

    /// The same, unless no worker answers just now.
    pub(crate) fn try_status(&self) -> Option<Value> {
        let output = self.bench.ossfuse(["status", "--json"]).arg(&self.path).output().unwrap();
        let mut report: Value = serde_json::from_slice(&output.stdout).ok()?;
        Some(report["mounts"][0].take()).filter(|status| status["worker_pid"].is_u64())
    }

    /// The processes that the supervisor has started: its worker, if there is one just now.
    pub(crate) fn children(&self) -> Vec<u32> {
        children(self.child.id())
    }

    /// Waits until nothing is on its way: no handle is open and nothing is pending.
    pub(crate) fn settle(&self) {
        wait_until("the mount is quiet", || {
            let status = self.status();
            status["open_handles"] == 0 && status["pending"]["files"] == 0
        });
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// `ossfuse umount`, not run yet.
    pub(crate) fn umount_command(&self, options: &[&str]) -> Command {
        let mut command = self.bench.ossfuse(["umount"]);
        command.arg(&self.path).args(options);
        command
    }

    /// Unmounts as a user does; what was written is in the bucket then.
    pub(crate) fn umount(mut self) {
        self.unmount();
        assert!(self.wait().success(), "the mount ended well");
        assert!(!is_mounted(&self.path));
    }

    /// The same, whatever process holds the mount. A process that another test is starting has all descriptors of this
    /// one until it executes its program: for that moment the mount is busy.
    pub(crate) fn unmount(&self) {
        wait_until("it is unmounted", || {
            let output = self.umount_command(&[]).output().unwrap();
            let is_busy = String::from_utf8_lossy(&output.stderr).contains(" is busy: ");
            assert!(output.status.success() || is_busy, "{}", told(&output));
            output.status.success()
        });
    }

    /// Waits for the end of its process.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        wait_for("the process of the mount ends", || self.child.try_wait().unwrap())
    }

    /// Kills all its processes, as power loss does but for the disk, and clears the mount away.
    pub(crate) fn kill(mut self) {
        self.die();
        detach(&self.path);
    }

    /// Kills all its processes and leaves the dead mount. Workers of tests end with their supervisor.
    pub(crate) fn die(&mut self) {
        let workers = children(self.child.id());
        drop(self.child.kill());
        drop(self.child.wait());
        for worker in workers {
            wait_until("the worker ends with its supervisor", || !is_alive(worker));
        }
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        // The end of the process also ends whoever hangs in the mount.
        self.die();
        if is_mounted(&self.path) {
            detach(&self.path);
        }
        if std::thread::panicking() {
            eprintln!("log of {}:\n{}", self.path.display(), self.log());
        }
    }
}

/// The processes that a process has started and not waited for.
fn children(pid: u32) -> Vec<u32> {
    let listed = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    listed.split_ascii_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// Whether any thread of a process still does anything: until none does, its connections stand. What is left of one
/// that nobody waits for does not count.
pub(crate) fn is_alive(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.into_iter().any(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    })
}

/// Whether something is mounted at a path, in the namespace of the calling thread.
pub(crate) fn is_mounted(path: &Path) -> bool {
    mount_points().iter().any(|point| point == path)
}

/// Where something is mounted, in the namespace of the calling thread.
pub(super) fn mount_points() -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect()
}

/// Takes a mount away, whoever uses it.
pub(crate) fn detach(path: &Path) {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: a terminated string that lives through the call. That nothing is there any more is fine.
    unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
}
