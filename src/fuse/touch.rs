//! The buffers that requests are read into, touched before the first one is.
//!
//! fuser reads into one zeroed buffer a thread, whose pages come into being as the kernel copies a request into them.
//! A process that is killed in the middle of that makes the kernel end the request with EIO instead of keeping it for
//! the next one [measured: 5 failed writes in 21 early kills]. With pages that are there the copy cannot fail.

use std::alloc::{GlobalAlloc, Layout, System};

use crate::base::limits::FUSE_WRITE_MAX;

/// Size of fuser's buffers (0.18, `read_buf.rs`): nothing else in the program has it.
const BUFFER_BYTES: usize = (16 << 20) + 4096;
/// As far as a request can reach: the largest write and its headers.
const REACH: usize = FUSE_WRITE_MAX as usize + 8192;
const PAGE: usize = 4096;
/// Switches this off, for the test that shows what it is good for.
const OFF_VARIABLE: &std::ffi::CStr = c"_OSSFUSE_NO_TOUCH";

/// The system's allocator, which touches the pages of request buffers.
#[derive(Debug)]
pub struct TouchedBuffers;

// SAFETY: all is left to the system's allocator; what is written besides lies inside of what it gave, and is zero.
unsafe impl GlobalAlloc for TouchedBuffers {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        let pointer = unsafe { System.alloc_zeroed(layout) };
        if layout.size() == BUFFER_BYTES && !pointer.is_null() {
            // SAFETY: the buffer is larger than that.
            unsafe { touch(pointer) };
        }
        pointer
    }
}

/// # Safety
/// `REACH` bytes from `pointer` on are ours, and zero.
unsafe fn touch(pointer: *mut u8) {
    // SAFETY: a terminated string; nothing changes the environment once threads run.
    if !unsafe { libc::getenv(OFF_VARIABLE.as_ptr()) }.is_null() {
        return;
    }
    for at in (0..REACH).step_by(PAGE) {
        // SAFETY: inside the buffer.
        unsafe { pointer.add(at).write_volatile(0) };
    }
    // So that they stay. Where that is not allowed, they stay as long as there is memory.
    // SAFETY: the range is ours.
    unsafe { libc::mlock(pointer.cast(), REACH) };
}
