//! `ossfuse umount`: has the mount send what is pending, then takes it away.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::flags::CommonFlags;
use super::mountinfo::{self, Mounted, Pulse};
use super::progress::{Bar, count};
use super::{Error, holders};
use crate::base::units::{format_duration, parse_duration};
use crate::config::{Environment, absolute_mountpoint, socket_path};
use crate::control::client::{self, Client};
use crate::control::{Request, Response};

/// How much longer than it was given the mount may take to answer.
const MARGIN: Duration = Duration::from_secs(15);
/// How long a mount that shall go at once may take to do so by itself.
const FORCE_PATIENCE: Duration = Duration::from_secs(10);
/// How long the process of a mount may take to end after its last word.
const FAREWELL: Duration = Duration::from_secs(10);
/// A mount in use though nobody is found who uses it is tried again for this long: a child that was just forked holds
/// its parent's files until it runs its own program.
const PASSING_USE: Duration = Duration::from_secs(2);
const PASSING_USE_PAUSE: Duration = Duration::from_millis(100);

/// Send what is pending, then unmount.
///
/// When it returns with exit status 0, everything that was written is in OSS. When the mount is in use or time is
/// up, it says so and the mount stays.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE, after_long_help = EXAMPLE)]
pub(super) struct Args {
    /// The folder that was mounted
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,
    /// How long sending may take
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_duration)]
    timeout: Duration,
    /// Unmount at once, whoever uses it, and send nothing; what is pending is kept for the next mount
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    _common: CommonFlags,
}

const EXAMPLE: &str = "Examples:
  ossfuse umount /mnt/oss
  ossfuse umount /mnt/oss --timeout 1h
  ossfuse umount /mnt/oss --force";

/// Runs the command.
///
/// # Errors
/// The mount is still there, or there was none.
pub(super) fn run(args: &Args) -> Result<(), Error> {
    let environment = Environment::of_process();
    let mountpoint = absolute_mountpoint(&args.mountpoint, &environment.cwd)
        .map_err(|error| Error::new(args.mountpoint.display(), error, "name the folder that was mounted"))?;
    let socket = socket_path(&environment.runtime_dir()?, &mountpoint);
    let give_up = Instant::now() + PASSING_USE;
    loop {
        match Client::connect(&socket) {
            Ok(client) => match unmount(client, &mountpoint, args)? {
                Outcome::Unmounted => return Ok(()),
                Outcome::Busy => match user_of(&mountpoint) {
                    None if Instant::now() < give_up => std::thread::sleep(PASSING_USE_PAUSE),
                    user => return Err(busy(&mountpoint, user)),
                },
            },
            Err(client::Error::NotRunning) => return clear_leftover(&mountpoint, args.force),
            Err(error) => return Err(Error::new(mountpoint.display(), error, "")),
        }
    }
}

/// How a mount answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Unmounted,
    Busy,
}

fn unmount(mut client: Client, mountpoint: &Path, args: &Args) -> Result<Outcome, Error> {
    let place = mountpoint.display();
    let timeout_ms = u64::try_from(args.timeout.as_millis()).unwrap_or(u64::MAX);
    let patience = if args.force { FORCE_PATIENCE } else { args.timeout.saturating_add(MARGIN) };
    let begun = Instant::now();
    let mut bar = Bar::default();
    let asked = client.send(&Request::Umount { timeout_ms, force: args.force });
    let answer = asked.and_then(|()| {
        loop {
            match client.receive(patience.saturating_sub(begun.elapsed()))? {
                Response::Progress { pending } => bar.show(pending),
                last => break Ok(last),
            }
        }
    });
    bar.clear();
    match answer {
        Ok(Response::Done) => {
            client.wait_for_end(FAREWELL);
            Ok(Outcome::Unmounted)
        }
        Ok(Response::Busy) => Ok(Outcome::Busy),
        Ok(Response::TimedOut { pending }) => {
            let why =
                format!("{} are not sent after {}; it stays mounted", count(pending), format_duration(args.timeout));
            Err(Error::new(&place, why, "give a longer --timeout, or --force to send them at the next mount"))
        }
        Ok(Response::Failed(failure)) => Err(Error::new(failure.what, failure.why, failure.mend)),
        Ok(_) => Err(Error::new(&place, "the mount's answer makes no sense", "see its log")),
        // Its last word was lost, or it died: the kernel knows which.
        Err(client::Error::Ended) => settle_ended(mountpoint, args.force).map(|()| Outcome::Unmounted),
        Err(client::Error::Silent) if args.force => {
            detach(mountpoint, "the mount did not answer").map(|()| Outcome::Unmounted)
        }
        Err(error) => Err(Error::new(&place, error, "see its log, or give --force")),
    }
}

fn settle_ended(mountpoint: &Path, force: bool) -> Result<(), Error> {
    match mounted_at(mountpoint)? {
        Some(mounted) if mounted.is_ours() => clear_leftover(mountpoint, force),
        _ => {
            Err(Error::new(mountpoint.display(), "the mount ended before all was sent", "mount again to send the rest"))
        }
    }
}

fn mounted_at(mountpoint: &Path) -> Result<Option<Mounted>, Error> {
    mountinfo::at(mountpoint).map_err(|error| Error::new("/proc/self/mountinfo", error, ""))
}

/// There is no live socket: what is there, if anything, is no mount that could send something.
fn clear_leftover(mountpoint: &Path, force: bool) -> Result<(), Error> {
    let place = mountpoint.display();
    match mounted_at(mountpoint)? {
        None => Err(Error::new(&place, "nothing is mounted there", "see `ossfuse status`")),
        Some(mounted) if !mounted.is_ours() => {
            let why = format!("what is mounted there is no ossfuse mount but {}", mounted.fs_type);
            Err(Error::new(&place, why, format!("use `umount {place}`")))
        }
        Some(_) => match mountinfo::pulse(mountpoint) {
            Pulse::Dead => detach(mountpoint, "nobody served the mount any more"),
            _ if force => detach(mountpoint, "the mount could not be asked"),
            _ => {
                let why = "the mount cannot be asked: its socket is gone, or another user's";
                Err(Error::new(&place, why, "run this as the user who mounted, or give --force"))
            }
        },
    }
}

fn detach(mountpoint: &Path, why: &str) -> Result<(), Error> {
    let place = mountpoint.display();
    mountinfo::detach(mountpoint)
        .map_err(|error| Error::new(&place, format!("it cannot be taken away: {error}"), "try it as root"))?;
    super::print(&format!("{place}: {why}; it was taken away. Unsent files are kept for the next mount.\n"))
}

/// Who uses a mount; None where nobody is found.
fn user_of(mountpoint: &Path) -> Option<String> {
    let holders = holders::describe(mountpoint);
    if !holders.is_empty() {
        return Some(holders);
    }
    let below = mountinfo::all().unwrap_or_default();
    let below = below.iter().find(|mounted| mounted.path != mountpoint && mounted.path.starts_with(mountpoint))?;
    Some(format!("{} is mounted in it", below.path.display()))
}

fn busy(mountpoint: &Path, user: Option<String>) -> Error {
    let user = user.unwrap_or_else(|| "by a process of another user, or inside a container".to_owned());
    let mend = "let go of it and try again, or give --force; it stays mounted";
    Error::new(mountpoint.display(), format!("it is busy: {user}"), mend)
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::io;
    use std::os::fd::AsRawFd;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    /// A mount of our type that nobody serves once the returned file is dropped.
    fn mount_fuse(path: &Path) -> io::Result<std::fs::File> {
        let fuse = std::fs::File::options().read(true).write(true).open("/dev/fuse")?;
        let data = CString::new(format!("fd={},rootmode=40000,user_id=0,group_id=0", fuse.as_raw_fd()))?;
        let path = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: terminated strings, alive during the call.
        let done = unsafe {
            libc::mount(c"photos".as_ptr(), path.as_ptr(), c"fuse.ossfuse".as_ptr(), 0, data.as_ptr().cast())
        };
        if done == 0 { Ok(fuse) } else { Err(io::Error::last_os_error()) }
    }

    #[test]
    fn a_mount_that_nobody_serves_is_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = std::fs::canonicalize(dir.path()).unwrap();
        let fuse = match mount_fuse(&path) {
            Ok(fuse) => fuse,
            Err(error) => return println!("skipped: FUSE cannot be mounted here: {error}"),
        };
        assert!(mounted_at(&path).unwrap().is_some_and(|mounted| mounted.is_ours()));
        drop(fuse);
        assert_eq!(mountinfo::pulse(&path), Pulse::Dead);
        assert!(clear_leftover(&path, false).is_ok());
        assert!(mounted_at(&path).unwrap().is_none());
    }

    #[test]
    fn what_is_no_mount_of_ours_is_left_alone() {
        let line = |path: &str, force| clear_leftover(Path::new(path), force).unwrap_err().line.unwrap();
        assert_eq!(line("/nonexistent", false), "/nonexistent: nothing is mounted there; see `ossfuse status`");
        let proc = "/proc: what is mounted there is no ossfuse mount but proc; use `umount /proc`";
        assert_eq!([line("/proc", false), line("/proc", true)], [proc, proc]);
    }
}
