//! `ossfuse recover`: what a crash or a kill left behind, with and without a live mount.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;

use super::flags::ConnectionFlags;
use super::table::{fit, render};
use super::{Error, complain, print, print_json};
use crate::base::units::format_size;
use crate::config::{
    Environment, Layers, Target, absolute_mountpoint, resolve_state_parent, socket_path, state_folder,
};
use crate::control::client::{self, live_sockets};
use crate::control::{RecoverEntry, Request, Response};
use crate::replay;

/// How long a mount may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// See to files that a crash or a kill left unsent.
#[derive(Debug, clap::Args)]
#[command(disable_help_subcommand = true, after_help = EXAMPLE, after_long_help = EXAMPLE)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(ListArgs),
}

/// List the files that were not finished when their writer or the mount ended.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE, after_long_help = EXAMPLE)]
struct ListArgs {
    /// Only those of this mount, or of this bucket and prefix [default: all of this user]
    #[arg(value_name = "MOUNTPOINT|BUCKET[:PREFIX]")]
    place: Option<PathBuf>,
    /// Print one JSON array, for scripts
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ConnectionFlags,
}

const EXAMPLE: &str = "Examples:
  ossfuse recover list
  ossfuse recover list /mnt/oss
  ossfuse recover list my-bucket:photos --json";

/// Sessions, and the folder that they are in.
type Listed = (PathBuf, Vec<RecoverEntry>);

/// Runs the command.
///
/// # Errors
/// The place is unknown, or its state cannot be read.
pub(super) fn run(args: &Args) -> Result<(), Error> {
    match &args.command {
        Command::List(args) => list(args),
    }
}

fn list(args: &ListArgs) -> Result<(), Error> {
    let environment = Environment::of_process();
    let layers = Layers::gather(args.flags.0.clone(), &environment)?;
    let parent = resolve_state_parent(&layers.raw, &environment)?;
    let runtime_dir = environment.runtime_dir()?;
    let mut entries = match &args.place {
        None => of_all(&runtime_dir, &parent)?,
        Some(place) => match of_mount(place, &environment.cwd, &runtime_dir)? {
            Some(entries) => entries,
            None => of_bucket(place, &runtime_dir, &parent)?,
        },
    };
    entries.sort_by(|a, b| a.id.cmp(&b.id));
    if args.json { print_json(&entries) } else { print(&overview(&entries)) }
}

/// `None` where no live mount is at the place.
fn of_mount(place: &Path, cwd: &Path, runtime_dir: &Path) -> Result<Option<Vec<RecoverEntry>>, Error> {
    let Ok(mountpoint) = absolute_mountpoint(place, cwd) else { return Ok(None) };
    match ask(&socket_path(runtime_dir, &mountpoint)) {
        Ok((_, entries)) => Ok(Some(entries)),
        Err(client::Error::NotRunning) => Ok(None),
        Err(error) => Err(Error::new(place.display(), error, "see its log")),
    }
}

fn of_bucket(place: &Path, runtime_dir: &Path, parent: &Path) -> Result<Vec<RecoverEntry>, Error> {
    let text = place.to_string_lossy();
    if text.contains('/') && !text.contains(':') {
        let mend = "name the bucket in its place: `ossfuse recover list BUCKET[:PREFIX]`";
        return Err(Error::new(place.display(), "no mount of this user is running there", mend));
    }
    let target: Target = text.parse()?;
    let folder = state_folder(parent, &target.bucket, &target.prefix);
    let live = of_live(runtime_dir)?.into_iter().find(|(of, _)| *of == folder);
    match live {
        Some((_, entries)) => Ok(entries),
        None if folder.is_dir() => offline(&folder),
        None => Ok(Vec::new()),
    }
}

/// What live mounts say, and what lies in the folders that none of them has.
fn of_all(runtime_dir: &Path, parent: &Path) -> Result<Vec<RecoverEntry>, Error> {
    let live = of_live(runtime_dir)?;
    let served: BTreeSet<PathBuf> = live.iter().map(|(folder, _)| folder.clone()).collect();
    let mut entries: Vec<RecoverEntry> = live.into_iter().flat_map(|(_, entries)| entries).collect();
    for folder in folders(parent)?.difference(&served) {
        match offline(folder) {
            Ok(found) => entries.extend(found),
            Err(error) => complain(&format!("warning: {}", error.line.unwrap_or_default())),
        }
    }
    Ok(entries)
}

fn of_live(runtime_dir: &Path) -> Result<Vec<Listed>, Error> {
    let sockets = live_sockets(runtime_dir).map_err(|error| Error::new(runtime_dir.display(), error, ""))?;
    let mut listed = Vec::new();
    for socket in sockets {
        match ask(&socket) {
            Ok(found) => listed.push(found),
            // It has ended since the folder was read.
            Err(client::Error::NotRunning | client::Error::Ended) => {}
            Err(error) => complain(&format!("warning: {}: {error}", socket.display())),
        }
    }
    Ok(listed)
}

fn ask(socket: &Path) -> Result<Listed, client::Error> {
    match client::ask(socket, &Request::RecoverList, PATIENCE)? {
        Response::RecoverList { state_folder, entries } => Ok((state_folder, entries)),
        _ => Err(client::Error::Ended),
    }
}

fn folders(parent: &Path) -> Result<BTreeSet<PathBuf>, Error> {
    let problem = |error: std::io::Error| Error::new(parent.display(), error, "see --state-dir");
    let entries = match std::fs::read_dir(parent) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        other => other.map_err(problem)?,
    };
    let mut folders = BTreeSet::new();
    for entry in entries {
        let path = entry.map_err(problem)?.path();
        // Folders of mounts bear a bucket's name; the sockets of a user without a runtime folder may lie beside.
        if path.is_dir() && path.file_name().is_some_and(|name| name != "run") {
            folders.insert(path);
        }
    }
    Ok(folders)
}

fn offline(folder: &Path) -> Result<Vec<RecoverEntry>, Error> {
    replay::list_offline(folder).map_err(|error| Error::new(folder.display(), error, ""))
}

fn overview(entries: &[RecoverEntry]) -> String {
    if entries.is_empty() {
        return "nothing is left to recover\n".to_owned();
    }
    let head = ["ID", "STATE", "SIZE", "KEY"].map(str::to_owned).to_vec();
    let mut rows = vec![head];
    for entry in entries {
        let size = entry.size.map_or_else(|| "-".to_owned(), format_size);
        let state = format!("{:?}", entry.state).to_lowercase();
        rows.push(vec![fit(&entry.id, 24), state, size, fit(entry.key.as_deref().unwrap_or("-"), 120)]);
        rows.push(vec![format!("  {}", fit(&entry.reason, 76))]);
    }
    // The reason stands on a line of its own and must not widen the first column.
    let (table, reasons): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.len() > 1);
    let table = render(&table);
    let mut lines = table.lines().map(str::to_owned);
    let mut out: Vec<String> = lines.next().into_iter().collect();
    for (line, reason) in lines.zip(reasons) {
        out.extend([line, reason.concat()]);
    }
    out.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::RecoverState;

    fn entry(id: &str) -> RecoverEntry {
        RecoverEntry {
            id: id.to_owned(),
            key: Some("a/b".into()),
            size: Some(2048),
            state: RecoverState::Kept,
            reason: "its writer was killed by signal 15".into(),
            created_at: None,
            parts_done: None,
            parts_total: None,
        }
    }

    #[test]
    fn the_list_gives_each_session_its_reason() {
        let wanted = "\
ID      STATE  SIZE   KEY
one     kept   2 KiB  a/b
  its writer was killed by signal 15
second  kept   2 KiB  a/b
  its writer was killed by signal 15
";
        assert_eq!(overview(&[entry("one"), entry("second")]), wanted);
        assert_eq!(overview(&[]), "nothing is left to recover\n");
    }

    #[test]
    fn a_place_without_a_mount_is_a_bucket_or_a_mistake() {
        let dir = tempfile::tempdir().unwrap();
        let of = |place: &str| of_bucket(Path::new(place), &dir.path().join("run"), dir.path());
        assert!(of("photos:2024/may").unwrap().is_empty());
        assert!(of("/mnt/none").unwrap_err().line.unwrap().contains("name the bucket in its place"));
        assert_eq!(of("x").unwrap_err().status, 2);
    }

    #[test]
    fn folders_are_those_of_mounts() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["photos", "run", "photos@a"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("file"), "").unwrap();
        let found: Vec<_> = folders(dir.path()).unwrap().into_iter().collect();
        assert_eq!(found, [dir.path().join("photos"), dir.path().join("photos@a")]);
        assert!(folders(&dir.path().join("none")).unwrap().is_empty());
    }
}
