//! What can be seen to be wrong before a mount is started, each in one clear line.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::Path;

use super::mountinfo::{self, Pulse};
use super::{Error, complain};
use crate::config::{MountConfig, create_private_dir};

/// Checks the place, and clears a mount of ours away that nobody serves any more.
///
/// # Errors
/// The first thing in the way.
pub(super) fn check(config: &MountConfig, state_dir_is_chosen: bool) -> Result<(), Error> {
    check_not_mounted(&config.mountpoint)?;
    check_folder(&config.mountpoint, config.files.nonempty)?;
    check_fuse_device()?;
    check_state_place(config)?;
    make_state_folder(&config.state_folder)?;
    if !state_dir_is_chosen && mountinfo::is_in_memory(&config.state_folder).unwrap_or(false) {
        let why = "it lies in memory, where unsent files would not outlive a reboot";
        return Err(Error::new(config.state_folder.display(), why, "name a folder on a disk with --state-dir DIR"));
    }
    Ok(())
}

fn check_not_mounted(mountpoint: &Path) -> Result<(), Error> {
    let found = mountinfo::at(mountpoint).map_err(|error| Error::new("/proc/self/mountinfo", error, ""))?;
    let Some(found) = found.filter(mountinfo::Mounted::is_ours) else { return Ok(()) };
    let place = mountpoint.display();
    if mountinfo::pulse(mountpoint) != Pulse::Dead {
        let why = format!("{} is mounted there already", found.source);
        return Err(Error::new(&place, why, format!("run `ossfuse umount {place}` first")));
    }
    mountinfo::detach(mountpoint)
        .map_err(|error| Error::new(&place, format!("a dead mount is in the way: {error}"), "unmount it as root"))?;
    complain(&format!("{place}: nobody served the mount there any more; it was taken away"));
    Ok(())
}

fn check_folder(mountpoint: &Path, nonempty: bool) -> Result<(), Error> {
    let place = mountpoint.display();
    match fs::metadata(mountpoint) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Err(Error::new(&place, "the mount point is no folder", "name an empty folder")),
        Err(error) => return Err(unreachable_folder(mountpoint, &error)),
    }
    let mut entries =
        fs::read_dir(mountpoint).map_err(|error| Error::new(&place, error, "name a folder of your own"))?;
    if !nonempty && entries.next().is_some() {
        let mend = "name an empty folder, or hide them with --nonempty";
        return Err(Error::new(&place, "the folder has files in it", mend));
    }
    Ok(())
}

/// Why a mount point cannot be had.
pub(super) fn unreachable_folder(mountpoint: &Path, error: &io::Error) -> Error {
    let place = mountpoint.display();
    match error.kind() {
        ErrorKind::NotFound => {
            Error::new(&place, "the mount point does not exist", format!("run `mkdir -p {place}` first"))
        }
        _ => Error::new(&place, format!("the mount point cannot be reached: {error}"), "name an empty folder"),
    }
}

fn check_fuse_device() -> Result<(), Error> {
    fuse_device().map_err(|(why, mend)| Error::new("/dev/fuse", why, mend))
}

/// Why the device cannot be used, and the mend. fusermount3 opens it with the rights of its user, too.
pub(super) fn fuse_device() -> Result<(), (String, &'static str)> {
    let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/fuse") else { return Ok(()) };
    let mend = match error.kind() {
        ErrorKind::NotFound => "run `modprobe fuse` as root; in a container, pass it in with --device /dev/fuse",
        _ => "let this user read and write it; in a container, pass it in with --device /dev/fuse",
    };
    Err((format!("cannot be opened: {error}"), mend))
}

/// A mount that kept its own state in itself would wait for itself.
fn check_state_place(config: &MountConfig) -> Result<(), Error> {
    let own = [Some(&config.state_folder), config.log.file.as_ref()];
    match own.into_iter().flatten().find(|path| path.starts_with(&config.mountpoint)) {
        None => Ok(()),
        Some(path) => Err(Error::new(path.display(), "it lies inside the mount", "see --state-dir and --log-file")),
    }
}

/// The parent, if it is missing, is made private too.
fn make_state_folder(folder: &Path) -> Result<(), Error> {
    let mut parent_first = folder.parent().into_iter().chain([folder]);
    parent_first.try_for_each(create_private_dir).map_err(|error| {
        Error::new(folder.display(), format!("the state folder cannot be made: {error}"), "see --state-dir")
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_state_folder_and_a_missing_parent_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("state/photos");
        make_state_folder(&folder).unwrap();
        make_state_folder(&folder).unwrap();
        for path in [&folder, folder.parent().unwrap()] {
            assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o700);
        }
        assert!(line(make_state_folder(Path::new("/proc/none/x"))).contains("cannot be made"));
    }

    fn line(result: Result<(), Error>) -> String {
        result.unwrap_err().line.unwrap()
    }

    #[test]
    fn a_mount_point_is_an_empty_folder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        assert!(check_folder(path, false).is_ok());
        fs::write(path.join("f"), "").unwrap();
        assert!(
            line(check_folder(path, false))
                .ends_with("has files in it; name an empty folder, or hide them with --nonempty")
        );
        assert!(check_folder(path, true).is_ok());
        assert!(line(check_folder(&path.join("f"), true)).contains("is no folder"));
        assert!(line(check_folder(&path.join("none"), true)).contains("does not exist; run `mkdir -p "));
    }

    #[test]
    fn other_mounts_are_not_in_the_way() {
        assert!(check_not_mounted(Path::new("/proc")).is_ok());
    }
}
