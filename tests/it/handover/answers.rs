//! Each call that changes something, with a worker that dies when it has done it and before it is answered: the next one
//! is told of it again, and the file is what the same calls make of one on a disk.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{dying_at, replace_worker};
use crate::harness::{Bench, KIB, MIB, assert_same, close, noise};

/// Its effects are not noted yet, or are.
const POINTS: [&str; 2] = ["answer-noting", "answer-noted"];

/// A call on a file that is open for reading and writing.
type Act = fn(&File) -> io::Result<()>;

fn checked(returned: libc::c_int) -> io::Result<()> {
    ossfuse::base::checked(returned).map(drop)
}

fn allocate(file: &File, mode: libc::c_int, offset: usize, len: usize) -> io::Result<()> {
    // SAFETY: plain numbers.
    checked(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, len as i64) })
}

/// The way to an open file that asks nobody for its name.
fn by_descriptor(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

fn set_xattr(file: &File, value: &[u8], flags: libc::c_int) -> io::Result<()> {
    const NAME: &CStr = c"user.a";
    // SAFETY: a terminated string, and a value that is as long as is said.
    checked(unsafe { libc::fsetxattr(file.as_raw_fd(), NAME.as_ptr(), value.as_ptr().cast(), value.len(), flags) })
}

const CALLS: &[(&str, Act)] = &[
    ("write inside", |file| file.write_all_at(&noise(7, 5000), MIB as u64 - 1000)),
    ("write past the end", |file| file.write_all_at(b"far behind", 3 * MIB as u64)),
    ("append", |file| {
        // What an open for appending asks for comes before the write.
        let end = file.metadata()?.len();
        file.write_all_at(b"appended", end)
    }),
    ("truncate", |file| file.set_len(MIB as u64 + 1)),
    ("truncate to nothing", |file| file.set_len(0)),
    ("extend", |file| file.set_len(4 * MIB as u64)),
    ("truncate by name", |file| {
        let path = std::ffi::CString::new(by_descriptor(file).to_str().unwrap()).unwrap();
        // SAFETY: a terminated string.
        checked(unsafe { libc::truncate(path.as_ptr(), 100) })
    }),
    ("open and truncate", |file| File::options().write(true).truncate(true).open(by_descriptor(file)).map(drop)),
    ("fchmod", |file| file.set_permissions(fs::Permissions::from_mode(0o640))),
    ("fchown", |file| std::os::unix::fs::fchown(file, Some(12), Some(34))),
    ("futimens", |file| {
        let at = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123);
        file.set_times(fs::FileTimes::new().set_modified(at).set_accessed(at))
    }),
    ("fsetxattr", |file| set_xattr(file, b"one", 0)),
    ("fsetxattr, new", |file| set_xattr(file, b"one", libc::XATTR_CREATE)),
    ("fallocate", |file| allocate(file, 0, 2 * MIB, MIB)),
    ("fallocate, same size", |file| allocate(file, libc::FALLOC_FL_KEEP_SIZE, 2 * MIB, MIB)),
    ("punch a hole", |file| allocate(file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 500 * KIB, MIB)),
    ("zero a range", |file| allocate(file, libc::FALLOC_FL_ZERO_RANGE, 2 * MIB, MIB)),
    ("fsync", |file| file.write_all_at(b"synced", 5).and_then(|()| file.sync_all())),
];

fn described(path: &Path) -> (u64, u32, (u32, u32), Option<String>) {
    let meta = fs::metadata(path).unwrap();
    let mut value = [0; 16];
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: terminated strings, and a buffer that is as long as is said.
    let len = unsafe { libc::getxattr(name.as_ptr(), c"user.a".as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    let xattr = usize::try_from(len).ok().map(|len| String::from_utf8_lossy(&value[..len]).into_owned());
    // Times that nobody has set are those of the two moments.
    let set = if meta.mtime() == 1_000_000_000 { 1 } else { 0 };
    (meta.len(), meta.mode() & 0o7777 | set << 16, (meta.uid(), meta.gid()), xattr)
}

#[test]
fn what_was_done_is_not_undone_by_doing_it_again() {
    let Some(bench) = Bench::new() else { return };
    let options = ["--part-size", "1MiB"];
    let mount = bench.mount_with(&options, &[("_OSSFUSE_CRASH_FILE", bench.path("crash").as_os_str())]);
    let content = noise(1, 2 * MIB + 700 * KIB);
    for point in POINTS {
        for (at, (what, act)) in CALLS.iter().enumerate() {
            let (path, twin) = (mount.path(&format!("{point}-{at}")), bench.path("twin"));
            for path in [&path, &twin] {
                fs::write(path, &content).unwrap();
            }
            let open = |path: &Path| File::options().read(true).write(true).open(path).unwrap();
            let file = open(&path);
            dying_at(&bench, &mount, point, || act(&file).unwrap_or_else(|error| panic!("{what}: {error}")));
            drop(file);
            act(&open(&twin)).unwrap();
            mount.settle();
            assert_eq!(described(&path), described(&twin), "{what}, {point}");
            assert_same(&fs::read(&path).unwrap(), &fs::read(&twin).unwrap(), what);
            assert_same(&bench.server.get(&format!("{point}-{at}")).unwrap(), &fs::read(&twin).unwrap(), what);
            fs::remove_file(&twin).unwrap();
        }
    }
    mount.umount();
    assert_eq!(bench.recover_list(), [serde_json::Value::Null; 0]);
}

#[test]
fn a_copy_on_the_server_is_made_once() {
    let Some(bench) = Bench::new() else { return };
    let options = ["--part-size", "1MiB"];
    let mount = bench.mount_with(&options, &[("_OSSFUSE_CRASH_FILE", bench.path("crash").as_os_str())]);
    let content = noise(2, 3 * MIB);
    fs::write(mount.path("from"), &content).unwrap();
    for point in POINTS {
        let (from, to) = (File::open(mount.path("from")).unwrap(), File::create(mount.path(point)).unwrap());
        dying_at(&bench, &mount, point, || {
            let (mut read, mut written) = (0, 0);
            while (read as usize) < content.len() {
                // SAFETY: the offsets live through the call.
                let copied = unsafe {
                    let (from, to) = (from.as_raw_fd(), to.as_raw_fd());
                    libc::copy_file_range(from, &raw mut read, to, &raw mut written, content.len(), 0)
                };
                assert!(copied > 0, "{point}: {}", io::Error::last_os_error());
            }
        });
        drop((from, to));
        mount.settle();
        assert_same(&bench.server.get(point).unwrap(), &content, point);
    }
    mount.umount();
}

#[test]
fn a_close_is_answered_as_it_was() {
    let Some(bench) = Bench::new() else { return };
    let options = ["--part-size", "1MiB"];
    let mount = bench.mount_with(&options, &[("_OSSFUSE_CRASH_FILE", bench.path("crash").as_os_str())]);
    let content = noise(3, 3 * MIB);
    for point in POINTS {
        let mut file = File::create(mount.path(point)).unwrap();
        file.write_all(&content).unwrap();
        dying_at(&bench, &mount, point, || close(file).unwrap());
        assert_same(&bench.server.get(point).unwrap(), &content, point);
    }
    mount.settle();
    assert_eq!(bench.recover_list(), [serde_json::Value::Null; 0]);
    // One that failed has not succeeded because there is nothing left to do.
    for (done, point) in ["begun", "answer-noting", "answer-noted"].into_iter().enumerate() {
        let name = format!("edited-{point}");
        fs::write(mount.path(&name), &content).unwrap();
        let file = File::options().read(true).write(true).open(mount.path(&name)).unwrap();
        file.write_all_at(b"ours", 10).unwrap();
        bench.server.put(&name, b"theirs");
        dying_at(&bench, &mount, point, || {
            assert_eq!(close(file).unwrap_err().raw_os_error(), Some(libc::ESTALE), "{point}");
        });
        mount.settle();
        assert_eq!(bench.server.get(&name).unwrap(), b"theirs");
        assert_eq!(bench.recover_list().len(), done + 1, "{point}");
    }
}

/// A file that another client has deleted is gone for the next worker too, each time it is asked for.
#[test]
fn what_was_deleted_meanwhile_is_not_remembered() {
    let Some(bench) = Bench::new() else { return };
    bench.server.put("f", b"text");
    let mount = bench.mount(&[]);
    mount.sh("stat f");
    replace_worker(&mount);
    bench.server.delete("f");
    for _ in 0..3 {
        assert_eq!(look(&mount.path("f")).unwrap_err().raw_os_error(), Some(libc::ENOENT));
    }
}

/// Asks for attributes, whatever the kernel remembers.
fn look(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: all zeros is a valid value of this plain structure.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: a terminated string and a place for the answer that live through the call.
    checked(unsafe {
        libc::statx(libc::AT_FDCWD, path.as_ptr(), libc::AT_STATX_FORCE_SYNC, libc::STATX_BASIC_STATS, &raw mut found)
    })
}
