//! Workers that are killed within the first milliseconds, again and again, under a stream of large writes.

use std::fs;
use std::os::unix::fs::FileExt;

use super::trouble::{Strikes, When, kill, under};
use crate::harness::{Bench, MIB, Mount, assert_same, noise};

/// Within 3 ms of its start.
fn early(most: u32) -> When {
    When { after: 0..3000, answered: false, most }
}

/// Writes the same over and over until so many workers were killed; ends with the first failure.
fn write_until(file: &fs::File, content: &[u8], strikes: &Strikes, most: u32) -> std::io::Result<()> {
    while strikes.count() < most {
        for (at, chunk) in content.chunks(MIB).enumerate() {
            file.write_all_at(chunk, (at * MIB) as u64)?;
        }
    }
    Ok(())
}

fn new_file(mount: &Mount<'_>) -> fs::File {
    fs::File::create(mount.path("f")).unwrap()
}

#[test]
fn a_worker_that_is_killed_as_it_begins_loses_no_write() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    let when = early(300);
    let content = noise(3, 16 * MIB);
    let file = new_file(&mount);
    let (written, kills) = under(&mount, &when, kill, |kills| write_until(&file, &content, kills, when.most));
    written.unwrap_or_else(|error| panic!("after {kills} kills: {error}"));
    assert_eq!(kills, when.most);
    // Nobody dies any more: what was written last is whole.
    file.write_all_at(&content, 0).unwrap();
    drop(file);
    mount.settle();
    assert_same(&bench.server.get("f").unwrap(), &content, "f");
    mount.umount();
}

/// What the above is good for: with buffers that were not touched beforehand, writes fail.
#[test]
fn without_touched_buffers_writes_fail() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount_with(&[], &[("_OSSFUSE_NO_TOUCH", "1".as_ref())]);
    let when = early(2000);
    let content = noise(3, 16 * MIB);
    let file = new_file(&mount);
    let (written, kills) = under(&mount, &when, kill, |kills| write_until(&file, &content, kills, when.most));
    let error = written.expect_err("a write fails");
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "after {kills} kills");
}
