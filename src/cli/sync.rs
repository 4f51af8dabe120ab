//! `ossfuse sync`: waits until everything written so far under a path is in OSS.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::flags::CommonFlags;
use super::progress::{Bar, count};
use super::{Error, mountinfo};
use crate::base::units::{format_duration, parse_duration};
use crate::config::{Environment, absolute_mountpoint, socket_path};
use crate::control::client::{self, Client};
use crate::control::{Request, Response};

/// How much longer than it was given the mount may take to answer.
const MARGIN: Duration = Duration::from_secs(15);

/// Wait until everything written so far under a path is in OSS.
///
/// Files that are open are sent as they are now, as a whole, and stay open. When it returns with exit status 0,
/// the objects equal the files.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE, after_long_help = EXAMPLE)]
pub(super) struct Args {
    /// A file or a folder in a mount, or the mount point
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// How long it may take [default: as long as it takes]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
    #[command(flatten)]
    _common: CommonFlags,
}

const EXAMPLE: &str = "Examples:
  ossfuse sync /mnt/oss
  ossfuse sync /mnt/oss/logs/app.log --timeout 1m";

/// Runs the command.
///
/// # Errors
/// Something is not in OSS, or the path lies in no mount.
pub(super) fn run(args: &Args) -> Result<(), Error> {
    let environment = Environment::of_process();
    let place = args.path.display();
    let path = absolute_mountpoint(&args.path, &environment.cwd)
        .map_err(|error| Error::new(&place, error, "name a file or a folder in a mount"))?;
    let mountpoint = mountpoint_of(&path)?;
    let below = path.strip_prefix(&mountpoint).unwrap_or(&path);
    let below = below.to_str().ok_or_else(|| Error::new(&place, "the path is not UTF-8", "sync the folder above"))?;
    if !below.is_empty() {
        std::fs::symlink_metadata(&path).map_err(|error| Error::new(&place, error, "name what is there"))?;
    }
    let socket = socket_path(&environment.runtime_dir()?, &mountpoint);
    let answer = Client::connect(&socket).and_then(|client| ask(client, below, args.timeout));
    match answer {
        Ok(Response::Done) => Ok(()),
        Ok(Response::TimedOut { pending }) => {
            let after = format_duration(args.timeout.unwrap_or_default());
            let why = format!("{} are not sent after {after}", count(pending));
            Err(Error::new(&place, why, "it goes on; give a longer --timeout"))
        }
        Ok(Response::Failed(failure)) => Err(Error::new(failure.what, failure.why, failure.mend)),
        Ok(_) => Err(Error::new(&place, "the mount's answer makes no sense", "see its log")),
        Err(client::Error::NotRunning) => {
            Err(Error::new(mountpoint.display(), "no mount of this user is running there", "see `ossfuse status`"))
        }
        Err(client::Error::Ended) => {
            Err(Error::new(&place, "the mount ended before all was sent", "mount again to send the rest"))
        }
        Err(error) => Err(Error::new(&place, error, "see its log")),
    }
}

fn ask(mut client: Client, path: &str, timeout: Option<Duration>) -> Result<Response, client::Error> {
    let begun = Instant::now();
    let timeout_ms = timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
    client.send(&Request::Sync { path: path.to_owned(), timeout_ms })?;
    let mut bar = Bar::default();
    let answer = loop {
        // Without a time limit each sign of life is followed by another.
        let patience = timeout.map_or(MARGIN, |timeout| (timeout + MARGIN).saturating_sub(begun.elapsed()));
        match client.receive(patience) {
            Ok(Response::Progress { pending }) => bar.show(pending),
            last => break last,
        }
    };
    bar.clear();
    answer
}

/// The mount of ours that a path lies in.
fn mountpoint_of(path: &Path) -> Result<PathBuf, Error> {
    let all = mountinfo::all().map_err(|error| Error::new("/proc/self/mountinfo", error, ""))?;
    let holding = all.into_iter().filter(|mounted| path.starts_with(&mounted.path));
    // The longest; of several at one place the last one lies on top.
    let nearest = holding.max_by_key(|mounted| mounted.path.as_os_str().len());
    match nearest.filter(mountinfo::Mounted::is_ours) {
        Some(mounted) => Ok(mounted.path),
        None => Err(Error::new(path.display(), "it lies in no mount of ossfuse", "see `ossfuse status`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_no_mount_is_refused() {
        let error = mountpoint_of(Path::new("/proc/self")).unwrap_err().line.unwrap();
        assert!(error.starts_with("/proc/self: it lies in no mount of ossfuse"), "{error}");
    }
}
