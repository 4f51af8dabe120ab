//! The process that serves a mount is killed, and nobody who uses the mount notices.
//!
//! Kills fall at named points (between what a request has done and its answer), within the first milliseconds of a
//! worker, and at random moments under the tools of every day.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::harness::{Bench, KIB, MIB, Mount, assert_same, is_alive, noise, shell, signal, told, wait_for, wait_until};

/// Kills workers of a mount again and again until told to stop.
struct Killer<'m> {
    mount: &'m Mount<'m>,
    stop: AtomicBool,
    kills: AtomicU32,
}

impl Killer<'_> {
    /// Runs `work` while workers are killed, each `pause` (out of a range of milliseconds) after it has come up; after
    /// `most` kills the rest of the work is done in peace.
    fn over<T>(mount: &Mount<'_>, pause: std::ops::Range<u64>, most: u32, work: impl FnOnce() -> T) -> (T, u32) {
        let killer = Killer { mount, stop: AtomicBool::new(false), kills: AtomicU32::new(0) };
        let done = std::thread::scope(|scope| {
            let kills = scope.spawn(|| killer.kill_on(pause, most));
            let done = work();
            killer.stop.store(true, Ordering::Relaxed);
            kills.join().unwrap();
            done
        });
        (done, killer.kills.into_inner())
    }

    fn kill_on(&self, pause: std::ops::Range<u64>, most: u32) {
        let random = noise(u64::from(self.mount.pid()), 8 * most as usize + 8);
        for roll in random.chunks_exact(8).take(most as usize) {
            let roll = u64::from_le_bytes(roll.try_into().unwrap());
            let Some(worker) = self.next_worker() else { return };
            std::thread::sleep(Duration::from_millis(pause.start + roll % (pause.end - pause.start)));
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            signal(worker, libc::SIGKILL);
            wait_until("it is dead", || !is_alive(worker));
            self.kills.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A worker that answers; `None` once the work is done.
    fn next_worker(&self) -> Option<u32> {
        wait_for("a worker answers", || {
            if self.stop.load(Ordering::Relaxed) {
                return Some(None);
            }
            Some(Some(u32::try_from(self.mount.try_status()?["worker_pid"].as_u64()?).unwrap()))
        })
    }
}

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

/// Killed before each of its copies takes effect, and before its delete: the exchange is done all the same, and who has
/// one of the files open goes on with that file.
#[test]
fn an_exchange_is_done_once_whenever_its_worker_dies() {
    for (operation, skip) in [("CopyObject", 0), ("CopyObject", 1), ("CopyObject", 2), ("DeleteObject", 0)] {
        let Some(bench) = Bench::new() else { return };
        bench.server.put("one", b"first");
        bench.server.put("two", b"the second");
        let mount = bench.mount(&[]);
        let mut open = fs::OpenOptions::new().read(true).write(true).open(mount.path("one")).unwrap();
        bench.server.hold(operation, skip);
        let (one, two) = (mount.path("one"), mount.path("two"));
        let renaming = std::thread::spawn(move || super::rename::exchange(&one, &two));
        bench.server.wait_for_held();
        signal(mount.worker_pid(), libc::SIGKILL);
        bench.server.clear_faults();
        renaming.join().unwrap().unwrap_or_else(|error| panic!("{operation} {skip}: {error}"));
        assert_eq!(mount.sh("cat one; echo; cat two"), "the second\nfirst", "{operation} {skip}");
        open.seek(SeekFrom::End(0)).unwrap();
        open.write_all(b", and more").unwrap();
        drop(open);
        mount.settle();
        let found = ["one", "two"].map(|key| bench.server.get(key).unwrap());
        assert_eq!(found, [&b"the second"[..], b"first, and more"], "{operation} {skip}");
        mount.umount();
    }
}

/// What is written after a worker has died changes the object: also where the dead one had hardly begun a session, or had
/// ended one.
#[test]
fn an_edit_stays_one_whenever_its_worker_dies() {
    let Some(bench) = Bench::new() else { return };
    let content = noise(9, 150 * KIB);
    bench.server.put("appended", &content);
    bench.server.put("edited", &content);
    let variables = [("_OSSFUSE_CRASH_FILE", bench.path("crash"))];
    let variables = variables.each_ref().map(|(name, path)| (*name, path.as_os_str()));
    let mount = bench.mount_with(&["--fsync", "remote", "--part-size", "100KiB"], &variables);
    let mut appended = fs::OpenOptions::new().append(true).open(mount.path("appended")).unwrap();
    dying_at(&bench, &mount, "session-folder-made", || appended.write_all(b"more").unwrap());
    close(appended).unwrap();
    assert_same(&bench.server.get("appended").unwrap(), &[&content[..], b"more"].concat(), "appended");

    let edited = fs::OpenOptions::new().read(true).write(true).open(mount.path("edited")).unwrap();
    edited.write_all_at(b"one", 5).unwrap();
    dying_at(&bench, &mount, "done-noted", || edited.sync_all().unwrap());
    let mut start = [0; 8];
    edited.read_exact_at(&mut start, 0).unwrap();
    edited.write_all_at(b"two", 20).unwrap();
    close(edited).unwrap();
    let mut wanted = content;
    wanted[5..8].copy_from_slice(b"one");
    assert_eq!(start, wanted[..8]);
    wanted[20..23].copy_from_slice(b"two");
    assert_same(&bench.server.get("edited").unwrap(), &wanted, "edited");
}

/// A rename of a file that is being edited takes the edits along, though a look at the new name shows the copy already.
#[test]
fn a_renamed_edit_is_not_taken_for_what_it_replaces() {
    for point in ["rename-session-moved", "rename-shown", "rename-deleted"] {
        let Some(bench) = Bench::new() else { return };
        let mut content = noise(9, 150 * KIB);
        bench.server.put("old", &content);
        let mount = bench.mount_with(&[], &[("_OSSFUSE_CRASH_FILE", bench.path("crash").as_os_str())]);
        let edited = fs::OpenOptions::new().write(true).open(mount.path("old")).unwrap();
        edited.write_all_at(b"changed", 5).unwrap();
        dying_at(&bench, &mount, point, || fs::rename(mount.path("old"), mount.path("new")).unwrap());
        close(edited).unwrap();
        content[5..12].copy_from_slice(b"changed");
        assert_same(&bench.server.get("new").unwrap(), &content, point);
        assert_eq!(bench.server.keys(), ["new"], "{point}");
    }
}

/// A name that was free when a file was made is expected to be free by the next worker too.
#[test]
fn what_must_be_new_must_be_new_for_the_next_worker_too() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&["--exclusive-create", "remote", "--part-size", "100KiB"]);
    mount.sh("ls");
    let options = || fs::OpenOptions::new().write(true).clone();
    let mut exclusive = options().create_new(true).open(mount.path("exclusive")).unwrap();
    let mut large = options().create_new(true).open(mount.path("large")).unwrap();
    large.write_all(&noise(4, 350 * KIB)).unwrap();
    let mut joined = options().create(true).append(true).open(mount.path("joined")).unwrap();
    joined.write_all(b"one ").unwrap();
    replace_worker(&mount);
    for key in ["exclusive", "large", "joined"] {
        bench.server.put(key, b"theirs ");
    }
    exclusive.write_all(b"ours").unwrap();
    joined.write_all(b"two").unwrap();
    for file in [exclusive, large] {
        assert_eq!(close(file).unwrap_err().raw_os_error(), Some(libc::EEXIST));
    }
    close(joined).unwrap();
    let found = ["exclusive", "large", "joined"].map(|key| bench.server.get(key).unwrap());
    assert_eq!(found, [&b"theirs "[..], b"theirs ", b"theirs one two"]);
}

/// Closes a file; what `close(2)` says counts.
fn close(file: fs::File) -> std::io::Result<()> {
    // SAFETY: the descriptor is this function's own.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Two processes race for lock files while workers are killed: exactly one wins each.
#[test]
fn a_lock_file_is_won_by_one() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    let rounds = 200;
    let racer = |name: &str| {
        let script = format!(
            "for i in $(seq {rounds}); do if (set -o noclobber; echo {name} > lock-$i) 2>> ../err-{name}; \
             then echo $i >> ../won-{name}; fi; done"
        );
        shell(&mount.path(""), &script).spawn().unwrap()
    };
    let (_, kills) = Killer::over(&mount, 20..100, 30, || {
        let mut racers = [racer("a"), racer("b")];
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
    assert_eq!(all, (1..=rounds).collect::<Vec<u32>>(), "{kills} kills");
    for name in ["a", "b"] {
        let errors = fs::read_to_string(bench.path(&format!("err-{name}"))).unwrap();
        let other = errors.lines().find(|line| !line.contains("cannot overwrite existing file"));
        assert_eq!(other, None, "another error than losing");
        for lock in won(name) {
            assert_eq!(mount.read(&format!("lock-{lock}")), format!("{name}\n").as_bytes());
        }
    }
    assert!(kills > 2, "{kills}");
}

/// The tools of every day under kills. Each script must end well, and leave what `then` looks for.
fn survives(prepare: impl FnOnce(&Bench, &Path), script: &str, then: &str) {
    let Some(bench) = Bench::new() else { return };
    prepare(&bench, &bench.folder("source"));
    let mount = bench.mount(&["--part-size", "1MiB"]);
    let (output, kills) = Killer::over(&mount, 100..300, 20, || mount.try_sh(script));
    assert!(output.status.success(), "after {kills} kills: {}", told(&output));
    println!("{kills} kills");
    mount.settle();
    let output = mount.try_sh(then);
    assert!(output.status.success(), "after {kills} kills: {}", told(&output));
    mount.umount();
    assert_eq!(bench.recover_list(), [Value::Null; 0]);
    let again = bench.mount(&[]);
    let output = again.try_sh(then);
    assert!(output.status.success(), "another mount: {}", told(&output));
}

fn big(_: &Bench, folder: &Path) {
    fs::write(folder.join("big"), noise(2, 48 * MIB)).unwrap();
}

fn tree(_: &Bench, folder: &Path) {
    for i in 0..120_usize {
        let sub = folder.join(format!("tree/{}", i % 7));
        fs::create_dir_all(&sub).unwrap();
        fs::write(sub.join(format!("file-{i}")), noise(i as u64, (i * 331) % (64 * KIB))).unwrap();
    }
}

#[test]
fn cp_in_and_out_survives() {
    survives(big, "cp ../source/big a; cp a ../out; cmp ../source/big ../out", "cmp ../source/big a");
}

#[test]
fn cp_of_a_tree_survives() {
    survives(tree, "cp -r ../source/tree t; find t -type f | wc -l", "diff -r ../source/tree t");
}

#[test]
fn rsync_and_tar_survive() {
    let script = "rsync -a ../source/tree/ r; tar cf ../t.tar -C ../source tree; tar xf ../t.tar; \
                  test \"$(find tree -type f | wc -l)\" = 120";
    survives(tree, script, "diff -r ../source/tree r; diff -r ../source/tree tree");
}

#[test]
fn git_survives() {
    let prepare = |bench: &Bench, folder: &Path| {
        tree(bench, folder);
        super::harness::sh(
            folder,
            "cd tree; git init -q; git config user.email t@t; git config user.name t; git add .; git commit -qm one",
        );
    };
    let script = "git clone -q ../source/tree c; cd c; git config user.email t@t; git config user.name t; \
                  echo new > new; git add new; git commit -qm two; git fsck --strict 2>&1; git status --porcelain";
    survives(
        prepare,
        script,
        "cd c; test \"$(git log --format=%s | tr '\\n' ' ')\" = 'two one '; git diff --exit-code",
    );
}

#[test]
fn sqlite_survives() {
    let script = "for i in $(seq 30); do sqlite3 db 'create table if not exists t(i); begin; insert into t values(1); \
                  insert into t values(2); commit;'; done";
    survives(
        |_, _| {},
        script,
        "test \"$(sqlite3 db 'select count(*) from t; pragma integrity_check;')\" = $'60\\nok'",
    );
}

#[test]
fn tail_and_a_mapping_survive() {
    let script = "(for i in $(seq 60); do echo $i >> ../source/lines; echo $i; sleep 0.05; done) > log & \
                  tail -n +1 -f log --pid=$! > ../seen; wait; cmp ../source/lines log; \
                  cp ../source/big m; python3 -c 'import mmap,time\nf=open(\"m\",\"rb\")\n\
                  m=mmap.mmap(f.fileno(),0,access=mmap.ACCESS_READ)\nb=b\"\"\n\
                  for i in range(0,len(m),1<<20):\n b+=m[i:i+(1<<20)]\n time.sleep(0.02)\n\
                  assert b==open(\"../source/big\",\"rb\").read()'";
    survives(big, script, "cmp ../source/lines log; cmp ../source/lines ../seen");
}

/// Killed within the first milliseconds, again and again, under a stream of large writes: none fails.
#[test]
fn a_worker_that_is_killed_as_it_begins_loses_no_write() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    let most = 100;
    let content = noise(3, 16 * MIB);
    let (kills, done) = (AtomicU32::new(0), AtomicBool::new(false));
    let file = fs::File::create(mount.path("f")).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _told = Tell(&done);
            let mut last = 0;
            for roll in noise(4, most as usize) {
                // One that was killed may not be reaped yet.
                let next = || mount.children().pop().filter(|pid| *pid != last && serves(*pid));
                let worker = wait_for("a worker serves", next);
                last = worker;
                std::thread::sleep(Duration::from_micros(u64::from(roll) * 12));
                signal(worker, libc::SIGKILL);
                wait_until("it is dead", || !is_alive(worker));
                kills.fetch_add(1, Ordering::Relaxed);
            }
        });
        let chunks = || content.chunks(MIB).enumerate();
        while !done.load(Ordering::Relaxed) {
            for (at, chunk) in chunks() {
                let written = file.write_at(chunk, (at * MIB) as u64);
                assert_eq!(written.unwrap(), MIB, "after {kills:?} kills");
            }
        }
        assert_eq!(kills.load(Ordering::Relaxed), most);
        for (at, chunk) in chunks() {
            file.write_all_at(chunk, (at * MIB) as u64).unwrap();
        }
    });
    drop(file);
    mount.settle();
    assert_same(&bench.server.get("f").unwrap(), &content, "f");
    mount.umount();
}

/// Says so when it goes, also by a panic.
struct Tell<'a>(&'a AtomicBool);

impl Drop for Tell<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whether fuser's threads run.
fn serves(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads
        .into_iter()
        .any(|thread| fs::read_to_string(thread.path().join("comm")).is_ok_and(|name| name.starts_with("fuser-")))
}

/// A request over which three workers have died is refused; the mount lives, and others' requests are not harmed.
#[test]
fn a_request_that_kills_its_workers_is_refused() {
    let Some(bench) = Bench::new() else { return };
    let crash = bench.path("crash");
    let mount = bench.mount_with(&[], &[("_OSSFUSE_CRASH_FILE", crash.as_os_str())]);
    fs::write(&crash, "abort begun").unwrap();
    let output = mount.try_sh("mkdir d");
    assert!(told(&output).contains("Input/output error"), "{}", told(&output));
    fs::remove_file(&crash).unwrap();
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
    big(&bench, &bench.folder("source"));
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
    let output = mount.umount_command(&[]).output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
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

/// A ledger that cannot be read costs what was open, and nothing else.
#[test]
fn a_damaged_ledger_stops_nothing() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    mount.sh("mkdir d; echo x > d/f");
    let mut open = fs::File::open(mount.path("d/f")).unwrap();
    fs::write(bench.state().join("ledger"), noise(5, 4096)).unwrap();
    replace_worker(&mount);
    let error = open.read_to_string(&mut String::new()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ESTALE));
    drop(open);
    assert_eq!(mount.sh("cat d/f; echo y > d/g; ls d"), "x\nf\ng\n");
    mount.umount();
}
