//! From one supervisor to the next: a mount's descriptors go through an exec, and what they are for in a file in memory.
//!
//! A supervisor that is upgraded executes the new binary in its own place; a worker whose supervisor has died starts
//! another, and hands itself over.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::WORKER_VARIABLE;
use super::estate::{Descriptors, Estate, memory_file, read_memory_file};
use super::link::Link;
use crate::base::checked;
use crate::control::READY_VARIABLE;

/// Tells a process that it is a supervisor that takes over, and the file that says of what.
const VARIABLE: &str = "_OSSFUSE_SUPERVISOR";

/// What is handed over.
#[derive(Debug, Serialize, Deserialize)]
struct Will {
    estate: Estate,
    descriptors: Vec<RawFd>,
    /// The worker that goes on, and the link to it.
    worker: Option<(u32, RawFd)>,
}

/// What a supervisor begins with that takes over.
#[derive(Debug)]
pub struct Inheritance {
    pub(super) estate: Estate,
    pub(super) descriptors: Descriptors,
    pub(super) worker: Option<(u32, Link)>,
}

impl Inheritance {
    /// What the mount was told, as its worker wants it.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn settings(&self) -> io::Result<Vec<u8>> {
        read_memory_file(&self.descriptors.settings)
    }
}

/// The inheritance of this process, if it was started to take a mount over from another supervisor.
pub fn inherited() -> Option<io::Result<Inheritance>> {
    let fd: RawFd = std::env::var_os(VARIABLE)?.to_str()?.parse().ok()?;
    // SAFETY: no other thread runs yet. Programs that are started here are no supervisors.
    unsafe { std::env::remove_var(VARIABLE) };
    Some(read(fd))
}

fn read(fd: RawFd) -> io::Result<Inheritance> {
    let will: Will = serde_json::from_slice(&read_memory_file(&own(fd)?)?).map_err(io::Error::other)?;
    let descriptors = will.descriptors.into_iter().map(own).collect::<io::Result<Vec<_>>>()?;
    let worker = match will.worker {
        Some((pid, link)) => Some((pid, Link::from_fd(own(link)?))),
        None => None,
    };
    Ok(Inheritance { estate: will.estate, descriptors: Descriptors::of(descriptors)?, worker })
}

/// Takes a descriptor that came through an exec; it goes through no other.
fn own(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: whoever executed this program made the descriptor for it alone.
    unsafe {
        checked(libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

fn command(
    program: &Path,
    estate: &Estate,
    descriptors: &Descriptors,
    worker: Option<(u32, RawFd)>,
) -> io::Result<(Command, OwnedFd)> {
    let raw = descriptors.raw();
    let mut through = raw.clone();
    through.extend(worker.map(|(_, link)| link));
    let will = Will { estate: estate.clone(), descriptors: raw, worker };
    let file = memory_file(c"will", &serde_json::to_vec(&will).map_err(io::Error::other)?)?;
    through.push(file.as_raw_fd());
    let mut command = Command::new(program);
    let arguments = estate.arguments();
    if let Some((name, rest)) = arguments.split_first() {
        command.arg0(name).args(rest);
    }
    command.env(VARIABLE, file.as_raw_fd().to_string()).env_remove(READY_VARIABLE).env_remove(WORKER_VARIABLE);
    // SAFETY: the closure makes system calls only, which is all that may be done between fork and exec.
    unsafe {
        command
            .pre_exec(move || through.iter().try_for_each(|fd| checked(libc::fcntl(*fd, libc::F_SETFD, 0)).map(drop)));
    }
    Ok((command, file))
}

/// Executes the binary on disk in the place of this process. Returns only if that fails.
pub(super) fn replace(estate: &Estate, descriptors: &Descriptors) -> io::Error {
    match command(&estate.program, estate, descriptors, None) {
        Ok((mut command, _file)) => command.exec(),
        Err(error) => error,
    }
}

/// Starts a supervisor for the worker that this process is: the one before has died. With its process id.
///
/// # Errors
/// It cannot be started; the mount then ends with this process.
pub fn start_supervisor(estate: &Estate, descriptors: &Descriptors) -> io::Result<(u32, Link)> {
    let (ours, theirs) = Link::pair()?;
    let worker = (std::process::id(), theirs.as_raw_fd());
    let (mut command, _file) = command(Path::new("/proc/self/exe"), estate, descriptors, Some(worker))?;
    let child = command.stdin(Stdio::null()).process_group(0).spawn()?;
    Ok((child.id(), ours))
}
