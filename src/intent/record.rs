//! The intent file: what was begun, byte by byte. A [`Frame`] of the kind `OSFI`.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::base::{ETag, ObjectKey, SessionId};
use crate::spill::{Frame, RecordError};

/// The version written; newer ones are refused.
const FRAME: Frame = Frame { magic: b"OSFI", version: 2 };

/// How far a directory's move has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// The old tree is the true one; the new one grows.
    Copying,
    /// The new tree is the true one. Every object that was to be copied had been copied by this time, on the
    /// service's clock: what stands under the old name and is younger belongs to somebody else.
    Deleting { copied_until: SystemTime },
}

/// How far two objects have come that change places.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Swap {
    /// The first one is being copied to the hidden key; nothing has changed yet.
    Saving,
    /// The hidden key has the first one. These are the versions that stood at the two keys before, and the number of the
    /// kernel's request.
    Swapping { one: ETag, two: ETag, call: u64 },
}

/// User metadata of an object that are to change: the new value of each name, `None` where it is to go.
pub type MetaChange = BTreeMap<String, Option<String>>;

/// What was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// Every key that begins with `from` is to begin with `to` instead. Both end with a slash.
    MoveTree { from: String, to: String, phase: Phase },
    /// An object is copied to another key, then deleted at its own.
    MoveFile { from: ObjectKey, to: ObjectKey, etag: ETag },
    /// A hidden copy of an object without a name, for those who have it open; to be deleted when they are gone.
    Hidden { key: ObjectKey },
    /// Two objects change places, by way of a hidden key.
    Exchange { one: ObjectKey, two: ObjectKey, hidden: ObjectKey, swap: Swap },
    /// The user metadata of this version of an object are to change. `crc64` is that of its bytes, which are the same in
    /// each of the versions that this leads to.
    Attributes { key: ObjectKey, etag: ETag, crc64: Option<u64>, changed: MetaChange },
}

/// The content of an intent file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntentRecord {
    /// Also the name of the file; ids sort by age.
    pub id: SessionId,
    pub work: Work,
}

impl IntentRecord {
    /// The bytes of the file.
    pub fn encode(&self) -> Vec<u8> {
        FRAME.seal(self)
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        FRAME.open(bytes, |_| None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_record_survives_its_bytes_and_nothing_less() {
        let phase = Phase::Deleting { copied_until: SystemTime::UNIX_EPOCH };
        let work = Work::MoveTree { from: "a/".into(), to: "b/".into(), phase };
        let record = IntentRecord { id: SessionId::generate(1), work };
        let bytes = record.encode();
        for cut in 0..bytes.len() {
            assert_eq!(IntentRecord::decode(&bytes[..cut]), Err(RecordError::Damaged), "cut at {cut}");
        }
        assert_eq!(IntentRecord::decode(&bytes), Ok(record));
        let mut newer = bytes;
        newer[4] += 1;
        assert_eq!(IntentRecord::decode(&newer), Err(RecordError::Newer(3)));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(IntentRecord::decode(&bytes).is_err());
        }
    }
}
