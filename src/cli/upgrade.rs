//! `ossfuse upgrade`: replaces the processes of a mount by the binary on disk.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::Error;
use super::flags::CommonFlags;
use crate::config::{Environment, absolute_mountpoint, socket_path};
use crate::control::client::{self, ask};
use crate::control::{MountStatus, Request, Response};

/// How long the new worker may take to come up.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(20);
/// The pause between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Replace the processes that serve a mount by the binary now on disk.
///
/// Applications notice nothing: open files stay open, and a copy that is under way goes on. A binary that cannot
/// read the state of the mount is refused before anything happens.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE, after_long_help = EXAMPLE)]
pub(super) struct Args {
    /// The folder that was mounted
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,
    #[command(flatten)]
    _common: CommonFlags,
}

const EXAMPLE: &str = "Example:
  ossfuse upgrade /mnt/oss";

/// Runs the command.
///
/// # Errors
/// The mount goes on as it was, or its new worker does not come up.
pub(super) fn run(args: &Args) -> Result<(), Error> {
    let environment = Environment::of_process();
    let mountpoint = absolute_mountpoint(&args.mountpoint, &environment.cwd)
        .map_err(|error| Error::new(args.mountpoint.display(), error, "name the folder that was mounted"))?;
    let socket = socket_path(&environment.runtime_dir()?, &mountpoint);
    let place = mountpoint.display();
    let status = || -> Result<MountStatus, client::Error> {
        match ask(&socket, &Request::Status, ANSWER)? {
            Response::Status { status } => Ok(*status),
            _ => Err(client::Error::Ended),
        }
    };
    let failed = |error: client::Error| match error {
        client::Error::NotRunning => {
            Error::new(&place, "no mount of this user is running there", "see `ossfuse status`")
        }
        error => Error::new(&place, error, "see its log"),
    };
    let before = status().map_err(failed)?;
    match ask(&socket, &Request::Upgrade, ANSWER).map_err(failed)? {
        Response::Done => {}
        Response::Failed(failure) => return Err(Error::new(failure.what, failure.why, failure.mend)),
        _ => return Err(Error::new(&place, "the mount's answer makes no sense", "see its log")),
    }
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        // One that is cut off was asked of the old worker.
        if status().is_ok_and(|now| now.worker_pid != before.worker_pid) {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
    Err(Error::new(&place, "the new worker does not come up", "see its log"))
}
