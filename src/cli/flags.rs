//! The options of the table as flags of a command: clap's view of [`crate::config::options`].
//!
//! Takes values as they were typed; no default and no check is made here, so that flags, `-o`, variables and the
//! config file are read by the same code.

use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};

use crate::config::options::{Group, Kind, OPTIONS, OptionSpec};
use crate::config::{RawOptions, Source};

/// Options that every command takes, for one that needs none of their values: a mount is found by its path.
#[derive(Debug, Clone)]
pub(super) struct CommonFlags;

/// The common ones, and those that say where the bucket is and how to speak to it.
#[derive(Debug, Clone, Default)]
pub(super) struct ConnectionFlags(pub(super) RawOptions);

/// All.
#[derive(Debug, Clone, Default)]
pub(super) struct MountFlags(pub(super) RawOptions);

/// Which options a set of flags has.
trait Selection {
    fn has(group: Group) -> bool;
    fn holding(raw: RawOptions) -> Self;
}

impl Selection for CommonFlags {
    fn has(group: Group) -> bool {
        group == Group::Everywhere
    }
    fn holding(_: RawOptions) -> Self {
        Self
    }
}
impl Selection for ConnectionFlags {
    fn has(group: Group) -> bool {
        matches!(group, Group::Everywhere | Group::Service | Group::Credentials)
    }
    fn holding(raw: RawOptions) -> Self {
        Self(raw)
    }
}
impl Selection for MountFlags {
    fn has(group: Group) -> bool {
        !matches!(group, Group::FileOnly | Group::MountOptionOnly)
    }
    fn holding(raw: RawOptions) -> Self {
        Self(raw)
    }
}

fn selected<S: Selection>() -> impl Iterator<Item = &'static OptionSpec> {
    OPTIONS.iter().copied().filter(|spec| S::has(spec.group))
}

fn augment<S: Selection>(command: Command) -> Command {
    let command = selected::<S>().fold(command, |command, spec| command.arg(flag(spec)));
    // The same option again: the last one holds, as everywhere else.
    command.args_override_self(true)
}

fn collect<S: Selection>(matches: &ArgMatches) -> RawOptions {
    let mut raw = RawOptions::default();
    for spec in selected::<S>() {
        if let Some(text) = matches.get_one::<String>(spec.name) {
            raw.set(spec, text, Source::Flag);
        }
    }
    raw
}

/// A flag takes a value only behind `=`, so that `--read-only MOUNTPOINT` reads as it looks.
fn flag(spec: &'static OptionSpec) -> Arg {
    let arg = Arg::new(spec.name).long(spec.name).action(ArgAction::Set).help_heading(spec.group.heading());
    let arg = spec.short.into_iter().fold(arg, Arg::short);
    let arg = arg.help(spec.default.map_or_else(|| spec.help.to_owned(), |d| format!("{} [default: {d}]", spec.help)));
    match spec.kind {
        Kind::Flag => arg.value_name("yes|no").num_args(0..=1).require_equals(true).default_missing_value("yes"),
        _ => arg.value_name(spec.value_name),
    }
}

macro_rules! clap_traits {
    ($($type:ty),*) => {$(
        impl clap::Args for $type {
            fn augment_args(command: Command) -> Command {
                augment::<Self>(command)
            }
            fn augment_args_for_update(command: Command) -> Command {
                augment::<Self>(command)
            }
        }
        impl FromArgMatches for $type {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                Ok(Self::holding(collect::<Self>(matches)))
            }
            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                *self = Self::from_arg_matches(matches)?;
                Ok(())
            }
        }
    )*};
}
clap_traits!(CommonFlags, ConnectionFlags, MountFlags);

#[cfg(test)]
mod tests {
    use clap::Args;

    use super::*;
    use crate::config::options::{ACCESS_KEY_SECRET, PART_SIZE, READ_ONLY};

    fn parse(arguments: &[&str]) -> Result<RawOptions, clap::Error> {
        let command = MountFlags::augment_args(Command::new("mount").arg(Arg::new("MOUNTPOINT")));
        let matches = command.try_get_matches_from([&["mount"], arguments].concat())?;
        Ok(MountFlags::from_arg_matches(&matches)?.0)
    }

    #[test]
    fn flags_need_no_value_but_take_one_and_the_last_holds() {
        assert!(parse(&["--read-only", "/mnt"]).unwrap().flag(&READ_ONLY).unwrap());
        assert!(!parse(&["--read-only=no", "/mnt"]).unwrap().flag(&READ_ONLY).unwrap());
        assert!(!parse(&["--read-only", "--read-only=no"]).unwrap().flag(&READ_ONLY).unwrap());
        let raw = parse(&["--part-size", "1MiB", "--part-size=2MiB"]).unwrap();
        assert_eq!(raw.text(&PART_SIZE), Some("2MiB"));
        assert_eq!(parse(&[]).unwrap().given(&PART_SIZE), None);
    }

    #[test]
    fn secrets_are_no_flags() {
        assert!(parse(&["--access-key-secret", "x"]).is_err());
        assert!(!selected::<MountFlags>().any(|spec| *spec == ACCESS_KEY_SECRET));
    }
}
