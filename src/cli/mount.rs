//! `ossfuse mount`: settles the configuration, looks at the place, and serves or has served.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use clap::builder::ArgPredicate;

use super::flags::MountFlags;
use super::table::{fit, render};
use super::{Error, adopt, complain, detach, preflight, print};
use crate::config::{self, Environment, Layers, LogConfig, MountConfig, Problem, RawOptions, RawValue, options};
use crate::control::{READY_VARIABLE, Ready};
use crate::supervise::memory_file;
use crate::worker::{self, Supervised};
use crate::{logging, supervise};

/// Mount a bucket, or a prefix of it, as a folder.
///
/// Returns as soon as the mount answers; without -f it then runs in the background.
#[derive(Debug, clap::Args)]
#[command(override_usage = "ossfuse mount [OPTIONS] <BUCKET[:PREFIX]> <MOUNTPOINT>")]
#[command(after_help = EXAMPLE, after_long_help = EXAMPLE)]
pub(super) struct Args {
    /// The bucket, and perhaps the prefix under which everything is
    #[arg(value_name = "BUCKET[:PREFIX]", required = false, required_unless_present = options::SHOW_CONFIG.name,
        default_value_if(options::SHOW_CONFIG.name, ArgPredicate::IsPresent, Some("")))]
    target: String,
    /// The empty folder in which the files will appear
    #[arg(value_name = "MOUNTPOINT", required = false, required_unless_present = options::SHOW_CONFIG.name,
        default_value_if(options::SHOW_CONFIG.name, ArgPredicate::IsPresent, Some("/")))]
    mountpoint: PathBuf,
    /// Any of the options below as in fstab: `-o read_only,part-size=16MiB`
    #[arg(short = 'o', value_name = "OPTION[,OPTION...]")]
    mount_options: Vec<String>,
    #[command(flatten)]
    flags: MountFlags,
}

const EXAMPLE: &str = "Examples:
  ossfuse mount my-bucket /mnt/oss --region cn-hangzhou
  ossfuse mount my-bucket:2024 ~/photos --region cn-hangzhou --read-only
  ossfuse mount my-bucket /mnt/oss -f --log-level debug

The access key comes from the environment (OSS_ACCESS_KEY_ID, OSS_ACCESS_KEY_SECRET) or the config file.
Every option can stand in the config file under its long name (`region = \"cn-hangzhou\"`), there also under
[profile.NAME], and in the environment (OSSFUSE_PART_SIZE=16MiB). A flag goes before -o, that before the
environment, and that before the config file.
Sizes are like 8MiB, durations like 60s.";

impl Args {
    /// What mount(8) asks for.
    pub(super) fn of(target: String, mountpoint: PathBuf, flags: MountFlags) -> Self {
        Self { target, mountpoint, mount_options: Vec::new(), flags }
    }

    fn raw(&self) -> Result<RawOptions, Problem> {
        let mut raw = RawOptions::default();
        for text in &self.mount_options {
            raw.merge(config::parse_mount_options(text)?);
        }
        raw.merge(self.flags.0.clone());
        Ok(raw)
    }
}

/// What a mount was told, for each of its workers: options that a file or the environment has given may be others by
/// the time that one is started.
#[derive(Serialize, Deserialize)]
struct Settings {
    target: String,
    mountpoint: PathBuf,
    cwd: PathBuf,
    options: Vec<(String, RawValue)>,
}

impl Settings {
    fn config(self) -> Result<MountConfig, Problem> {
        let environment = Environment { cwd: self.cwd, ..Environment::of_process() };
        let raw = RawOptions::from_pairs(self.options);
        config::resolve_mount(&raw, &environment, &self.target.parse()?, &self.mountpoint)
    }
}

/// A mount whose options are settled.
struct Settled {
    layers: Layers,
    config: MountConfig,
    settings: Settings,
}

/// Runs the command, in any of its three places: the foreground, the command that starts a mount in the background,
/// and that mount itself.
///
/// # Errors
/// The mount could not be had.
pub(super) fn run(args: &Args) -> Result<(), Error> {
    let environment = Environment::of_process();
    if args.raw()?.flag(&options::SHOW_CONFIG)? {
        return show(args, &environment);
    }
    let settled = settle(args, &environment)?;
    if let Some(pipe) = environment.variable(READY_VARIABLE) {
        return serve_in_background(settled, pipe);
    }
    let Settled { layers, config, .. } = &settled;
    if config.foreground && adopt::by_systemd(config)? {
        return Ok(());
    }
    let state_dir_is_chosen = layers.raw.given(&options::STATE_DIR).is_some();
    preflight::check(config, state_dir_is_chosen)?;
    if config.foreground {
        return serve(settled, Ready::nobody());
    }
    for warning in &layers.warnings {
        complain(&format!("warning: {warning}"));
    }
    detach::start(config)
}

/// Prints what holds, and mounts nothing.
fn show(args: &Args, environment: &Environment) -> Result<(), Error> {
    let layers = Layers::gather(args.raw()?, environment)?;
    if !args.target.is_empty() {
        // Whatever would keep it from being mounted is told in place of the values.
        let mountpoint = environment.cwd.join(&args.mountpoint);
        config::resolve_mount(&layers.raw, environment, &args.target.parse()?, &mountpoint)?;
    }
    for warning in &layers.warnings {
        complain(&format!("warning: {warning}"));
    }
    let row = |shown: config::Shown| vec![shown.name.to_owned(), fit(&shown.value, usize::MAX), shown.source];
    let head = ["OPTION", "VALUE", "FROM"].map(str::to_owned).to_vec();
    let rows = config::show(&layers.raw, environment).into_iter().map(row).collect();
    print(&render(&[vec![head], rows].concat()))
}

/// What `mount -f` does: all but the mounting.
///
/// # Errors
/// Why it could not be mounted, as far as can be told without doing it.
pub(super) fn check(target: &str, mountpoint: &Path, raw: RawOptions) -> Result<(), Error> {
    let environment = Environment::of_process();
    settle(&Args::of(target.to_owned(), mountpoint.to_owned(), MountFlags(raw)), &environment).map(drop)
}

fn settle(args: &Args, environment: &Environment) -> Result<Settled, Error> {
    let layers = Layers::gather(args.raw()?, environment)?;
    let target = args.target.parse()?;
    let mountpoint = config::absolute_mountpoint(&args.mountpoint, &environment.cwd)
        .map_err(|error| preflight::unreachable_folder(&args.mountpoint, &error))?;
    let config = config::resolve_mount(&layers.raw, environment, &target, &mountpoint)?;
    let (target, cwd, options) = (args.target.clone(), environment.cwd.clone(), layers.raw.pairs());
    Ok(Settled { layers, config, settings: Settings { target, mountpoint, cwd, options } })
}

fn serve(settled: Settled, ready: Ready) -> Result<(), Error> {
    // The supervisor holds the settings too, and its workers inherit the limit.
    worker::forbid_core_files();
    let Settled { layers, config, settings } = settled;
    if config.supervised {
        start_log(&config.log, &layers.warnings)?;
        return supervise(&config, &settings, ready);
    }
    start_log(&config.log, &layers.warnings)?;
    worker::run(config, ready).map_err(|error| Error::line(error.to_string()))
}

fn start_log(config: &LogConfig, warnings: &[String]) -> Result<(), Error> {
    if let Err(error) = logging::start(config) {
        let file = config.file.as_deref().unwrap_or(Path::new("stderr"));
        return Err(Error::new(file.display(), format!("the log cannot be written: {error}"), "see --log-file"));
    }
    for warning in warnings {
        log::warn!("{warning}");
    }
    Ok(())
}

fn supervise(config: &MountConfig, settings: &Settings, ready: Ready) -> Result<(), Error> {
    let place = config.mountpoint.display();
    let prepared = serde_json::to_vec(settings)
        .map_err(std::io::Error::other)
        .and_then(|settings| Ok((memory_file(c"settings", &settings)?, worker::estate(config)?)));
    let outcome = prepared.and_then(|(settings, estate)| supervise::run(estate, settings, ready));
    match outcome {
        Ok(supervise::Outcome::Ended) => Ok(()),
        Ok(supervise::Outcome::Failed(line)) => Err(Error::line(line)),
        Err(error) => Err(Error::new(place, error, "see the log")),
    }
}

/// Holds a mount that another supervisor has held before.
pub(super) fn take_over_if_asked() -> Option<ExitCode> {
    let outcome = supervise::inherited()?.and_then(|inheritance| {
        // What happens to workers is worth a line also where the log's place cannot be had any more.
        let told = inheritance.settings().map_err(|error| error.to_string()).and_then(|told| config_of(&told));
        if let Err(line) = told.and_then(|config| start_log_again(&config.log)) {
            complain(&line);
        }
        supervise::take_over(inheritance)
    });
    Some(match outcome {
        Ok(supervise::Outcome::Ended) => ExitCode::SUCCESS,
        Ok(supervise::Outcome::Failed(line)) => {
            complain(&line);
            ExitCode::FAILURE
        }
        Err(error) => {
            complain(&format!("the mount cannot be taken over: {error}"));
            ExitCode::FAILURE
        }
    })
}

/// What an earlier process of the mount was told.
fn config_of(settings: &[u8]) -> Result<MountConfig, String> {
    let settings = serde_json::from_slice::<Settings>(settings).map_err(|error| error.to_string())?;
    settings.config().map_err(|problem| problem.to_string())
}

fn start_log_again(config: &LogConfig) -> Result<(), String> {
    logging::start(config).map_err(|error| format!("the log cannot be written: {error}; see --log-file"))
}

/// The worker of a mount. It speaks to its supervisor and into the log, to nobody else.
pub(super) fn work((supervised, settings): (Supervised, Vec<u8>)) -> ExitCode {
    let config = config_of(&settings).and_then(|config| start_log_again(&config.log).map(|()| config));
    let failed = match config {
        Ok(config) => worker::run_supervised(config, supervised.clone()).err().map(|error| error.to_string()),
        Err(line) => Some(line),
    };
    match failed {
        None => ExitCode::SUCCESS,
        Some(line) => {
            log::error!("{line}");
            supervised.failed(line);
            ExitCode::FAILURE
        }
    }
}

/// The mount that [`detach::start`] has started: speaks over the pipe and into the log, to nobody else.
fn serve_in_background(settled: Settled, pipe: &str) -> Result<(), Error> {
    let ready = Ready::from_variable(pipe)
        .map_err(|error| Error::new(READY_VARIABLE, error, "this variable is not for setting by hand"))?;
    // A working directory would keep its file system from being unmounted. All paths are absolute by now.
    if let Err(error) = std::env::set_current_dir("/") {
        log::warn!("cannot leave the working directory: {error}");
    }
    let result = serve(settled, ready.clone());
    result.map_err(|error| {
        let line = error.line.unwrap_or_default();
        ready.failed(&line);
        log::error!("{line}");
        Error { line: None, status: error.status }
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn flags_go_before_mount_options_and_a_later_mount_option_before_an_earlier() {
        let line = "mount photos /mnt -o part_size=1MiB,upload-workers=1 -o part-size=2MiB --upload-workers 3 -f";
        let raw = Command::parse_from(line.split(' ')).args.raw().unwrap();
        assert_eq!(raw.text(&options::PART_SIZE), Some("2MiB"));
        assert_eq!(raw.text(&options::UPLOAD_WORKERS), Some("3"));
        assert!(raw.flag(&options::FOREGROUND).unwrap());
    }
}
