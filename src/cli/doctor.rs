//! `ossfuse doctor`: what a mount needs, checked one by one, each failure with its mend.
//!
//! Changes nothing but a passing object under `.ossfuse-tmp/` of the bucket, and a passing file in the state folder.

mod remote;

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::flags::ConnectionFlags;
use super::mountinfo::{self, Pulse};
use super::preflight::fuse_device;
use super::{Error, log_warnings, print};
use crate::base::limits::{GIB, MIB};
use crate::base::units::format_size;
use crate::config::{Environment, Layers, Target, resolve_state_parent};

/// Less room for unsent files than this is worth a word.
const ROOM_MIN: u64 = 10 * GIB;
/// A disk that takes longer over one fsync makes every close slow.
const FSYNC_MS_MAX: u128 = 100;
/// The first kernel that sends unanswered requests again (FUSE_HAS_RESEND), and that knows passthrough.
const KERNEL_WANTED: (u32, u32) = (6, 9);

/// Check what a mount needs: this machine, and with a bucket the service and the rights of the key.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE, after_long_help = EXAMPLE)]
pub(super) struct Args {
    /// Check the way to this bucket too
    #[arg(value_name = "BUCKET[:PREFIX]")]
    target: Option<String>,
    #[command(flatten)]
    flags: ConnectionFlags,
}

const EXAMPLE: &str = "Examples:
  ossfuse doctor
  ossfuse doctor my-bucket --region cn-hangzhou

Each line says ok, warn or fail, and behind a `;` what to do. The exit status is 1 where one fails.";

/// How a check came out.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Finding {
    Ok(String),
    /// What, and what to do about it.
    Warn(String, String),
    Fail(String, String),
}

/// A line of the report.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Check {
    name: &'static str,
    finding: Finding,
}

impl Check {
    fn ok(name: &'static str, text: impl Into<String>) -> Self {
        Self { name, finding: Finding::Ok(text.into()) }
    }
    fn warn(name: &'static str, text: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, finding: Finding::Warn(text.into(), mend.into()) }
    }
    fn fail(name: &'static str, text: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, finding: Finding::Fail(text.into(), mend.into()) }
    }

    fn line(&self, coloured: bool) -> String {
        let (word, colour, text) = match &self.finding {
            Finding::Ok(text) => ("ok", 32, text.clone()),
            Finding::Warn(text, mend) => ("warn", 33, format!("{text}; {mend}")),
            Finding::Fail(text, mend) => ("fail", 31, format!("{text}; {mend}")),
        };
        let word = if coloured { format!("\x1b[{colour}m{word:4}\x1b[0m") } else { format!("{word:4}") };
        let text: String = text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
        format!("{word}  {}: {text}\n", self.name)
    }
}

/// Runs the command.
///
/// # Errors
/// A check failed; the report has said which.
pub(super) fn run(args: &Args) -> Result<(), Error> {
    log_warnings();
    let environment = Environment::of_process();
    let layers = Layers::gather(args.flags.0.clone(), &environment)?;
    let target = args.target.as_ref().map(|text| text.parse::<Target>()).transpose()?;
    let coloured = io::stdout().is_terminal() && environment.variable("NO_COLOR").is_none_or(str::is_empty);
    let mut failed = false;
    let mut tell = |check: Check| {
        failed |= matches!(check.finding, Finding::Fail(..));
        print(&check.line(coloured))
    };
    let parent = resolve_state_parent(&layers.raw, &environment)?;
    for check in [device(), kernel(), helper(environment.is_root()), room(&parent), fsync_speed(&parent)] {
        tell(check)?;
    }
    for check in stale_mounts() {
        tell(check)?;
    }
    match &target {
        Some(target) => remote::check(&layers, &environment, target, &mut tell)?,
        None => print("the service and the rights of the key are checked with `ossfuse doctor BUCKET`\n")?,
    }
    if failed { Err(Error { line: None, status: 1 }) } else { Ok(()) }
}

fn device() -> Check {
    const NAME: &str = "/dev/fuse";
    match fuse_device() {
        Ok(()) => Check::ok(NAME, "can be opened"),
        Err((why, mend)) => Check::fail(NAME, why, mend),
    }
}

fn kernel() -> Check {
    const NAME: &str = "kernel";
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    match version(release) {
        Some(found) if found >= KERNEL_WANTED => Check::ok(
            NAME,
            format!(
                "{release} has FUSE_HAS_RESEND and passthrough: recovery is transparent, programs go on after a crash"
            ),
        ),
        Some(_) => Check::warn(
            NAME,
            format!("{release} has no FUSE_HAS_RESEND, no passthrough: recovery is by remount, open files fail once"),
            "use Linux 6.9 or newer where that matters",
        ),
        None => Check::warn(NAME, format!("its version `{release}` is not understood"), "6.9 or newer is best"),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|char: char| !char.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn helper(is_root: bool) -> Check {
    const NAME: &str = "fusermount3";
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).map(|dir| dir.join("fusermount3")).find(|path| path.is_file());
    match (found, is_root) {
        (Some(path), _) => Check::ok(NAME, path.display().to_string()),
        (None, true) => Check::ok(NAME, "is not there; root mounts without it"),
        (None, false) => Check::fail(NAME, "is not there", "install the package fuse3"),
    }
}

/// The folder itself, or the nearest above it that is there.
fn existing(path: &Path) -> PathBuf {
    path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

fn room(parent: &Path) -> Check {
    const NAME: &str = "spill disk";
    let place = parent.display();
    let folder = existing(parent);
    if mountinfo::is_in_memory(&folder).unwrap_or(false) {
        let why = format!("{place} lies in memory: unsent files would not outlive a reboot");
        return Check::warn(NAME, why, "name a folder on a disk with --state-dir");
    }
    match mountinfo::room(&folder) {
        Ok(room) if room >= ROOM_MIN => Check::ok(NAME, format!("{} are free at {place}", format_size(room))),
        Ok(room) => Check::warn(
            NAME,
            format!("only {} are free at {place}", format_size(room)),
            "make room, or name a larger disk with --state-dir",
        ),
        Err(error) => Check::fail(NAME, format!("{place}: {error}"), "see --state-dir"),
    }
}

fn fsync_speed(parent: &Path) -> Check {
    const NAME: &str = "spill fsync";
    let folder = existing(parent);
    let path = folder.join(format!(".ossfuse-doctor-{}", std::process::id()));
    let measured = (|| -> io::Result<u128> {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(&vec![0; MIB as usize])?;
        let begun = Instant::now();
        file.sync_all()?;
        Ok(begun.elapsed().as_millis())
    })();
    if let Err(error) = std::fs::remove_file(&path) {
        log::debug!("{}: {error}", path.display());
    }
    match measured {
        Ok(ms) if ms <= FSYNC_MS_MAX => Check::ok(NAME, format!("1 MiB is safe after {ms} ms")),
        Ok(ms) => Check::warn(NAME, format!("1 MiB takes {ms} ms"), "a faster disk for --state-dir makes fsync faster"),
        Err(error) => Check::fail(NAME, format!("{} cannot be written: {error}", folder.display()), "see --state-dir"),
    }
}

fn stale_mounts() -> Vec<Check> {
    const NAME: &str = "stale mounts";
    let mounted = match mountinfo::all() {
        Ok(mounted) => mounted,
        Err(error) => return vec![Check::fail(NAME, error.to_string(), "is /proc mounted?")],
    };
    let ours = mounted.iter().filter(|mounted| mounted.is_ours());
    let bad: Vec<Check> = ours
        .filter_map(|mounted| {
            let place = mounted.path.display();
            match mountinfo::pulse(&mounted.path) {
                Pulse::Alive => None,
                Pulse::Dead => {
                    Some(Check::fail(NAME, format!("nobody serves {place}"), format!("run `ossfuse umount {place}`")))
                }
                Pulse::Hanging => {
                    Some(Check::warn(NAME, format!("{place} does not answer"), format!("see `ossfuse status {place}`")))
                }
            }
        })
        .collect();
    if bad.is_empty() { vec![Check::ok(NAME, "none")] } else { bad }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_mend_and_colour_only_where_wanted() {
        let check = Check::fail("x", "it is\nbroken", "mend it");
        assert_eq!(check.line(false), "fail  x: it is broken; mend it\n");
        assert_eq!(check.line(true), "\x1b[31mfail\x1b[0m  x: it is broken; mend it\n");
        assert_eq!(Check::ok("x", "fine").line(false), "ok    x: fine\n");
    }

    #[test]
    fn kernels_are_told_apart() {
        assert_eq!(version("6.18.5-custom"), Some((6, 18)));
        assert_eq!(version("5.4.0-1-generic"), Some((5, 4)));
        assert_eq!(version("x"), None);
        assert!(version("6.10").unwrap() > KERNEL_WANTED);
    }

    #[test]
    fn the_disk_is_measured_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let check = fsync_speed(&dir.path().join("not/there/yet"));
        assert!(!matches!(check.finding, Finding::Fail(..)), "{check:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
