//! What clap finds wrong with a command line, in the form that all errors have.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::{Error, print};
use crate::config::{Problem, did_you_mean, nearest};

/// Prints help where it was asked for; else names the mistake and the nearest thing that would be right.
pub(super) fn explain(error: &clap::Error, root: &clap::Command, arguments: &[OsString]) -> Result<(), Error> {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => return print(&error.render().to_string()),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            return Err(Error { line: Some(missing_command(root, arguments).to_string()), status: 2 });
        }
        _ => {}
    }
    let (command, path) = addressed(root, arguments);
    let help = format!("see `{path} --help`");
    let subject = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(" and "),
        _ => "the command line".to_owned(),
    };
    let problem = match error.kind() {
        ErrorKind::UnknownArgument => {
            let given = subject(ContextKind::InvalidArg);
            let mend = match given.strip_prefix("--") {
                Some(name) => near_option(command, name, &help),
                None => help,
            };
            let why = if given.starts_with('-') { "there is no such option" } else { "this is one argument too many" };
            Problem::new(given, why, mend)
        }
        ErrorKind::InvalidSubcommand => {
            let given = subject(ContextKind::InvalidSubcommand);
            let mend = did_you_mean(&given, command.get_subcommands().map(clap::Command::get_name), &help);
            Problem::new(given, "there is no such command", mend)
        }
        ErrorKind::MissingRequiredArgument => {
            let several =
                matches!(error.get(ContextKind::InvalidArg), Some(ContextValue::Strings(names)) if names.len() > 1);
            let why = if several { "they are missing" } else { "it is missing" };
            Problem::new(subject(ContextKind::InvalidArg), why, help)
        }
        ErrorKind::InvalidValue if error.get(ContextKind::InvalidValue).is_none_or(is_empty) => {
            Problem::new(subject(ContextKind::InvalidArg), "it needs a value", help)
        }
        ErrorKind::InvalidValue if error.get(ContextKind::ValidValue).is_some() => unknown_value(error, &subject),
        ErrorKind::NoEquals => Problem::new(subject(ContextKind::InvalidArg), "its value goes behind an =", help),
        _ => Problem::new(subject(ContextKind::InvalidArg), reason(error), help),
    };
    Err(problem.usage().into())
}

/// A value that is none of those that the argument takes.
fn unknown_value(error: &clap::Error, subject: &dyn Fn(ContextKind) -> String) -> Problem {
    let words = match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(words)) => words.as_slice(),
        _ => &[],
    };
    let given = subject(ContextKind::InvalidValue);
    let fallback = format!("give one of {}", words.join(", "));
    let mend = did_you_mean(&given, words.iter().map(String::as_str), &fallback);
    Problem::new(subject(ContextKind::InvalidArg), format!("`{given}` is unknown"), mend)
}

fn is_empty(value: &ContextValue) -> bool {
    matches!(value, ContextValue::String(text) if text.is_empty())
}

/// The reason that a value's own parser gave, or clap's first line.
fn reason(error: &clap::Error) -> String {
    std::error::Error::source(error).map_or_else(
        || error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned(),
        ToString::to_string,
    )
}

fn missing_command(root: &clap::Command, arguments: &[OsString]) -> Problem {
    let (command, path) = addressed(root, arguments);
    let names: Vec<_> = command.get_subcommands().map(clap::Command::get_name).collect();
    let mend = format!("say which: {} (see `{path} --help`)", names.join(", "));
    Problem::new("COMMAND", "it is missing", mend)
}

/// The command that the arguments address, as deep as their names go, and how it is called.
fn addressed<'c>(root: &'c clap::Command, arguments: &[OsString]) -> (&'c clap::Command, String) {
    let mut command = root;
    let mut path = root.get_name().to_owned();
    for argument in arguments.iter().skip(1) {
        let Some(next) = argument.to_str().and_then(|name| command.find_subcommand(name)) else { break };
        command = next;
        path = format!("{path} {}", next.get_name());
    }
    (command, path)
}

fn near_option(command: &clap::Command, name: &str, help: &str) -> String {
    let name = name.split('=').next().unwrap_or_default();
    let near = nearest(name, command.get_arguments().filter_map(clap::Arg::get_long));
    near.map_or_else(|| help.to_owned(), |near| format!("did you mean --{near}?"))
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::super::Cli;
    use super::*;

    fn line(arguments: &str) -> (String, u8) {
        let arguments: Vec<OsString> = arguments.split(' ').map(OsString::from).collect();
        let error = Cli::try_parse_from(&arguments).unwrap_err();
        let error = explain(&error, &Cli::command(), &arguments).unwrap_err();
        (error.line.unwrap(), error.status)
    }

    #[test]
    fn wrong_usage_is_one_line_with_the_mend() {
        for (arguments, wanted) in [
            (
                "ossfuse",
                "COMMAND: it is missing; say which: mount, umount, status, upgrade, sync, recover, uploads, doctor, log, config, man, completions, dev-server (see `ossfuse --help`)",
            ),
            (
                "ossfuse recover",
                "COMMAND: it is missing; say which: list, show, publish, export, discard (see `ossfuse recover --help`)",
            ),
            ("ossfuse mont", "mont: there is no such command; did you mean mount?"),
            ("ossfuse mount b /m --part-sise 1", "--part-sise: there is no such option; did you mean --part-size?"),
            ("ossfuse mount b /m --part_size=1", "--part_size: there is no such option; did you mean --part-size?"),
            ("ossfuse mount b /m --frobnicate", "--frobnicate: there is no such option; see `ossfuse mount --help`"),
            ("ossfuse mount b /m -q", "-q: there is no such option; see `ossfuse mount --help`"),
            ("ossfuse mount", "<BUCKET[:PREFIX]> and <MOUNTPOINT>: they are missing; see `ossfuse mount --help`"),
            ("ossfuse log deebug", "<LEVEL>: `deebug` is unknown; did you mean debug?"),
            ("ossfuse log x", "<LEVEL>: `x` is unknown; give one of off, error, warn, info, debug, trace"),
            ("ossfuse completions bsh", "<SHELL>: `bsh` is unknown; did you mean bash?"),
            ("ossfuse mount b", "<MOUNTPOINT>: it is missing; see `ossfuse mount --help`"),
            ("ossfuse mount b /m x", "x: this is one argument too many; see `ossfuse mount --help`"),
            ("ossfuse mount b /m --part-size", "--part-size <SIZE>: it needs a value; see `ossfuse mount --help`"),
            (
                "ossfuse umount /m --timeout 5",
                "--timeout <TIME>: `5` is not a duration; write it like 500ms, 60s, 15m, 2h or 7d; see `ossfuse umount --help`",
            ),
        ] {
            assert_eq!(line(arguments), (wanted.to_owned(), 2), "{arguments}");
        }
    }
}
