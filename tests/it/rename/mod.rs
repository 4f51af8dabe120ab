//! Renames and unlinks, of trees and of open files: what moves is whole, whoever has it open notices nothing, and
//! what a crash cuts off is finished by the next mount.

mod crash;
mod exchange;
mod files;
mod trees;
mod unnamed;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::thread;

use super::harness::{Bench, Mount};
pub(crate) use exchange::exchange;

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> Option<i32> {
    result.unwrap_err().raw_os_error()
}

/// Sorted keys under a prefix, without it.
fn keys_under(bench: &Bench, prefix: &str) -> Vec<String> {
    bench.server.keys().iter().filter_map(|key| key.strip_prefix(prefix).map(str::to_owned)).collect()
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Bytes read on through an open file, from its start.
fn reread(file: &mut File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

fn no_intents(bench: &Bench) -> bool {
    fs::read_dir(bench.state().join("intents")).unwrap().count() == 0
}

/// Begins a rename, and kills the whole mount once it waits at the gate for an operation of which `skip` have passed.
fn killed_renaming(
    bench: &Bench,
    mount: Mount<'_>,
    [from, to]: [&str; 2],
    (operation, skip): (&str, u64),
    rename: fn(&Path, &Path) -> std::io::Result<()>,
) {
    bench.server.hold(operation, skip);
    let (from, to) = (mount.path(from), mount.path(to));
    let renaming = thread::spawn(move || rename(&from, &to));
    bench.server.wait_for_held();
    mount.kill();
    assert!(renaming.join().unwrap().is_err());
    bench.server.let_the_dead_go();
}
