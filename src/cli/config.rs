//! `ossfuse config`: whether a config file is as it must be.

use std::path::PathBuf;

use clap::Subcommand;

use super::flags::CommonFlags;
use super::{Error, print};
use crate::config::{Environment, check_file};

/// Look after config files.
#[derive(Debug, clap::Args)]
#[command(disable_help_subcommand = true, after_help = EXAMPLE, after_long_help = EXAMPLE)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(CheckArgs),
}

/// Check a config file: its keys, each value, every profile, and who can read it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE, after_long_help = EXAMPLE)]
struct CheckArgs {
    /// The file
    file: PathBuf,
    #[command(flatten)]
    _common: CommonFlags,
}

const EXAMPLE: &str = "Examples:
  ossfuse config check ~/.config/ossfuse/config.toml
  ossfuse config check /etc/ossfuse/config.toml

What holds in the end, and where it comes from, shows `ossfuse mount BUCKET MOUNTPOINT --show-config`.";

/// Runs the command.
///
/// # Errors
/// The first thing that is wrong with the file.
pub(super) fn run(args: &Args) -> Result<(), Error> {
    let Command::Check(args) = &args.command;
    let environment = Environment::of_process();
    let path = environment.cwd.join(&args.file);
    check_file(&path, &environment)?;
    print(&format!("{}: ok\n", args.file.display()))
}
