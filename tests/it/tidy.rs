//! The form of the code, as far as a test can see it: who uses whom, headers, banned calls, sizes, paths in documents.
//!
//! When this refuses something, first ask where the thing belongs; the tables here change last, and each entry of an
//! exception says why. What the compiler or clippy refuses already is not looked for again.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What each module of the crate may use. A module stands below those that name it; nothing here may form a ring.
const EDGES: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("oss", &["base"]),
    ("spill", &["base"]),
    ("journal", &["base"]),
    ("ledger", &["base"]),
    ("devserver", &["base"]),
    ("credentials", &["base", "oss"]),
    ("config", &["base", "oss", "credentials"]),
    ("control", &["base"]),
    ("logging", &["base", "config"]),
    ("upload", &["base", "oss", "spill", "journal"]),
    ("intent", &["base", "oss", "spill", "journal"]),
    ("read", &["base", "oss"]),
    ("write", &["base", "oss", "spill", "journal", "upload"]),
    ("replay", &["base", "oss", "spill", "upload", "write"]),
    ("vfs", &["base", "oss", "spill", "upload", "intent", "ledger", "read", "write"]),
    ("fuse", &["base", "vfs"]),
    ("supervise", &["base", "control", "fuse"]),
    (
        "worker",
        &[
            "base",
            "config",
            "control",
            "credentials",
            "fuse",
            "intent",
            "journal",
            "ledger",
            "oss",
            "read",
            "replay",
            "spill",
            "supervise",
            "upload",
            "vfs",
            "write",
            "logging",
        ],
    ),
    ("cli", &["base", "config", "control", "devserver", "logging", "oss", "replay", "supervise", "worker"]),
];

/// Edges against the table, each from one file and for a reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("src/fuse/errno.rs", "oss", "the one table from failures to numbers names the kinds of all layers"),
    ("src/fuse/errno.rs", "read", "the same"),
    ("src/fuse/errno.rs", "write", "the same"),
    ("src/vfs/rename/mod.rs", "journal", "says what a move has copied, so that open files go along"),
    ("src/vfs/rename/relocate.rs", "journal", "the same"),
    ("src/vfs/rename/exchange.rs", "journal", "the same"),
    ("src/replay/list.rs", "control", "fills in the shape that `recover list --json` prints, live mount or not"),
    ("src/control/server.rs", "config", "makes the socket's folder as private as the state folder"),
];

/// Words that must not stand in production code: where they may, and what to use instead.
const BANNED: &[(&str, &[&str], &str)] = &[
    ("process::exit(", &[], "return an ExitCode from main; a worker ends by worker::exit"),
    ("SystemTime::now", &["src/base/time.rs"], "base::time::now"),
    (
        "thread::sleep",
        &["src/cli/detach.rs", "src/cli/umount.rs", "src/cli/upgrade.rs", "src/control/client.rs"],
        "tokio::time::sleep, or wait for the event",
    ),
    ("println!", &[], "cli::print for results, log for the rest"),
    ("eprintln!", &[], "cli::complain for errors, log for the rest"),
    ("#[allow(", &[], "#[expect(…, reason = \"…\")]"),
    ("#![allow(", &[], "#[expect(…, reason = \"…\")] at the item"),
    ("todo!(", &[], "what is not there is absent, never a stub"),
    ("unimplemented!(", &[], "what is not there is absent, never a stub"),
    ("dbg!(", &[], "log::debug!"),
    (".unwrap()", &[], "an error, or expect with the invariant"),
    ("catch_unwind", &[], "a panic ends the process: a reply that unwinds answers EIO"),
    ("sled::", &["src/journal/mod.rs"], "journal is the only module that names sled"),
    ("fuser::", &["src/fuse/"], "kernel types stay in fuse"),
    ("reqwest::", &["src/oss/", "src/credentials/remote.rs"], "HTTP stays in oss"),
    ("use clap", &["src/cli/"], "the command line stays in cli"),
];

/// Files longer than this hold more than one thing, mostly.
const LINES_MAX: usize = 700;
/// Those that may be longer, and why.
const LONG: &[(&str, &str)] = &[];

/// Words that give a machine away.
const PRIVATE: &[&str] = &[concat!("/work", "/"), concat!("/ro", "ot/"), concat!("/home", "/runner")];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Files under the folders (or the files themselves), as paths from the root, sorted.
fn files(places: &[&str], wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo: Vec<PathBuf> = places.iter().map(|place| root().join(place)).collect();
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.exists() {
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            found.extend(wanted(&name).then_some(name));
        }
    }
    found.sort();
    found
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn sources() -> Vec<String> {
    files(&["src"], |name| name.ends_with(".rs"))
}

/// Whether the whole file is compiled for tests alone.
fn is_test_file(path: &str) -> bool {
    let name = Path::new(path).file_stem().unwrap().to_str().unwrap();
    name.ends_with("tests") || name.ends_with("_double") || path.contains("_tests/")
}

/// The code of a file without its tests and comments. Strings stay.
fn production(path: &str) -> String {
    if is_test_file(path) {
        return String::new();
    }
    let text = read(path);
    let is_tests = |at: &usize| {
        let next = text[*at..].lines().nth(1).unwrap_or_default();
        next.contains("mod ") && next.ends_with('{')
    };
    let end = text.match_indices("#[cfg(test)]").map(|(at, _)| at).find(is_tests).unwrap_or(text.len());
    let code: Vec<&str> = text[..end].lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    code.join("\n")
}

fn module_of(path: &str) -> &str {
    let rest = path.strip_prefix("src/").unwrap();
    rest.split('/').next().unwrap().trim_end_matches(".rs")
}

/// The modules of the crate that a text names: `crate::x`, and each in `crate::{x, y::z}`.
fn used(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for rest in text.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            None => drop(found.insert(word(rest))),
            Some(list) => {
                let mut depth = 0;
                let mut start = true;
                for (at, char) in list.char_indices() {
                    match char {
                        '}' if depth == 0 => break,
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        ',' => start = depth == 0,
                        char if start && char.is_ascii_lowercase() => {
                            found.insert(word(&list[at..]));
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    found
}

fn word(text: &str) -> String {
    text.chars().take_while(|char| char.is_ascii_alphanumeric() || *char == '_').collect()
}

fn assert_none(findings: Vec<String>) {
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

#[test]
fn modules_use_only_what_stands_below_them() {
    let mut findings = Vec::new();
    for path in sources() {
        let own = module_of(&path);
        if own == "lib" || own == "main" {
            continue;
        }
        let Some((_, allowed)) = EDGES.iter().find(|(name, _)| *name == own) else {
            findings.push(format!("{path}: module {own} is not in the table of edges"));
            continue;
        };
        for other in used(&production(&path)) {
            let excepted = EXCEPTIONS.iter().any(|(file, to, _)| *file == path && *to == other);
            let known = EDGES.iter().any(|(name, _)| *name == other);
            if known && other != own && !allowed.contains(&other.as_str()) && !excepted {
                findings.push(format!("{path}: {own} may not use {other}"));
            }
        }
    }
    assert_none(findings);
}

#[test]
fn the_table_of_edges_has_no_ring_and_nothing_idle() {
    // Whatever can be taken away because all it uses is gone is on no ring.
    let mut left: Vec<_> = EDGES.to_vec();
    loop {
        let names: Vec<&str> = left.iter().map(|(name, _)| *name).collect();
        let before = left.len();
        left.retain(|(_, uses)| uses.iter().any(|name| names.contains(name)));
        if left.len() == before {
            break;
        }
    }
    assert!(left.is_empty(), "a ring among {left:?}");

    let mut findings = Vec::new();
    for (name, uses) in EDGES {
        let own: Vec<String> = sources().into_iter().filter(|path| module_of(path) == *name).collect();
        let all: BTreeSet<String> = own.iter().flat_map(|path| used(&read(path))).collect();
        for other in uses.iter().filter(|other| !all.contains(**other) && **other != "base") {
            findings.push(format!("{name} does not use {other}: take it out of the table"));
        }
    }
    for (file, to, _) in EXCEPTIONS {
        if !used(&production(file)).contains(*to) {
            findings.push(format!("{file} does not use {to}: take the exception away"));
        }
    }
    assert_none(findings);
}

#[test]
fn every_file_says_what_it_is_for() {
    let headless = |path: &String| !read(path).starts_with("//! ");
    let findings = files(&["src", "tests"], |name| name.ends_with(".rs")).into_iter().filter(headless);
    assert_none(findings.map(|path| format!("{path}: no `//!` header")).collect());
}

#[test]
fn what_is_banned_is_absent() {
    let mut findings = Vec::new();
    for path in sources() {
        let code = production(&path);
        for (call, exempt, instead) in BANNED {
            let is_exempt = exempt.iter().any(|place| path.starts_with(place));
            let found = code.lines().any(|line| {
                let at = line.match_indices(call).next().map(|(at, _)| at);
                // `println!` also ends `eprintln!`, which has an entry of its own.
                at.is_some_and(|at| *call != "println!" || !line[..at].ends_with('e'))
            });
            if found && !is_exempt {
                findings.push(format!("{path}: `{call}`; instead: {instead}"));
            }
        }
    }
    assert_none(findings);
}

#[test]
fn files_are_no_longer_than_can_be_read_at_once() {
    let mut findings = Vec::new();
    for path in files(&["src", "tests"], |name| name.ends_with(".rs")) {
        let lines = read(&path).lines().count();
        let is_listed = LONG.iter().any(|(file, _)| *file == path);
        if (lines > LINES_MAX) != is_listed {
            findings.push(format!("{path}: {lines} lines; split it, or mend the list of long files"));
        }
    }
    assert_none(findings);
}

/// Everything that people read.
fn documents() -> Vec<String> {
    files(&["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs"], |name| name.ends_with(".md"))
}

/// Whether a test that a document names as `module::name` stands in tests/it/, or in src/ as a unit test. What ends in
/// an ellipsis stands for all that begin so; a row of a macro that makes tests counts too.
fn is_test(named: &str) -> bool {
    let Some((module, name)) = named.rsplit_once("::") else { return false };
    let path = module.replace("::", "/");
    let wanted = match name.strip_suffix('…') {
        Some(prefix) => format!("fn {prefix}"),
        None => format!("fn {name}()"),
    };
    let places = ["tests/it/{}.rs", "tests/it/{}/mod.rs", "src/{}.rs", "src/{}/mod.rs"];
    let files = places.map(|place| place.replace("{}", &path));
    let has = |text: &str| text.contains(&format!("#[test]\n{wanted}")) || text.contains(&format!("\n    {name}: \""));
    files.iter().any(|file| root().join(file).exists() && has(&read(file)))
}

#[test]
fn every_promise_is_held_by_a_test_that_exists() {
    let document = "docs/DURABILITY.md";
    let (mut findings, mut rows) = (Vec::new(), 0);
    for (number, line) in read(document).lines().enumerate() {
        let quoted: Vec<&str> = line.split('`').skip(1).step_by(2).collect();
        let named: Vec<&&str> = quoted.iter().filter(|text| text.contains("::") && !text.contains(' ')).collect();
        for test in named.iter().filter(|test| !test.ends_with("::") && !is_test(test)) {
            findings.push(format!("{document}:{}: {test} does not exist", number + 1));
        }
        let is_row = line.starts_with("| ") && !line.starts_with("| promise |") && !line.starts_with("| it never");
        rows += usize::from(is_row);
        if is_row && named.is_empty() {
            findings.push(format!("{document}:{}: a promise without a test", number + 1));
        }
    }
    assert!(rows > 30, "only {rows} rows were found");
    assert_none(findings);
}

#[test]
fn paths_in_documents_exist() {
    let mut findings = Vec::new();
    let places = ["docs/", "src/", "scripts/", "tests/", ".ci/"];
    for document in documents().into_iter().chain(sources()) {
        let text = read(&document);
        let is_document = document.ends_with(".md");
        for (at, _) in text.match_indices(['d', 's', 't', '.']) {
            let rest = &text[at..];
            let before = text[..at].chars().next_back().unwrap_or(' ');
            let Some(place) = places.iter().find(|place| rest.starts_with(**place)) else { continue };
            if before.is_ascii_alphanumeric() || "/_-.~}".contains(before) || (!is_document && *place != "docs/") {
                continue;
            }
            let is_part = |char: &char| char.is_ascii_alphanumeric() || "/_-.".contains(*char);
            let path: String = rest.chars().take_while(is_part).collect();
            let path = path.trim_end_matches(['.', '/']);
            let is_pattern = rest[path.len()..].starts_with(['*', '{', '<']) || rest[path.len()..].starts_with("/*");
            if !is_pattern && !root().join(path).exists() {
                findings.push(format!("{document}: {path} does not exist"));
            }
        }
    }
    assert_none(findings);
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut findings = Vec::new();
    for document in documents() {
        let text = read(&document);
        let folder = root().join(&document).parent().unwrap().to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap_or_default();
            if !path.is_empty() && !path.contains("://") && !folder.join(path).exists() {
                findings.push(format!("{document}: {link} leads nowhere"));
            }
        }
    }
    assert_none(findings);
}

/// A promise whose test has gone, or has another name by now, would seem to be held.
#[test]
fn tests_named_in_documents_exist() {
    let is_part = |char: char| char.is_ascii_lowercase() || char.is_ascii_digit() || "_:…".contains(char);
    let (mut findings, mut seen) = (Vec::new(), 0);
    for document in documents() {
        for named in read(&document).split('`').filter(|word| word.chars().all(is_part)) {
            let Some((module, test)) =
                named.rsplit_once("::").filter(|(module, test)| !module.is_empty() && !test.is_empty())
            else {
                continue;
            };
            let place = module.replace("::", "/");
            if root().join("src").join(&place).with_extension("rs").exists() {
                continue;
            }
            seen += 1;
            let files = [format!("tests/it/{place}.rs"), format!("tests/it/{place}/mod.rs")];
            let texts = files.iter().filter_map(|file| fs::read_to_string(root().join(file)).ok());
            if !texts.into_iter().any(|text| text.contains(test.trim_end_matches('…'))) {
                findings.push(format!("{document}: there is no test {named}"));
            }
        }
    }
    assert!(seen > 100, "only {seen} are named");
    assert_none(findings);
}

#[test]
fn nothing_names_a_private_place() {
    let mut findings = Vec::new();
    for path in
        files(&["src", "tests", "scripts", "docs", ".ci", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"], |_| true)
    {
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        for word in PRIVATE.iter().filter(|word| text.contains(**word)) {
            findings.push(format!("{path}: names {word}"));
        }
    }
    assert_none(findings);
}

#[test]
fn scripts_can_be_run_and_stop_at_the_first_failure() {
    let mut findings = Vec::new();
    for path in files(&["scripts", ".ci"], |_| true) {
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        if !text.starts_with("#!") {
            continue;
        }
        let mode = fs::metadata(root().join(&path)).unwrap().permissions().mode();
        if mode & 0o111 != 0o111 {
            findings.push(format!("{path}: is not executable"));
        }
        if text.starts_with("#!/usr/bin/env bash") && !text.contains("\nset -euo pipefail\n") {
            findings.push(format!("{path}: lacks `set -euo pipefail`"));
        }
    }
    assert_none(findings);
}

#[test]
fn the_scanner_sees_every_way_of_naming_a_module() {
    let text = "use crate::base::Key;\nuse crate::{logging, oss::{self, Client}, worker};\ncrate::spill::x()";
    assert_eq!(used(text).into_iter().collect::<Vec<_>>(), ["base", "logging", "oss", "spill", "worker"]);
}

#[test]
fn crash_points_are_those_of_the_list_and_stand_once() {
    let mut found: Vec<String> = Vec::new();
    for path in sources() {
        let code = production(&path);
        found
            .extend(code.split("crash::point(\"").skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned));
    }
    found.sort_unstable();
    let mut listed: Vec<&str> = ossfuse::base::crash::ALL.to_vec();
    listed.sort_unstable();
    assert_eq!(found, listed);
}
