//! `mount.ossfuse` and `umount.fuse.ossfuse`: what mount(8) and umount(8) call, told by the program's own name.
//!
//! Here `-f` means fake, and a mount that fails ends with status 32, as mount(8) has it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::flags::MountFlags;
use super::{Error, mount, umount};
use crate::config::{Environment, Problem, RawOptions, parse_mount_options, parse_sloppy_mount_options};
use crate::control::READY_VARIABLE;

/// mount(8): the mount failed.
const MOUNT_FAILURE: u8 = 32;
/// How long `umount` drains.
const DRAIN: Duration = Duration::from_secs(300);

/// Which helper a program of this name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Helper {
    Mount,
    Umount,
}

impl Helper {
    /// By the last part of the name under which the program was started.
    pub(super) fn of(argv0: Option<&OsString>) -> Option<Self> {
        match Path::new(argv0?).file_name().and_then(OsStr::to_str)? {
            "mount.ossfuse" | "mount.fuse.ossfuse" => Some(Self::Mount),
            "umount.ossfuse" | "umount.fuse.ossfuse" => Some(Self::Umount),
            _ => None,
        }
    }

    /// Does what mount(8) or umount(8) asks for.
    ///
    /// # Errors
    /// With the statuses of mount(8).
    pub(super) fn run(self, arguments: &[OsString]) -> Result<(), Error> {
        let words = Words::read(arguments).map_err(|problem| self.failure(problem.into()))?;
        if let Some(namespace) = &words.namespace
            && std::env::var_os(READY_VARIABLE).is_none()
        {
            enter(namespace).map_err(|error| self.failure(Error::new(namespace, error, "see -N")))?;
        }
        let done = match self {
            Self::Mount => mount_by(words),
            Self::Umount => umount_by(words),
        };
        done.map_err(|error| self.failure(error))
    }

    fn failure(self, error: Error) -> Error {
        match self {
            Self::Mount => Error { status: MOUNT_FAILURE, ..error },
            Self::Umount => error,
        }
    }
}

/// The words of mount(8)'s interface to helpers.
#[derive(Debug, Default, PartialEq, Eq)]
struct Words {
    places: Vec<String>,
    options: Vec<String>,
    namespace: Option<String>,
    fake: bool,
    sloppy: bool,
    lazy: bool,
}

impl Words {
    fn read(arguments: &[OsString]) -> Result<Self, Problem> {
        let mut words = Self::default();
        let mut rest = arguments.iter().map(|argument| argument.to_string_lossy().into_owned());
        let wrong = |what: &str, why: &str| {
            Problem::new(what, why, "write `mount.ossfuse SPEC DIR [-sfnv] [-N NS] [-o OPTIONS] [-t TYPE]`")
        };
        while let Some(argument) = rest.next() {
            let Some(letters) = argument.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
                words.places.push(argument);
                continue;
            };
            for (at, letter) in letters.char_indices() {
                match letter {
                    'f' => words.fake = true,
                    's' => words.sloppy = true,
                    'l' => words.lazy = true,
                    'n' | 'v' | 'r' => {}
                    'o' | 't' | 'N' => {
                        let glued = &letters[at + 1..];
                        let value = if glued.is_empty() { rest.next() } else { Some(glued.to_owned()) };
                        let value = value.ok_or_else(|| wrong(&argument, "it needs a value"))?;
                        match letter {
                            'o' => words.options.push(value),
                            'N' => words.namespace = Some(value),
                            _ => {}
                        }
                        break;
                    }
                    _ => return Err(wrong(&argument, "there is no such option")),
                }
            }
        }
        Ok(words)
    }

    fn raw(&self) -> Result<RawOptions, Problem> {
        let read = if self.sloppy { parse_sloppy_mount_options } else { parse_mount_options };
        let mut raw = RawOptions::default();
        for text in &self.options {
            raw.merge(read(text)?);
        }
        Ok(raw)
    }
}

fn mount_by(words: Words) -> Result<(), Error> {
    let raw = words.raw()?;
    let [spec, place] = words.places.as_slice() else {
        let why = format!("SPEC and DIR are needed, {} words were given", words.places.len());
        return Err(Error::new("mount.ossfuse", why, "write `mount.ossfuse SPEC DIR [-o OPTIONS]`"));
    };
    if words.fake {
        return mount::check(spec, Path::new(place), raw);
    }
    mount::run(&mount::Args::of(spec.clone(), place.into(), MountFlags(raw)))
}

fn umount_by(words: Words) -> Result<(), Error> {
    let [place] = words.places.as_slice() else {
        return Err(Error::new("umount.fuse.ossfuse", "one DIR is needed", "write `umount DIR`"));
    };
    let place = PathBuf::from(place);
    if words.lazy {
        let cwd = Environment::of_process().cwd;
        let place = crate::config::absolute_mountpoint(&place, &cwd)
            .map_err(|error| Error::new(place.display(), error, "name the folder that was mounted"))?;
        return super::mountinfo::detach(&place).map_err(|error| Error::new(place.display(), error, ""));
    }
    umount::run(&umount::Args::of(place, DRAIN, words.fake))
}

/// Goes into another mount namespace: that of a process, or one that a file names.
fn enter(namespace: &str) -> io::Result<()> {
    let path = match namespace.parse::<u32>() {
        Ok(pid) => format!("/proc/{pid}/ns/mnt"),
        Err(_) => namespace.to_owned(),
    };
    let file = File::open(path)?;
    // SAFETY: a plain call on a descriptor that lives through it; no other thread runs yet.
    if unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNS) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Result<Words, Problem> {
        Words::read(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_name_tells_what_is_asked_for() {
        let of = |name: &str| Helper::of(Some(&OsString::from(name)));
        assert_eq!(of("/sbin/mount.ossfuse"), Some(Helper::Mount));
        assert_eq!(of("mount.fuse.ossfuse"), Some(Helper::Mount));
        assert_eq!(of("/usr/sbin/umount.fuse.ossfuse"), Some(Helper::Umount));
        assert_eq!(of("/usr/bin/ossfuse"), None);
    }

    #[test]
    fn the_interface_of_mount_is_understood() {
        let found = words("photos:/a /mnt -sfnv -N 7 -o rw,noexec -t ossfuse -oro").unwrap();
        let wanted = Words {
            places: vec!["photos:/a".into(), "/mnt".into()],
            options: vec!["rw,noexec".into(), "ro".into()],
            namespace: Some("7".into()),
            fake: true,
            sloppy: true,
            lazy: false,
        };
        assert_eq!(found, wanted);
        assert!(words("a b -x").is_err());
        assert!(words("a b -o").is_err());
    }

    #[test]
    fn failures_have_the_status_of_mount() {
        let error = Helper::Mount.run(&["only-one".into()]).unwrap_err();
        assert_eq!(error.status, 32);
        assert!(error.line.unwrap().contains("SPEC and DIR are needed"));
    }
}
