//! The write engine against a reference, without a mount: a file is a `Vec<u8>`, the service is the dev server in
//! this process, and a crash is a runtime that is dropped with everything in it.
//!
//! `reference` plays random histories; the other modules hold single situations, each with the gate or the fault
//! that makes it certain. `PROPTEST_CASES` gives the random ones more room.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod crash;
mod faults;
mod process;
mod races;
mod reference;
mod replaying;
mod service;

use std::sync::Arc;

use ossfuse::base::ObjectKey;
use ossfuse::base::crc64;

use process::{PIECE, Process};
use service::{Seen, Service};

fn key(name: &str) -> ObjectKey {
    ObjectKey::parse(name).unwrap()
}

/// Bytes that tell where they belong: other seeds give other bytes nearly everywhere.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..len).map(step).collect()
}

/// Writes into a plain vector as into a file.
fn write_into(content: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if content.len() < offset + data.len() {
        content.resize(offset + data.len(), 0);
    }
    content[offset..offset + data.len()].copy_from_slice(data);
}

/// The object is there, is these bytes, and the service's sum of it says so too.
#[track_caller]
fn assert_object(service: &Service, key: &ObjectKey, bytes: &[u8]) -> Seen {
    let seen = service.look(key).unwrap_or_else(|| panic!("{key} is not there"));
    assert_eq!((seen.size, seen.crc64), (bytes.len() as u64, Some(crc64::checksum(bytes))), "{key}");
    assert!(service.bytes(key.as_str()) == bytes, "{key}: the sum is right, the bytes are not");
    seen
}

/// Nothing is left of any session.
#[track_caller]
fn assert_no_sessions(process: &Process) {
    let left = ossfuse::replay::list_offline(process.layout().root()).unwrap();
    assert!(left.is_empty(), "{left:?}");
}

fn both() -> (Arc<Service>, Process) {
    let service = Service::start();
    let process = Process::start(&service);
    (service, process)
}

fn piece(seed: u64) -> Vec<u8> {
    pattern(seed, PIECE as usize)
}
