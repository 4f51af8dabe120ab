//! `ossfuse recover`: what a crash or a kill left behind, with and without a live mount.
//!
//! A session is named by its id alone: it is looked for in every live mount of this user and in every state folder.
//! A live mount is asked to act; the folder of none is locked meanwhile.

pub(super) mod place;

use std::path::PathBuf;

use clap::Subcommand;

use super::flags::ConnectionFlags;
use super::table::{fit, render};
use super::{Error, log_warnings, print, print_json};
use crate::base::units::format_size;
use crate::config::{Environment, Layers, Target, resolve_connection, resolve_state_parent};
use crate::control::client;
use crate::control::{RecoverEntry, Request, Response};
use crate::worker::{self, RecoverAction};
use place::{Place, Places};

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
    Show(ShowArgs),
    Publish(PublishArgs),
    Export(ExportArgs),
    Discard(DiscardArgs),
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

/// Tell all about one of them.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE, after_long_help = EXAMPLE)]
struct ShowArgs {
    /// Its id, as `ossfuse recover list` shows it
    id: String,
    /// Print one JSON object, for scripts
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ConnectionFlags,
}

/// Send it to the bucket: at its name, or at another.
///
/// An object that another client has put at its name meanwhile stays: the file goes beside it, as
/// NAME.conflict-YYYYMMDD-HHMMSS. `--as` with the very name of the file replaces it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE, after_long_help = EXAMPLE)]
struct PublishArgs {
    /// Its id, as `ossfuse recover list` shows it
    id: String,
    /// Publish it under this key
    #[arg(long = "as", value_name = "KEY")]
    key: Option<String>,
    #[command(flatten)]
    flags: ConnectionFlags,
}

/// Write its bytes to a new file; it stays kept.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE, after_long_help = EXAMPLE)]
struct ExportArgs {
    /// Its id, as `ossfuse recover list` shows it
    id: String,
    /// The file to write; it must not be there yet
    file: PathBuf,
    #[command(flatten)]
    flags: ConnectionFlags,
}

/// Take it away for good, with its bytes.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE, after_long_help = EXAMPLE)]
struct DiscardArgs {
    /// Its id, as `ossfuse recover list` shows it
    id: String,
    #[command(flatten)]
    flags: ConnectionFlags,
}

const EXAMPLE: &str = "Examples:
  ossfuse recover list
  ossfuse recover list my-bucket:photos --json
  ossfuse recover show 0640f8a1b2c3d4-00000001
  ossfuse recover publish 0640f8a1b2c3d4-00000001 --region cn-hangzhou
  ossfuse recover publish 0640f8a1b2c3d4-00000001 --as photos/saved.jpg
  ossfuse recover export 0640f8a1b2c3d4-00000001 /tmp/saved.jpg
  ossfuse recover discard 0640f8a1b2c3d4-00000001

Without a live mount, what must speak with the service takes the options of `mount` that say how.";

/// Runs the command.
///
/// # Errors
/// The place or the session is unknown, its state cannot be read, or what was asked could not be done.
pub(super) fn run(args: &Args) -> Result<(), Error> {
    log_warnings();
    match &args.command {
        Command::List(args) => list(args),
        Command::Show(args) => show(args),
        Command::Publish(args) => publish(args),
        Command::Export(args) => export(args),
        Command::Discard(args) => discard(args),
    }
}

/// What every one of them begins with.
struct Desk {
    environment: Environment,
    layers: Layers,
    places: Places,
}

impl Desk {
    fn open(flags: &ConnectionFlags) -> Result<Self, Error> {
        let environment = Environment::of_process();
        let layers = Layers::gather(flags.0.clone(), &environment)?;
        let parent = resolve_state_parent(&layers.raw, &environment)?;
        let runtime_dir = environment.runtime_dir()?;
        let places = Places { cwd: environment.cwd.clone(), runtime_dir, parent };
        Ok(Self { environment, layers, places })
    }

    /// Has a session dealt with, by its mount or here.
    fn act(&self, id: &str, action: RecoverAction) -> Result<Option<String>, Error> {
        let (place, entry) = self.places.find(id)?;
        let Place { folder, socket } = place;
        if let Some(socket) = socket {
            let id = entry.id;
            let request = match action {
                RecoverAction::Publish(key) => Request::RecoverPublish { id, key },
                RecoverAction::Export(file) => Request::RecoverExport { id, file },
                RecoverAction::Discard => Request::RecoverDiscard { id },
            };
            return match client::ask(&socket, &request, place::WORK_PATIENCE) {
                Ok(Response::Recovered { key }) => Ok(key),
                Ok(Response::Failed(failure)) => Err(Error::new(failure.what, failure.why, failure.mend)),
                Ok(_) => Err(Error::new(id_of(&request), "the mount's answer makes no sense", "see its log")),
                Err(error) => Err(Error::new(id_of(&request), error, "see the mount's log")),
            };
        }
        let failed = |(why, mend): worker::RecoverFailure| Error::new(&entry.id, why, mend);
        let must_connect = match &action {
            RecoverAction::Publish(_) => true,
            RecoverAction::Export(_) => !worker::is_local(&folder, &entry.id).map_err(failed)?,
            RecoverAction::Discard => false,
        };
        let bucket = place::bucket_of(&folder).and_then(|bucket| bucket.parse::<Target>().ok());
        let connection = match bucket {
            Some(target) => match resolve_connection(&self.layers.raw, &self.environment, &target) {
                Err(problem) if must_connect => return Err(problem.into()),
                found => found.ok(),
            },
            None => None,
        };
        worker::recover_offline(connection.as_ref(), &folder, &entry.id, action).map_err(failed)
    }
}

fn id_of(request: &Request) -> &str {
    match request {
        Request::RecoverPublish { id, .. } | Request::RecoverExport { id, .. } | Request::RecoverDiscard { id } => id,
        _ => "recover",
    }
}

fn list(args: &ListArgs) -> Result<(), Error> {
    let desk = Desk::open(&args.flags)?;
    let mut entries = match &args.place {
        None => desk.places.all()?.into_iter().flat_map(|(_, entries)| entries).collect(),
        Some(place) => desk.places.entries_of(place)?,
    };
    entries.sort_by(|a, b| a.id.cmp(&b.id));
    if args.json { print_json(&entries) } else { print(&overview(&entries)) }
}

fn show(args: &ShowArgs) -> Result<(), Error> {
    let desk = Desk::open(&args.flags)?;
    let (place, entry) = desk.places.find(&args.id)?;
    if args.json { print_json(&entry) } else { print(&details(&place, &entry)) }
}

fn publish(args: &PublishArgs) -> Result<(), Error> {
    let key = Desk::open(&args.flags)?.act(&args.id, RecoverAction::Publish(args.key.clone()))?;
    print(&format!("published as {}\n", fit(&key.unwrap_or_default(), usize::MAX)))
}

fn export(args: &ExportArgs) -> Result<(), Error> {
    let desk = Desk::open(&args.flags)?;
    let file = desk.environment.cwd.join(&args.file);
    if file.symlink_metadata().is_ok() {
        return Err(Error::new(file.display(), "it is there already", "name a new file"));
    }
    desk.act(&args.id, RecoverAction::Export(file.clone()))?;
    print(&format!("written to {}; it stays kept until `ossfuse recover discard`\n", file.display()))
}

fn discard(args: &DiscardArgs) -> Result<(), Error> {
    Desk::open(&args.flags)?.act(&args.id, RecoverAction::Discard)?;
    print("discarded\n")
}

fn details(place: &Place, entry: &RecoverEntry) -> String {
    let known = |value: &Option<String>| value.as_deref().map_or_else(String::new, |text| fit(text, usize::MAX));
    let size = entry.size.map_or_else(String::new, |size| format!("{} ({size} bytes)", format_size(size)));
    let parts = entry.parts_total.map_or_else(String::new, |parts| parts.to_string());
    let mut rows = vec![
        ("id", entry.id.clone()),
        ("key", known(&entry.key)),
        ("size", size),
        ("state", state(entry)),
        ("reason", fit(&entry.reason, usize::MAX)),
        ("created", known(&entry.created_at)),
        ("parts", parts),
        ("folder", place.folder.display().to_string()),
    ];
    rows.retain(|(_, value)| !value.is_empty());
    render(&rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect::<Vec<_>>())
}

fn state(entry: &RecoverEntry) -> String {
    format!("{:?}", entry.state).to_lowercase()
}

fn overview(entries: &[RecoverEntry]) -> String {
    if entries.is_empty() {
        return "nothing is left to recover\n".to_owned();
    }
    let head = ["ID", "STATE", "SIZE", "KEY"].map(str::to_owned).to_vec();
    let mut rows = vec![head];
    for entry in entries {
        let size = entry.size.map_or_else(|| "-".to_owned(), format_size);
        rows.push(vec![fit(&entry.id, 24), state(entry), size, fit(entry.key.as_deref().unwrap_or("-"), 120)]);
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
}
