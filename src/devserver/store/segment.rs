//! Bytes on disk: segment files, written once, shared by every object, part and copy that uses a piece of them.
//!
//! Knows nothing of keys and objects. The invariant that surprises: a file goes when the last [`SegmentFile`]
//! that names it is dropped, in-flight replies included, but only while the directory is live: during the replay
//! of the log and after shutdown nothing is removed, since what looks dead may yet be named.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak, mpsc};

use md5::{Digest, Md5};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::base::ByteRange;
use crate::base::crc64::{self, Crc64};
use crate::base::limits::{KIB, MIB};

/// A received body is cut into pieces of this size, each with its sum, so that the sum of a copied range needs
/// only the pieces at its ends to be read.
const PIECE_BYTES: u64 = 16 * MIB;
/// Buffer for reading a piece to sum it.
const SUM_BUFFER_BYTES: u64 = 256 * KIB;

/// The folder of segment files.
#[derive(Debug)]
pub(crate) struct SegmentDir {
    root: PathBuf,
    next: AtomicU64,
    live: AtomicBool,
    files: Mutex<HashMap<u64, Weak<SegmentFile>>>,
    /// Paths to remove: unlinking a large file is slow, and drops happen under locks.
    sweeper: mpsc::Sender<PathBuf>,
}

impl SegmentDir {
    /// Opens or makes the folder; nothing is removed before [`Self::go_live`].
    pub(crate) fn open(root: PathBuf) -> io::Result<Arc<Self>> {
        fs::create_dir_all(&root)?;
        let (sweeper, doomed) = mpsc::channel::<PathBuf>();
        std::thread::Builder::new().name("dev-sweeper".into()).spawn(move || {
            for path in doomed {
                remove(&path);
            }
        })?;
        let dir =
            Self { root, next: AtomicU64::new(1), live: AtomicBool::new(false), files: Mutex::default(), sweeper };
        Ok(Arc::new(dir))
    }

    /// Ends the replay: removes files that nothing names, and from now on each that is no longer named.
    pub(crate) fn go_live(&self) -> io::Result<()> {
        let mut last = 0;
        let files = self.files.lock();
        for fan in fs::read_dir(&self.root)? {
            for file in fs::read_dir(fan?.path())? {
                let path = file?.path();
                let id = path.file_name().and_then(|name| u64::from_str_radix(name.to_str()?, 16).ok());
                match id {
                    Some(id) if files.contains_key(&id) => last = last.max(id),
                    _ => remove(&path),
                }
            }
        }
        last = files.keys().copied().fold(last, u64::max);
        self.next.store(last + 1, Ordering::Relaxed);
        self.live.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// From now on files stay when they are dropped: the log names them.
    pub(crate) fn retire(&self) {
        self.live.store(false, Ordering::Relaxed);
    }

    /// The file `id`, made or named before.
    pub(crate) fn file(self: &Arc<Self>, id: u64) -> Arc<SegmentFile> {
        let mut files = self.files.lock();
        if let Some(file) = files.get(&id).and_then(Weak::upgrade) {
            return file;
        }
        let file = Arc::new(SegmentFile { id, dir: self.clone() });
        files.insert(id, Arc::downgrade(&file));
        file
    }

    fn create(self: &Arc<Self>) -> io::Result<(Arc<SegmentFile>, File)> {
        let file = self.file(self.next.fetch_add(1, Ordering::Relaxed));
        let path = file.path();
        let handle = match File::create_new(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                path.parent().map_or(Ok(()), fs::create_dir_all)?;
                File::create_new(&path)?
            }
            made => made?,
        };
        Ok((file, handle))
    }

    /// Starts a body; its file appears with the first byte.
    pub(crate) fn writer(self: &Arc<Self>) -> SegmentWriter {
        SegmentWriter {
            dir: self.clone(),
            file: None,
            pieces: Vec::new(),
            crc: Crc64::new(),
            piece_bytes: 0,
            md5: Md5::new(),
        }
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        log::warn!("cannot remove {}: {error}", path.display());
    }
}

/// One file of bytes.
#[derive(Debug)]
pub(crate) struct SegmentFile {
    id: u64,
    dir: Arc<SegmentDir>,
}

impl SegmentFile {
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.root.join(format!("{:02x}", self.id & 0xff)).join(format!("{:016x}", self.id))
    }
}

impl Drop for SegmentFile {
    fn drop(&mut self) {
        let mut files = self.dir.files.lock();
        // Another thread may have named the file again between the last drop and this lock.
        if files.get(&self.id).is_some_and(|file| file.strong_count() == 0) {
            files.remove(&self.id);
            if self.dir.live.load(Ordering::Relaxed) && self.dir.sweeper.send(self.path()).is_err() {
                log::warn!("the sweeper has ended; {} stays", self.path().display());
            }
        }
    }
}

/// A piece of a segment file and its CRC64.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) file: Arc<SegmentFile>,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) crc: u64,
}

/// A [`Segment`] as the log writes it: file, offset, length, CRC64.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct SegmentRef(u64, u64, u64, u64);

impl Segment {
    pub(crate) fn to_ref(&self) -> SegmentRef {
        SegmentRef(self.file.id, self.offset, self.len, self.crc)
    }

    pub(crate) fn from_ref(dir: &Arc<SegmentDir>, SegmentRef(id, offset, len, crc): SegmentRef) -> Self {
        Self { file: dir.file(id), offset, len, crc }
    }

    /// The bytes `range`, relative to this segment; reads them unless they are all of it.
    fn slice(&self, range: ByteRange) -> io::Result<Self> {
        if range.start == 0 && range.len() == self.len {
            return Ok(self.clone());
        }
        let mut file = File::open(self.file.path())?;
        file.seek(SeekFrom::Start(self.offset + range.start))?;
        let mut crc = Crc64::new();
        let mut buffer = vec![0; SUM_BUFFER_BYTES.min(range.len()) as usize];
        let mut rest = range.len();
        while rest > 0 {
            let chunk = &mut buffer[..SUM_BUFFER_BYTES.min(rest) as usize];
            file.read_exact(chunk)?;
            crc.update(chunk);
            rest -= chunk.len() as u64;
        }
        Ok(Self { offset: self.offset + range.start, len: range.len(), crc: crc.value(), ..self.clone() })
    }
}

/// The pieces of `segments` that make up `range` of their whole; may read a piece at either end.
pub(crate) fn slice(segments: &[Segment], range: ByteRange) -> io::Result<Vec<Segment>> {
    let mut start = 0;
    let mut out = Vec::new();
    for segment in segments {
        let at = ByteRange::at(start, segment.len);
        let part = at.intersect(&range);
        if !part.is_empty() {
            out.push(segment.slice(ByteRange::new(part.start - start, part.end - start))?);
        }
        start = at.end;
    }
    Ok(out)
}

/// The CRC64 of all segments in order.
pub(crate) fn sum(segments: &[Segment]) -> u64 {
    segments.iter().fold(0, |crc, segment| crc64::combine(crc, segment.crc, segment.len))
}

/// Writes one body and sums it as it passes.
#[derive(Debug)]
pub(crate) struct SegmentWriter {
    dir: Arc<SegmentDir>,
    file: Option<(Arc<SegmentFile>, File)>,
    pieces: Vec<(u64, u64)>,
    crc: Crc64,
    piece_bytes: u64,
    md5: Md5,
}

impl SegmentWriter {
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.md5.update(bytes);
        if self.file.is_none() {
            self.file = Some(self.dir.create()?);
        }
        if let Some((_, handle)) = &mut self.file {
            handle.write_all(bytes)?;
        }
        while !bytes.is_empty() {
            let room = (PIECE_BYTES - self.piece_bytes).min(bytes.len() as u64);
            let (piece, rest) = bytes.split_at(room as usize);
            self.crc.update(piece);
            self.piece_bytes += room;
            if self.piece_bytes == PIECE_BYTES {
                self.close_piece();
            }
            bytes = rest;
        }
        Ok(())
    }

    fn close_piece(&mut self) {
        self.pieces.push((self.piece_bytes, self.crc.value()));
        self.piece_bytes = 0;
        self.crc = Crc64::new();
    }

    pub(crate) fn finish(mut self) -> Written {
        if self.piece_bytes > 0 {
            self.close_piece();
        }
        let mut size = 0;
        let mut segments = Vec::new();
        if let Some((file, _)) = &self.file {
            for (len, crc) in self.pieces {
                segments.push(Segment { file: file.clone(), offset: size, len, crc });
                size += len;
            }
        }
        Written { crc: sum(&segments), segments, size, md5: self.md5.finalize().into() }
    }
}

/// A body on disk.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    pub(crate) segments: Vec<Segment>,
    pub(crate) size: u64,
    pub(crate) crc: u64,
    pub(crate) md5: [u8; 16],
}

/// Reads segments front to back in large chunks.
#[derive(Debug)]
pub(crate) struct SegmentReader {
    /// What is left to read, last first; neighbours in one file are joined.
    extents: Vec<Extent>,
    open: Option<File>,
}

#[derive(Debug)]
struct Extent {
    file: Arc<SegmentFile>,
    offset: u64,
    len: u64,
}

impl SegmentReader {
    /// Reads `range` of the whole that `segments` make up.
    pub(crate) fn new(segments: &[Segment], range: ByteRange) -> Self {
        let mut extents: Vec<Extent> = Vec::new();
        let mut start = 0;
        for segment in segments {
            let part = ByteRange::at(start, segment.len).intersect(&range);
            if !part.is_empty() {
                let offset = segment.offset + part.start - start;
                match extents.last_mut() {
                    Some(last) if Arc::ptr_eq(&last.file, &segment.file) && last.offset + last.len == offset => {
                        last.len += part.len();
                    }
                    _ => extents.push(Extent { file: segment.file.clone(), offset, len: part.len() }),
                }
            }
            start += segment.len;
        }
        extents.reverse();
        Self { extents, open: None }
    }

    /// The next bytes, at most `max`; empty at the end.
    pub(crate) fn next_chunk(&mut self, max: u64) -> io::Result<Vec<u8>> {
        let Some(extent) = self.extents.last_mut() else { return Ok(Vec::new()) };
        if self.open.is_none() {
            let mut file = File::open(extent.file.path())?;
            file.seek(SeekFrom::Start(extent.offset))?;
            self.open = Some(file);
        }
        let want = max.min(extent.len);
        let mut chunk = Vec::with_capacity(want as usize);
        if let Some(file) = &self.open {
            file.take(want).read_to_end(&mut chunk)?;
        }
        if chunk.len() as u64 != want {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a segment file is shorter than the log says"));
        }
        extent.offset += want;
        extent.len -= want;
        if extent.len == 0 {
            self.extents.pop();
            self.open = None;
        }
        Ok(chunk)
    }

    /// All that is left, for small bodies.
    pub(crate) fn read_all(&mut self) -> io::Result<Vec<u8>> {
        let mut all = self.next_chunk(u64::MAX)?;
        while !self.extents.is_empty() {
            all.extend(self.next_chunk(u64::MAX)?);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Arc<SegmentDir>, bytes: &[u8]) -> Written {
        let mut writer = dir.writer();
        for chunk in bytes.chunks(100_000) {
            writer.write(chunk).unwrap();
        }
        writer.finish()
    }

    fn live_dir(root: &Path) -> Arc<SegmentDir> {
        let dir = SegmentDir::open(root.into()).unwrap();
        dir.go_live().unwrap();
        dir
    }

    fn wait_until(what: &str, done: impl Fn() -> bool) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !done() {
            assert!(std::time::Instant::now() < deadline, "{what}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn slices_keep_bytes_and_sums() {
        let root = tempfile::tempdir().unwrap();
        let dir = live_dir(root.path());
        let bytes: Vec<u8> = (0..40_000_000u32).map(|i| (i / 7) as u8).collect();
        let whole = write(&dir, &bytes);
        assert_eq!(whole.segments.len(), 3);
        assert_eq!(whole.crc, crc64::checksum(&bytes));
        let small = write(&dir, b"tail");
        let joined: Vec<Segment> = whole.segments.iter().chain(&small.segments).cloned().collect();
        for range in [0..10u64, 16_777_210..33_554_440, 39_999_998..40_000_003, 0..40_000_004] {
            let range = ByteRange::new(range.start, range.end);
            let cut = slice(&joined, range).unwrap();
            let expected: Vec<u8> =
                bytes.iter().chain(b"tail").copied().skip(range.start as usize).take(range.len() as usize).collect();
            let read = SegmentReader::new(&cut, ByteRange::new(0, range.len())).read_all().unwrap();
            assert!(read == expected);
            assert_eq!(sum(&cut), crc64::checksum(&expected));
            assert!(SegmentReader::new(&joined, range).read_all().unwrap() == expected);
        }
    }

    #[test]
    fn a_file_goes_with_its_last_user() {
        let root = tempfile::tempdir().unwrap();
        let dir = live_dir(root.path());
        let written = write(&dir, b"bytes");
        let path = written.segments[0].file.path();
        let copy = written.segments.clone();
        drop(written);
        assert!(path.exists());
        drop(copy);
        wait_until("the sweeper removes the file", || !path.exists());
    }

    #[test]
    fn files_survive_a_shutdown_and_strays_do_not_survive_a_start() {
        let root = tempfile::tempdir().unwrap();
        let dir = live_dir(root.path());
        let (kept, stray) = (write(&dir, b"kept"), write(&dir, b"stray"));
        let reference = kept.segments[0].to_ref();
        let (kept_path, stray_path) = (kept.segments[0].file.path(), stray.segments[0].file.path());
        dir.retire();
        drop((kept, stray));

        let dir = SegmentDir::open(root.path().into()).unwrap();
        let kept = Segment::from_ref(&dir, reference);
        dir.go_live().unwrap();
        assert!(kept_path.exists());
        assert!(!stray_path.exists());
        let fresh = write(&dir, b"fresh");
        assert_ne!(fresh.segments[0].file.path(), kept.file.path());
    }
}
