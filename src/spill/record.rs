//! The session file: what a session is, byte by byte.
//!
//! A [`Frame`] of the kind `OSFS`. A file that is torn, of a newer version, or damaged is told apart by
//! [`RecordError`]; nothing here panics on what it reads.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::frame::Frame;
use crate::base::limits::PRIVATE_DIR;
use crate::base::{ETag, ObjectKey, PartNumber, SessionId, UploadId};

/// The version written; older ones are read, newer ones refused.
pub const VERSION: u8 = 2;
/// Objects of zeros of one session at most, each a multiple of the one before.
const ZERO_LEVELS: u32 = 3;
const FRAME: Frame = Frame { magic: b"OSFS", version: VERSION };
/// The fields that came with version 2 (`was_promised`, `over`, `if_taken`), as they are where nothing is known of them.
const AFTER_VERSION_1: &[u8] = &[0, 0, 0];

/// The object that a session edits; absent where the file is written anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    pub key: ObjectKey,
    pub etag: ETag,
    /// Bytes in the object.
    pub size: u64,
    pub crc64: Option<u64>,
}

/// How far a session has come. The order is the order of its life, `Kept` apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Being written; nobody was promised that it would be published.
    Open,
    /// fsynced: at the next mount it is published at its name.
    Synced,
    /// Closed: its upload is being finished.
    Closing,
    /// CompleteMultipartUpload or PutObject may have been sent.
    Completing,
    /// Not to be published by itself.
    Kept(String),
    /// Published or discarded; what it has in the bucket at keys of the program's own is still to go.
    Over,
}

impl Phase {
    /// Whether a returned call promised that the session would be published.
    pub fn is_promised(&self) -> bool {
        matches!(self, Self::Synced | Self::Closing | Self::Completing)
    }
}

/// What is known of one spill file when the session is closed: enough to find it damaged at replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PieceNote {
    pub index: u64,
    pub len: u64,
    /// Of its `len` bytes, where they were summed as they came.
    pub crc64: Option<u64>,
}

/// Headers of the object to be: the mirror of the client's own type, in a form with a fixed layout.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderRecord {
    pub content_type: Option<String>,
    pub cache_control: Option<String>,
    pub content_disposition: Option<String>,
    pub content_encoding: Option<String>,
    pub expires: Option<String>,
    pub user_meta: BTreeMap<String, String>,
    pub storage_class: Option<String>,
    pub server_side_encryption: Option<String>,
}

/// Which times go into the object's metadata.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// Whether the mount keeps POSIX metadata at all.
    pub stored: bool,
    /// Set by a call (`utimensat`); else the time of the last write holds.
    pub mtime: Option<SystemTime>,
    pub atime: Option<SystemTime>,
}

/// A part that the service has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldPart {
    pub number: PartNumber,
    /// Bytes.
    pub size: u64,
    pub crc64: Option<u64>,
    pub etag: ETag,
}

/// The upload that holds bytes of the file which are on the local disk no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldUpload {
    pub id: UploadId,
    /// One of the program's own keys: what is completed there is no half-written file at its name.
    pub key: ObjectKey,
    /// The parts that are nowhere else.
    pub parts: Vec<HeldPart>,
}

/// What becomes of a new file at whose name another client has put an object meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum IfTaken {
    /// It must be new (`O_EXCL`): its publication fails.
    Fail,
    /// It was opened to go on with what is there: what was appended goes behind the object, a file that was not
    /// written at all is that object. What was written from the start on replaces it.
    Join,
}

/// The content of a session file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    pub id: SessionId,
    /// Where the file is to be published; `None` once it is unlinked: then it is discarded at replay.
    pub key: Option<ObjectKey>,
    /// Bytes of a spill file.
    pub piece_size: u64,
    pub base: Option<Base>,
    /// The object that stood at the name when a file was begun anew: replacing it is what was meant.
    pub replaces: Option<ETag>,
    /// How many bytes of the base still belong to the file: truncation takes from its end for good.
    pub base_valid: u64,
    /// The file is at least this long, beyond what its base and its spill files say (`truncate` upwards).
    pub extent: u64,
    /// A truncation to this size is under way: spill files past it are void. Set and cleared by the same call.
    pub cut: Option<u64>,
    /// Without times: these are put in when the object is sent.
    pub headers: HeaderRecord,
    pub times: Times,
    /// A writer has it open for appending: published even when that writer is killed.
    pub append: bool,
    pub phase: Phase,
    /// Set from closing on: the size of the file, and what its spill files must look like.
    pub size: Option<u64>,
    pub pieces: Vec<PieceNote>,
    /// The CRC64 of the object that the service was last asked to make of an edit. Its outcome may be unknown: an
    /// object of that sum is our own doing, and no other client's.
    pub completing: Option<u64>,
    /// The last failure, for people.
    pub error: Option<String>,
    /// The object at the name that the session began to edit, once its base is one of the program's own.
    pub origin: Option<Base>,
    /// Where the parts are that have left the local disk.
    pub upload: Option<HeldUpload>,
    /// How often the file was completed at a key of the program's own; tells these keys apart.
    pub checkpoints: u32,
    /// Objects of zeros may stand, to be copied from, at keys that begin with this one: see [`Self::zero_keys`].
    pub zeros: Option<ObjectKey>,
    /// A call that returned has promised already that the file is published, whatever becomes of the close under way.
    pub was_promised: bool,
    /// The session, unsent as well, whose name it was given: should that one still stand, it is over.
    pub over: Option<SessionId>,
    /// Nothing is known to stand at its name, and nothing may be replaced there unseen.
    pub if_taken: Option<IfTaken>,
}

/// Why a session file cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("not a session file, or torn")]
    Damaged,
    #[error("written by a newer version ({0}) of the program")]
    Newer(u8),
}

impl SessionRecord {
    /// The bytes of the file.
    pub fn encode(&self) -> Vec<u8> {
        FRAME.seal(self)
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let record: Self = FRAME.open(bytes, |version| (version == 1).then_some(AFTER_VERSION_1))?;
        if record.piece_size == 0 { Err(RecordError::Damaged) } else { Ok(record) }
    }

    /// The object that was `before` is `after` now, and at `key`: by the program's own doing.
    pub fn follow(&mut self, before: &ETag, key: &ObjectKey, after: &ETag) {
        let visible = if self.origin.is_some() { &mut self.origin } else { &mut self.base };
        if let Some(base) = visible.as_mut().filter(|base| base.etag == *before) {
            (base.key, base.etag) = (key.clone(), after.clone());
        }
        if self.replaces.as_ref() == Some(before) {
            self.replaces = Some(after.clone());
        }
    }

    /// Goes to the name that it was `found` with, and edits or replaces there what it did then.
    pub fn return_to(&mut self, found: &Self) {
        (self.key, self.replaces, self.if_taken) = (found.key.clone(), found.replaces.clone(), found.if_taken);
        (self.over, self.was_promised) = (found.over, found.was_promised);
        if self.checkpoints == found.checkpoints {
            (self.base, self.origin) = (found.base.clone(), found.origin.clone());
            (self.base_valid, self.extent) = (found.base_valid, found.extent);
        } else {
            // It was completed at a key of the program's own meanwhile, and goes on from there.
            self.origin = found.visible_base().cloned();
        }
    }

    /// A session at its very beginning.
    pub fn new(id: SessionId, key: impl Into<Option<ObjectKey>>, piece_size: u64, base: Option<Base>) -> Self {
        Self {
            id,
            key: key.into(),
            piece_size,
            base_valid: base.as_ref().map_or(0, |base| base.size),
            base,
            replaces: None,
            extent: 0,
            cut: None,
            headers: HeaderRecord::default(),
            times: Times::default(),
            append: false,
            phase: Phase::Open,
            was_promised: false,
            size: None,
            pieces: Vec::new(),
            completing: None,
            error: None,
            origin: None,
            upload: None,
            checkpoints: 0,
            zeros: None,
            over: None,
            if_taken: None,
        }
    }

    /// Whether a key is one that the program made for this session.
    pub fn owns(&self, key: &ObjectKey) -> bool {
        key.as_str().contains(&format!("{PRIVATE_DIR}{}", self.id))
    }

    /// What the service has of a part that is on the local disk no more.
    pub fn held(&self, number: PartNumber) -> Option<&HeldPart> {
        self.upload.iter().flat_map(|held| &held.parts).find(|part| part.number == number)
    }

    /// Whether the base is an object at one of the program's own keys, which equals what the file was then.
    pub fn is_base_hidden(&self) -> bool {
        self.base.as_ref().is_some_and(|base| self.owns(&base.key))
    }

    /// Whether it has, or may have, something in the bucket at a key of the program's own.
    pub fn has_hidden(&self) -> bool {
        self.upload.is_some() || self.is_base_hidden() || self.zeros.is_some()
    }

    /// Where objects of zeros may stand, the smallest first.
    pub fn zero_keys(&self) -> Vec<ObjectKey> {
        let key = |stem: &ObjectKey, level| ObjectKey::parse(&format!("{stem}{level}")).ok();
        self.zeros.iter().flat_map(|stem| (0..ZERO_LEVELS).filter_map(|level| key(stem, level))).collect()
    }

    /// The object at a name that other clients see, where the session edits one.
    pub fn visible_base(&self) -> Option<&Base> {
        self.origin.as_ref().or_else(|| self.base.as_ref().filter(|base| !self.owns(&base.key)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::crc64;
    use proptest::prelude::*;

    fn sample() -> SessionRecord {
        SessionRecord {
            id: SessionId::generate(1_700_000_000_000_000),
            key: Some(ObjectKey::parse("a/b").unwrap()),
            piece_size: 8 << 20,
            base: Some(Base { key: ObjectKey::parse("a/b").unwrap(), etag: ETag::new("X"), size: 7, crc64: Some(3) }),
            replaces: Some(ETag::new("Y")),
            base_valid: 5,
            headers: HeaderRecord { content_type: Some("text/plain".into()), ..Default::default() },
            extent: 4,
            cut: Some(1),
            times: Times { stored: true, mtime: Some(SystemTime::UNIX_EPOCH), atime: None },
            append: true,
            phase: Phase::Kept("writer killed".into()),
            was_promised: true,
            size: Some(9),
            pieces: vec![PieceNote { index: 0, len: 9, crc64: None }],
            completing: Some(8),
            error: None,
            origin: Some(Base { key: ObjectKey::parse("a/b").unwrap(), etag: ETag::new("Z"), size: 1, crc64: None }),
            upload: Some(HeldUpload {
                id: UploadId::new("u"),
                key: ObjectKey::parse(".ossfuse-tmp/x").unwrap(),
                parts: vec![HeldPart {
                    number: PartNumber::new(2).unwrap(),
                    size: 5,
                    crc64: Some(1),
                    etag: ETag::new("P"),
                }],
            }),
            checkpoints: 1,
            zeros: Some(ObjectKey::parse(".ossfuse-tmp/x.zeros").unwrap()),
            over: Some(SessionId::from_bytes([1; 12])),
            if_taken: Some(IfTaken::Join),
        }
    }

    #[test]
    fn a_record_survives_its_bytes() {
        let record = sample();
        assert_eq!(SessionRecord::decode(&record.encode()), Ok(record));
    }

    /// The bytes of a file as a program wrote it that knew version 1.
    #[test]
    fn a_file_of_version_1_is_read() {
        let record = SessionRecord { was_promised: false, over: None, if_taken: None, ..sample() };
        let mut bytes = record.encode();
        let len = bytes.len() - 8 - 12 - AFTER_VERSION_1.len();
        bytes.truncate(12 + len);
        bytes[4] = 1;
        bytes[8..12].copy_from_slice(&(len as u32).to_le_bytes());
        bytes.extend(crc64::checksum(&bytes).to_le_bytes());
        assert_eq!(SessionRecord::decode(&bytes), Ok(record));
        bytes.truncate(12 + len);
        bytes[4] = 0;
        bytes.extend(crc64::checksum(&bytes).to_le_bytes());
        assert_eq!(SessionRecord::decode(&bytes), Err(RecordError::Damaged), "there was no such version");
    }

    #[test]
    fn torn_and_damaged_files_are_told() {
        let bytes = sample().encode();
        for cut in 0..bytes.len() {
            assert_eq!(SessionRecord::decode(&bytes[..cut]), Err(RecordError::Damaged), "cut at {cut}");
        }
        for at in [0, 5, 9, 20, bytes.len() - 1] {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            assert!(SessionRecord::decode(&bad).is_err(), "flipped at {at}");
        }
        let mut newer = bytes;
        newer[4] = VERSION + 1;
        assert_eq!(SessionRecord::decode(&newer), Err(RecordError::Newer(VERSION + 1)));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(SessionRecord::decode(&bytes).is_err());
        }
    }
}
