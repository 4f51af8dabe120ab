//! The tools of every day, while workers are killed under them, or upgraded: none of them notices, and the bucket holds
//! what they have written.
//!
//! Each script goes on until enough workers were struck, so that none is done before.

use std::fs;
use std::path::Path;
use std::process::Output;
use std::thread;

use super::trouble::{When, kill, under};
use crate::harness::{Bench, Finally, KIB, Mount, noise, sh, shell, told};

/// 100 to 300 ms after it answered its first request.
const SOON: When = When { after: 100_000..300_000, answered: true, most: 20 };

/// Something that is done in a folder of its own: `$S` holds what it begins with, `$T` is for what it leaves outside of
/// the mount.
#[derive(Debug, Clone, Copy)]
struct Tool {
    name: &'static str,
    /// Makes what is in `$S`.
    prepare: fn(&Path),
    /// `again` says whether to go on: once at least, and until enough has happened.
    script: &'static str,
    /// What holds afterwards, also for another mount.
    then: &'static str,
}

const CP: Tool = Tool {
    name: "cp",
    prepare: |folder| drop(sh(folder, "head -c 500000000 /dev/urandom > big")),
    script: "while again; do cp $S/big a; cp a $T/out; cmp $S/big $T/out; rm $T/out; done",
    then: "cmp $S/big a",
};

const TREE: Tool = Tool {
    name: "tree",
    prepare: |folder| tree(folder, 500),
    script: "while again; do rm -rf t; cp -r $S/tree t; done",
    then: "diff -r $S/tree t",
};

const TAR: Tool = Tool {
    name: "tar",
    prepare: |folder| {
        tree(folder, 120);
        sh(folder, "tar cf t.tar tree");
    },
    script: "while again; do rm -rf tree; tar xf $S/t.tar; done",
    then: "diff -r $S/tree tree",
};

const RSYNC: Tool = Tool {
    name: "rsync",
    prepare: |folder| tree(folder, 120),
    script: "while again; do rm -rf r; rsync -a $S/tree/ r; left=$(rsync -ain $S/tree/ r); echo \"$left\"; test -z \"$left\"; done",
    then: "diff -r $S/tree r",
};

const GIT: Tool = Tool {
    name: "git",
    prepare: |folder| {
        tree(folder, 60);
        sh(
            folder,
            "cd tree; git init -q; git config user.email t@t; git config user.name t; git add .; git commit -qm one",
        );
    },
    script: "while again; do rm -rf c; git clone -q $S/tree c; cd c; git config user.email t@t; git config user.name t
             echo new > new; git add new; git commit -qm two; git fsck --strict 2>&1; cd ..; done",
    then: "cd c; test \"$(git log --format=%s | tr '\\n' ' ')\" = 'two one '; git diff --exit-code",
};

const FIND: Tool = Tool {
    name: "find",
    prepare: |folder| tree(folder, 200),
    script:
        "cp -r $S/tree t; while again; do test $(find . -type f | wc -l) = 200; test $(find t -size +0 | wc -l) -gt 200
             done",
    then: "diff -r $S/tree t",
};

const SHELL: Tool = Tool {
    name: "shell",
    prepare: |_| {},
    script: "mkdir -p a/b; cd a/b; touch ../../lock; exec 9>>../../lock; flock -n 9; was=$PWD
             while again; do test \"$(/bin/pwd)\" = \"$was\"; echo $n >> lines; test $(wc -l < lines) = $n
             ! flock -n ../../lock true; test $(ls -A ..) = b; sleep 0.02; done
             seq $n > $T/lines; exec 9>&-; flock -n ../../lock true",
    then: "cmp $T/lines a/b/lines",
};

const SQLITE: Tool = Tool {
    name: "sqlite",
    prepare: |_| {},
    script: "while again; do sqlite3 db 'create table if not exists t(i); begin; insert into t values(1);
             insert into t values(2); commit;'; done; echo $((2 * n)) > $T/rows; echo ok >> $T/rows",
    then: "sqlite3 db 'select count(*) from t; pragma integrity_check;' | cmp $T/rows",
};

const MMAP: Tool = Tool {
    name: "mmap",
    prepare: |folder| drop(sh(folder, "head -c 20000000 /dev/urandom > big")),
    script: "cp $S/big m; while again; do python3 -c 'import mmap, os, sys
f = os.open(\"m\", os.O_RDONLY)
os.posix_fadvise(f, 0, 0, os.POSIX_FADV_DONTNEED)
m = mmap.mmap(f, 0, access=mmap.ACCESS_READ)
sys.exit(m[:] != open(sys.argv[1], \"rb\").read())' $S/big; done",
    then: "cmp $S/big m",
};

const TAIL: Tool = Tool {
    name: "tail",
    prepare: |_| {},
    script: "(while again; do echo $n >> $T/lines; echo $n; sleep 0.02; done) > log &
             tail -n +1 -f log --pid=$! > $T/seen; wait $!",
    then: "cmp $T/lines log; cmp $T/lines $T/seen",
};

const ALL: [Tool; 10] = [CP, TREE, TAR, RSYNC, GIT, FIND, SHELL, SQLITE, MMAP, TAIL];

fn tree(folder: &Path, files: usize) {
    for i in 0..files {
        let sub = folder.join(format!("tree/{}", i % 11));
        fs::create_dir_all(&sub).unwrap();
        fs::write(sub.join(format!("file-{i}")), noise(i as u64, (i * 331) % (64 * KIB) + 1)).unwrap();
    }
}

impl Tool {
    fn prepare(&self, bench: &Bench) {
        (self.prepare)(&bench.folder(&format!("source/{}", self.name)));
        bench.folder(&format!("scratch/{}", self.name));
    }

    fn run(&self, bench: &Bench, mount: &Mount<'_>, script: &str) -> Output {
        let again = "n=0; again() { [ $n = 0 ] || [ ! -e ../../enough ] || return 1; n=$((n + 1)); }";
        let script = script.replace("../../enough", &bench.path("enough").display().to_string());
        let again = again.replace("../../enough", &bench.path("enough").display().to_string());
        fs::create_dir_all(mount.path(self.name)).unwrap();
        let mut command = shell(&mount.path(self.name), &format!("{again}\n{script}"));
        command.env("S", bench.path("source").join(self.name)).env("T", bench.path("scratch").join(self.name));
        command.output().unwrap()
    }

    fn check(&self, bench: &Bench, mount: &Mount<'_>, script: &str, when: &str) {
        let output = self.run(bench, mount, script);
        assert!(output.status.success(), "{}, {when}: {}", self.name, told(&output));
    }
}

/// All tools at once, while `strike` befalls the workers of the mount.
fn survive(bench: &Bench, mount: Mount<'_>, tools: &[Tool], strike: impl Fn(u32) + Sync) {
    let (_, strikes) = under(&mount, &SOON, strike, |strikes| {
        thread::scope(|scope| {
            let _enough = Finally(|| drop(bench.file("enough", b"")));
            let running: Vec<_> = tools
                .iter()
                .map(|tool| scope.spawn(|| tool.check(bench, &mount, tool.script, "while workers were struck")))
                .collect();
            while strikes.count() < SOON.most && !running.iter().any(|tool| tool.is_finished()) {
                thread::sleep(std::time::Duration::from_millis(5));
            }
        });
    });
    assert!(strikes >= SOON.most, "{strikes}");
    mount.settle();
    tools.iter().for_each(|tool| tool.check(bench, &mount, tool.then, "afterwards"));
    mount.umount();
    assert_eq!(bench.recover_list(), [serde_json::Value::Null; 0]);
    // What the bucket holds, and nothing else.
    let again = bench.mount(&[]);
    tools.iter().for_each(|tool| tool.check(bench, &again, tool.then, "by another mount"));
}

fn survives_kills(tool: Tool) {
    let Some(bench) = Bench::new() else { return };
    tool.prepare(&bench);
    let mount = bench.mount(&[]);
    survive(&bench, mount, &[tool], kill);
}

#[test]
fn cp_in_and_out_survives() {
    survives_kills(CP);
}

#[test]
fn cp_of_a_tree_survives() {
    survives_kills(TREE);
}

#[test]
fn tar_survives() {
    survives_kills(TAR);
}

#[test]
fn rsync_survives() {
    survives_kills(RSYNC);
}

#[test]
fn git_survives() {
    survives_kills(GIT);
}

#[test]
fn find_survives() {
    survives_kills(FIND);
}

#[test]
fn a_shell_and_its_lock_survive() {
    survives_kills(SHELL);
}

#[test]
fn sqlite_survives() {
    survives_kills(SQLITE);
}

#[test]
fn a_mapping_survives() {
    survives_kills(MMAP);
}

#[test]
fn tail_survives() {
    survives_kills(TAIL);
}

/// All of them at once, while the mount goes to and fro between two builds.
#[test]
fn upgrades_are_not_noticed() {
    let Some(bench) = Bench::new() else { return };
    let builds = [bench.path("this"), bench.path("other")];
    fs::copy(env!("CARGO_BIN_EXE_ossfuse"), &builds[0]).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    let other = version.bytes().map(|byte| if byte == b'.' { '.' } else { '9' }).collect::<String>();
    sh(&bench.path(""), &format!("perl -pe 's/\\Q{version}\\E/{other}/g' < this > other; chmod +x other"));
    let program = bench.path("ossfuse");
    let install = |build: &Path| {
        fs::hard_link(build, bench.path("new")).unwrap();
        fs::rename(bench.path("new"), &program).unwrap();
    };
    install(&builds[0]);
    ALL.iter().for_each(|tool| tool.prepare(&bench));
    let mount = bench.mount_by(&program, &[]);
    let (supervisor, upgrades) = (mount.pid(), std::sync::atomic::AtomicUsize::new(0));
    let place = mount.path("");
    survive(&bench, mount, &ALL, |_| {
        install(&builds[(upgrades.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1) % 2]);
        let output = bench.ossfuse(["upgrade"]).arg(&place).output().unwrap();
        assert!(output.status.success(), "{}", told(&output));
    });
    let log = fs::read_to_string(place.with_extension("log")).unwrap();
    for told in [format!("from version {version} to {other}"), format!("from version {other} to {version}")] {
        assert!(log.contains(&told), "{told}: {log}");
    }
    assert!(supervisor > 0);
}
