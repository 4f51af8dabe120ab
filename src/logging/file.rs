//! A log file that never grows without bound, and that several processes of a mount share.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::base::limits::MIB;

/// A log file is set aside when it would grow past this many bytes.
const FILE_BYTES_MAX: u64 = 10 * MIB;
/// How many that were set aside are kept: `log.1`, the latest, to `log.3`.
const FILES_KEPT: u32 = 3;

/// A file that is appended to, and set aside as `NAME.1` when it is full. Supervisor and worker share it.
#[derive(Debug)]
pub(super) struct RotatingFile {
    path: PathBuf,
    file: File,
    /// Bytes in the file.
    size: u64,
    size_max: u64,
    /// A pipe or terminal cannot be set aside.
    is_regular: bool,
}

impl RotatingFile {
    /// Opens the log, to go on where it ended.
    ///
    /// # Errors
    /// As `open(2)`.
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        Self::open(path, FILE_BYTES_MAX)
    }

    fn open(path: &Path, size_max: u64) -> io::Result<Self> {
        let file = append_to(path)?;
        let metadata = file.metadata()?;
        Ok(Self { path: path.to_owned(), file, size: metadata.len(), size_max, is_regular: metadata.is_file() })
    }

    /// Another process of the mount may have set the file aside.
    fn follow(&mut self) -> io::Result<()> {
        let own = self.file.metadata()?;
        let is_same = |there: std::fs::Metadata| there.ino() == own.ino() && there.dev() == own.dev();
        if !std::fs::metadata(&self.path).is_ok_and(is_same) {
            self.file = append_to(&self.path)?;
        }
        self.size = self.file.metadata()?.len();
        Ok(())
    }

    fn aside(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..FILES_KEPT).rev() {
            rename_if_there(&self.aside(number), &self.aside(number + 1))?;
        }
        rename_if_there(&self.path, &self.aside(1))?;
        self.file = append_to(&self.path)?;
        self.size = 0;
        Ok(())
    }
}

impl Write for RotatingFile {
    /// A line comes in one piece, and stays so. Where the file cannot be set aside it grows on: better than silence.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.is_regular && self.follow().is_err() {
            self.size = 0;
        }
        let full = self.size > 0 && self.size + line.len() as u64 > self.size_max;
        if full && self.is_regular && self.rotate().is_err() {
            self.size = 0;
        }
        self.file.write_all(line)?;
        self.size += line.len() as u64;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Opens a file for appending, also for the standard error of a mount in the background.
///
/// # Errors
/// As `open(2)`.
pub fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(dir: &Path, name: &str) -> String {
        std::fs::read_to_string(dir.join(name)).unwrap_or_default()
    }

    #[test]
    fn a_full_log_is_set_aside_and_three_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = RotatingFile::open(&path, 8).unwrap();
        for line in ["one\n", "two\n", "three\n", "four\n", "five\n", "six\n", "seven\n"] {
            log.write_all(line.as_bytes()).unwrap();
        }
        let names = ["log", "log.1", "log.2", "log.3", "log.4"];
        assert_eq!(names.map(|name| read(dir.path(), name)), ["seven\n", "six\n", "five\n", "four\n", ""]);
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_log_goes_on_where_it_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        for line in ["one\n", "two\n", "three\n"] {
            RotatingFile::open(&path, 8).unwrap().write_all(line.as_bytes()).unwrap();
        }
        assert_eq!([read(dir.path(), "log.1"), read(dir.path(), "log")], ["one\ntwo\n", "three\n"]);
    }

    #[test]
    fn two_processes_share_a_log_and_neither_writes_into_what_was_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (mut worker, mut supervisor) =
            (RotatingFile::open(&path, 8).unwrap(), RotatingFile::open(&path, 8).unwrap());
        worker.write_all(b"one\n").unwrap();
        supervisor.write_all(b"two\n").unwrap();
        worker.write_all(b"three\n").unwrap();
        supervisor.write_all(b"4\n").unwrap();
        assert_eq!([read(dir.path(), "log.1"), read(dir.path(), "log")], ["one\ntwo\n", "three\n4\n"]);
    }

    #[test]
    fn a_log_that_cannot_be_set_aside_grows_on() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("log.1/in the way")).unwrap();
        std::fs::create_dir_all(dir.path().join("log.2/in the way")).unwrap();
        std::fs::create_dir_all(dir.path().join("log.3/in the way")).unwrap();
        let mut log = RotatingFile::open(&dir.path().join("log"), 4).unwrap();
        log.write_all(b"one\n").unwrap();
        log.write_all(b"two\n").unwrap();
        assert_eq!(read(dir.path(), "log"), "one\ntwo\n");
    }
}
