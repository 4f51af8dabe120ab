//! docs/GUIDE.md and the README's first pages, followed word by word: their commands are run in their order, by a
//! newcomer on a clean machine, and print what the guide says.
//!
//! The machine is the test's own view of this one: `/etc`, `/usr/local`, `/usr/sbin`, `/var/lib`, `/mnt` and the home
//! are others there, and so is the port. What installs packages, builds, or changes the user is a word that does
//! nothing. The large file is smaller. The machine has no systemd: `guide/systemctl` does what the unit says.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::harness::{Bench, end_with_parent, is_root, sh, show_real_helpers};

const GUIDE: &str = "docs/GUIDE.md";
const README: &str = "README.md";
/// Reads the installed unit as systemd would.
const SYSTEMCTL: &str = include_str!("guide/systemctl");
/// What the guide says, and what is taken for it here.
const LARGE: (&str, &str) = ("head -c 1G ", "head -c 96M ");
const PORT: &str = "9000";

/// A command, and the lines that it is said to print.
#[derive(Debug)]
struct Step {
    command: String,
    prints: Vec<String>,
}

fn steps(guide: &str) -> Vec<Step> {
    let mut found: Vec<Step> = Vec::new();
    for block in guide.split("```console\n").skip(1) {
        let block = block.split("```").next().unwrap();
        for line in block.lines() {
            match (line.strip_prefix("$ "), found.last_mut()) {
                (Some(command), _) => found.push(Step { command: command.to_owned(), prints: Vec::new() }),
                (None, Some(step)) if step.command.ends_with('\\') => {
                    step.command.push('\n');
                    step.command.push_str(line);
                }
                (None, Some(step)) => step.prints.push(line.to_owned()),
                (None, None) => panic!("{line}: stands before any command"),
            }
        }
    }
    found
}

/// The lines of the first block behind these words, as commands that may print anything.
fn block_behind(page: &str, words: &str) -> Vec<Step> {
    let (_, rest) = page.split_once(words).unwrap_or_else(|| panic!("{words:?} is not there"));
    let block = rest.split("```\n").nth(1).unwrap();
    block.lines().map(anything).collect()
}

fn anything(command: &str) -> Step {
    Step { command: command.to_owned(), prints: vec!["…".to_owned()] }
}

/// Whether a line is as the guide says, `…` being any text.
fn is_like(line: &str, said: &str) -> bool {
    let Some((before, after)) = said.split_once('…') else { return line == said };
    let Some(rest) = line.strip_prefix(before) else { return false };
    (0..=rest.len()).filter(|at| rest.is_char_boundary(*at)).any(|at| is_like(&rest[at..], after))
}

/// Whether the lines are those that the guide says; a line `…` is any number of them.
fn are_like(lines: &[&str], said: &[&str]) -> bool {
    match (lines, said) {
        (_, []) => lines.is_empty(),
        (_, ["…", rest @ ..]) => (0..=lines.len()).any(|skipped| are_like(&lines[skipped..], rest)),
        ([line, lines @ ..], [one, rest @ ..]) => is_like(line.trim_end(), one.trim_end()) && are_like(lines, rest),
        ([], _) => false,
    }
}

/// Puts folders of the test in the place of the machine's. Nothing of the real ones is ever mounted below the test's
/// folder, which is deleted in the end.
fn clean_machine(machine: &Path) {
    show_real_helpers();
    let script = r#"
        mkdir -p home local sbin lib mnt words
        sed -n 's/^[^ ]* \([^ ]*\) fuse.ossfuse .*/\1/p' /proc/self/mounts | while read -r path; do umount -il "$path"; done
        cp -a /etc etc
        : >etc/fstab
        rm -rf etc/ossfuse
        for file in /run/sbin-real/*; do ln -s "$file" sbin/; done
        rm -f sbin/*ossfuse*
        mount --bind etc /etc
        mount --bind local /usr/local
        mount --bind sbin /usr/sbin
        mount --bind lib /var/lib
        mount --bind mnt /mnt
    "#;
    sh(machine, script);
    fs::create_dir_all(machine.join("target/release")).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_ossfuse"), machine.join("target/release/ossfuse")).unwrap();
    // sudo lets no key through.
    let sudo = "#!/bin/sh\nexec env -u OSS_ACCESS_KEY_ID -u OSS_ACCESS_KEY_SECRET \"$@\"\n";
    let nothing = "#!/bin/sh\n";
    for (word, does) in [("sudo", sudo), ("apt-get", nothing), ("cargo", nothing), ("systemctl", SYSTEMCTL)] {
        let path = machine.join("words").join(word);
        fs::write(&path, does).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// Runs the commands in one shell; what each printed, and its status.
fn follow(machine: &Path, steps: &[Step]) -> Vec<(String, String)> {
    let printed = machine.join("printed");
    let mut script = format!("exec >{} 2>&1\n", printed.display());
    for step in steps {
        script += &format!("{}\necho \"@@@ $?\"\n", step.command);
    }
    let file = machine.join("guide.sh");
    fs::write(&file, script).unwrap();
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", machine.join("words").display());
    // Neither a step that never ends is waited for, nor does a server or a mount outlive the shell.
    let mut shell = Command::new("timeout");
    shell
        .args(["--signal=KILL", "400", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "bash"])
        .arg(&file)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_clear()
        .env("PATH", path);
    shell.env("HOME", machine.join("home")).env("CARGO_TARGET_DIR", machine.join("target"));
    shell.env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    end_with_parent(&mut shell);
    shell.status().unwrap();
    let printed = fs::read_to_string(printed).unwrap();
    let mut parts = Vec::new();
    let mut rest = printed.as_str();
    while let Some((text, after)) = rest.split_once("@@@ ") {
        let (status, after) = after.split_once('\n').unwrap_or((after, ""));
        parts.push((text.to_owned(), status.to_owned()));
        rest = after;
    }
    parts
}

/// A port that is free.
fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

fn page(name: &str) -> String {
    fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// Follows the steps on a clean machine; each must succeed and print what it is said to.
fn assert_followed(steps: &[Step]) {
    let Some(_namespace) = Bench::new() else { return };
    if !is_root() {
        return println!("skipped: only root can have a view of the machine of its own");
    }
    // State in memory is refused, and /tmp may be that.
    let machine = tempfile::Builder::new().prefix("ossfuse-guide-").tempdir_in("/var/tmp").unwrap();
    clean_machine(machine.path());
    let done = follow(machine.path(), steps);
    let mut wrong = Vec::new();
    for (at, step) in steps.iter().enumerate() {
        let (printed, status) = done.get(at).map_or(("", "the shell ended before"), |(one, two)| (one, two));
        let lines: Vec<&str> = printed.lines().collect();
        let said: Vec<&str> = step.prints.iter().map(String::as_str).collect();
        if status != "0" || !are_like(&lines, &said) {
            wrong.push(format!("$ {}\n{printed}status {status}; is said to print:\n{}", step.command, said.join("\n")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn a_newcomer_follows_the_guide() {
    let guide = page(GUIDE);
    assert!(guide.contains(LARGE.0), "the large file is large");
    let steps = steps(&guide.replace(LARGE.0, LARGE.1).replace(PORT, &free_port()));
    for words in ["mount -a", "kill -9", "systemctl enable", "systemctl reload", "--uninstall"] {
        assert!(steps.iter().any(|step| step.command.contains(words)), "{words}");
    }
    assert_followed(&steps);
}

/// "A first mount" and "Mount at boot". For the service stands the dev server, which the config file has to name.
#[test]
fn a_newcomer_follows_the_readme() {
    let readme = page(README).replace(PORT, &free_port());
    let first = block_behind(&readme, "With the dev server, on this machine alone:");
    let endpoint = first.iter().find_map(|step| step.command.split_once(" --endpoint ")?.1.split(' ').next());
    let endpoint = endpoint.expect("the first mount names the dev server").to_owned();
    let key = format!("endpoint {endpoint} region cn-hangzhou access-key-id test-ak access-key-secret test-sk |");
    let mut boot = block_behind(&readme, "## Mount at boot");
    let placeholders = "region cn-hangzhou access-key-id ... access-key-secret ... |";
    assert!(boot.iter().any(|step| step.command.contains(placeholders)), "{boot:?}");
    boot.iter_mut().for_each(|step| step.command = step.command.replace(placeholders, &key));
    let object = |name: &str| format!("{endpoint}/_dev/object/my-bucket/{name}");
    let before = ["mkdir ~/documents && echo hello >~/documents/f", "PATH=$CARGO_TARGET_DIR/release:$PATH"];
    let between = format!("curl --silent --fail {} | grep hello", object("documents/f"));
    let after = [
        "test \"$(stat -c %a /etc/ossfuse/config.toml)\" = 600 && echo boot | sudo tee /mnt/oss/f".to_owned(),
        // The reboot.
        "sudo umount -a -t fuse.ossfuse && sudo mount -a && grep boot /mnt/oss/f && sudo umount /mnt/oss".to_owned(),
        format!("curl --silent --fail {} | grep boot", object("f")),
    ];
    let before = before.into_iter().map(anything);
    let after = after.iter().map(|command| anything(command));
    let steps: Vec<Step> = before.chain(first).chain([anything(&between)]).chain(boot).chain(after).collect();
    assert_followed(&steps);
}

#[test]
fn what_is_printed_is_held_against_the_guide() {
    assert!(is_like("a b c", "a … c") && is_like("abc", "a…") && is_like("abc", "…c") && !is_like("abcd", "…c"));
    assert!(are_like(&["x", "y", "z"], &["…", "z"]) && are_like(&[], &["…"]) && !are_like(&["x"], &[]));
    assert!(!are_like(&["x", "y"], &["x"]) && !are_like(&["x"], &["x", "y"]));
    let found = steps("text\n```console\n$ one \\\n  two\nout\n$ three\n```\n```\nno step\n```\n");
    assert_eq!(found.len(), 2);
    assert_eq!((found[0].command.as_str(), found[0].prints.as_slice()), ("one \\\n  two", &["out".to_owned()][..]));
}
