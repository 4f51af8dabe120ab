//! What the mounted tests stand on: a bench of their own with a server, folders and a private set of mounts.
//!
//! A test takes a [`Bench`], mounts on it, and lets go of both; nothing of it outlives the test, not even a test
//! that is killed: as root each test thread has a mount namespace of its own, whose mounts end with its processes.
//! Waiting is done by [`wait_until`] alone.

mod mount;
mod server;

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use ossfuse::base::checked;
use tempfile::TempDir;

pub(crate) use mount::{Mount, detach, is_alive, is_mounted};
pub(crate) use server::{BUCKET, Counts, Server};

/// Longest that anything here is waited for.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// Set to 1 where no FUSE can be had: the mounted tests then say that they were skipped.
const SKIP_VARIABLE: &str = "OSSFUSE_SKIP_FUSE";
const LOOK: Duration = Duration::from_millis(5);

pub(crate) const KIB: usize = 1024;
pub(crate) const MIB: usize = 1024 * KIB;

/// A server with an empty bucket, and folders.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) server: Server,
    dir: TempDir,
}

impl Bench {
    /// `None` where mounted tests are to be skipped.
    ///
    /// # Panics
    /// Where FUSE cannot be had and nobody said that this is known.
    pub(crate) fn new() -> Option<Self> {
        Self::prepared(|_| {})
    }

    /// The same, with what `prepare` puts into the folder of the test before the server starts: its data lie in
    /// `server`, the state folders in `state`.
    pub(crate) fn prepared(prepare: impl FnOnce(&Path)) -> Option<Self> {
        if std::env::var(SKIP_VARIABLE).is_ok_and(|value| value == "1") {
            println!("skipped: {SKIP_VARIABLE}=1");
            return None;
        }
        if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/fuse") {
            panic!("/dev/fuse cannot be opened: {error}; this test mounts for real. {SKIP_VARIABLE}=1 skips it");
        }
        enter_private_namespace();
        let dir = tempfile::Builder::new().prefix("ossfuse-it-").tempdir().unwrap();
        for name in ["home", "run"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        prepare(dir.path());
        let server = Server::start(&dir.path().join("server"));
        Some(Self { server, dir })
    }

    /// A path in the folder of the test, which lies outside of every mount.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a folder in the folder of the test.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// Writes a file in the folder of the test.
    pub(crate) fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// The program, with an environment that holds nothing of this machine's but the way to its tools.
    pub(crate) fn ossfuse<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ossfuse"));
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path("home"))
            .env("XDG_RUNTIME_DIR", self.path("run"))
            // Whatever becomes of a test, nothing of its mounts outlives it.
            .env("_OSSFUSE_TIED", "1")
            // Set by hand, to see what becomes of writes without the cure of src/fuse/touch.rs.
            .envs(std::env::var_os("_OSSFUSE_NO_TOUCH").map(|value| ("_OSSFUSE_NO_TOUCH", value)))
            .env("OSS_ACCESS_KEY_ID", "test-ak")
            .env("OSS_ACCESS_KEY_SECRET", "test-sk")
            .stdin(Stdio::null())
            .args(arguments);
        command
    }

    /// The arguments that lead a command to the server and to the state folder of the test.
    pub(crate) fn connection(&self) -> Vec<String> {
        let state = self.path("state").display().to_string();
        let endpoint = self.server.url();
        ["--endpoint", &endpoint, "--region", "cn-hangzhou", "--state-dir", &state].map(str::to_owned).to_vec()
    }

    /// Mounts the bucket with further options.
    pub(crate) fn mount(&self, options: &[&str]) -> Mount<'_> {
        self.mount_at(BUCKET, "mnt", options)
    }

    /// Mounts the bucket, and waits until the first requests of the mount's own are done: for who counts requests.
    pub(crate) fn mount_quiet(&self, options: &[&str]) -> Mount<'_> {
        let asked = || self.server.log().iter().filter(|entry| entry["operation"] == "GetBucketStat").count();
        let before = asked();
        let mount = self.mount(options);
        wait_until("the bucket's use is known", || asked() > before);
        mount
    }

    /// Mounts the bucket with further options and variables.
    pub(crate) fn mount_with(&self, options: &[&str], variables: &[(&str, &OsStr)]) -> Mount<'_> {
        Mount::start(self, BUCKET, &self.folder("mnt"), options, variables)
    }

    /// Mounts the bucket by another binary.
    pub(crate) fn mount_by(&self, program: &Path, options: &[&str]) -> Mount<'_> {
        self.mount_by_with(program, options, &[])
    }

    /// Mounts the bucket by another binary with further variables.
    pub(crate) fn mount_by_with(&self, program: &Path, options: &[&str], variables: &[(&str, &OsStr)]) -> Mount<'_> {
        Mount::start_by(program, self, BUCKET, &self.folder("mnt"), options, variables)
    }

    /// Mounts a bucket or a prefix of it at a folder of the test.
    pub(crate) fn mount_at(&self, spec: &str, place: &str, options: &[&str]) -> Mount<'_> {
        let path = self.path(place);
        if !is_mounted(&path) {
            self.folder(place);
        }
        Mount::start(self, spec, &path, options, &[])
    }

    /// `ossfuse recover list BUCKET --json`, whether or not it is mounted.
    pub(crate) fn recover_list(&self) -> Vec<serde_json::Value> {
        let state = self.path("state").display().to_string();
        let output = self.ossfuse(["recover", "list", BUCKET, "--json", "--state-dir", &state]).output().unwrap();
        assert!(output.status.success(), "{}", told(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The folder of the bucket in the state folder.
    pub(crate) fn state(&self) -> PathBuf {
        self.path("state").join(BUCKET)
    }

    /// The requests that `action` led to.
    pub(crate) fn counting(&self, action: impl FnOnce()) -> Counts {
        self.server.reset_counts();
        action();
        self.server.counts()
    }
}

impl Drop for Bench {
    /// What is still mounted in the folder of the test is detached, so that the folder can go.
    fn drop(&mut self) {
        mount::mount_points().iter().filter(|path| path.starts_with(self.dir.path())).for_each(|path| {
            mount::detach(path);
        });
    }
}

/// Gives the calling thread, and the processes that it starts, mounts of their own, and a `/run` of their own for
/// the sockets. Others than root have the sockets of their `XDG_RUNTIME_DIR`, and no namespace.
fn enter_private_namespace() {
    if !is_root() {
        return;
    }
    // SAFETY: touches this thread's view of the file system alone.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) }, "unshare");
    mount_fs(c"none", c"/", c"none", libc::MS_REC | libc::MS_PRIVATE);
    mount_fs(c"none", c"/run", c"tmpfs", 0);
}

pub(crate) fn is_root() -> bool {
    // SAFETY: reads this process's id.
    unsafe { libc::geteuid() == 0 }
}

/// Shows mount(8)'s real helpers at `/run/sbin-real`, so that links to them can stand in another `/usr/sbin`. Read-only,
/// and never below a folder that a test deletes: what is deleted through a bind mount is gone for the machine.
pub(crate) fn show_real_helpers() {
    let script = "mkdir -p /run/sbin-real; mount --bind /usr/sbin /run/sbin-real; \
                  mount -o remount,bind,ro /run/sbin-real";
    sh(Path::new("/"), script);
}

fn mount_fs(source: &std::ffi::CStr, target: &std::ffi::CStr, kind: &std::ffi::CStr, flags: libc::c_ulong) {
    // SAFETY: terminated strings that live through the call.
    let done = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) };
    check(done, "mount");
}

/// Mounts a tmpfs of this size on a folder of the test, in the namespace of the test.
pub(crate) fn mount_tmpfs(target: &Path, size: &str) {
    let size = format!("size={size}");
    let done = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(target).status();
    assert!(done.unwrap().success());
}

fn check(done: libc::c_int, what: &str) {
    assert_eq!(done, 0, "{what}: {}", io::Error::last_os_error());
}

/// Does something when it goes, also by a panic.
pub(crate) struct Finally<F: FnMut()>(pub(crate) F);

impl<F: FnMut()> Drop for Finally<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Has a child end with the thread that started it.
pub(crate) fn end_with_parent(command: &mut Command) {
    // SAFETY: prctl is a plain system call, allowed between fork and exec.
    unsafe {
        command.pre_exec(|| checked(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL)).map(drop));
    }
}

/// Closes a file, and tells what came of it.
pub(crate) fn close(file: File) -> io::Result<()> {
    // SAFETY: the descriptor was given up and is closed once.
    checked(unsafe { libc::close(file.into_raw_fd()) }).map(drop)
}

/// Has the kernel forget the pages of a file, so that reads come through.
pub(crate) fn forget_pages(file: &File) {
    // SAFETY: a plain call on a descriptor that lives through it.
    assert_eq!(unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) }, 0);
}

/// Sends a signal to a process that a test has started.
pub(crate) fn signal(pid: u32, signal: libc::c_int) {
    // SAFETY: a plain system call.
    check(unsafe { libc::kill(pid.try_into().unwrap(), signal) }, "kill");
}

/// Waits until `ready` gives something.
///
/// # Panics
/// When that takes longer than any machine should need.
pub(crate) fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(begun.elapsed() < DEADLINE, "waited too long: {what}");
        std::thread::sleep(LOOK);
    }
}

/// Waits until `is_so`.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    wait_for(what, || is_so().then_some(()));
}

/// Runs a script with bash in a folder; a failing command ends it.
pub(crate) fn try_sh(folder: &Path, script: &str) -> Output {
    shell(folder, script).output().unwrap()
}

/// A script that is about to be run with bash in a folder.
pub(crate) fn shell(folder: &Path, script: &str) -> Command {
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script]).current_dir(folder).env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    command
}

/// Runs a script that must succeed; gives what it wrote to stdout.
pub(crate) fn sh(folder: &Path, script: &str) -> String {
    let output = try_sh(folder, script);
    assert!(output.status.success(), "{script}: {}", told(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// What a process said, for messages.
pub(crate) fn told(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{}: {}{}", output.status, out, err)
}

/// Bytes that do not repeat, the same for the same seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Fails without filling the screen with bytes.
#[track_caller]
pub(crate) fn assert_same(left: &[u8], right: &[u8], what: &str) {
    assert_eq!(left.len(), right.len(), "{what}: length");
    if let Some(at) = left.iter().zip(right).position(|(a, b)| a != b) {
        panic!("{what}: differs from byte {at} on");
    }
}
