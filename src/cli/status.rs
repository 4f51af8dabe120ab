//! `ossfuse status`: what the running mounts say of themselves, for people and for scripts.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use super::flags::CommonFlags;
use super::progress::bar;
use super::table::{fit, render};
use super::{Error, complain, print, print_while_read};
use crate::base::units::format_size;
use crate::config::{Environment, absolute_mountpoint, socket_path};
use crate::control::client::{self, live_sockets};
use crate::control::protocol::{Expiring, LastError, MountState, Recovery, StatusReport, UploadStatus};
use crate::control::{MountStatus, Pending, Request, Response};

/// How long a mount may take to answer: a worker that has died is replaced within that, or it is said that there is none.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is shown again by `--watch`.
const WATCH: Duration = Duration::from_secs(1);
/// Cells of the bar of an upload.
const BAR_WIDTH: u64 = 24;
/// Uploads that are shown one by one.
const UPLOADS_SHOWN: usize = 10;

/// Show the running mounts, or one of them in detail.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE, after_long_help = EXAMPLE)]
pub(super) struct Args {
    /// Show this mount in detail
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: Option<PathBuf>,
    /// Print one JSON object, for scripts
    #[arg(long)]
    json: bool,
    /// Show it again every second, with a bar for each upload, until Ctrl-C
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    _common: CommonFlags,
}

const EXAMPLE: &str = "Examples:
  ossfuse status
  ossfuse status --watch
  ossfuse status /mnt/oss
  ossfuse status --json | jq '.mounts[].pending.bytes'

PENDING is what was closed or synced and is not yet in OSS; KEPT is what only `ossfuse recover` brings further.";

/// Runs the command.
///
/// # Errors
/// The named mount is not there or does not answer.
pub(super) fn run(args: &Args) -> Result<(), Error> {
    let environment = Environment::of_process();
    if args.watch {
        return watch(args, &environment);
    }
    print(&page(args, &environment, 0)?)
}

/// What is shown at one instant; with `bars` columns, a bar for each upload.
fn page(args: &Args, environment: &Environment, bars: u64) -> Result<String, Error> {
    let runtime_dir = environment.runtime_dir()?;
    let mounts = match &args.mountpoint {
        Some(path) => vec![of_one(path, environment, &runtime_dir)?],
        None => of_all(&runtime_dir)?,
    };
    if args.json {
        let report = StatusReport { version: env!("CARGO_PKG_VERSION").to_owned(), mounts };
        let text = serde_json::to_string_pretty(&report).map_err(|error| Error::new("stdout", error, ""))?;
        return Ok(format!("{text}\n"));
    }
    let bars = if bars == 0 { String::new() } else { progress(&mounts, bars) };
    Ok(match (&args.mountpoint, mounts.first()) {
        (Some(_), Some(mount)) => details(mount),
        (_, None) => "no mount is running\n".to_owned(),
        _ => overview(&mounts),
    } + &bars)
}

/// Shows it again and again; on a terminal each page in the place of the one before.
fn watch(args: &Args, environment: &Environment) -> Result<(), Error> {
    let failed = |error: std::io::Error| Error::new("status", error, "");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let (before, after) = if std::io::stdout().is_terminal() { ("\x1b[H\x1b[J", "") } else { ("", "\n") };
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        loop {
            let page = page(args, environment, BAR_WIDTH)?;
            if !print_while_read(&format!("{before}{page}{after}"))? {
                return Ok(());
            }
            tokio::select! {
                _ = interrupt.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
                () = tokio::time::sleep(WATCH) => {}
            }
        }
    })
}

/// A bar for each upload.
fn progress(mounts: &[MountStatus], width: u64) -> String {
    let uploads = mounts.iter().flat_map(|mount| &mount.uploads).take(UPLOADS_SHOWN);
    let rows: Vec<Vec<String>> = uploads
        .map(|upload| {
            let done = upload.bytes_done.min(upload.size);
            let amount = format!("{} of {}", format_size(done), format_size(upload.size));
            vec![bar(done, upload.size, width), amount, fit(&upload.key, 24)]
        })
        .collect();
    if rows.is_empty() { String::new() } else { format!("\n{}", render(&rows)) }
}

fn of_one(path: &Path, environment: &Environment, runtime_dir: &Path) -> Result<MountStatus, Error> {
    let place = path.display();
    let mountpoint = absolute_mountpoint(path, &environment.cwd).map_err(|error| Error::new(&place, error, ""))?;
    match ask(&socket_path(runtime_dir, &mountpoint), &mountpoint) {
        Ok(status) => Ok(status),
        Err(client::Error::NotRunning) => {
            Err(Error::new(&place, "no mount of this user is running there", "see `ossfuse status`"))
        }
        Err(error) => Err(Error::new(&place, error, "see its log")),
    }
}

/// Mounts that do not answer are told of, and do not keep the others from being shown.
fn of_all(runtime_dir: &Path) -> Result<Vec<MountStatus>, Error> {
    let sockets = live_sockets(runtime_dir).map_err(|error| Error::new(runtime_dir.display(), error, ""))?;
    let mut mounts = Vec::new();
    for socket in sockets {
        match ask(&socket, Path::new(socket.file_stem().unwrap_or_default())) {
            Ok(status) => mounts.push(status),
            // It has ended since the folder was read.
            Err(client::Error::NotRunning | client::Error::Ended) => {}
            Err(error) => complain(&format!("warning: {}: {error}", socket.display())),
        }
    }
    mounts.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
    Ok(mounts)
}

/// Asks again where the worker dies over its answer; connections wait for the next one.
fn ask(socket: &Path, mountpoint: &Path) -> Result<MountStatus, client::Error> {
    let begun = Instant::now();
    loop {
        let mut client = client::Client::connect(socket)?;
        let supervisor_pid = client.listener_pid();
        let left = PATIENCE.saturating_sub(begun.elapsed());
        match client.send(&Request::Status).and_then(|()| client.receive(left)) {
            Ok(Response::Status { status }) => return Ok(*status),
            Err(client::Error::Ended) if !left.is_zero() => {}
            // Somebody holds the mount, and nobody serves it just now.
            Err(client::Error::Silent | client::Error::Ended) => {
                let mountpoint = mountpoint.display().to_string();
                let state = MountState::Degraded;
                return Ok(MountStatus { mountpoint, supervisor_pid, state, ..MountStatus::default() });
            }
            Ok(_) => return Err(client::Error::Ended),
            Err(error) => return Err(error),
        }
    }
}

/// One line a mount; the mount point comes last and whole, so that it can be copied.
fn overview(mounts: &[MountStatus]) -> String {
    let head = ["STATE", "PENDING", "KEPT", "BUCKET", "MOUNTPOINT"].map(str::to_owned).to_vec();
    let row = |mount: &MountStatus| {
        vec![
            state(mount.state).to_owned(),
            pending(mount.pending),
            pending(mount.kept),
            fit(&source(mount), 24),
            fit(&mount.mountpoint, usize::MAX),
        ]
    };
    render(&[vec![head], mounts.iter().map(row).collect()].concat())
}

fn source(mount: &MountStatus) -> String {
    let prefix = mount.prefix.trim_end_matches('/');
    if prefix.is_empty() { mount.bucket.clone() } else { format!("{}:{prefix}", mount.bucket) }
}

fn state(state: MountState) -> &'static str {
    match state {
        MountState::Ok => "ok",
        MountState::Degraded => "degraded",
        MountState::Offline => "offline",
        MountState::Draining => "draining",
        MountState::ReadOnly => "read-only",
    }
}

/// `-`, or `3 files, 24 MiB`.
fn pending(pending: Pending) -> String {
    match pending.files {
        0 => "-".to_owned(),
        1 => format!("1 file, {}", format_size(pending.bytes)),
        files => format!("{files} files, {}", format_size(pending.bytes)),
    }
}

fn expiring(expiring: &Expiring) -> String {
    let what = pending(Pending { files: expiring.files, bytes: expiring.bytes });
    format!("{what}, the first at {}; see `ossfuse recover list`", expiring.first_at)
}

fn details(mount: &MountStatus) -> String {
    let since = mount.degraded_since.as_ref().map_or(String::new(), |at| format!(" since {at}"));
    let mut rows = vec![
        ("mounted", format!("{} at {}", source(mount), mount.mountpoint)),
        ("endpoint", mount.endpoint.clone()),
        ("state", format!("{}{since}", state(mount.state))),
        ("running", running(mount)),
        ("crash", after_crash(mount).to_owned()),
        ("pending", pending(mount.pending)),
        ("kept", pending(mount.kept)),
        ("expiring", mount.expiring.as_ref().map_or_else(String::new, expiring)),
        ("spill", amount(mount.spill.bytes, mount.spill.limit)),
        ("cache", amount(mount.cache.bytes, mount.cache.limit)),
        ("memory", amount(mount.memory.rss, mount.memory.limit)),
        ("files", both(mount.inodes, "known", mount.open_handles, "open", |count| count.to_string())),
        ("hidden", hidden(mount.hidden_keys)),
        ("traffic", both(mount.bytes_up, "up", mount.bytes_down, "down", format_size)),
        ("retries", mount.retries.map_or_else(String::new, |count| count.to_string())),
        ("last error", mount.last_error.as_ref().map_or_else(String::new, last_error)),
    ];
    rows.retain(|(_, value)| !value.is_empty());
    let rows: Vec<_> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), fit(&value, usize::MAX)]).collect();
    let mut out = render(&rows);
    out.push_str(&requests(mount));
    out.push_str(&uploads(&mount.uploads));
    out
}

fn running(mount: &MountStatus) -> String {
    let since = mount.started_at.as_ref().map_or(String::new(), |at| format!("since {at}, "));
    let worker =
        mount.worker_pid.map_or_else(|| "the worker is being replaced".to_owned(), |pid| format!("process {pid}"));
    let restarts = match mount.worker_restarts {
        None | Some(0) => String::new(),
        Some(1) => ", 1 restart".to_owned(),
        Some(restarts) => format!(", {restarts} restarts"),
    };
    format!("{since}{worker}{restarts}")
}

/// What the death of a worker means to programs here.
fn after_crash(mount: &MountStatus) -> &'static str {
    match mount.recovery {
        Some(Recovery::Transparent) => "transparent: another worker takes over, programs go on",
        Some(Recovery::Remount) => "remount: files that are open fail once, nothing closed or synced is lost",
        None => "",
    }
}

/// `12 known, 3 open`. Empty where nothing is known, as below: the row is left out then.
fn both(one: Option<u64>, of_one: &str, two: Option<u64>, of_two: &str, form: fn(u64) -> String) -> String {
    let parts = [(one, of_one), (two, of_two)];
    let known = parts.iter().filter_map(|(value, name)| Some(format!("{} {name}", form((*value)?))));
    known.collect::<Vec<_>>().join(", ")
}

fn amount(value: Option<u64>, limit: Option<u64>) -> String {
    match (value, limit) {
        (None, _) => String::new(),
        (Some(value), None) => format_size(value),
        (Some(value), Some(limit)) => format!("{} of {}", format_size(value), format_size(limit)),
    }
}

fn hidden(keys: Option<u64>) -> String {
    match keys {
        None | Some(0) => String::new(),
        Some(keys) => format!("{keys} keys that no file name can carry"),
    }
}

fn last_error(error: &LastError) -> String {
    let parts = [&error.at, &error.operation, &error.key, &error.code, &error.message];
    parts.into_iter().flatten().map(String::as_str).collect::<Vec<_>>().join(" ")
}

fn requests(mount: &MountStatus) -> String {
    if mount.requests.is_empty() {
        return String::new();
    }
    let head = ["REQUEST", "OK", "ERROR"].map(str::to_owned).to_vec();
    let row = |(name, count): (&String, &crate::control::protocol::RequestCount)| {
        vec![fit(name, 40), count.ok.to_string(), count.error.to_string()]
    };
    format!("\n{}", render(&[vec![head], mount.requests.iter().map(row).collect()].concat()))
}

fn uploads(uploads: &[UploadStatus]) -> String {
    if uploads.is_empty() {
        return String::new();
    }
    let head = ["UPLOAD", "PARTS", "SIZE", "KEY"].map(str::to_owned).to_vec();
    let row = |upload: &UploadStatus| {
        let state = format!("{:?}", upload.state).to_lowercase();
        let parts = format!("{}/{}", upload.parts_done, upload.parts_total);
        vec![state, parts, format_size(upload.size), fit(&upload.key, 48)]
    };
    let mut out =
        format!("\n{}", render(&[vec![head], uploads.iter().take(UPLOADS_SHOWN).map(row).collect()].concat()));
    if uploads.len() > UPLOADS_SHOWN {
        // Into a String: cannot fail.
        writeln!(out, "and {} more", uploads.len() - UPLOADS_SHOWN).expect("memory takes it");
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::base::limits::MIB;
    use crate::control::protocol::{MemoryStatus, RequestCount, UploadState};

    fn mount() -> MountStatus {
        MountStatus {
            mountpoint: "/mnt/photos".into(),
            bucket: "photos".into(),
            prefix: "2024/may/".into(),
            endpoint: "https://oss-cn-hangzhou.aliyuncs.com".into(),
            state: MountState::Degraded,
            worker_pid: Some(17),
            pending: Pending { files: 3, bytes: 24 * MIB },
            open_handles: Some(12),
            memory: MemoryStatus { rss: Some(80 * MIB), limit: Some(192 * MIB) },
            ..MountStatus::default()
        }
    }

    #[test]
    fn the_overview_reads_well_at_80_columns() {
        let other =
            MountStatus { mountpoint: "/mnt/b".into(), bucket: "a-bucket-with-a-rather-long-name".into(), ..mount() };
        let text = overview(&[mount(), other]);
        let wanted = "\
STATE     PENDING          KEPT  BUCKET                    MOUNTPOINT
degraded  3 files, 24 MiB  -     photos:2024/may           /mnt/photos
degraded  3 files, 24 MiB  -     a-bucket-wi…ame:2024/may  /mnt/b
";
        assert_eq!(text, wanted);
        assert!(text.lines().all(|line| line.chars().count() <= 80));
    }

    #[test]
    fn a_bar_fills_as_an_upload_goes_on() {
        let upload = |bytes_done| UploadStatus {
            session: "s".into(),
            key: "k".into(),
            upload_id: None,
            state: UploadState::Open,
            size: 8 * MIB,
            part_size: MIB,
            parts_done: 0,
            parts_total: 8,
            bytes_done,
            created_at: None,
            error: None,
        };
        let mounts = [MountStatus { uploads: vec![upload(0), upload(4 * MIB), upload(9 * MIB)], ..mount() }];
        let wanted = "
[....]  0 B of 8 MiB    k
[##..]  4 MiB of 8 MiB  k
[####]  8 MiB of 8 MiB  k
";
        assert_eq!(progress(&mounts, 4), wanted);
        assert_eq!(progress(&[mount()], 4), "");
    }

    #[test]
    fn details_show_what_is_known_and_leave_out_the_rest() {
        let upload = UploadStatus {
            session: "s".into(),
            key: "2024/may/a\u{1b}[2J".into(),
            upload_id: None,
            state: UploadState::Closing,
            size: 20 * MIB,
            part_size: 8 * MIB,
            parts_done: 1,
            parts_total: 3,
            bytes_done: 8 * MIB,
            created_at: None,
            error: None,
        };
        let requests = BTreeMap::from([("PutObject".to_owned(), RequestCount { ok: 12, error: 1 })]);
        let wanted = "\
mounted   photos:2024/may at /mnt/photos
endpoint  https://oss-cn-hangzhou.aliyuncs.com
state     degraded
running   process 17
pending   3 files, 24 MiB
kept      -
memory    80 MiB of 192 MiB
files     12 open

REQUEST    OK  ERROR
PutObject  12  1

UPLOAD   PARTS  SIZE    KEY
closing  1/3    20 MiB  2024/may/a?[2J
";
        assert_eq!(details(&MountStatus { uploads: vec![upload], requests, ..mount() }), wanted);
    }
}
