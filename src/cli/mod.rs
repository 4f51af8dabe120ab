//! The command line: what each command takes, and what becomes of its result.
//!
//! A command's file parses nothing but its own arguments; the options of a mount come from the table in
//! [`crate::config::options`]. Here alone a result becomes a line on stderr and an exit status: 0 done, 1 failed,
//! 2 wrong usage.

mod adopt;
mod config;
mod detach;
mod dev_server;
mod doctor;
mod flags;
mod holders;
mod log;
mod mount;
mod mount_helper;
mod mountinfo;
mod pages;
mod preflight;
mod progress;
mod recover;
mod status;
mod sync;
mod table;
mod umount;
mod upgrade;
mod uploads;
mod usage;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::config::Problem;
use crate::worker;

/// Mount an Alibaba Cloud OSS bucket as a folder.
///
/// What `cp` copied into it with exit status 0 is in OSS and verified; a crash loses nothing that was acknowledged.
#[derive(Debug, Parser)]
#[command(name = "ossfuse", version, long_version = LONG_VERSION, max_term_width = 80, after_help = EXAMPLE)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// `--version`; `-V` is the first word of it.
const LONG_VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\nfeatures: supervisor (transparent recovery), tls (rustls),",
    "\n  systemd (sd_notify, journal), dev-server"
);

const EXAMPLE: &str = "Example:
  export OSS_ACCESS_KEY_ID=... OSS_ACCESS_KEY_SECRET=...
  ossfuse mount my-bucket /mnt/oss --region cn-hangzhou
  cp photo.jpg /mnt/oss/
  ossfuse umount /mnt/oss

`ossfuse COMMAND --help` explains a command and its options.";

#[derive(Debug, Subcommand)]
enum Command {
    Mount(mount::Args),
    Umount(umount::Args),
    Status(status::Args),
    Upgrade(upgrade::Args),
    Sync(sync::Args),
    Recover(recover::Args),
    Uploads(uploads::Args),
    Doctor(doctor::Args),
    Log(log::Args),
    Config(config::Args),
    Man(pages::ManArgs),
    Completions(pages::CompletionsArgs),
    DevServer(dev_server::Args),
}

/// How a command failed.
#[derive(Debug)]
struct Error {
    /// `WHAT: WHY; MEND`; `None` where the user has been told already.
    line: Option<String>,
    status: u8,
}

impl Error {
    /// A failure whose line is ready.
    fn line(line: impl Into<String>) -> Self {
        Self { line: Some(line.into()), status: 1 }
    }

    fn new(what: impl std::fmt::Display, why: impl std::fmt::Display, mend: impl std::fmt::Display) -> Self {
        Problem::new(what, why, mend).into()
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self { line: Some(problem.to_string()), status: if problem.usage { 2 } else { 1 } }
    }
}

/// Runs the command that `arguments` (with the program's name first) ask for.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let result = match mount_helper::Helper::of(arguments.first()) {
        Some(helper) => helper.run(&arguments[1..]),
        None => match Cli::try_parse_from(&arguments) {
            Ok(cli) => dispatch(cli.command),
            Err(error) => usage::explain(&error, &Cli::command(), &arguments),
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(line) = error.line {
                complain(&line);
            }
            ExitCode::from(error.status)
        }
    }
}

fn dispatch(command: Command) -> Result<(), Error> {
    match command {
        Command::Mount(args) => mount::run(&args),
        Command::Umount(args) => umount::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Upgrade(args) => upgrade::run(&args),
        Command::Sync(args) => sync::run(&args),
        Command::Recover(args) => recover::run(&args),
        Command::Uploads(args) => uploads::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Log(args) => log::run(&args),
        Command::Config(args) => config::run(&args),
        Command::Man(args) => pages::man(&args),
        Command::Completions(args) => pages::completions(&args),
        Command::DevServer(args) => dev_server::run(&args),
    }
}

/// Takes a mount over from another supervisor, if that is what this process was started for.
pub fn supervise_if_asked() -> Option<ExitCode> {
    mount::take_over_if_asked()
}

/// Serves as the worker of a mount, if that is what this process was started for.
pub fn work_if_asked() -> Option<ExitCode> {
    worker::accept_if_asked().map(mount::work)
}

/// A line on stderr. That nobody reads it any more is no reason to fail.
fn complain(line: &str) {
    drop(writeln!(io::stderr().lock(), "ossfuse: {}", line.replace('\n', " ")));
}

/// Has warnings of what a command uses come out on stderr; where something logs already, they go there.
fn log_warnings() {
    drop(env_logger::Builder::new().filter_module("ossfuse", ::log::LevelFilter::Warn).try_init());
}

/// Writes a command's result to stdout; a reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> Result<(), Error> {
    print_while_read(text).map(drop)
}

/// The same; whether somebody still reads.
fn print_while_read(text: &str) -> Result<bool, Error> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::new("stdout", error, "")),
    }
}

/// Writes a value as one JSON object or array.
fn print_json(value: &impl serde::Serialize) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Error::new("stdout", error, ""))?;
    print(&format!("{text}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_well_formed_and_each_has_an_example() {
        Cli::command().debug_assert();
        for command in Cli::command().get_subcommands_mut() {
            let help = command.render_long_help().to_string();
            let leaves: Vec<_> =
                command.get_subcommands_mut().map(|leaf| leaf.render_long_help().to_string()).collect();
            assert!(help.contains("Example") || leaves.iter().all(|help| help.contains("Example")), "{help}");
            for help in leaves {
                assert!(help.contains("Example"), "{help}");
            }
        }
    }

    /// All commands and their subcommands.
    fn all(command: &mut clap::Command) -> Vec<clap::Command> {
        command.build();
        let below: Vec<_> = command.get_subcommands_mut().flat_map(all).collect();
        [vec![command.clone()], below].concat()
    }

    #[test]
    fn help_fits_into_80_columns_and_examples_stay_whole() {
        for mut command in all(&mut Cli::command()) {
            for text in [command.render_help(), command.render_long_help()] {
                let text = text.to_string();
                let wide = text.lines().find(|line| line.chars().count() > 80);
                assert_eq!(wide, None, "{}", command.get_name());
                let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                for example in examples.lines().filter(|line| line.starts_with("  ")) {
                    assert!(text.lines().any(|line| line == example), "broken up: {example}");
                }
            }
        }
        assert!(LONG_VERSION.lines().all(|line| line.len() <= 80));
    }

    #[test]
    fn each_failure_has_its_status() {
        assert_eq!(Error::new("a", "b", "c").status, 1);
        assert_eq!(Error::from(Problem::new("a", "b", "c").usage()).status, 2);
        assert_eq!(Error::line("x").line.as_deref(), Some("x"));
    }
}
