//! Directory entries as the kernel wants them, with kinds that may be unknown.
//!
//! fuser's own reply always names a kind, and a wrong one is worse than none: tools believe it and never look, so
//! that a symlink which only its metadata tell would be copied as a file. Entries with an unknown kind (DT_UNKNOWN)
//! are therefore written to the connection here, past fuser, whose reply object is then forgotten: dropped, it would
//! answer a second time.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use fuser::ReplyDirectory;

/// Size of `struct fuse_out_header`: length, errno, unique.
const OUT_HEADER: usize = 16;
/// Size of `struct fuse_dirent` before the name: inode, offset, length of the name, kind.
const ENTRY_HEADER: usize = 24;

/// The connection of a mount, for replies that fuser cannot make.
#[derive(Debug)]
pub(super) struct RawReplies(File);

impl RawReplies {
    pub(super) fn new(connection: OwnedFd) -> Self {
        Self(connection.into())
    }

    /// Answers READDIR in the place of `reply`, which belongs to the request `unique`.
    pub(super) fn send(&self, unique: u64, entries: Entries, reply: ReplyDirectory) {
        // Nothing is lost with it: it owns no memory, only a count on the connection.
        std::mem::forget(reply);
        if let Err(error) = (&self.0).write_all(&entries.message(unique)) {
            // ENOENT: whoever asked was interrupted.
            log::debug!("a directory could not be answered: {error}");
        }
    }
}

/// A buffer of entries, of bounded size.
#[derive(Debug)]
pub(super) struct Entries {
    buffer: Vec<u8>,
    size_max: usize,
}

impl Entries {
    pub(super) fn new(size_max: u32) -> Self {
        Self { buffer: vec![0; OUT_HEADER], size_max: size_max as usize }
    }

    /// Adds an entry; `next` is the offset of the one after it, `type_bits` those of its mode, 0 where unknown.
    /// Whether the buffer is full: then nothing was added.
    pub(super) fn add(&mut self, ino: u64, next: u64, type_bits: u32, name: &str) -> bool {
        let len = ENTRY_HEADER + name.len();
        let padded = len.next_multiple_of(8);
        if self.buffer.len() - OUT_HEADER + padded > self.size_max {
            return true;
        }
        self.buffer.extend_from_slice(&ino.to_ne_bytes());
        self.buffer.extend_from_slice(&next.to_ne_bytes());
        self.buffer.extend_from_slice(&(name.len() as u32).to_ne_bytes());
        self.buffer.extend_from_slice(&(type_bits >> 12).to_ne_bytes());
        self.buffer.extend_from_slice(name.as_bytes());
        self.buffer.resize(self.buffer.len() + padded - len, 0);
        false
    }

    fn message(mut self, unique: u64) -> Vec<u8> {
        let len = self.buffer.len() as u32;
        self.buffer[..4].copy_from_slice(&len.to_ne_bytes());
        self.buffer[8..16].copy_from_slice(&unique.to_ne_bytes());
        self.buffer
    }
}

/// The bytes of a READDIR's reply that the kernel takes at most: fuser does not hand the request's figure on, and
/// the kernel never asks for less than a page.
pub(super) const READDIR_BYTES: u32 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_laid_out_as_the_kernel_reads_them() {
        let mut entries = Entries::new(64);
        assert!(!entries.add(7, 1, 0o100_000, "abc"));
        assert!(!entries.add(8, 2, 0, "b"));
        assert!(entries.add(9, 3, 0, "c"), "full");
        let message = entries.message(0x55);
        assert_eq!(message.len(), 16 + 32 + 32);
        assert_eq!(message[..4], 80u32.to_ne_bytes());
        assert_eq!(message[4..8], [0; 4]);
        assert_eq!(message[8..16], 0x55u64.to_ne_bytes());
        assert_eq!(message[16 + 20..16 + 24], 8u32.to_ne_bytes());
        assert_eq!(&message[16 + 24..16 + 27], b"abc");
        assert_eq!(message[48 + 20..48 + 24], [0; 4]);
    }
}
