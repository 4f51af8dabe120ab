//! Opening the journal so that a damaged one costs repeated parts and nothing else.
//!
//! sled can panic on a damaged folder, and a panic ends the process. So a child of ours tries first; a journal on
//! which it dies is set aside.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use super::refusal::{self, Error};
use crate::control::READY_VARIABLE;
use crate::journal::{self, Journal, JournalWriter, set_aside};

/// Tells the program, started by itself, to try the journal at this path and do nothing else.
const PROBE_VARIABLE: &str = "_OSSFUSE_PROBE_JOURNAL";

/// Opens the journal; one that cannot be opened and read is set aside and begun anew.
pub(super) fn open(path: &Path) -> Result<(Journal, JournalWriter), Error> {
    if path.exists() && !is_sound(path) {
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
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
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
