//! A mount of a user who is not root: made by fusermount3, under a supervisor, replaced and taken away like any other.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

use super::harness::{BUCKET, Bench, is_mounted, is_root, mount_tmpfs, sh, told, wait_for, wait_until};

/// Any user who is not root, and owns nothing.
const NOBODY: u32 = 65534;

/// The test as a user.
struct User<'b> {
    bench: &'b Bench,
    program: PathBuf,
    place: PathBuf,
}

impl<'b> User<'b> {
    /// Makes the folders theirs, and the program reachable.
    fn new(bench: &'b Bench) -> Self {
        let program = bench.path("ossfuse");
        fs::copy(env!("CARGO_BIN_EXE_ossfuse"), &program).unwrap();
        let place = bench.folder("mnt");
        fs::set_permissions(bench.path(""), fs::Permissions::from_mode(0o755)).unwrap();
        bench.folder("state");
        if is_root() {
            open_device_to_all(bench);
            for name in ["home", "run", "state", "mnt"] {
                chown(bench.path(name), Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        Self { bench, program, place }
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            let id = NOBODY.to_string();
            command.args(["--reuid", &id, "--regid", &id, "--clear-groups", program]);
            command
        } else {
            Command::new(program)
        };
        let usual = self.bench.ossfuse([""; 0]);
        command.env_clear().envs(usual.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.current_dir("/").args(arguments).output().unwrap()
    }

    fn ossfuse(&self, arguments: &[&str]) -> Output {
        self.run(self.program.to_str().unwrap(), arguments)
    }

    /// Runs a script in the mount; it must succeed.
    fn sh(&self, script: &str) -> String {
        let script = format!("cd {} && {script}", self.place.display());
        let output = self.run("bash", &["-euc", &script]);
        assert!(output.status.success(), "{}", told(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn status(&self) -> Value {
        let output = self.ossfuse(&["status", "--json", self.place.to_str().unwrap()]);
        assert!(output.status.success(), "{}", told(&output));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["mounts"][0].take()
    }
}

impl Drop for User<'_> {
    fn drop(&mut self) {
        if is_mounted(&self.place) {
            self.ossfuse(&["umount", "--force", self.place.to_str().unwrap()]);
        }
    }
}

/// As distributions have it; not every container has. In the mounts of this test alone.
fn open_device_to_all(bench: &Bench) {
    let dev = bench.folder("dev");
    mount_tmpfs(&dev, "1M");
    sh(&dev, "mknod fuse c 10 229; chmod 666 fuse; mount --bind fuse /dev/fuse");
}

#[test]
fn a_user_mounts_survives_a_crash_and_unmounts() {
    let Some(bench) = Bench::new() else { return };
    if Command::new("fusermount3").arg("--version").output().is_err() {
        return println!("skipped: fusermount3 is not there; install fuse3");
    }
    let user = User::new(&bench);
    let place = user.place.to_str().unwrap().to_owned();
    let connection = bench.connection();
    let mut arguments = vec!["mount", BUCKET, &place, "-o", "noexec,noatime"];
    arguments.extend(connection.iter().map(String::as_str));
    let output = user.ossfuse(&arguments);
    assert!(output.status.success(), "{}", told(&output));
    assert!(is_mounted(&user.place));
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.contains(&place)).unwrap();
    assert!(line.contains("nosuid,nodev,noexec,noatime"), "{line}");
    assert!(line.contains(&format!(" - fuse.ossfuse {BUCKET} ")), "{line}");
    user.sh("echo one > f; mkdir d");
    let before = user.status();
    assert_eq!(before["worker_restarts"], 0);
    let worker = before["worker_pid"].to_string();
    let output = user.run("kill", &["-9", &worker]);
    assert!(output.status.success(), "{}", told(&output));
    assert_eq!(user.sh("cat f; echo two > d/g; cat d/g"), "one\ntwo\n");
    let after = wait_for("the next worker", || Some(user.status()).filter(|status| status["worker_pid"].is_u64()));
    assert_eq!(after["supervisor_pid"], before["supervisor_pid"]);
    assert_eq!(after["worker_restarts"], 1);
    let output = user.ossfuse(&["umount", &place]);
    assert!(output.status.success(), "{}", told(&output));
    wait_until("it is unmounted", || !is_mounted(&user.place));
    assert_eq!(bench.server.get("d/g").unwrap(), b"two\n");
    let doctor = user.ossfuse(&["doctor"]);
    assert!(told(&doctor).contains("ok    fusermount3: "), "{}", told(&doctor));
}
