//! The log: text or JSON lines, to stderr, to the journal of systemd, or to a file that is rotated.
//!
//! Of other crates only warnings come through: at finer levels some of them print headers, and with them
//! credentials. Nothing that is logged here is a secret, so the log may be handed on; its file is its owner's alone.
//! What a line is about (operation, path, request id, duration) comes from the values in it, by [`fields`].

mod file;
mod fold;

use std::fmt::Write as _;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use env_logger::{Builder, Target};
use log::{Level, LevelFilter, Record};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use crate::base::fields::{self, Field};
use crate::base::time;
use crate::config::{LogConfig, LogFormat};
use file::RotatingFile;
use fold::{Fold, Folded, Kind};

pub use file::append_to;

/// systemd's word for the device and inode of the journal, if stderr is connected to it (systemd.exec(5)).
const JOURNAL_VARIABLE: &str = "JOURNAL_STREAM";

/// Trouble that repeats itself, of all threads.
static FOLD: Mutex<Option<Fold>> = Mutex::new(None);

/// Starts logging; from here on `log::…` reaches the user.
///
/// # Errors
/// The log file cannot be opened.
pub fn start(config: &LogConfig) -> io::Result<()> {
    let target = match &config.file {
        None => Target::Stderr,
        Some(path) => Target::Pipe(Box::new(RotatingFile::at(path)?)),
    };
    let form = Form { format: config.format, for_journal: config.file.is_none() && stderr_is_the_journal() };
    // Of this program's own modules the level is held by `log` itself, so that it can be changed.
    let started = Builder::new()
        .filter_level(LevelFilter::Warn)
        .filter_module("ossfuse", LevelFilter::Trace)
        .target(target)
        .format(move |out, record| out.write_all(lines_of(record, form).as_bytes()))
        .try_init();
    started.map_err(io::Error::other)?;
    set_level(config.level);
    Ok(())
}

/// Logs at this level from now on.
pub fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}

/// Tells what was counted and not told yet: the process is about to end.
pub fn finish() {
    let rest = FOLD.lock().as_mut().map(Fold::rest).unwrap_or_default();
    for folded in rest {
        log::log!(folded.level, "{folded}");
    }
    log::logger().flush();
}

/// What a line looks like.
#[derive(Debug, Clone, Copy)]
struct Form {
    format: LogFormat,
    /// The journal has its own times and levels.
    for_journal: bool,
}

/// All that is told of an event.
struct Event<'e> {
    at: &'e str,
    level: Level,
    target: &'e str,
    message: &'e str,
    fields: &'e [Field],
}

fn stderr_is_the_journal() -> bool {
    let Some(stream) = std::env::var_os(JOURNAL_VARIABLE) else { return false };
    // Not by a duplicate's path: what stderr is connected to may have none.
    let stderr = std::fs::metadata("/proc/self/fd/2");
    stderr.is_ok_and(|stderr| stream.to_str() == Some(&format!("{}:{}", stderr.dev(), stderr.ino())))
}

/// The lines for an event: none where it repeats what was told often enough, several where something is to be told of
/// such repetitions.
fn lines_of(record: &Record<'_>, form: Form) -> String {
    let (message, fields) = fields::collect(|| record.args().to_string());
    let (folded, written) = admit(record, &message, &fields);
    let at = now();
    let mut lines = String::new();
    for folded in folded {
        let (level, message) = (folded.level, folded.to_string());
        lines += &form.line(&Event { at: &at, level, target: module_path!(), message: &message, fields: &[] });
    }
    if written {
        let (level, target) = (record.level(), record.target());
        lines += &form.line(&Event { at: &at, level, target, message: &message, fields: &fields });
    }
    lines
}

fn admit(record: &Record<'_>, message: &str, fields: &[Field]) -> (Vec<Folded>, bool) {
    if record.level() > Level::Info {
        return (Vec::new(), true);
    }
    let now = Instant::now();
    let mut fold = FOLD.lock();
    let fold = fold.get_or_insert_with(Fold::default);
    if record.level() == Level::Info {
        return (fold.over(now), true);
    }
    let field = |name: &str| fields.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone());
    let place = (record.module_path().unwrap_or_else(|| record.target()).to_owned(), record.line().unwrap_or_default());
    let kind = Kind { level: record.level(), place, operation: field(fields::OPERATION), code: field(fields::CODE) };
    fold.admit(kind, message, now)
}

/// RFC 3339 with milliseconds.
fn now() -> String {
    let at = time::now();
    let seconds = time::rfc3339(at);
    format!("{}.{:03}Z", seconds.trim_end_matches('Z'), time::since_epoch(at).subsec_millis())
}

impl Form {
    fn line(self, event: &Event<'_>) -> String {
        let line = match (self.format, self.for_journal) {
            (LogFormat::Json, _) => json_line(event),
            (LogFormat::Text, false) => {
                format!("{} {:5} {}", event.at, event.level.as_str(), on_one_line(event.message))
            }
            (LogFormat::Text, true) => on_one_line(event.message),
        };
        let priority = if self.for_journal { priority(event.level) } else { "" };
        format!("{priority}{line}\n")
    }
}

/// The level as systemd reads it at the beginning of a line (sd-daemon(3)).
fn priority(level: Level) -> &'static str {
    match level {
        Level::Error => "<3>",
        Level::Warn => "<4>",
        Level::Info => "<6>",
        Level::Debug | Level::Trace => "<7>",
    }
}

/// One line whatever the message holds: names of files may have newlines and escape sequences in them.
fn on_one_line(message: &str) -> String {
    let mut line = String::with_capacity(message.len());
    for char in message.chars() {
        if char.is_control() {
            // Into a String: cannot fail.
            write!(line, "{}", char.escape_default()).expect("memory takes it");
        } else {
            line.push(char);
        }
    }
    line
}

fn json_line(event: &Event<'_>) -> String {
    let level = event.level.as_str().to_ascii_lowercase();
    let value = |text: &str| text.parse::<u64>().map_or_else(|_| json!(text), |number| json!(number));
    let mut line = Map::new();
    for (name, text) in event.fields {
        let is_number = *name == fields::DURATION;
        line.insert((*name).to_owned(), if is_number { value(text) } else { json!(text) });
    }
    let own = [("at", event.at), ("level", &level), ("target", event.target), ("message", event.message)];
    line.extend(own.map(|(name, text)| (name.to_owned(), json!(text))));
    Value::Object(line).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: Form = Form { format: LogFormat::Text, for_journal: false };
    const JSON: Form = Form { format: LogFormat::Json, for_journal: false };

    fn event<'e>(message: &'e str, fields: &'e [Field]) -> Event<'e> {
        Event { at: "T", level: Level::Warn, target: "ossfuse::vfs", message, fields }
    }

    #[test]
    fn an_event_is_one_line_in_every_form() {
        let event = event("name \"a\nb\u{1b}\"", &[]);
        assert_eq!(TEXT.line(&event), "T WARN  name \"a\\nb\\u{1b}\"\n");
        assert_eq!(Form { for_journal: true, ..TEXT }.line(&event), "<4>name \"a\\nb\\u{1b}\"\n");
        let line = JSON.line(&event);
        assert_eq!(line.matches('\n').count(), 1);
        let value: Value = serde_json::from_str(&line).unwrap();
        let wanted = json!({"at": "T", "level": "warn", "target": "ossfuse::vfs", "message": "name \"a\nb\u{1b}\""});
        assert_eq!(value, wanted);
        assert!(Form { for_journal: true, ..JSON }.line(&event).starts_with("<4>{"));
    }

    #[test]
    fn what_an_event_is_about_stands_in_its_json() {
        let fields = [
            (fields::OPERATION, "GetObject".to_owned()),
            (fields::DURATION, "12".to_owned()),
            (fields::REQUEST_ID, "65".to_owned()),
        ];
        let value: Value = serde_json::from_str(&JSON.line(&event("m", &fields))).unwrap();
        assert_eq!(
            [&value["operation"], &value["duration_ms"], &value["request_id"]],
            [&json!("GetObject"), &json!(12), &json!("65")]
        );
    }
}
