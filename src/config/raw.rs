//! What was said, and where: the values of all sources, laid over each other, not yet understood.
//!
//! Reads values by kind and names their source in every error; what they mean together is left to `resolve`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::options::{self, Kind, OPTIONS, OptionSpec};
use super::problem::{Problem, did_you_mean};
use crate::base::units;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    Default,
    File {
        path: PathBuf,
        profile: Option<String>,
    },
    /// The name of the variable.
    Environment(String),
    /// `-o`.
    MountOption,
    Flag,
}

impl Source {
    /// The higher goes before the lower.
    fn rank(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::File { profile: None, .. } => 1,
            Self::File { profile: Some(_), .. } => 2,
            Self::Environment(_) => 3,
            Self::MountOption => 4,
            Self::Flag => 5,
        }
    }

    /// Whether the user typed it with this very command.
    pub fn is_command_line(&self) -> bool {
        matches!(self, Self::MountOption | Self::Flag)
    }

    /// How a message names option `name` from this source.
    pub fn describe(&self, name: &str) -> String {
        match self {
            Self::Default | Self::Flag => format!("--{name}"),
            Self::MountOption => format!("-o {name}"),
            Self::Environment(variable) => variable.clone(),
            Self::File { path, profile: None } => format!("{name} in {}", path.display()),
            Self::File { path, profile: Some(profile) } => {
                format!("{name} in [profile.{profile}] of {}", path.display())
            }
        }
    }
}

/// A value as it was typed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawValue {
    pub text: String,
    pub source: Source,
}

impl fmt::Debug for RawValue {
    /// The text may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawValue").field("source", &self.source).finish_non_exhaustive()
    }
}

/// The value of every option that somebody set, by its name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RawOptions {
    values: BTreeMap<&'static str, RawValue>,
}

impl RawOptions {
    /// Sets a value, unless one from a source that goes before it stands already.
    pub fn set(&mut self, spec: &'static OptionSpec, text: impl Into<String>, source: Source) {
        let stands = self.values.get(spec.name).is_some_and(|value| value.source.rank() > source.rank());
        if !stands {
            self.values.insert(spec.name, RawValue { text: text.into(), source });
        }
    }

    /// Lays `other` over these. Flags for the kernel are joined: each `-o` may have some, and the last word counts.
    pub fn merge(&mut self, other: Self) {
        for (name, value) in other.values {
            let Some(spec) = options::find(name) else { continue };
            let text = match self.given(&options::KERNEL_FLAGS).filter(|_| *spec == options::KERNEL_FLAGS) {
                Some(before) => format!("{},{}", before.text, value.text),
                None => value.text,
            };
            self.set(spec, text, value.source);
        }
    }

    /// Names and values, for a process that shall work by the same ones.
    pub fn pairs(&self) -> Vec<(String, RawValue)> {
        self.values.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
    }

    /// The other way round. What is unknown here is left out.
    pub fn from_pairs(pairs: Vec<(String, RawValue)>) -> Self {
        let mut raw = Self::default();
        for (name, value) in pairs {
            if let Some(spec) = options::find(&name) {
                raw.set(spec, value.text, value.source);
            }
        }
        raw
    }

    /// What somebody set.
    pub fn given(&self, spec: &OptionSpec) -> Option<&RawValue> {
        self.values.get(spec.name)
    }

    /// How a message names the option, with the source of its value.
    pub fn describe(&self, spec: &OptionSpec) -> String {
        self.given(spec).map_or(&Source::Default, |value| &value.source).describe(spec.name)
    }

    /// What somebody set, or the default.
    pub fn text(&self, spec: &OptionSpec) -> Option<&str> {
        self.given(spec).map(|value| value.text.as_str()).or(spec.default)
    }

    pub fn flag(&self, spec: &OptionSpec) -> Result<bool, Problem> {
        match self.text(spec).unwrap_or("no").to_ascii_lowercase().as_str() {
            "" | "yes" | "true" | "on" | "1" => Ok(true),
            "no" | "false" | "off" | "0" => Ok(false),
            other => Err(self.bad(spec, format!("`{other}` is neither yes nor no; write yes or no"))),
        }
    }

    /// Bytes.
    pub fn size(&self, spec: &OptionSpec) -> Result<Option<u64>, Problem> {
        self.parse(spec, |text| units::parse_size(text).map_err(|error| error.to_string()))
    }

    /// Bytes within the bounds, both included; the option has a default.
    pub fn size_between(&self, spec: &OptionSpec, min: u64, max: u64) -> Result<u64, Problem> {
        let size = self.size(spec)?.unwrap_or_default();
        if (min..=max).contains(&size) {
            return Ok(size);
        }
        let (least, most) = (units::format_size(min), units::format_size(max));
        let why = format!("{} is out of bounds; give {least} to {most}", units::format_size(size));
        Err(self.bad(spec, why))
    }

    /// A span of time; the option has a default.
    pub fn duration(&self, spec: &OptionSpec) -> Result<Duration, Problem> {
        let read = self.parse(spec, |text| units::parse_duration(text).map_err(|error| error.to_string()))?;
        Ok(read.unwrap_or_default())
    }

    /// A span of time that is not zero; the option has a default.
    pub fn timeout(&self, spec: &OptionSpec) -> Result<Duration, Problem> {
        let read = self.duration(spec)?;
        if read.is_zero() {
            return Err(self.bad(spec, "nothing can be done in no time; give at least 1ms".to_owned()));
        }
        Ok(read)
    }

    /// Bytes a second, at least 1.
    pub fn rate(&self, spec: &OptionSpec) -> Result<Option<u64>, Problem> {
        let read = self.parse(spec, |text| units::parse_rate(text).map_err(|error| error.to_string()))?;
        if read == Some(0) {
            return Err(self.bad(spec, "nothing could ever be moved; leave the option out for no limit".to_owned()));
        }
        Ok(read)
    }

    /// Things a second, at least 1.
    pub fn frequency(&self, spec: &OptionSpec) -> Result<Option<u32>, Problem> {
        self.parse(spec, |text| match text.strip_suffix("/s").map(|number| number.trim().parse::<u32>()) {
            Some(Ok(number)) if number > 0 => Ok(number),
            _ => Err(format!("`{text}` is not a number a second; write it like 50/s")),
        })
    }

    pub fn number(&self, spec: &OptionSpec) -> Result<Option<u32>, Problem> {
        self.parse(spec, |text| text.parse().map_err(|_| format!("`{text}` is not a number; write it like 16")))
    }

    /// A count within the bounds, both included; the option has a default.
    pub fn count(&self, spec: &OptionSpec, min: u32, max: u32) -> Result<usize, Problem> {
        let count = self.number(spec)?.unwrap_or_default();
        if !(min..=max).contains(&count) {
            return Err(self.bad(spec, format!("{count} is out of bounds; give {min} to {max}")));
        }
        Ok(count as usize)
    }

    /// Permission bits, at most 0777.
    pub fn mode(&self, spec: &OptionSpec) -> Result<Option<u32>, Problem> {
        self.parse(spec, |text| match u32::from_str_radix(text.trim_start_matches("0o"), 8) {
            Ok(mode) if mode <= 0o777 => Ok(mode),
            _ => Err(format!("`{text}` is not a mode; write up to three octal digits, such as 0755")),
        })
    }

    /// One of the option's words, as the table writes it; case is of no account.
    pub fn choice(&self, spec: &'static OptionSpec) -> Result<Option<&'static str>, Problem> {
        let Kind::Choice(words) = spec.kind else { return Ok(None) };
        self.parse(spec, |text| {
            words.iter().copied().find(|word| word.eq_ignore_ascii_case(text)).ok_or_else(|| {
                let known = words.join(", ");
                format!(
                    "`{text}` is unknown; {}",
                    did_you_mean(text, words.iter().copied(), &format!("give one of {known}"))
                )
            })
        })
    }

    /// A path, made absolute from `cwd`.
    pub fn path(&self, spec: &OptionSpec, cwd: &Path) -> Result<Option<PathBuf>, Problem> {
        self.parse(spec, |text| {
            if text.is_empty() { Err("the path is empty; name a path".to_owned()) } else { Ok(cwd.join(text)) }
        })
    }

    fn parse<T>(&self, spec: &OptionSpec, read: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, Problem> {
        self.text(spec).map(|text| read(text.trim()).map_err(|why| self.bad(spec, why))).transpose()
    }

    /// A value that cannot be read; `why` ends with the mend.
    pub fn bad(&self, spec: &OptionSpec, why: String) -> Problem {
        let usage = self.given(spec).is_some_and(|value| value.source.is_command_line());
        Problem { usage, ..Problem::new(self.describe(spec), why, "") }
    }
}

/// Words of `-o` that go to the kernel, where [`options::KERNEL_FLAGS`] collects them.
const KERNEL_FLAGS: [&str; 9] = ["exec", "noexec", "suid", "nosuid", "dev", "nodev", "atime", "noatime", "relatime"];
/// Words that are for mount(8) and systemd.
const PASSED_OVER: [&str; 9] =
    ["defaults", "_netdev", "nofail", "auto", "noauto", "user", "nouser", "users", "comment"];

/// Whether a word of `-o` is none of this program's business.
fn is_passed_over(name: &str) -> bool {
    PASSED_OVER.contains(&name) || name.starts_with("x-")
}

/// Reads the argument of `-o`: names or `NAME=VALUE` between commas; `\,` is a comma in a value. Generic words of
/// mount(8) are taken or passed over.
///
/// # Errors
/// An option that is unknown, has no value but wants one, or has its place in the config file only.
pub fn parse_mount_options(text: &str) -> Result<RawOptions, Problem> {
    parse_options(text, false)
}

/// The same, for `mount -s`: what is unknown is passed over.
///
/// # Errors
/// An option that is known has no value but wants one.
pub fn parse_sloppy_mount_options(text: &str) -> Result<RawOptions, Problem> {
    parse_options(text, true)
}

fn parse_options(text: &str, sloppy: bool) -> Result<RawOptions, Problem> {
    let mut raw = RawOptions::default();
    let mut flags = Vec::new();
    for item in split_unescaped(text).iter().filter(|item| !item.is_empty()) {
        let (name, value) = match item.split_once('=') {
            Some((name, value)) => (name.trim(), Some(value)),
            None => (item.trim(), None),
        };
        match name {
            "ro" | "rw" => {
                let text = if name == "ro" { "yes" } else { "no" };
                raw.set(&options::READ_ONLY, text, Source::MountOption);
                continue;
            }
            flag if KERNEL_FLAGS.contains(&flag) => {
                flags.push(flag.to_owned());
                raw.set(&options::KERNEL_FLAGS, flags.join(","), Source::MountOption);
                continue;
            }
            name if is_passed_over(name) => continue,
            _ => {}
        }
        let spec = match find_command_line(&name.replace('_', "-")) {
            Some(spec) => spec,
            None if sloppy => continue,
            None => return Err(unknown_mount_option(name)),
        };
        let text = match (value, spec.kind) {
            (Some(value), _) => value,
            (None, Kind::Flag) => "yes",
            (None, _) => {
                let mend = format!("write -o {name}={}", spec.value_name);
                return Err(Problem::new(format!("-o {name}"), "it needs a value", mend).usage());
            }
        };
        raw.set(spec, text, Source::MountOption);
    }
    Ok(raw)
}

fn unknown_mount_option(name: &str) -> Problem {
    let names = OPTIONS.iter().filter(|spec| spec.is_typed()).map(|spec| spec.name);
    let mend = did_you_mean(&name.replace('_', "-"), names, "see `ossfuse mount --help`");
    Problem::new(format!("-o {name}"), "there is no such option", mend).usage()
}

fn find_command_line(name: &str) -> Option<&'static OptionSpec> {
    options::find(name).filter(|spec| spec.is_typed())
}

fn split_unescaped(text: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        match (char, chars.peek()) {
            ('\\', Some(&next)) if next == ',' || next == '\\' => {
                chars.next();
                items.last_mut().expect("never empty").push(next);
            }
            (',', _) => items.push(String::new()),
            _ => items.last_mut().expect("never empty").push(char),
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::options::{ALLOW_OTHER, ATTR_TTL, DIR_MODE, LOG_LEVEL, PART_SIZE, READ_ONLY, STATE_DIR, UID};

    fn set(spec: &'static OptionSpec, text: &str) -> RawOptions {
        let mut raw = RawOptions::default();
        raw.set(spec, text, Source::Flag);
        raw
    }

    #[test]
    fn the_source_that_goes_first_wins_in_any_order() {
        let file = || Source::File { path: "/c".into(), profile: None };
        let profile = || Source::File { path: "/c".into(), profile: Some("p".into()) };
        let sources = [file(), profile(), Source::Environment("E".into()), Source::MountOption, Source::Flag];
        for low in 0..sources.len() {
            for high in low + 1..sources.len() {
                for order in [[low, high], [high, low]] {
                    let mut raw = RawOptions::default();
                    for i in order {
                        raw.set(&PART_SIZE, format!("{i}"), sources[i].clone());
                    }
                    assert_eq!(raw.text(&PART_SIZE), Some(high.to_string().as_str()));
                }
            }
        }
        assert_eq!(RawOptions::default().text(&PART_SIZE), Some("8MiB"));
    }

    #[test]
    fn mount_options_take_either_dash_and_escaped_commas() {
        let raw = parse_mount_options(r"allow_other,part-size=16MiB,,state_dir=/a\,b\\c,read-only=no").unwrap();
        assert!(raw.flag(&ALLOW_OTHER).unwrap());
        assert!(!raw.flag(&READ_ONLY).unwrap());
        assert_eq!(raw.text(&PART_SIZE), Some("16MiB"));
        assert_eq!(raw.text(&STATE_DIR), Some(r"/a,b\c"));
    }

    #[test]
    fn generic_words_are_taken_or_passed_over() {
        let line = "defaults,_netdev,nofail,x-systemd.automount,comment=a b,user,rw,noexec,ro,noatime,allow_other";
        let raw = parse_mount_options(line).unwrap();
        assert!(raw.flag(&READ_ONLY).unwrap() && raw.flag(&ALLOW_OTHER).unwrap());
        assert_eq!(raw.text(&options::KERNEL_FLAGS), Some("noexec,noatime"));
        let mut joined = parse_mount_options("noexec").unwrap();
        joined.merge(parse_mount_options("ro").unwrap());
        joined.merge(parse_mount_options("noatime").unwrap());
        assert_eq!(joined.text(&options::KERNEL_FLAGS), Some("noexec,noatime"), "of several -o");
        assert!(parse_mount_options("kernel-flags=exec").is_err());
        assert!(parse_mount_options("frobnicate").is_err());
        assert_eq!(parse_sloppy_mount_options("frobnicate=1,ro").unwrap().text(&READ_ONLY), Some("yes"));
    }

    #[test]
    fn bad_mount_options_name_the_mend() {
        let error = |text| parse_mount_options(text).unwrap_err();
        assert_eq!(error("part_sise=1").to_string(), "-o part_sise: there is no such option; did you mean part-size?");
        assert_eq!(error("part_size").to_string(), "-o part_size: it needs a value; write -o part_size=SIZE");
        assert!(error("access-key-secret=x").usage, "a secret does not belong on a command line");
    }

    #[test]
    fn each_kind_refuses_what_it_cannot_read() {
        let lines = [
            set(&PART_SIZE, "8 parsecs").size(&PART_SIZE).unwrap_err(),
            set(&PART_SIZE, "1k").size_between(&PART_SIZE, 2048, 4096).unwrap_err(),
            set(&ATTR_TTL, "60").duration(&ATTR_TTL).unwrap_err(),
            set(&ATTR_TTL, "0s").timeout(&ATTR_TTL).unwrap_err(),
            set(&UID, "me").number(&UID).unwrap_err(),
            set(&DIR_MODE, "0888").mode(&DIR_MODE).unwrap_err(),
            set(&DIR_MODE, "7777").mode(&DIR_MODE).unwrap_err(),
            set(&LOG_LEVEL, "deebug").choice(&LOG_LEVEL).unwrap_err(),
            set(&READ_ONLY, "maybe").flag(&READ_ONLY).unwrap_err(),
            set(&STATE_DIR, "").path(&STATE_DIR, Path::new("/")).unwrap_err(),
        ];
        let wanted = [
            "--part-size: `8 parsecs` is not a size; write it like 8MiB",
            "--part-size: 1 KiB is out of bounds; give 2 KiB to 4 KiB",
            "--attr-ttl: `60` is not a duration; write it like 500ms, 60s, 15m, 2h or 7d",
            "--attr-ttl: nothing can be done in no time; give at least 1ms",
            "--uid: `me` is not a number; write it like 16",
            "--dir-mode: `0888` is not a mode; write up to three octal digits, such as 0755",
            "--dir-mode: `7777` is not a mode; write up to three octal digits, such as 0755",
            "--log-level: `deebug` is unknown; did you mean debug?",
            "--read-only: `maybe` is neither yes nor no; write yes or no",
            "--state-dir: the path is empty; name a path",
        ];
        assert_eq!(lines.each_ref().map(ToString::to_string).each_ref().map(String::as_str), wanted);
        assert!(lines.iter().all(|problem| problem.usage));
    }

    #[test]
    fn values_never_show_in_debug_output() {
        let mut raw = RawOptions::default();
        raw.set(&options::ACCESS_KEY_SECRET, "hush", Source::Environment("E".into()));
        assert!(!format!("{raw:?}").contains("hush"));
    }
}
