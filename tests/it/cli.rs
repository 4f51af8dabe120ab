//! The command line as people and scripts meet it: statuses, pipes that are closed, terminals, completions, pages.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::harness::{BUCKET, Bench, told};

fn run(bench: &Bench, arguments: &[&str]) -> Output {
    bench.ossfuse(arguments).output().unwrap()
}

#[test]
fn each_failure_is_one_line_and_a_status() {
    let Some(bench) = Bench::new() else { return };
    let place = bench.folder("mnt").display().to_string();
    for (arguments, status, words) in [
        (&["--version"][..], 0, "features: supervisor"),
        (&["--help"], 0, "Usage: ossfuse <COMMAND>"),
        (&["status"], 0, "no mount is running"),
        (&["umount", "/nonexistent"], 1, "/nonexistent: nothing is mounted there; see `ossfuse status`"),
        (&["status", "/nonexistent"], 1, "/nonexistent: no mount of this user is running there; see"),
        (&["sync", "/"], 1, "/: it lies in no mount of ossfuse; see"),
        (&["upgrade", "/nonexistent"], 1, "no mount of this user is running there; see"),
        (&["recover", "show", "1"], 1, "1: there is no such session; see `ossfuse recover list`"),
        (&["mount", BUCKET, "/nonexistent", "--region", "cn-hangzhou"], 1, "run `mkdir -p /nonexistent` first"),
        (&["mount", BUCKET, &place], 1, "give --region ID (such as cn-hangzhou) or --endpoint URL"),
        (&["mount", BUCKET, &place, "--part-size", "5"], 2, "--part-size: 5 B is out of bounds; give 100 KiB to"),
        (&["mount", "Bucket", &place], 2, "Bucket: a bucket's name has"),
        (&["mount", "", &place], 2, "BUCKET: it is empty; write BUCKET or BUCKET:PREFIX"),
        (&["dev-server", "--data", &place, "--listen", "127.0.0.1:0", "--bucket", "B"], 2, "--bucket B: no bucket can"),
        (&["statis"], 2, "statis: there is no such command; did you mean status?"),
        (&["log", "loud"], 2, "<LEVEL>: `loud` is unknown; give one of off, error,"),
        (&[], 2, "COMMAND: it is missing; say which: mount, "),
    ] {
        let output = run(&bench, arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {}", told(&output));
        let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let said = if status == 0 { &out } else { &error };
        assert!(said.contains(words), "{arguments:?}: {}", told(&output));
        if status != 0 {
            assert!(error.starts_with("ossfuse: ") && error.lines().count() == 1, "{error}");
            assert_eq!(out, "", "{arguments:?}");
        }
    }
}

#[test]
fn a_reader_that_has_seen_enough_ends_a_watch() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&[]);
    for arguments in [&["status", "--watch"][..], &["status", "--watch", "--json"]] {
        let mut command = bench.ossfuse(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        assert!(first.starts_with("STATE ") || first.starts_with('{'), "{first}");
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{}", told(&output));
    }
    mount.umount();
}

/// It takes connections, as the backlog of any listener does, and says nothing.
#[test]
fn doctor_ends_where_the_service_is_silent() {
    let Some(bench) = Bench::new() else { return };
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let state = bench.folder("state").display().to_string();
    let arguments = ["doctor", BUCKET, "--endpoint", &endpoint, "--region", "cn-hangzhou", "--state-dir", &state];
    let output = bench.ossfuse(arguments).env("OSSFUSE_TRY_TIMEOUT", "500ms").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    assert!(
        last.starts_with("fail  endpoint: it does not answer as it should (") && last.contains("; check "),
        "{text}"
    );
}

/// The cells of the table's first column under a heading of docs/OPERATIONS.md.
fn first_column(page: &str, heading: &str) -> Vec<String> {
    let (_, rest) = page.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("{heading}"));
    let section = rest.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| Some(line.strip_prefix("| ")?.split(" | ").next()?.to_owned()));
    rows.skip(1).collect()
}

/// All sources as one text, strings that go over several lines put together.
fn sources(folder: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        text += &if path.is_dir() { sources(&path) } else { fs::read_to_string(path).unwrap() };
    }
    let lines: Vec<&str> = text.split("\\\n").map(str::trim_start).collect();
    lines.concat()
}

#[test]
fn the_page_on_running_it_tells_of_what_the_program_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/OPERATIONS.md")).unwrap();
    let states = first_column(&page, "States of `ossfuse status`");
    assert_eq!(states, ["`ok`", "`degraded`", "`offline`", "`draining`", "`read-only`"]);
    let sources = sources(&root.join("src"));
    for heading in ["Errors at mount", "Errors of other commands"] {
        let rows = first_column(&page, heading);
        assert!(rows.len() >= 4, "{rows:?}");
        for words in rows.iter().flat_map(|row| row.split("; ")) {
            let words = words.trim_end_matches('…').trim_end_matches([' ', ',']);
            assert!(sources.contains(words), "{heading}: the program never says {words:?}");
        }
    }
}

/// A terminal: the end that a command writes to, and the one that shows it.
fn terminal() -> (OwnedFd, fs::File) {
    let (mut master, mut slave) = (-1, -1);
    let none = std::ptr::null_mut();
    // SAFETY: both numbers live through the call; the others may be null (openpty(3)).
    assert_eq!(unsafe { libc::openpty(&raw mut master, &raw mut slave, none, none.cast(), none.cast()) }, 0);
    // SAFETY: openpty has just made them, and nobody else has them.
    unsafe { (OwnedFd::from_raw_fd(slave), fs::File::from(OwnedFd::from_raw_fd(master))) }
}

/// What a terminal has been shown, once its writers are gone: it ends with EIO then.
fn shown(mut screen: fs::File) -> String {
    let mut text = Vec::new();
    drop(screen.read_to_end(&mut text));
    String::from_utf8(text).unwrap()
}

/// What a command writes to a terminal.
fn on_a_terminal(mut command: Command) -> String {
    let (end, screen) = terminal();
    let mut child = command.stdout(end).spawn().unwrap();
    // Its copy of the terminal is closed: else the reading would not end.
    drop(command);
    let text = shown(screen);
    child.wait().unwrap();
    text
}

#[test]
fn umount_shows_a_bar_on_a_terminal() {
    let Some(bench) = Bench::new() else { return };
    let mount = bench.mount(&["--close", "local", "--send-after", "0s"]);
    bench.server.hold("PutObject", 0);
    fs::write(mount.path("f"), b"held back").unwrap();
    bench.server.wait_for_held();
    let (end, screen) = terminal();
    let mut command = bench.ossfuse(["umount"]);
    let mut child = command.arg(mount.path("")).stderr(end).spawn().unwrap();
    drop(command);
    let mut screen = BufReader::new(screen);
    let mut text = Vec::new();
    // Until the bar is there nothing may be sent.
    while !String::from_utf8_lossy(&text).contains("to send") {
        let more = screen.fill_buf().unwrap().to_vec();
        assert!(!more.is_empty(), "{}", String::from_utf8_lossy(&text));
        screen.consume(more.len());
        text.extend(more);
    }
    bench.server.clear_faults();
    assert!(child.wait().unwrap().success());
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains('[') && text.contains("1 file (9 B) to send"), "{text}");
    assert_eq!(bench.server.get("f").unwrap(), b"held back");
}

#[test]
fn colours_are_for_terminals_whose_user_wants_them() {
    let Some(bench) = Bench::new() else { return };
    let doctor = |no_color: Option<&str>| {
        let mut command = bench.ossfuse(["doctor", "--state-dir"]);
        command.arg(bench.folder("state")).envs(no_color.map(|value| ("NO_COLOR", value)));
        command
    };
    assert!(on_a_terminal(doctor(None)).contains("\u{1b}[3"), "colours");
    assert!(on_a_terminal(doctor(Some(""))).contains("\u{1b}[3"), "an empty variable means nothing (no-color.org)");
    let plain = on_a_terminal(doctor(Some("1")));
    assert!(plain.contains("ok    /dev/fuse") && !plain.contains('\u{1b}'), "{plain}");
    let piped = doctor(None).output().unwrap();
    assert!(!told(&piped).contains('\u{1b}'), "{}", told(&piped));
    assert!(!on_a_terminal(bench.ossfuse(["status"])).contains('\u{1b}'));
}

/// Whether a program is there; where not, that is said.
fn is_there(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        println!("skipped: {program} is not there");
    }
    found
}

#[test]
fn shells_read_the_completions() {
    let Some(bench) = Bench::new() else { return };
    for (shell, check) in [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")] {
        let output = run(&bench, &["completions", shell]);
        assert!(output.status.success(), "{}", told(&output));
        let script = bench.file(&format!("completions.{shell}"), &output.stdout);
        let text = fs::read_to_string(&script).unwrap();
        for word in ["part-size", "recover", "dev-server", "older-than"] {
            assert!(text.contains(word), "{shell}: {word}");
        }
        if is_there(shell) {
            let read = Command::new(shell).arg(check).arg(&script).output().unwrap();
            assert!(read.status.success() && read.stderr.is_empty(), "{shell}: {}", told(&read));
        }
    }
    let script = bench.path("completions.bash");
    let ask = format!(
        "source {}; COMP_WORDS=(ossfuse mount --part-s); COMP_CWORD=2; _ossfuse ossfuse --part-s mount; \
         echo \"${{COMPREPLY[@]}}\"",
        script.display()
    );
    let output = Command::new("bash").args(["-c", &ask]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "--part-size", "{}", told(&output));
}

fn pages(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".1")).collect()
}

#[test]
fn man_reads_the_pages() {
    let Some(bench) = Bench::new() else { return };
    let folder = bench.path("man");
    let output = bench.ossfuse(["man"]).arg(&folder).output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    let names = pages(&folder);
    for name in ["ossfuse.1", "ossfuse-mount.1", "ossfuse-recover-publish.1", "ossfuse-config-check.1"] {
        assert!(names.iter().any(|found| found == name), "{name}: {names:?}");
    }
    if !is_there("groff") {
        return;
    }
    for name in names {
        let mut groff = Command::new("groff");
        let read =
            groff.args(["-man", "-Tutf8", "-ww", "-rLL=80n", "-P-cbou"]).arg(folder.join(&name)).output().unwrap();
        assert!(read.status.success() && read.stderr.is_empty(), "{name}: {}", String::from_utf8_lossy(&read.stderr));
        let text = String::from_utf8_lossy(&read.stdout);
        assert!(text.contains("SYNOPSIS") && text.contains("EXAMPLES\n"), "{name}: {text}");
        let wide = text.lines().find(|line| line.chars().count() > 80);
        assert_eq!(wide, None, "{name}");
    }
    let mount = fs::read_to_string(folder.join("ossfuse-mount.1")).unwrap();
    assert!(mount.contains("\n\\&ossfuse mount my\\-bucket /mnt/oss \\-\\-region cn\\-hangzhou\n"), "{mount}");
    let root = fs::read_to_string(folder.join("ossfuse.1")).unwrap();
    for line in root.lines().filter(|line| line.starts_with("ossfuse\\-")) {
        let name = line.replace('\\', "").replace("(1)", ".1");
        assert!(folder.join(&name).is_file(), "the page names {name}");
    }
}
