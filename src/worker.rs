//! Serves one mount, from the opening of its state to its end.

use crate::config::MountConfig;
use crate::control::Ready;

/// Why a mount could not be served, as `WHAT: WHY; MEND`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(pub String);

/// Mounts, calls `ready.up()` once the mount answers, and serves until it is unmounted.
///
/// # Errors
/// The mount could not come up, in one line.
pub fn run(config: MountConfig, ready: Ready) -> Result<(), Error> {
    drop(ready);
    Err(Error(format!("{}: cannot be mounted: this build has no file system in it", config.mountpoint.display())))
}
