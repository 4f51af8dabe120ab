//! Who uses a mount, so that it cannot be unmounted: processes that stand in it or hold a file of it.
//!
//! Reads /proc alone and touches nothing in the mount. Of other users' processes only root sees more than nothing.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A message names up to this many.
const NAMED_MAX: usize = 5;

/// A process, and one thing of the mount that it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Holder {
    pid: u32,
    name: String,
    what: String,
}

/// `bash (12) stands in /mnt/a, vim (13) has /mnt/a/b open and 2 more`; empty where nobody is found.
pub(super) fn describe(mountpoint: &Path) -> String {
    let holders = find(mountpoint);
    let mut named: Vec<String> =
        holders.iter().take(NAMED_MAX).map(|h| format!("{} ({}) {}", h.name, h.pid, h.what)).collect();
    if holders.len() > NAMED_MAX {
        let last = format!("{} more", holders.len() - NAMED_MAX);
        named.push(last);
    }
    named.join(", ")
}

fn find(mountpoint: &Path) -> Vec<Holder> {
    let own = std::process::id();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<u32> = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids.retain(|pid| *pid != own);
    pids.into_iter().filter_map(|pid| holder(pid, mountpoint)).collect()
}

/// A process that has ended meanwhile, or is none of ours to look at, holds nothing that could be told.
fn holder(pid: u32, mountpoint: &Path) -> Option<Holder> {
    let folder = PathBuf::from(format!("/proc/{pid}"));
    let what = linked(&folder, mountpoint)
        .or_else(|| opened(&folder, mountpoint).ok().flatten())
        .or_else(|| mapped(&folder, mountpoint).ok().flatten())?;
    let name = fs::read_to_string(folder.join("comm")).unwrap_or_default();
    Some(Holder { pid, name: name.trim_end().to_owned(), what })
}

fn linked(folder: &Path, mountpoint: &Path) -> Option<String> {
    let verbs = [("cwd", "stands in"), ("root", "has its root at"), ("exe", "runs")];
    verbs.iter().find_map(|(link, verb)| {
        let target = fs::read_link(folder.join(link)).ok()?;
        target.starts_with(mountpoint).then(|| format!("{verb} {}", target.display()))
    })
}

fn opened(folder: &Path, mountpoint: &Path) -> io::Result<Option<String>> {
    for entry in fs::read_dir(folder.join("fd"))? {
        if let Ok(target) = fs::read_link(entry?.path())
            && target.starts_with(mountpoint)
        {
            return Ok(Some(format!("has {} open", target.display())));
        }
    }
    Ok(None)
}

/// The sixth field of a line of `maps` is the path.
fn mapped(folder: &Path, mountpoint: &Path) -> io::Result<Option<String>> {
    let maps = fs::read(folder.join("maps"))?;
    for line in maps.split(|b| *b == b'\n') {
        let Some(start) = line.iter().position(|b| *b == b'/') else { continue };
        let path = Path::new(std::ffi::OsStr::from_bytes(&line[start..]));
        if path.starts_with(mountpoint) {
            return Ok(Some(format!("has {} mapped", path.display())));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn processes_in_a_folder_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = fs::canonicalize(dir.path()).unwrap();
        assert_eq!(describe(&path), "");
        let sleep = |command: &mut Command| command.arg("600").stderr(Stdio::null()).spawn().unwrap();
        let mut standing = sleep(Command::new("sleep").current_dir(&path));
        let file = fs::File::create(path.join("f")).unwrap();
        let mut holding = sleep(Command::new("sleep").current_dir("/").stdin(file));
        let text = describe(&path);
        for child in [&mut standing, &mut holding] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(text.contains(&format!("sleep ({}) stands in {}", standing.id(), path.display())), "{text}");
        assert!(text.contains(&format!("sleep ({}) has {}/f open", holding.id(), path.display())), "{text}");
    }

    #[test]
    fn a_mapping_is_a_hold() {
        let maps = Path::new("/proc/self");
        let executable = fs::canonicalize("/proc/self/exe").unwrap();
        let text = mapped(maps, executable.parent().unwrap()).unwrap().unwrap();
        assert!(text.starts_with("has ") && text.ends_with(" mapped"), "{text}");
    }
}
