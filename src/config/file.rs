//! The config file: which one is read, its keys and profiles, and who may read it beside its owner.
//!
//! A file that holds a secret and that others can read is refused whole, before a value of it is used.

use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::environment::Environment;
use super::options::{self, Group, Kind, OPTIONS, OptionSpec};
use super::problem::{Problem, did_you_mean};
use super::raw::{RawOptions, Source};
use super::resolve;

/// A config file is read up to this size in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// The table that holds the profiles.
const PROFILES: &str = "profile";

/// Reads the config file that the options so far ask for, or the first that is there.
///
/// # Errors
/// A file or profile that is asked for and not there; one that cannot be read, is no TOML, has an unknown key, or
/// holds a secret that others can read.
pub(super) fn load(given: &RawOptions, environment: &Environment) -> Result<RawOptions, Problem> {
    let profile = given.text(&options::PROFILE);
    let Some((path, text)) = open_first(given, environment)? else {
        return match profile {
            None => Ok(RawOptions::default()),
            Some(name) => Err(Problem::new(
                given.describe(&options::PROFILE),
                format!("there is no config file to look for `{name}` in"),
                "write one, or name it with --config FILE",
            )),
        };
    };
    parse(&text, &path, profile)
}

/// Checks a config file: its keys, each value, and what of it cannot stand together, at its top and in each profile.
///
/// # Errors
/// The first thing that is wrong.
pub fn check_file(path: &Path, environment: &Environment) -> Result<(), Problem> {
    let missing = || Problem::new(path.display(), "there is no such config file", "name one that is there");
    let text = read(path)?.ok_or_else(missing)?;
    resolve::check_values(&parse(&text, path, None)?, environment)?;
    let profiles = text.parse::<Table>().ok().and_then(|mut table| table.remove(PROFILES));
    for name in profiles.iter().filter_map(Value::as_table).flat_map(Table::keys) {
        resolve::check_values(&parse(&text, path, Some(name))?, environment)?;
    }
    Ok(())
}

/// The log level that a config file says now, or the default.
pub(super) fn read_level(path: &Path, profile: Option<&str>) -> Result<log::LevelFilter, Problem> {
    let raw = parse(&read(path)?.unwrap_or_default(), path, profile)?;
    Ok(raw.choice(&options::LOG_LEVEL)?.and_then(|word| word.parse().ok()).unwrap_or(log::LevelFilter::Info))
}

/// The config file that is read, if any is: the one that is named, the user's own, or the machine's.
pub(super) fn place(given: &RawOptions, environment: &Environment) -> Result<Option<PathBuf>, Problem> {
    if let Some(path) = given.path(&options::CONFIG, &environment.cwd)? {
        return Ok(Some(path));
    }
    if let Some(path) = environment.user_config().filter(|path| path.exists()) {
        return Ok(Some(path));
    }
    Ok(Some(environment.system_config.clone()).filter(|path| path.exists() && !is_barred(path)))
}

/// The machine's file may hold root's secrets: for others it is as if it were not there.
fn is_barred(path: &Path) -> bool {
    std::fs::File::open(path).is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

fn open_first(given: &RawOptions, environment: &Environment) -> Result<Option<(PathBuf, String)>, Problem> {
    let Some(path) = place(given, environment)? else { return Ok(None) };
    match read(&path)? {
        Some(text) => Ok(Some((path, text))),
        None if given.given(&options::CONFIG).is_none() => Ok(None),
        None => Err(Problem::new(path.display(), "there is no such config file", "see --config")),
    }
}

/// `None` where there is no such file.
fn read(path: &Path) -> Result<Option<String>, Problem> {
    let problem = |error: std::io::Error| Problem::new(path.display(), format!("cannot be read: {error}"), "");
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(error) => return Err(problem(error)),
    };
    let metadata = file.metadata().map_err(problem)?;
    let mut text = String::new();
    let size = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(problem)?;
    if size as u64 > FILE_BYTES_MAX {
        return Err(Problem::new(path.display(), "is too large for a config file", ""));
    }
    if metadata.mode() & 0o044 != 0 && holds_secret(&text) {
        let mend = format!("run `chmod 600 {}`", path.display());
        return Err(Problem::new(path.display(), "it holds a secret and others can read it", mend));
    }
    Ok(Some(text))
}

/// Looks in every profile, used or not; a file that is no TOML holds a secret where it names one.
fn holds_secret(text: &str) -> bool {
    let secrets = || OPTIONS.iter().filter(|spec| spec.is_secret());
    let Ok(table) = text.parse::<Table>() else {
        return secrets().any(|spec| text.contains(spec.name));
    };
    let profiles = table.get(PROFILES).and_then(Value::as_table);
    let tables = profiles.into_iter().flat_map(Table::values).filter_map(Value::as_table);
    tables.chain([&table]).any(|table| secrets().any(|spec| table.contains_key(spec.name)))
}

fn parse(text: &str, path: &Path, profile: Option<&str>) -> Result<RawOptions, Problem> {
    let table: Table = text.parse().map_err(|error: toml::de::Error| {
        // Only the message: the error's own display quotes the line, which may hold a secret.
        let line = error.span().map_or(0, |span| text[..span.start].lines().count().max(1));
        Problem::new(format!("{} line {line}", path.display()), error.message().lines().next().unwrap_or_default(), "")
    })?;
    let mut raw = RawOptions::default();
    let profiles = match table.get(PROFILES) {
        None => Table::new(),
        Some(Value::Table(profiles)) => profiles.clone(),
        Some(_) => {
            return Err(Problem::new(
                format!("profile in {}", path.display()),
                "it is no table",
                "head the keys of a profile with [profile.NAME]",
            ));
        }
    };
    read_keys(&mut raw, table.iter().filter(|(name, _)| *name != PROFILES), path, None)?;
    // Keys of profiles that are not used are checked too: a typing error there should not wait for its day.
    let mut unused = RawOptions::default();
    for (name, value) in &profiles {
        let place = format!("[profile.{name}] of {}", path.display());
        let keys = value.as_table().ok_or_else(|| Problem::new(place, "it is no table", ""))?;
        let target = if Some(name.as_str()) == profile { &mut raw } else { &mut unused };
        read_keys(target, keys.iter(), path, Some(name))?;
    }
    match profile {
        Some(name) if !profiles.contains_key(name) => {
            let mend = did_you_mean(name, profiles.keys().map(String::as_str), "give one that is there");
            let why = format!("there is no [profile.{name}]");
            Err(Problem::new(path.display(), why, mend))
        }
        _ => Ok(raw),
    }
}

fn read_keys<'t>(
    raw: &mut RawOptions,
    keys: impl Iterator<Item = (&'t String, &'t Value)>,
    path: &Path,
    profile: Option<&str>,
) -> Result<(), Problem> {
    for (name, value) in keys {
        let source = Source::File { path: path.to_owned(), profile: profile.map(str::to_owned) };
        let spec = find(name).ok_or_else(|| {
            let mend = did_you_mean(
                name,
                keys_of_file().map(|spec| spec.name).chain([PROFILES]),
                "see `ossfuse mount --help`",
            );
            Problem::new(source.describe(name), "there is no such key", mend)
        })?;
        let text = text_of(spec, value).map_err(|why| Problem::new(source.describe(name), why, ""))?;
        raw.set(spec, text, source);
    }
    Ok(())
}

/// The file cannot name itself, nor choose among its profiles.
fn keys_of_file() -> impl Iterator<Item = &'static OptionSpec> {
    OPTIONS.iter().copied().filter(|spec| {
        let own = **spec == options::CONFIG || **spec == options::PROFILE || **spec == options::SHOW_CONFIG;
        !own && spec.group != Group::MountOptionOnly
    })
}

fn find(name: &str) -> Option<&'static OptionSpec> {
    keys_of_file().find(|spec| spec.name == name)
}

fn text_of(spec: &OptionSpec, value: &Value) -> Result<String, &'static str> {
    match (value, spec.kind) {
        (Value::String(text), _) => Ok(text.clone()),
        (Value::Boolean(yes), Kind::Flag) => Ok(if *yes { "yes" } else { "no" }.to_owned()),
        (Value::Integer(number), Kind::Number | Kind::Size) => Ok(number.to_string()),
        // TOML's 0o755 and 493 are one number, and 0755 is none.
        (_, Kind::Mode) => Err("a mode is a text; write it like \"0755\""),
        (_, Kind::Flag) => Err("it is neither yes nor no; write true or false"),
        _ => Err("it is no text; put it in quotes"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::environment::for_test;
    use crate::config::options::{ACCESS_KEY_SECRET, CONFIG, PART_SIZE, PROFILE, READ_ONLY, REGION, UPLOAD_WORKERS};

    const TEXT: &str = r#"
        region = "cn-hangzhou"
        part-size = "16MiB"
        upload-workers = 4
        [profile.work]
        region = "cn-beijing"
        read-only = true
    "#;

    fn at(text: &str, profile: Option<&str>) -> Result<RawOptions, String> {
        parse(text, Path::new("/c.toml"), profile).map_err(|problem| problem.to_string())
    }

    fn write(dir: &Path, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_profile_goes_before_the_top() {
        let top = at(TEXT, None).unwrap();
        assert_eq!((top.text(&REGION), top.text(&UPLOAD_WORKERS)), (Some("cn-hangzhou"), Some("4")));
        assert!(!top.flag(&READ_ONLY).unwrap());
        let work = at(TEXT, Some("work")).unwrap();
        assert_eq!((work.text(&REGION), work.text(&PART_SIZE)), (Some("cn-beijing"), Some("16MiB")));
        assert!(work.flag(&READ_ONLY).unwrap());
        assert_eq!(work.describe(&REGION), "region in [profile.work] of /c.toml");
    }

    #[test]
    fn mistakes_name_their_place_and_the_mend() {
        let cases = [
            ("part_size = 1", "part_size in /c.toml: there is no such key; did you mean part-size?"),
            ("[profile.p]\nregio = 'x'", "regio in [profile.p] of /c.toml: there is no such key; did you mean region?"),
            ("config = '/x'", "config in /c.toml: there is no such key; see `ossfuse mount --help`"),
            ("dir-mode = 755", "dir-mode in /c.toml: a mode is a text; write it like \"0755\""),
            ("read-only = 1", "read-only in /c.toml: it is neither yes nor no; write true or false"),
            ("attr-ttl = 60", "attr-ttl in /c.toml: it is no text; put it in quotes"),
            ("profile = 'x'", "profile in /c.toml: it is no table; head the keys of a profile with [profile.NAME]"),
        ];
        for (text, wanted) in cases {
            assert_eq!(at(text, None).unwrap_err(), wanted);
        }
        assert_eq!(at(TEXT, Some("wirk")).unwrap_err(), "/c.toml: there is no [profile.wirk]; did you mean work?");
    }

    #[test]
    fn broken_toml_is_told_by_line_without_its_content() {
        let error = at("region = 'x'\naccess-key-secret = hush hush\n", None).unwrap_err();
        assert!(error.starts_with("/c.toml line 2: "), "{error}");
        assert!(!error.contains("hush"), "{error}");
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (mode, ok) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o644, false)] {
            for text in ["access-key-secret = 'hush'", "[profile.p]\nsecurity-token = 'hush'"] {
                let path = write(dir.path(), "c", text, mode);
                let mut given = RawOptions::default();
                given.set(&CONFIG, path.to_str().unwrap(), Source::Flag);
                let result = load(&given, &for_test(&[]));
                assert_eq!(result.is_ok(), ok, "{mode:o} {result:?}");
                if let Err(problem) = result {
                    assert!(problem.to_string().contains("others can read it; run `chmod 600 "), "{problem}");
                }
            }
        }
        let open = write(dir.path(), "d", "region = 'x'\naccess-key-id = 'id'", 0o644);
        assert!(read(&open).unwrap().is_some());
        let broken = write(dir.path(), "e", "access-key-secret = hush", 0o644);
        assert!(read(&broken).is_err());
    }

    #[test]
    fn the_first_file_that_is_there_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        let mut environment = for_test(&[("HOME", home.to_str().unwrap())]);
        environment.system_config = dir.path().join("etc/config.toml");
        let region = |given: &RawOptions| load(given, &environment).unwrap().text(&REGION).map(str::to_owned);
        let mut given = RawOptions::default();
        assert_eq!(region(&given), None);
        write(dir.path(), "etc/config.toml", "region = 'etc'", 0o644);
        assert_eq!(region(&given).as_deref(), Some("etc"));
        write(&home, ".config/ossfuse/config.toml", "region = 'home'", 0o644);
        assert_eq!(region(&given).as_deref(), Some("home"));
        let named = write(dir.path(), "named", "region = 'named'\naccess-key-secret = 'x'", 0o600);
        given.set(&CONFIG, named.to_str().unwrap(), Source::Flag);
        assert_eq!(region(&given).as_deref(), Some("named"));
        assert_eq!(load(&given, &environment).unwrap().text(&ACCESS_KEY_SECRET), Some("x"));
    }

    #[test]
    fn a_file_or_profile_that_is_asked_for_must_be_there() {
        let mut given = RawOptions::default();
        given.set(&PROFILE, "work", Source::Flag);
        let problem = load(&given, &for_test(&[])).unwrap_err().to_string();
        assert!(problem.starts_with("--profile: there is no config file"), "{problem}");
        given.set(&CONFIG, "/nonexistent/c", Source::Flag);
        let problem = load(&given, &for_test(&[])).unwrap_err().to_string();
        assert_eq!(problem, "/nonexistent/c: there is no such config file; see --config");
    }
}
