//! Points at which a test has the process die, by name and once.
//!
//! Only in builds with debug assertions: elsewhere there is nothing here.

/// Names a file; its content names the point. Who takes the file away dies. With `abort ` in front of the name the file
/// stays, and whoever comes there aborts.
#[cfg(debug_assertions)]
const VARIABLE: &str = "_OSSFUSE_CRASH_FILE";

/// Dies by SIGKILL, if that is what a test has asked for at this point.
#[cfg(debug_assertions)]
pub fn crash_point(name: &str) {
    use std::path::PathBuf;
    use std::sync::OnceLock;

    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let Some(file) = FILE.get_or_init(|| std::env::var_os(VARIABLE).map(PathBuf::from)) else { return };
    let Ok(wanted) = std::fs::read_to_string(file) else { return };
    if wanted.trim().strip_prefix("abort ") == Some(name) {
        std::process::abort();
    }
    if wanted.trim() == name && std::fs::remove_file(file).is_ok() {
        // SAFETY: ends this process.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
}

/// Nothing, in a build that is not for tests.
#[cfg(not(debug_assertions))]
pub fn crash_point(_name: &str) {}
