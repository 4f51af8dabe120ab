//! Where sessions lie: in live mounts, and in state folders that no mount serves.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::{Error, complain};
use crate::config::{Target, absolute_mountpoint, socket_path, state_folder};
use crate::control::client::{self, live_sockets};
use crate::control::{RecoverEntry, Request, Response};
use crate::replay;

/// How long a mount may take to answer what it knows.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a mount may take to send or write a session; Ctrl-C ends the waiting.
pub(in crate::cli) const WORK_PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

/// A folder of sessions, and the socket of the mount that serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct Place {
    pub(in crate::cli) folder: PathBuf,
    pub(in crate::cli) socket: Option<PathBuf>,
}

/// Where this user's sessions may lie.
#[derive(Debug)]
pub(in crate::cli) struct Places {
    pub(in crate::cli) cwd: PathBuf,
    pub(in crate::cli) runtime_dir: PathBuf,
    pub(in crate::cli) parent: PathBuf,
}

type Listed = (Place, Vec<RecoverEntry>);

impl Places {
    /// The session of this id, and where it lies.
    pub(in crate::cli) fn find(&self, id: &str) -> Result<(Place, RecoverEntry), Error> {
        let listed = self.all()?;
        let mut found = listed.into_iter().flat_map(|(place, entries)| {
            entries.into_iter().filter(|entry| entry.id == id).map(move |entry| (place.clone(), entry))
        });
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one),
            (Some((one, _)), Some((two, _))) => {
                let why = format!("it is in {} and in {}", one.folder.display(), two.folder.display());
                Err(Error::new(id, why, "take one of the folders elsewhere"))
            }
            _ => Err(Error::new(id, "there is no such session", "see `ossfuse recover list`")),
        }
    }

    /// What live mounts say, and what lies in the folders that none of them has.
    pub(in crate::cli) fn all(&self) -> Result<Vec<Listed>, Error> {
        let mut listed = self.of_live()?;
        let served: BTreeSet<PathBuf> = listed.iter().map(|(place, _)| place.folder.clone()).collect();
        for folder in folders(&self.parent)?.difference(&served) {
            match offline(folder) {
                Ok(found) => listed.push((Place { folder: folder.clone(), socket: None }, found)),
                Err(error) => complain(&format!("warning: {}", error.line.unwrap_or_default())),
            }
        }
        Ok(listed)
    }

    /// The sessions of a mount, or of a bucket and prefix.
    pub(in crate::cli) fn entries_of(&self, place: &Path) -> Result<Vec<RecoverEntry>, Error> {
        match self.of_mount(place)? {
            Some(entries) => Ok(entries),
            None => self.of_bucket(place),
        }
    }

    /// `None` where no live mount is at the place.
    fn of_mount(&self, place: &Path) -> Result<Option<Vec<RecoverEntry>>, Error> {
        let Ok(mountpoint) = absolute_mountpoint(place, &self.cwd) else { return Ok(None) };
        match entries_at(&socket_path(&self.runtime_dir, &mountpoint)) {
            Ok((_, entries)) => Ok(Some(entries)),
            Err(client::Error::NotRunning) => Ok(None),
            Err(error) => Err(Error::new(place.display(), error, "see its log")),
        }
    }

    fn of_bucket(&self, place: &Path) -> Result<Vec<RecoverEntry>, Error> {
        let text = place.to_string_lossy();
        if text.contains('/') && !text.contains(':') {
            let mend = "name the bucket in its place: `ossfuse recover list BUCKET[:PREFIX]`";
            return Err(Error::new(place.display(), "no mount of this user is running there", mend));
        }
        let target: Target = text.parse()?;
        let folder = state_folder(&self.parent, &target.bucket, &target.prefix);
        let live = self.of_live()?.into_iter().find(|(of, _)| of.folder == folder);
        match live {
            Some((_, entries)) => Ok(entries),
            None if folder.is_dir() => offline(&folder),
            None => Ok(Vec::new()),
        }
    }

    fn of_live(&self) -> Result<Vec<Listed>, Error> {
        let dir = &self.runtime_dir;
        let sockets = live_sockets(dir).map_err(|error| Error::new(dir.display(), error, ""))?;
        let mut listed = Vec::new();
        for socket in sockets {
            match entries_at(&socket) {
                Ok((folder, entries)) => listed.push((Place { folder, socket: Some(socket) }, entries)),
                // It has ended since the folder was read.
                Err(client::Error::NotRunning | client::Error::Ended) => {}
                Err(error) => complain(&format!("warning: {}: {error}", socket.display())),
            }
        }
        Ok(listed)
    }
}

/// The state folders of this user.
pub(in crate::cli) fn folders(parent: &Path) -> Result<BTreeSet<PathBuf>, Error> {
    let problem = |error: std::io::Error| Error::new(parent.display(), error, "see --state-dir");
    let entries = match std::fs::read_dir(parent) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        other => other.map_err(problem)?,
    };
    let mut folders = BTreeSet::new();
    for entry in entries {
        let path = entry.map_err(problem)?.path();
        // Folders of mounts bear a bucket's name; the sockets of a user without a runtime folder may lie beside.
        if path.is_dir() && path.file_name().is_some_and(|name| name != "run") {
            folders.insert(path);
        }
    }
    Ok(folders)
}

/// The bucket whose state a folder holds: its name up to the `@`.
pub(in crate::cli) fn bucket_of(folder: &Path) -> Option<&str> {
    folder.file_name()?.to_str()?.split('@').next()
}

fn entries_at(socket: &Path) -> Result<(PathBuf, Vec<RecoverEntry>), client::Error> {
    match client::ask(socket, &Request::RecoverList, PATIENCE)? {
        Response::RecoverList { state_folder, entries } => Ok((state_folder, entries)),
        _ => Err(client::Error::Ended),
    }
}

fn offline(folder: &Path) -> Result<Vec<RecoverEntry>, Error> {
    replay::list_offline(folder).map_err(|error| Error::new(folder.display(), error, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(dir: &Path) -> Places {
        Places { cwd: "/".into(), runtime_dir: dir.join("run"), parent: dir.to_owned() }
    }

    #[test]
    fn a_place_without_a_mount_is_a_bucket_or_a_mistake() {
        let dir = tempfile::tempdir().unwrap();
        let of = |place: &str| places(dir.path()).of_bucket(Path::new(place));
        assert!(of("photos:2024/may").unwrap().is_empty());
        assert!(of("/mnt/none").unwrap_err().line.unwrap().contains("name the bucket in its place"));
        assert_eq!(of("x").unwrap_err().status, 2);
    }

    #[test]
    fn folders_are_those_of_mounts() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["photos", "run", "photos@a"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("file"), "").unwrap();
        let found: Vec<_> = super::folders(dir.path()).unwrap().into_iter().collect();
        assert_eq!(found, [dir.path().join("photos"), dir.path().join("photos@a")]);
        assert_eq!(found.iter().filter_map(|folder| bucket_of(folder)).collect::<Vec<_>>(), ["photos", "photos"]);
        assert!(super::folders(&dir.path().join("none")).unwrap().is_empty());
    }

    #[test]
    fn an_unknown_session_says_where_to_look() {
        let dir = tempfile::tempdir().unwrap();
        let line = places(dir.path()).find("x").unwrap_err().line.unwrap();
        assert_eq!(line, "x: there is no such session; see `ossfuse recover list`");
    }
}
