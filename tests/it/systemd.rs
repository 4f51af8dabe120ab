//! As a service of systemd: what the mount tells it, on a notify socket of the test's own, and in which order.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use super::harness::{BUCKET, Bench, Mount, is_alive, is_mounted, signal, told, wait_for, wait_until};

/// The manager's end of sd_notify(3).
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn listen(bench: &Bench) -> Self {
        let path = bench.path("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        Self { socket, path }
    }

    fn variable(&self) -> (&'static str, &OsStr) {
        ("NOTIFY_SOCKET", self.path.as_os_str())
    }

    /// The next message with this word in it, as its lines.
    fn hear(&self, word: &str) -> Vec<String> {
        let mut buffer = [0; 4096];
        wait_for(word, || {
            let size = self.socket.recv(&mut buffer).ok()?;
            let text = std::str::from_utf8(&buffer[..size]).unwrap();
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.iter().any(|line| line.starts_with(word)).then_some(lines)
        })
    }

    fn forget(&self) {
        while self.socket.recv(&mut [0; 4096]).is_ok() {}
    }
}

fn main_pid(pid: u32) -> String {
    format!("MAINPID={pid}")
}

#[test]
fn systemd_hears_of_start_life_upgrade_and_end() {
    let Some(bench) = Bench::new() else { return };
    let manager = Manager::listen(&bench);
    let program = bench.path("ossfuse");
    fs::copy(env!("CARGO_BIN_EXE_ossfuse"), &program).unwrap();
    let mut mount = bench.mount_by_with(&program, &[], &[manager.variable()]);
    let status = format!("STATUS=serving {}", mount.path("").display());
    let ready = manager.hear("READY=1");
    assert_eq!(ready, [main_pid(mount.pid()), "READY=1".to_owned(), status.clone()]);
    assert_eq!(manager.hear("WATCHDOG=1"), ["WATCHDOG=1"]);
    let output = bench.ossfuse(["upgrade"]).arg(mount.path("")).output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    assert_eq!(manager.hear("STATUS=upgrading"), ["STATUS=upgrading"]);
    assert_eq!(manager.hear("READY=1"), [main_pid(mount.pid()), "READY=1".to_owned(), status]);
    signal(mount.pid(), libc::SIGTERM);
    assert_eq!(manager.hear("STOPPING=1"), ["STOPPING=1", "STATUS=sending what is pending"]);
    assert!(mount.wait().success());
}

/// The supervisor, which systemd takes for the service, is killed in the middle of a write: nobody notices, systemd is
/// told of the next one, and a service that is started again finds it.
#[test]
fn a_service_goes_on_when_its_main_process_is_killed() {
    let Some(bench) = Bench::new() else { return };
    let manager = Manager::listen(&bench);
    let variables = [manager.variable(), ("_OSSFUSE_TIED", "0".as_ref())];
    let mut mount = bench.mount_with(&[], &variables);
    manager.hear("READY=1");
    let mut open = fs::File::create(mount.path("open")).unwrap();
    open.write_all(b"one ").unwrap();
    let first = mount.pid();
    signal(first, libc::SIGKILL);
    mount.wait();
    let next = wait_for("another supervisor", || {
        let pid = mount.try_status()?["supervisor_pid"].as_u64()?;
        u32::try_from(pid).ok().filter(|pid| *pid != first)
    });
    let heard = manager.hear("MAINPID=");
    assert_eq!(heard[..2], [main_pid(next), "READY=1".to_owned()]);
    manager.forget();
    let again = || {
        let mut command = Mount::command(&bench, BUCKET, &mount.path(""), &["--foreground"]);
        command.env(manager.variable().0, manager.variable().1);
        command
    };
    let output = again().output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    assert!(told(&output).contains(&format!("process {next} holds it")), "{}", told(&output));
    assert_eq!(manager.hear("MAINPID=")[..2], [main_pid(next), "READY=1".to_owned()]);
    let by_hand = again().env_remove("NOTIFY_SOCKET").output().unwrap();
    assert!(told(&by_hand).contains("is mounted there already"), "{}", told(&by_hand));
    open.write_all(b"two").unwrap();
    drop(open);
    assert_eq!(bench.server.get("open").unwrap(), b"one two");
    let output = mount.umount_command(&[]).output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    assert!(!is_mounted(&mount.path("")));
    wait_until("the other supervisor ends", || !is_alive(next));
}
