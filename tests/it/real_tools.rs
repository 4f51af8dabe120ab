//! Programs as people run them, on the mount and on a local folder beside it: both must end equal, and the bucket
//! must hold what the mount shows. Each runs with the default parts and with parts so small that a file has several.
//!
//! A program that behaves as on a disk needs no expectation written down here: the disk's result is the expectation.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::harness::{BUCKET, Bench, KIB, Mount, assert_same, noise, sh, shell, told, wait_until};

/// The options under which every program must work.
const MOUNTS: [&[&str]; 2] = [&[], &["--part-size", "100KiB"]];

/// The folder beside the mount in which the same is done on a disk.
const LOCAL: &str = "local";

/// A tree of small and larger files, some of several small parts, for programs to work on: `source/`.
fn source(bench: &Bench) {
    let source = bench.folder("source");
    sh(
        &source,
        "mkdir -p d/e empty; seq 1000 > small; seq 60000 > d/text; : > d/none; printf x > d/e/one; chmod 755 small",
    );
    bench.file("source/d/e/binary", &noise(1, 513 * KIB));
    bench.file("source/other", &noise(2, 101 * KIB));
    sh(&source, "ln -s d/text link; find . -exec touch -h -d '2020-02-03 04:05:06.789' {} +");
}

/// Runs a script in a folder on the disk and on mounts with each of the options, and compares.
fn same_as_on_a_disk(script: &str) {
    for options in MOUNTS {
        let Some(bench) = Bench::new() else { return };
        source(&bench);
        let mount = bench.mount(options);
        run_on_both(&bench, &mount, script);
    }
}

fn run_on_both(bench: &Bench, mount: &Mount<'_>, script: &str) {
    let local = bench.folder(LOCAL);
    // Not every local file system has O_DIRECT; the mount must.
    let wanted = sh(&local, &script.replace("oflag=direct", "").replace("iflag=direct", ""));
    assert_eq!(mount.sh(script), wanted, "what it says ({script})");
    sh(&bench.path(""), &format!("diff -r --no-dereference {LOCAL} mnt"));
    mount.settle();
    in_the_bucket(bench, mount);
}

/// What the bucket holds is what the mount shows, file by file.
fn in_the_bucket(bench: &Bench, mount: &Mount<'_>) {
    let files = mount.sh("find . -type f -printf '%P\\n'");
    let mut files: Vec<&str> = files.lines().collect();
    files.sort_unstable();
    for name in &files {
        let object = bench.server.get(name).unwrap_or_else(|| panic!("{name} is not in the bucket"));
        assert_same(&object, &mount.read(name), name);
    }
    let is_file = |key: &String| mount.path(key).symlink_metadata().is_ok_and(|found| found.is_file());
    let mut keys = bench.server.keys();
    keys.retain(|key| !key.ends_with('/'));
    let strange: Vec<_> = keys.iter().filter(|key| mount.path(key).symlink_metadata().is_err()).collect();
    assert!(strange.is_empty(), "the mount does not show {strange:?}");
    keys.retain(is_file);
    assert_eq!(keys, files);
}

#[test]
fn cp_and_mv() {
    same_as_on_a_disk(
        "cp ../source/d/text a; cp -p ../source/small p; cp -r ../source tree; cp -a ../source archive
         mv a b; mv tree/d/e/binary tree/moved; mv tree/d other; cp --reflink=auto tree/moved copied
         cp --sparse=always ../source/d/e/binary sparse; cp b b2; cp -f p b2; mv -f b2 p; rm tree/other
         cp --reflink=never copied again; cmp again copied; install -m 640 ../source/other installed
         stat -c '%a %s %Y' p archive/small archive/d/text installed | sed '1s/ [0-9]*$//; 4s/ [0-9]*$//'",
    );
}

#[test]
fn dd() {
    same_as_on_a_disk(
        "dd if=../source/d/e/binary of=f bs=7000 status=none
         dd if=../source/small of=f bs=1k seek=233 conv=notrunc status=none
         dd if=../source/small of=f bs=512 oflag=append conv=notrunc status=none
         dd if=../source/small of=f bs=1k seek=100 count=2 conv=notrunc,fsync status=none
         dd if=../source/other of=far bs=1k seek=300 status=none
         dd if=/dev/zero of=direct bs=4096 count=80 oflag=direct status=none
         dd if=../source/d/e/binary of=direct bs=4096 count=20 seek=17 conv=notrunc oflag=direct status=none
         dd if=f of=middle bs=4096 skip=3 count=90 iflag=direct status=none
         dd if=direct bs=64k iflag=direct status=none | sha256sum; sha256sum < f; sha256sum < middle",
    );
}

#[test]
fn tar_zip_and_gzip() {
    same_as_on_a_disk(
        "tar cf all.tar -C ../source .; mkdir x; tar xf all.tar -C x; diff -r --no-dereference ../source x
         tar rf all.tar -C x small; tar --delete -f all.tar ./other; tar tf all.tar
         (cd ../source; zip -qXr - d small) > stream.zip; (cd ../source; zip -qXr \"$OLDPWD/in.zip\" d small)
         cp -p ../source/other new; zip -qX in.zip new; zip -qd in.zip small; unzip -q in.zip -d z; unzip -tq in.zip
         cp ../source/d/text t; gzip -n t; gzip -dc t.gz > u; gzip -nk u; gunzip -f t.gz; cmp t u
         rm stream.zip; tar czf - -C x d | tar xzf - -C z; rm -r x/d",
    );
}

#[test]
fn rsync() {
    for options in MOUNTS {
        let Some(bench) = Bench::new() else { return };
        source(&bench);
        let mount = bench.mount(options);
        run_on_both(&bench, &mount, "rsync -a ../source/ tree/");
        let counts = bench.counting(|| assert_eq!(mount.sh("rsync -ai ../source/ tree/"), "", "nothing is to be sent"));
        assert_eq!(counts.number("PutObject") + counts.number("InitiateMultipartUpload"), 0, "{:?}", counts.all());
        sh(
            &bench.path("source"),
            "seq 5 >> d/text; printf Y | dd of=d/e/binary bs=1 seek=300000 conv=notrunc status=none",
        );
        run_on_both(
            &bench,
            &mount,
            "rsync -a --inplace --no-whole-file ../source/ tree/; rsync -a --append-verify ../source/d/ d/
             rm tree/small; echo new > tree/extra; rsync -a --delete --checksum ../source/ tree/; rsync -ainc ../source/ tree/
             cp -r ../source/d b; rsync -a --backup --suffix=.old --ignore-times ../source/d/ b/",
        );
    }
}

#[test]
fn editors_and_logs() {
    same_as_on_a_disk(
        "cp ../source/d/text t; sed -i s/7/seven/ t; sort -r -o t t; sed -i.bak -n 1,500p t; head -c 300K t.bak > h
         perl -pi -e 's/seven/7/' t; truncate -s 123456 h; truncate -s +100K h; shuf --random-source=h t | sort -n -o t
         tee two three < ../source/small > one; split -b 70K ../source/d/text part-; cat part-* > whole
         for p in 1 2 3 4; do (for i in $(seq 50); do echo \"$p line $i\"; done >> log) & done; wait; sort -o log log
         (for i in 1 2 3; do echo $i; [ $i = 2 ] && mv daily daily.1; done; echo end >&2) > daily 2> err; echo new > daily
         exec 3>>open; echo a >&3; mv open open.1; echo b >&3; echo c > open; exec 3>&-; cat open open.1
         csplit -s -f c- ../source/small 500; cat c-00 c-01 | cmp - ../source/small; uniq log uniq",
    );
}

#[test]
fn git() {
    for options in MOUNTS {
        let Some(bench) = Bench::new() else { return };
        source(&bench);
        let repo = bench.folder("repo");
        let git = "export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null; git() { command git -c user.name=n \
                   -c user.email=e@example -c gc.autoDetach=false -c init.defaultBranch=main -c advice.detachedHead=false \"$@\"; }; ";
        sh(
            &repo,
            &format!(
                "{git} git init -q; cp -r ../source/. .; git add -A; git commit -qm one; seq 9 > n; git add n; git commit -qm two"
            ),
        );
        let mount = bench.mount(options);
        let script = "git clone -q ../repo clone; cd clone; seq 20000 > n; rm d/none; git mv small renamed; git add -A; git commit -qm three
                      git checkout -q -b side HEAD~1; echo s > s; git add s; git commit -qm side; git checkout -q main; git merge -q --no-edit side
                      git stash -q 2>/dev/null || :; git gc -q --prune=now; git fsck --full --strict 2>&1; git status --short
                      cd ..; git clone -q clone second; cd second; git log --format=%s | sort; git push -q origin HEAD:refs/heads/pushed
                      cd ../clone; git fsck 2>&1; git rev-parse HEAD^{tree}";
        let wanted = sh(&bench.folder(LOCAL), &format!("{git} {script}"));
        assert_eq!(mount.sh(&format!("{git} {script}")), wanted);
        sh(&bench.path(""), &format!("diff -r --no-dereference -x .git {LOCAL} mnt"));
        mount.settle();
        in_the_bucket(&bench, &mount);
    }
}

#[test]
fn sqlite() {
    let script = |mode: &str| {
        format!(
            "sqlite3 {mode}.db 'PRAGMA journal_mode={mode}; CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT, b BLOB);
             INSERT INTO t(a, b) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
             SELECT i || \" row\", zeroblob(i % 200) FROM n; CREATE INDEX x ON t(a);'
             sqlite3 {mode}.db 'BEGIN; UPDATE t SET a = a || \"!\" WHERE id % 3 = 0; DELETE FROM t WHERE id % 7 = 0; COMMIT;
             BEGIN; DELETE FROM t; ROLLBACK; PRAGMA integrity_check; VACUUM; SELECT count(*), sum(length(a)) FROM t;'
             for p in 1 2 3; do sqlite3 -cmd '.timeout 60000' {mode}.db \"INSERT INTO t(a) VALUES('p$p'); INSERT INTO t(a) VALUES('q$p');\" & done; wait
             sqlite3 {mode}.db 'PRAGMA integrity_check; SELECT a FROM t WHERE b IS NULL ORDER BY a'; ls {mode}.db*"
        )
    };
    for options in MOUNTS {
        let Some(bench) = Bench::new() else { return };
        let mount = bench.mount(options);
        for mode in ["delete", "wal", "truncate"] {
            let wanted = sh(&bench.folder(LOCAL), &script(mode));
            assert_eq!(mount.sh(&script(mode)), wanted, "{mode}");
        }
        mount.settle();
        for mode in ["delete", "wal", "truncate"] {
            bench.file("fetched.db", &bench.server.get(&format!("{mode}.db")).unwrap());
            let sum = "PRAGMA integrity_check; SELECT count(*), sum(length(a)) FROM t";
            let of = |path: &str| sh(&bench.path(""), &format!("sqlite3 {path} '{sum}'"));
            assert_eq!(of("fetched.db"), of(&format!("{LOCAL}/{mode}.db")), "{mode}");
        }
        in_the_bucket(&bench, &mount);
    }
}

#[test]
fn a_compiler() {
    let program = r#"cat > m.c <<'C'
#include <stdio.h>
extern int twice(int);
static char room[300000] = {1};
int main(void) { printf("%d %d\n", twice(21), room[0]); return 0; }
C
echo 'int twice(int n) { return 2 * n; }' > t.c
cc -g -O1 -c t.c -o t.o; cc -g -O1 -c m.c -o m.o; ar rcsD libt.a t.o; cc -o program m.o -L. -lt; ./program
strip program; ./program; cc -shared -fPIC -o libt.so t.c; rm -f program; cc -o program m.o ./libt.so; ./program; rm m.o t.o"#;
    for options in MOUNTS {
        let Some(bench) = Bench::new() else { return };
        let mount = bench.mount(options);
        let wanted = sh(&bench.folder(LOCAL), program);
        assert_eq!(mount.sh(program), wanted);
        mount.settle();
        in_the_bucket(&bench, &mount);
        sh(&bench.path(""), &format!("cmp {LOCAL}/m.c mnt/m.c"));
    }
}

#[test]
fn python_and_programs_that_go_back() {
    let program = r#"
import mmap, os, random, shutil, zipfile
shutil.copytree("../source", "tree", symlinks=True); shutil.move("tree/d", "d"); shutil.copy2("../source/other", "copy2")
shutil.make_archive("archive", "tar", "d"); os.remove("archive.tar"); shutil.rmtree("tree/empty")

# A muxer: data first, the header at the end; then room is made for it at the front, all data moved ("faststart").
body = bytes(random.Random(1).randbytes(700_000))
with open("movie", "wb+") as f:
    f.write(b"\0" * 16)
    for at in range(0, len(body), 30_001):
        f.write(body[at:at + 30_001])
    f.seek(0); f.write(len(body).to_bytes(16, "big"))
with open("movie", "rb+") as f:
    room, at, held = 5000, 16, b""
    while True:
        f.seek(at); piece = f.read(65536); f.seek(at + room - len(held) if at > 16 else at + room)
        f.seek(at); block = piece
        if at == 16: out = b"M" * room + block
        else: out = held + block
        f.seek(at); f.write(out[:len(block)]); held = out[len(block):]
        at += len(block)
        if len(block) < 65536: f.write(held); break
with open("movie", "rb") as f:
    data = f.read(); assert data[16:16 + 5000] == b"M" * 5000 and data[5016:] == body, "faststart"

with open("mapped", "wb+") as f:
    f.truncate(450_000)
    with mmap.mmap(f.fileno(), 0) as m:
        m[:5] = b"start"; m[300_000:300_003] = b"mid"; m.flush(); m[449_990:] = b"0123456789"; m.move(100, 0, 5)
    os.posix_fallocate(f.fileno(), 449_000, 60_000)
f = os.open("holes", os.O_RDWR | os.O_CREAT)
os.pwrite(f, b"x" * 1000, 200_000); os.pwrite(f, b"y", 400_000); os.ftruncate(f, 500_001)
data = os.lseek(f, 0, os.SEEK_DATA); assert 0 <= data <= 200_000 and os.lseek(f, 0, os.SEEK_HOLE) <= 500_001
os.close(f)
a, b = os.open("d/e/binary", os.O_RDONLY), os.open("ranged", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
left, at = 400_000, 1_000
while left: n = os.copy_file_range(a, b, left, at, 400_000 - left); left -= n; at += n
os.copy_file_range(a, b, 1000, 0, 123_456); os.fsync(b); os.close(a); os.close(b)
os.truncate("ranged", 300_000); os.truncate("ranged", 350_000); os.rename("ranged", "renamed"); os.replace("copy2", "mapped2")
with zipfile.ZipFile("z.zip", "w") as z: z.write("../source/d/text", "text")
with zipfile.ZipFile("z.zip", "a") as z: z.write("../source/other", "other")
assert zipfile.ZipFile("z.zip").testzip() is None
rng = random.Random(2); handles = [open("random", "wb+", buffering=0)] + [open("random", "rb+", buffering=0) for _ in range(2)]
for n in range(150):
    h = handles[n % 3]; h.seek(rng.randrange(500_000)); h.write(rng.randbytes(rng.randrange(1, 9000)))
    if n % 40 == 17: h.truncate(rng.randrange(300_000, 450_000))
    if n % 50 == 33: os.fsync(h.fileno())
for h in handles: h.close()
"#;
    same_as_on_a_disk(&format!("python3 -B - <<'PYTHON'\n{program}\nPYTHON"));
}

/// The kernel writes back what a mapping holds when nobody has the file open any more.
#[test]
fn what_is_stored_in_a_mapping_after_close_arrives() {
    for options in MOUNTS {
        let Some(bench) = Bench::new() else { return };
        let mut content = noise(3, 333 * KIB);
        bench.server.put("f", &content);
        let mount = bench.mount(options);
        store_after_close(&mount.path("f"), &[(7, b"one"), (200 * KIB, b"two"), (333 * KIB - 3, b"end")]);
        content[7..10].copy_from_slice(b"one");
        content[200 * KIB..200 * KIB + 3].copy_from_slice(b"two");
        content[333 * KIB - 3..].copy_from_slice(b"end");
        mount.settle();
        assert_same(&bench.server.get("f").unwrap(), &content, "f");
        assert_same(&mount.read("f"), &content, "through the mount");
    }
}

fn store_after_close(path: &Path, stores: &[(usize, &[u8])]) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let len = file.metadata().unwrap().len() as usize;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
    // SAFETY: a new shared mapping of a file that nobody shortens.
    let map =
        unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, fd, 0) };
    assert_ne!(map, libc::MAP_FAILED);
    drop(file);
    // SAFETY: the mapping has these bytes until it is unmapped below, and no other reference to them.
    let bytes = unsafe { std::slice::from_raw_parts_mut(map.cast::<u8>(), len) };
    for (at, what) in stores {
        bytes[*at..*at + what.len()].copy_from_slice(what);
    }
    // SAFETY: the mapping that was made above, which is not used after this.
    assert_eq!(unsafe { libc::munmap(map, len) }, 0);
}

/// Random operations of all kinds, checked against a model at each step: `fsx` of crates.io. The long form is
/// `scripts/soak fsx`.
#[test]
fn fsx_finds_nothing() {
    let Some(bench) = Bench::new() else { return };
    let has_fsx = std::process::Command::new("fsx").arg("--version").output().is_ok_and(|said| said.status.success());
    assert!(has_fsx, "fsx is missing: scripts/test installs it");
    let config = format!("{}/tests/data/fsx.toml", env!("CARGO_MANIFEST_DIR"));
    let small = bench.mount_at(BUCKET, "mnt", &["--part-size", "256KiB"]);
    let spec = format!("{BUCKET}:default");
    let default = bench.mount_at(&spec, "default", &[]);
    let mut running: Vec<_> = [(&small, 14_000), (&default, 6_000)]
        .into_iter()
        .map(|(mount, operations)| {
            let folder = mount.path("");
            let command = format!("exec fsx -q -f '{config}' -S 20 -N {operations} -P .. x");
            let mut command = shell(&folder, &command);
            (mount, command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap())
        })
        .collect();
    let begun = std::time::Instant::now();
    while running.iter_mut().any(|(_, child)| child.try_wait().unwrap().is_none()) {
        assert!(begun.elapsed() < Duration::from_secs(600), "fsx hangs");
        std::thread::sleep(Duration::from_millis(20));
    }
    for (mount, child) in running {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", told(&output));
        mount.settle();
    }
    wait_until("what was written is in the bucket", || bench.server.get("x") == Some(small.read("x")));
    wait_until("that of the other too", || bench.server.get("default/x") == Some(default.read("x")));
}
