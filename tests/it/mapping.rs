//! Shared writable mappings: what is stored through them is in the bucket, also what is stored after the close.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;

use super::harness::{Bench, KIB, assert_same, noise, wait_until};

/// A shared mapping of a file, which outlives its descriptor.
struct Mapping {
    at: *mut libc::c_void,
    len: usize,
}

impl Mapping {
    fn of(file: &File, len: usize) -> Self {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice, taken away by `drop`.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Self { at, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is as long as that, and nobody else has it in hand.
        unsafe { std::slice::from_raw_parts_mut(self.at.cast(), self.len) }
    }

    fn sync(&self) {
        // SAFETY: the range is that of the mapping.
        assert_eq!(unsafe { libc::msync(self.at, self.len, libc::MS_SYNC) }, 0, "{}", std::io::Error::last_os_error());
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is that of the mapping, which nobody uses any more.
        unsafe { libc::munmap(self.at, self.len) };
    }
}

fn stored_through_a_mapping(options: &[&str]) {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[&["--part-size", "100KiB"], options].concat());
    let mut wanted = noise(1, 350 * KIB);
    let mut file = File::options().create(true).read(true).write(true).truncate(true).open(mount.path("f")).unwrap();
    file.write_all(&wanted).unwrap();
    let mut mapping = Mapping::of(&file, wanted.len());
    assert_same(mapping.bytes(), &wanted, "what was written is mapped");
    let store = |mapping: &mut Mapping, wanted: &mut Vec<u8>, at: usize, text: &[u8]| {
        mapping.bytes()[at..at + text.len()].copy_from_slice(text);
        wanted[at..at + text.len()].copy_from_slice(text);
    };
    store(&mut mapping, &mut wanted, 5, b"before the close");
    drop(file);
    store(&mut mapping, &mut wanted, 120 * KIB, b"after the close");
    mapping.sync();
    store(&mut mapping, &mut wanted, 349 * KIB, b"after msync");
    drop(mapping);
    assert_same(&mount.read("f"), &wanted, "through the mount");
    wait_until("it is in the bucket", || bench.server.get("f").is_some_and(|found| found == wanted));
    mount.settle();
    assert_same(&bench.server.get("f").unwrap(), &wanted, "at rest");
    mount.umount();
    assert_same(&bench.server.get("f").unwrap(), &wanted, "in the end");
}

#[test]
fn what_is_stored_through_a_mapping_is_in_the_bucket() {
    stored_through_a_mapping(&[]);
}

#[test]
fn what_is_stored_through_a_mapping_is_sent_in_the_background() {
    stored_through_a_mapping(&["--close", "local"]);
}
