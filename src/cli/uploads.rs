//! `ossfuse uploads`: the multipart uploads that stand in a bucket, and giving up those that nobody will finish.
//!
//! An upload is aborted only where it is nobody's that this user's state tells of and old enough: the journals of this
//! user's state folders, of mounted ones through their mounts, say what is somebody's. `--force` lifts both bars.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use clap::Subcommand;
use serde::Serialize;

use super::flags::ConnectionFlags;
use super::recover::place::bucket_of;
use super::table::{fit, render};
use super::{Error, complain, log_warnings, print, print_json};
use crate::base::ObjectKey;
use crate::base::time::{now, rfc3339};
use crate::base::units::{format_duration, parse_duration};
use crate::config::{Environment, Layers, Target, resolve_connection, resolve_state_parent};
use crate::control::client::{self, live_sockets};
use crate::control::{Request, Response};
use crate::oss::{Client, UploadInfo};
use crate::worker::{connect, owned_uploads_offline};

/// How long a mount may take to say which uploads are its.
const PATIENCE: Duration = Duration::from_secs(10);

/// See to multipart uploads that were begun and never finished; their parts cost storage.
#[derive(Debug, clap::Args)]
#[command(disable_help_subcommand = true, after_help = EXAMPLE, after_long_help = EXAMPLE)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(Choice),
    Abort(AbortArgs),
}

/// List the uploads that stand in a bucket.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE, after_long_help = EXAMPLE)]
struct Choice {
    /// The bucket, and perhaps the prefix of their keys
    #[arg(value_name = "BUCKET[:PREFIX]")]
    target: String,
    /// Only those that were begun so long ago [default for abort: 1d]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    older_than: Option<Duration>,
    /// Print one JSON array, for scripts
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ConnectionFlags,
}

/// Give up uploads that are a day old and that no mount of this user will finish.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE, after_long_help = EXAMPLE)]
struct AbortArgs {
    #[command(flatten)]
    choice: Choice,
    /// Also those that a mount of this user owns, and younger ones, unless --older-than is given
    #[arg(long)]
    force: bool,
}

const EXAMPLE: &str = "Examples:
  ossfuse uploads list my-bucket --region cn-hangzhou
  ossfuse uploads abort my-bucket:backup --older-than 7d

OWNED are those in a state folder of this user on this machine: their mount finishes them. Those of other machines \
    and programs cannot be told from abandoned ones but by their age.";

/// The age from which on an upload counts as abandoned, unless told otherwise.
const OLD_DEFAULT: Duration = Duration::from_secs(24 * 60 * 60);

/// An upload, as `--json` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Upload {
    key: String,
    upload_id: String,
    /// RFC 3339.
    initiated: Option<String>,
    owned: bool,
}

/// Runs the command.
///
/// # Errors
/// The service refuses, or it cannot be known which uploads are owned.
pub(super) fn run(args: &Args) -> Result<(), Error> {
    log_warnings();
    match &args.command {
        Command::List(choice) => {
            let found = find(choice, choice.older_than, true)?.1;
            if choice.json { print_json(&found) } else { print(&overview(&found)) }
        }
        Command::Abort(args) => abort(args),
    }
}

fn abort(args: &AbortArgs) -> Result<(), Error> {
    let age = args.choice.older_than.or((!args.force).then_some(OLD_DEFAULT));
    let (service, found) = find(&args.choice, age, args.force)?;
    let (doomed, owned): (Vec<Upload>, Vec<Upload>) = found.into_iter().partition(|upload| args.force || !upload.owned);
    let mut failed = None;
    let mut aborted = Vec::new();
    for upload in doomed {
        match service.abort(&upload) {
            Ok(()) => aborted.push(upload),
            Err(error) => {
                complain(&format!("warning: {}: {error}", fit(&upload.key, usize::MAX)));
                failed = Some(error);
            }
        }
    }
    if args.choice.json {
        print_json(&aborted)?;
    } else {
        let names: String =
            aborted.iter().map(|upload| format!("aborted {}\n", fit(&upload.key, usize::MAX))).collect();
        let age = age.map_or_else(String::new, |age| format!(" that are older than {}", format_duration(age)));
        let nothing = if aborted.is_empty() { format!("there are no uploads{age} to abort\n") } else { String::new() };
        let left = match owned.len() {
            0 => String::new(),
            1 => "1 belongs to a mount of this user and stays\n".to_owned(),
            count => format!("{count} belong to mounts of this user and stay\n"),
        };
        print(&format!("{names}{nothing}{left}"))?;
    }
    match failed {
        None => Ok(()),
        Some(error) => {
            Err(Error::new(&args.choice.target, error, "see the rights of the key: oss:AbortMultipartUpload"))
        }
    }
}

/// A client, and what drives it.
struct Service {
    client: Client,
    runtime: tokio::runtime::Runtime,
}

impl Service {
    fn open(layers: &Layers, environment: &Environment, target: &Target) -> Result<Self, Error> {
        let connection = resolve_connection(&layers.raw, environment, target)?;
        let runtime = tokio::runtime::Runtime::new().map_err(|error| Error::new("the network threads", error, ""))?;
        let (client, _) = runtime.block_on(connect(&connection)).map_err(|error| Error::line(error.to_string()))?;
        Ok(Self { client, runtime })
    }

    /// All that stand under the prefix.
    fn uploads(&self, prefix: &str) -> Result<Vec<UploadInfo>, crate::oss::Error> {
        self.runtime.block_on(async {
            let mut found = Vec::new();
            let mut after = None;
            loop {
                let page = self.client.list_uploads(prefix, after.as_ref()).await?;
                found.extend(page.uploads);
                match page.next {
                    Some(next) if Some(&next) != after.as_ref() => after = Some(next),
                    _ => return Ok(found),
                }
            }
        })
    }

    fn abort(&self, upload: &Upload) -> Result<(), String> {
        let key = ObjectKey::parse(&upload.key).map_err(|error| error.to_string())?;
        let id = crate::base::UploadId::new(&*upload.upload_id);
        self.runtime.block_on(self.client.abort_upload(&key, &id)).map_err(|error| error.to_string())
    }
}

/// The uploads that are asked for. Where `lenient`, folders whose uploads cannot be known are only warned of.
fn find(choice: &Choice, age: Option<Duration>, lenient: bool) -> Result<(Service, Vec<Upload>), Error> {
    let environment = Environment::of_process();
    let layers = Layers::gather(choice.flags.0.clone(), &environment)?;
    let target: Target = choice.target.parse()?;
    let service = Service::open(&layers, &environment, &target)?;
    let found = service.uploads(target.prefix.as_str());
    let found = found.map_err(|error| {
        Error::new(&target.bucket, error, "check the connection and the rights of the key: oss:ListMultipartUploads")
    })?;
    // After the list: an upload that a mount begins in between is in neither, or known to be somebody's.
    let owned = owned(&layers, &environment, &target.bucket, lenient)?;
    let is_old = |upload: &UploadInfo| age.is_none_or(|age| is_older(upload.initiated, age));
    let known = |upload: UploadInfo| {
        let upload_id = upload.upload_id.as_str().to_owned();
        let owned = owned.contains(&upload_id);
        Upload { key: upload.key, upload_id, initiated: upload.initiated.map(rfc3339), owned }
    };
    Ok((service, found.into_iter().filter(is_old).map(known).collect()))
}

/// One of unknown age is young.
fn is_older(initiated: Option<SystemTime>, age: Duration) -> bool {
    initiated.and_then(|at| now().duration_since(at).ok()).is_some_and(|since| since >= age)
}

/// The ids of the uploads in a bucket that mounts of this user have begun, or will finish.
fn owned(layers: &Layers, environment: &Environment, bucket: &str, lenient: bool) -> Result<BTreeSet<String>, Error> {
    let mut ids = BTreeSet::new();
    let mut served = BTreeSet::new();
    let runtime_dir = environment.runtime_dir()?;
    let unknown = |place: &std::path::Path, why: String| {
        let error =
            Error::new(place.display(), format!("its uploads cannot be known: {why}"), "try again, or give --force");
        if !lenient {
            return Err(error);
        }
        complain(&format!("warning: {}", error.line.unwrap_or_default()));
        Ok(())
    };
    for socket in live_sockets(&runtime_dir).map_err(|error| Error::new(runtime_dir.display(), error, ""))? {
        match client::ask(&socket, &Request::OwnedUploads, PATIENCE) {
            Ok(Response::OwnedUploads { state_folder, upload_ids }) => {
                served.insert(state_folder);
                ids.extend(upload_ids);
            }
            Err(client::Error::NotRunning | client::Error::Ended) => {}
            Ok(_) => unknown(&socket, "the mount's answer makes no sense".to_owned())?,
            Err(error) => unknown(&socket, error.to_string())?,
        }
    }
    let parent = resolve_state_parent(&layers.raw, environment)?;
    for folder in super::recover::place::folders(&parent)?.difference(&served) {
        if bucket_of(folder) == Some(bucket) && folder.join("journal").exists() {
            match owned_uploads_offline(folder) {
                Ok(found) => ids.extend(found),
                Err(why) => unknown(folder, why)?,
            }
        }
    }
    Ok(ids)
}

fn overview(uploads: &[Upload]) -> String {
    if uploads.is_empty() {
        return "no uploads stand in the bucket\n".to_owned();
    }
    let head = ["INITIATED", "OWNED", "UPLOAD ID", "KEY"].map(str::to_owned).to_vec();
    let row = |upload: &Upload| {
        let initiated = upload.initiated.clone().unwrap_or_else(|| "-".to_owned());
        let owned = if upload.owned { "yes" } else { "no" }.to_owned();
        vec![initiated, owned, fit(&upload.upload_id, 20), fit(&upload.key, usize::MAX)]
    };
    render(&[vec![head], uploads.iter().map(row).collect()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_is_counted_from_the_beginning_and_unknown_is_young() {
        let day = OLD_DEFAULT;
        assert!(is_older(now().checked_sub(day * 2), day));
        assert!(!is_older(now().checked_sub(day / 2), day));
        assert!(!is_older(now().checked_add(day), day), "begun by a clock that is ahead");
        assert!(!is_older(None, Duration::ZERO));
    }

    #[test]
    fn the_list_says_whose_each_is() {
        let upload = Upload {
            key: "a/b\n".into(),
            upload_id: "0123456789ABCDEF0123456789ABCDEF".into(),
            initiated: Some("2024-03-07T08:09:10Z".into()),
            owned: true,
        };
        let wanted = "\
INITIATED             OWNED  UPLOAD ID             KEY
2024-03-07T08:09:10Z  yes    012345678…6789ABCDEF  a/b?
";
        assert_eq!(overview(&[upload]), wanted);
    }
}
