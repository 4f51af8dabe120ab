//! `ossfuse log`: how much running mounts log, from now on.

use std::path::PathBuf;
use std::time::Duration;

use super::flags::CommonFlags;
use super::{Error, complain};
use crate::config::{Environment, absolute_mountpoint, socket_path};
use crate::control::client::{self, live_sockets};
use crate::control::{Request, Response};

/// How long a mount may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Change how much a running mount logs.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE, after_long_help = EXAMPLE)]
pub(super) struct Args {
    /// From now on
    #[arg(value_parser = ["off", "error", "warn", "info", "debug", "trace"])]
    level: String,
    /// Only this mount [default: all of this user]
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: Option<PathBuf>,
    #[command(flatten)]
    _common: CommonFlags,
}

const EXAMPLE: &str = "Examples:
  ossfuse log debug /mnt/oss
  ossfuse log info

It holds until the mount ends, or is told to read its config file again by SIGHUP.";

/// Runs the command.
///
/// # Errors
/// The named mount is not there, or a mount does not answer.
pub(super) fn run(args: &Args) -> Result<(), Error> {
    let environment = Environment::of_process();
    let runtime_dir = environment.runtime_dir()?;
    let sockets = match &args.mountpoint {
        Some(path) => {
            let place = absolute_mountpoint(path, &environment.cwd);
            vec![socket_path(&runtime_dir, &place.map_err(|error| Error::new(path.display(), error, ""))?)]
        }
        None => live_sockets(&runtime_dir).map_err(|error| Error::new(runtime_dir.display(), error, ""))?,
    };
    if sockets.is_empty() {
        return Err(Error::new("log", "no mount is running", "see `ossfuse status`"));
    }
    let name = args.mountpoint.as_ref().map(|path| path.display().to_string());
    let mut failed = None;
    for socket in sockets {
        let place = name.clone().unwrap_or_else(|| socket.display().to_string());
        let problem = match client::ask(&socket, &Request::Log { level: args.level.clone() }, PATIENCE) {
            Ok(Response::Done) => continue,
            Ok(Response::Failed(failure)) => Error::new(failure.what, failure.why, failure.mend),
            Ok(_) => Error::new(place, "the mount's answer makes no sense", "see its log"),
            Err(client::Error::NotRunning) => {
                Error::new(place, "no mount of this user is running there", "see `ossfuse status`")
            }
            Err(error) => Error::new(place, error, "see its log"),
        };
        if let Some(earlier) = failed.replace(problem) {
            complain(&earlier.line.unwrap_or_default());
        }
    }
    failed.map_or(Ok(()), Err)
}
