//! Opening the journal so that a damaged one costs repeated parts and nothing else.
//!
//! sled can panic on a damaged folder, and a panic ends the process. So a child of ours tries first; a journal on
//! which it dies is set aside.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use super::refusal::{self, Error};
use crate::control::READY_VARIABLE;
use crate::journal::{self, Journal, JournalWriter, set_aside};
use crate::supervise::WORKER_VARIABLE;

/// Tells the program, started by itself, to try the journal at this path and do nothing else.
const PROBE_VARIABLE: &str = "_OSSFUSE_PROBE_JOURNAL";

/// Opens the journal; one that cannot be opened and read is set aside and begun anew. With `careful` it is tried
/// first: not where the last process that had it open was killed while it served.
pub(super) fn open(path: &Path, careful: bool) -> Result<(Journal, JournalWriter), Error> {
    if careful && path.exists() && !is_sound(path) {
        let aside = set_aside(path).map_err(|error| refusal::io("the journal", &error))?;
        log::warn!("the journal is damaged; it was set aside as {}, parts may be sent again", aside.display());
    }
    Journal::open(path).map_err(|error| refusal::io("the journal", &std::io::Error::other(error.to_string())))
}

fn is_sound(path: &Path) -> bool {
    let Ok(program) = std::env::current_exe() else { return true };
    let mut probe = Command::new(program);
    probe
        .env(PROBE_VARIABLE, path)
        .env_remove(READY_VARIABLE)
        .env_remove(WORKER_VARIABLE)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // One that outlived us would keep the journal from whoever comes next.
    // SAFETY: prctl is a plain system call, allowed between fork and exec.
    unsafe {
        probe.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    match probe.status() {
        Ok(status) => status.success(),
        Err(error) => {
            log::warn!("the journal cannot be tried by a child process: {error}");
            true
        }
    }
}

/// Tries the journal, if that is what this process was started for.
pub fn probe_if_asked() -> Option<ExitCode> {
    let path = std::env::var_os(PROBE_VARIABLE)?;
    let sound = journal::probe(Path::new(&path)).is_ok();
    Some(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
