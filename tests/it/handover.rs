//! The process that serves a mount is killed, and nobody who uses the mount notices.
//!
//! Kills fall at named points (between what a request has done and its answer), within the first milliseconds of a
//! worker (`early`), and at random moments under the tools of every day (`tools`).

mod answers;
mod early;
mod sessions;
mod tools;
mod trouble;

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::harness::{
    Bench, Finally, MIB, Mount, assert_same, forget_pages, is_alive, noise, shell, signal, told, wait_for, wait_until,
};
use trouble::{When, kill, under};

/// Kills the worker, and waits for the next one.
fn replace_worker(mount: &Mount<'_>) {
    let (worker, restarts) = (mount.worker_pid(), restarts(mount));
    signal(worker, libc::SIGKILL);
    wait_until("another worker serves", || {
        mount.try_status().is_some_and(|status| status["worker_restarts"].as_u64().is_some_and(|now| now > restarts))
    });
}

fn restarts(mount: &Mount<'_>) -> u64 {
    mount.status()["worker_restarts"].as_u64().unwrap()
}

#[test]
fn status_tells_of_supervisor_worker_and_restarts() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    let status = mount.status();
    assert_eq!(status["supervisor_pid"], json!(mount.pid()));
    assert_eq!((&status["worker_restarts"], &status["recovery"]), (&json!(0), &json!("transparent")));
    let before = mount.worker_pid();
    for signal_number in [libc::SIGKILL, libc::SIGTERM, libc::SIGABRT] {
        let restarts = restarts(&mount);
        signal(mount.worker_pid(), signal_number);
        wait_until("another worker serves", || {
            mount.try_status().is_some_and(|status| status["worker_restarts"] == json!(restarts + 1))
        });
    }
    assert_ne!(mount.worker_pid(), before);
    mount.sh("echo works > f; cat f");
    mount.umount();
    assert_eq!(bench.server.get("f").unwrap(), b"works\n");
}

#[test]
fn everything_that_was_open_goes_on() {
    let Some(bench) = Bench::new() else { return };
    let content = noise(1, 3 * MIB);
    bench.server.put("old", &content);
    bench.server.put("gone", &content[..2000]);
    bench.server.put("big-gone", &content);
    let mount = bench.mount(&["--part-size", "1MiB"]);
    let open = |name: &str| fs::File::open(mount.path(name)).unwrap();
    let mut reader = open("old");
    let mut first = vec![0; MIB];
    reader.read_exact(&mut first).unwrap();
    let unlinked = [open("gone"), open("big-gone")];
    fs::remove_file(mount.path("gone")).unwrap();
    fs::remove_file(mount.path("big-gone")).unwrap();
    let mut writer = fs::File::create(mount.path("new")).unwrap();
    writer.write_all(&content[..MIB + 5]).unwrap();
    let mut edited = fs::File::options().read(true).write(true).open(mount.path("old")).unwrap();
    let mut appended = fs::File::options().append(true).create(true).open(mount.path("log")).unwrap();
    appended.write_all(b"one\n").unwrap();
    let anonymous = fs::File::options().read(true).write(true).create_new(true).open(mount.path("tmp")).unwrap();
    fs::remove_file(mount.path("tmp")).unwrap();
    (&anonymous).write_all(b"temporary").unwrap();
    for _ in 0..3 {
        replace_worker(&mount);
    }
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    assert_same(&[first, rest].concat(), &content, "read on");
    for (mut file, len) in unlinked.into_iter().zip([2000, content.len()]) {
        let mut all = Vec::new();
        file.read_to_end(&mut all).unwrap();
        assert_same(&all, &content[..len], "without its name");
    }
    writer.write_all(&content[MIB + 5..]).unwrap();
    edited.seek(SeekFrom::Start(7)).unwrap();
    edited.write_all(b"changed").unwrap();
    appended.write_all(b"two\n").unwrap();
    (&anonymous).seek(SeekFrom::Start(0)).unwrap();
    let mut kept = String::new();
    (&anonymous).read_to_string(&mut kept).unwrap();
    assert_eq!(kept, "temporary");
    replace_worker(&mount);
    drop((writer, edited, appended, anonymous, reader));
    mount.settle();
    assert_same(&bench.server.get("new").unwrap(), &content, "new");
    let mut changed = content.clone();
    changed[7..14].copy_from_slice(b"changed");
    assert_same(&bench.server.get("old").unwrap(), &changed, "old");
    assert_eq!(bench.server.get("log").unwrap(), b"one\ntwo\n");
    wait_until("nothing is left of what was unlinked", || bench.server.keys() == ["log", "new", "old"]);
    assert_eq!(bench.recover_list(), [Value::Null; 0]);
    assert_eq!(mount.status()["open_handles"], 0);
    mount.umount();
}

#[test]
fn a_directory_is_read_on_by_name() {
    let Some(bench) = Bench::new() else { return };
    let names: Vec<String> = (0..500).map(|i| format!("d/name-{i:04}-{}", "x".repeat(60))).collect();
    for name in &names {
        bench.server.put(name, b"");
    }
    for options in [&[][..], &["--metadata", "plain"]] {
        let mount = bench.mount(options);
        let mut entries = fs::read_dir(mount.path("d")).unwrap();
        let mut seen: Vec<String> = Vec::new();
        for _ in 0..150 {
            seen.push(entries.next().unwrap().unwrap().file_name().into_string().unwrap());
        }
        replace_worker(&mount);
        // Not of what is to come, and not of what was told.
        bench.server.put("d/a-new-one", b"");
        seen.extend(entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()));
        seen.retain(|name| name != "a-new-one");
        let wanted: Vec<&str> = names.iter().map(|name| name.strip_prefix("d/").unwrap()).collect();
        assert_eq!(seen, wanted);
        mount.umount();
    }
}

#[test]
fn a_shell_in_the_mount_and_a_lock_stay() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    mount.sh("mkdir -p a/b; touch lock");
    let script = "cd a/b; exec 9>../../lock; flock -n 9; echo held; read -r; pwd; echo here > file; cat file; ls; \
                  flock -n ../../lock true && echo lost; true";
    let mut shell = shell(&mount.path(""), script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = shell.stdout.take().unwrap();
    let mut held = [0; 5];
    out.read_exact(&mut held).unwrap();
    replace_worker(&mount);
    assert!(!mount.try_sh("flock -n lock true").status.success(), "the lock is held");
    replace_worker(&mount);
    shell.stdin.take().unwrap().write_all(b"\n").unwrap();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert!(shell.wait().unwrap().success());
    assert_eq!(rest, format!("{}\nhere\nfile\n", mount.path("a/b").display()));
    mount.sh("flock -n lock true");
}

/// Arms a point, does something, and sees to it that the worker died there.
fn dying_at(bench: &Bench, mount: &Mount<'_>, point: &str, work: impl FnOnce()) {
    let before = restarts(mount);
    let file = bench.path("crash");
    fs::write(bench.path("crash.new"), point).unwrap();
    fs::rename(bench.path("crash.new"), &file).unwrap();
    work();
    assert!(!file.exists(), "the point {point} was met");
    wait_until("another worker has taken over", || restarts(mount) == before + 1);
}

const POINTS: [&str; 3] = ["begun", "deed", "done"];

/// For each point: `work` is given a name of its own; `there` says whether the name must exist afterwards.
fn done_once(options: &[&str], prepare: &str, work: &str, then: &str) {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount_with(options, &[("_OSSFUSE_CRASH_FILE", bench.path("crash").as_os_str())]);
    for point in POINTS {
        mount.sh(&format!("mkdir {point}; cd {point}; {prepare}"));
        dying_at(&bench, &mount, point, || {
            let output = mount.try_sh(&format!("cd {point}; {work}"));
            assert!(output.status.success(), "{point}: {}", told(&output));
        });
        let output = mount.try_sh(&format!("cd {point}; {then}"));
        assert!(output.status.success(), "{point}: {}", told(&output));
        // What is found by looking is what the table says.
        replace_worker(&mount);
        let output = mount.try_sh(&format!("cd {point}; {then}"));
        assert!(output.status.success(), "{point}, looked up anew: {}", told(&output));
    }
    mount.settle();
    mount.umount();
    assert_eq!(bench.recover_list(), [Value::Null; 0]);
}

#[test]
fn mkdir_is_done_once() {
    done_once(&[], "true", "mkdir d", "test -d d && ! mkdir d 2>/dev/null");
}

#[test]
fn rmdir_is_done_once() {
    done_once(&[], "mkdir d", "rmdir d", "! test -e d");
}

#[test]
fn unlink_is_done_once() {
    done_once(&[], "echo x > f; echo y > g", "rm f", "! test -e f && test -e g");
}

#[test]
fn unlink_of_an_open_file_keeps_it_readable() {
    done_once(&[], "echo x > f", "exec 3<f; rm f; test \"$(cat <&3)\" = x", "! test -e f");
}

#[test]
fn symlink_is_done_once() {
    done_once(&[], "true", "ln -s target l", "test \"$(readlink l)\" = target && ! ln -s other l 2>/dev/null");
}

#[test]
fn a_native_symlink_is_made_once() {
    done_once(&["--symlinks", "native"], "echo x > target", "ln -s target l", "test -L l && test \"$(cat l)\" = x");
}

#[test]
fn mknod_is_done_once() {
    done_once(&[], "true", "mkfifo p", "test -p p && ! mkfifo p 2>/dev/null");
}

#[test]
fn rename_of_a_file_is_done_once() {
    done_once(&[], "echo x > f; echo y > g", "mv f g", "! test -e f && test \"$(cat g)\" = x");
}

#[test]
fn rename_of_an_open_unsent_file_is_done_once() {
    done_once(
        &[],
        "true",
        "exec 3>f; echo one >&3; mv f g; echo two >&3; exec 3>&-",
        "! test -e f && test $(wc -l < g) = 2",
    );
}

#[test]
fn rename_of_a_directory_is_done_once() {
    done_once(
        &[],
        "mkdir d; for i in 1 2 3; do echo $i > d/$i; done",
        "mv d e",
        "! test -e d && test \"$(cat e/*)\" = \"$(seq 3)\"",
    );
}

#[test]
fn setxattr_is_done_once() {
    done_once(&[], "touch f", "setfattr -n user.a -v 1 f", "getfattr -n user.a f >/dev/null");
}

/// CREATE passes two of the points only: nothing is done in the bucket, so it is not begun before it is done.
#[test]
fn create_is_done_once() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount_with(&[], &[("_OSSFUSE_CRASH_FILE", bench.path("crash").as_os_str())]);
    for point in ["deed", "done"] {
        dying_at(&bench, &mount, point, || {
            mount.sh(&format!("set -o noclobber; echo {point} > {point}"));
        });
        assert!(!mount.try_sh(&format!("set -o noclobber; echo again > {point}")).status.success());
        assert_eq!(bench.server.get(point).unwrap(), format!("{point}\n").as_bytes());
    }
    mount.settle();
    mount.umount();
    assert_eq!(bench.recover_list(), [Value::Null; 0]);
}

/// Two processes race for lock files while workers are killed: exactly one wins each.
#[test]
fn a_lock_file_is_won_by_one() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    let racer = |name: &str| {
        let script = format!(
            "i=0; while [ ! -e ../enough ]; do i=$((i + 1)); \
             if (set -o noclobber; echo {name} > lock-$i) 2>> ../err-{name}; then echo $i >> ../won-{name}; fi; done"
        );
        shell(&mount.path(""), &script).spawn().unwrap()
    };
    let when = When { after: 20_000..100_000, answered: true, most: 20 };
    let (_, kills) = under(&mount, &when, kill, |kills| {
        let mut racers = [racer("a"), racer("b")];
        {
            let _enough = Finally(|| drop(bench.file("enough", b"")));
            wait_until("workers were killed", || kills.count() == when.most);
        }
        for racer in &mut racers {
            assert!(racer.wait().unwrap().success());
        }
    });
    let won = |name: &str| -> Vec<u32> {
        let text = fs::read_to_string(bench.path(&format!("won-{name}"))).unwrap_or_default();
        text.lines().map(|line| line.parse().unwrap()).collect()
    };
    let mut all = [won("a"), won("b")].concat();
    all.sort_unstable();
    assert_eq!(all, (1..=all.len() as u32).collect::<Vec<u32>>(), "{kills} kills");
    for name in ["a", "b"] {
        let errors = fs::read_to_string(bench.path(&format!("err-{name}"))).unwrap();
        let other = errors.lines().find(|line| !line.contains("cannot overwrite existing file"));
        assert_eq!(other, None, "another error than losing");
        for lock in won(name) {
            assert_eq!(mount.read(&format!("lock-{lock}")), format!("{name}\n").as_bytes());
        }
    }
}

/// A request over which three workers have died is refused; the mount lives, and others' requests are not harmed.
#[test]
fn a_request_that_kills_its_workers_is_refused() {
    let Some(bench) = Bench::new() else { return };
    let crash = bench.path("crash");
    let content = noise(6, MIB);
    bench.server.put("slow", &content);
    let mount = bench.mount_with(&[], &[("_OSSFUSE_CRASH_FILE", crash.as_os_str())]);
    // One that only waits meanwhile, and is there at all three deaths, is none of theirs.
    bench.server.hold("GetObject", 0);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| fs::read(mount.path("slow")));
        bench.server.wait_for_held();
        fs::write(&crash, "abort begun").unwrap();
        let output = mount.try_sh("mkdir d");
        assert!(told(&output).contains("Input/output error"), "{}", told(&output));
        fs::remove_file(&crash).unwrap();
        bench.server.clear_faults();
        assert_same(&reader.join().unwrap().unwrap(), &content, "slow");
    });
    assert_eq!(restarts(&mount), 3);
    assert!(mount.log().contains("has ended three workers"), "{}", mount.log());
    mount.sh("mkdir e; echo works > e/f; cat e/f");
    mount.umount();
}

/// The binary on disk takes over during a copy; one that cannot read the state is refused before anything happens.
#[test]
fn an_upgrade_is_not_noticed() {
    let Some(bench) = Bench::new() else { return };
    let program = bench.path("ossfuse");
    fs::copy(env!("CARGO_BIN_EXE_ossfuse"), &program).unwrap();
    fs::write(bench.folder("source").join("big"), noise(2, 48 * MIB)).unwrap();
    let mount = bench.mount_by(&program, &["--part-size", "1MiB"]);
    let (supervisor, worker) = (mount.pid(), mount.worker_pid());
    let mut open = fs::File::create(mount.path("open")).unwrap();
    open.write_all(b"one ").unwrap();
    let mut copy = shell(&mount.path(""), "for i in 1 2 3; do cp ../source/big c$i; done").spawn().unwrap();
    let upgrade = || bench.ossfuse(["upgrade"]).arg(mount.path("")).output().unwrap();
    for _ in 0..3 {
        // A running binary cannot be written, but another can be put in its place.
        fs::copy(env!("CARGO_BIN_EXE_ossfuse"), bench.path("new")).unwrap();
        fs::rename(bench.path("new"), &program).unwrap();
        let output = upgrade();
        assert!(output.status.success(), "{}", told(&output));
    }
    assert!(copy.wait().unwrap().success());
    open.write_all(b"two").unwrap();
    drop(open);
    let status = mount.status();
    assert_eq!(status["supervisor_pid"], json!(supervisor), "the process that systemd knows stays");
    assert_ne!(status["worker_pid"], json!(worker));
    bench.file("new", b"#!/bin/sh\necho '{\"version\":\"0.0.1\",\"session\":0,\"ledger\":0,\"link\":0}'\n");
    fs::set_permissions(bench.path("new"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(bench.path("new"), &program).unwrap();
    let output = upgrade();
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    assert!(told(&output).contains("version 0.0.1 cannot read"), "{}", told(&output));
    assert_eq!(mount.status()["worker_pid"], status["worker_pid"]);
    mount.settle();
    for key in ["c1", "c2", "c3"] {
        assert_same(&bench.server.get(key).unwrap(), &noise(2, 48 * MIB), key);
    }
    assert_eq!(bench.server.get("open").unwrap(), b"one two");
    mount.umount();
}

/// The supervisor dies: the worker serves on, and starts another, which survives the worker's death in turn.
#[test]
fn a_supervisor_that_dies_is_replaced() {
    let Some(bench) = Bench::new() else { return };
    let mut mount = bench.mount_with(&[], &[("_OSSFUSE_TIED", "0".as_ref())]);
    let mut open = fs::File::create(mount.path("open")).unwrap();
    open.write_all(b"one ").unwrap();
    let first = mount.pid();
    signal(first, libc::SIGKILL);
    mount.wait();
    let supervisor = wait_for("another supervisor", || {
        let status = mount.try_status()?;
        status["supervisor_pid"].as_u64().filter(|pid| *pid != u64::from(first))
    });
    open.write_all(b"two ").unwrap();
    for _ in 0..2 {
        replace_worker(&mount);
    }
    open.write_all(b"three").unwrap();
    drop(open);
    assert_eq!(mount.status()["supervisor_pid"], json!(supervisor));
    assert_eq!(bench.server.get("open").unwrap(), b"one two three");
    mount.unmount();
    wait_until("the other supervisor ends", || !is_alive(u32::try_from(supervisor).unwrap()));
}

/// On a kernel that does not send requests again, the mount is made anew: what was open fails, what was acknowledged
/// is there.
#[test]
fn without_resend_the_mount_is_replaced() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount_with(&[], &[("_OSSFUSE_NO_RESEND", "1".as_ref())]);
    assert_eq!(mount.status()["recovery"], json!("remount"));
    mount.sh("echo closed > closed");
    let mut open = fs::File::create(mount.path("synced")).unwrap();
    open.write_all(b"synced").unwrap();
    open.sync_all().unwrap();
    replace_worker(&mount);
    assert!(open.write_all(b"more").is_err() || open.sync_all().is_err(), "what was open fails");
    drop(open);
    mount.settle();
    assert_eq!(mount.sh("cat closed synced"), "closed\nsynced");
    assert_eq!(bench.server.get("synced").unwrap(), b"synced");
    mount.umount();
}

/// A ledger that cannot be read costs what was open, and nothing else: one of garbage, cut off, empty, or of another
/// version.
#[test]
fn a_damaged_ledger_stops_nothing() {
    let Some(bench) = Bench::new() else { return };
    let other_version = |mut bytes: Vec<u8>| {
        bytes[4] += 1;
        bytes
    };
    let damages: [&dyn Fn(Vec<u8>) -> Vec<u8>; 4] =
        [&|_| noise(5, 4096), &|bytes| bytes[..20].to_vec(), &|_| Vec::new(), &other_version];
    let mount = bench.mount(&[]);
    mount.sh("mkdir d; echo x > d/f");
    for damage in damages {
        let mut open = fs::File::open(mount.path("d/f")).unwrap();
        let ledger = bench.state().join("ledger");
        let bytes = fs::read(&ledger).unwrap();
        // In its place, as a whole: the worker that still serves goes on with its own.
        fs::write(ledger.with_extension("new"), damage(bytes)).unwrap();
        fs::rename(ledger.with_extension("new"), &ledger).unwrap();
        replace_worker(&mount);
        // Not of what the kernel has of it.
        forget_pages(&open);
        let error = open.read_to_string(&mut String::new()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ESTALE));
        drop(open);
        assert_eq!(mount.sh("cat d/f; echo y > d/g; ls d"), "x\nf\ng\n");
    }
    mount.umount();
}

/// A worker that does nothing any more is replaced; what was asked of it is answered by the next one.
#[test]
fn a_worker_that_hangs_is_replaced() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount_with(&[], &[("_OSSFUSE_PING_PATIENCE", "2".as_ref())]);
    mount.sh("echo before > f");
    let worker = mount.worker_pid();
    signal(worker, libc::SIGSTOP);
    mount.sh("echo after > g; cat f g");
    wait_until("it is gone", || !is_alive(worker));
    assert!(mount.log().contains("has not answered for"), "{}", mount.log());
    assert_eq!(restarts(&mount), 1);
    mount.umount();
}

/// One whose every request waits for the service does not hang.
#[test]
fn a_worker_that_waits_for_the_service_is_left_alone() {
    let Some(bench) = Bench::new() else { return };
    let patience = Duration::from_secs(8);
    let keys: Vec<String> = (0..32).map(|n| format!("d/{n}")).collect();
    keys.iter().for_each(|key| bench.server.put(key, key.as_bytes()));
    let mount = bench.mount_with(&[], &[("_OSSFUSE_PING_PATIENCE", "8".as_ref())]);
    let worker = mount.worker_pid();
    for operation in ["GetObject", "PutObject"] {
        bench.server.hold(operation, 0);
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for key in &keys {
                scope.spawn(|| drop(fs::read(mount.path(key))));
                let new = mount.path(&format!("{key}-new"));
                scope.spawn(move || drop(fs::write(new, b"new")));
            }
            bench.server.wait_for_held();
            // As long as it takes to be taken for hanging.
            wait_until("it was asked for long enough", || begun.elapsed() > patience * 3 / 2);
            bench.server.clear_faults();
        });
    }
    assert_eq!((mount.worker_pid(), restarts(&mount)), (worker, 0));
    mount.umount();
}

/// What was answered of attributes is seen at once after a death, also where that falls between two notes of it; and
/// goes along when the file is renamed.
#[test]
fn attributes_that_were_set_stay_set() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount_with(&[], &[("_OSSFUSE_CRASH_FILE", bench.path("crash").as_os_str())]);
    for (name, then) in [("f", "true"), ("g", "mv g moved; mv moved g"), ("h", "mkdir d; mv h d; mv d e; mv e/h h")] {
        mount.sh(&format!("echo x > {name}; chown 7:8 {name}"));
        dying_at(&bench, &mount, "attributes-noted", || {
            mount.sh(&format!("touch -d @5 {name}; {then}; chmod 600 {name}"));
        });
        replace_worker(&mount);
        assert_eq!(mount.sh(&format!("stat -c '%a %u:%g %Y' {name}")), "600 7:8 5\n");
    }
    // The kernel knows the name, the worker does not know the file.
    mount.settle();
    replace_worker(&mount);
    mount.sh("echo y > f");
    mount.umount();
    let again = bench.mount(&[]);
    assert_eq!(again.sh("stat -c '%a %u:%g' f; stat -c '%a %u:%g %Y' g h"), "600 7:8\n600 7:8 5\n600 7:8 5\n");
}

/// Somebody else has the file open for writing, too: what was closed on the local disk goes to the bucket all the same.
#[test]
fn what_was_closed_locally_is_sent_by_the_next_worker() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&["--close", "local"]);
    mount.sh("echo first > f");
    mount.settle();
    let open = fs::File::options().read(true).write(true).open(mount.path("f")).unwrap();
    bench.server.hold("PutObject", 0);
    mount.sh("echo second > f");
    replace_worker(&mount);
    bench.server.clear_faults();
    wait_until("it is sent", || bench.server.get("f").as_deref() == Some(b"second\n"));
    drop(open);
    mount.umount();
}

/// A close that is interrupted publishes nothing, whoever takes over before the file is let go of.
#[test]
fn an_interrupted_close_stays_interrupted() {
    let Some(bench) = Bench::new() else { return };
    for of_all in [false, true] {
        let mount = bench.mount(&[]);
        bench.server.hold("PutObject", 0);
        // Another process has the descriptor, so that it is not released with the close.
        let script = "import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: None)
f = os.open('f', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
os.write(f, b'half')
if os.fork() == 0:
    sys.stdin.read()
    os._exit(0)
try:
    os.close(f)
    print('closed')
except InterruptedError:
    print('interrupted', flush=True)
os.wait()";
        let mut command = Command::new("python3");
        command.args(["-c", script]).current_dir(mount.path("")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut writer = command.spawn().unwrap();
        bench.server.wait_for_held();
        signal(writer.id(), libc::SIGTERM);
        let mut said = [0; 11];
        writer.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
        assert_eq!(&said, b"interrupted");
        let mount = if of_all {
            mount.kill();
            drop(writer.stdin.take());
            drop(writer.wait());
            bench.server.let_the_dead_go();
            bench.mount(&[])
        } else {
            replace_worker(&mount);
            drop(writer.stdin.take());
            assert!(writer.wait().unwrap().success());
            bench.server.clear_faults();
            mount
        };
        mount.settle();
        assert_eq!(bench.server.keys(), [""; 0], "of all: {of_all}");
        let kept = bench.recover_list();
        assert_eq!(kept.len(), 1, "{kept:?}");
        let id = kept[0]["id"].as_str().unwrap().to_owned();
        mount.umount();
        let state = bench.path("state").display().to_string();
        let discarded = bench.ossfuse(["recover", "discard", &id, "--state-dir", &state]).output().unwrap();
        assert!(discarded.status.success(), "{}", told(&discarded));
    }
}
