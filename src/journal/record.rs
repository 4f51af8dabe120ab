//! What the journal's trees hold: one version byte, then bincode 2 in its standard configuration.

use std::time::SystemTime;

use bincode::config::standard;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::base::{ETag, ObjectKey, UploadId};

/// A multipart upload that was begun for a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadRecord {
    pub upload_id: UploadId,
    /// An upload id belongs to its key.
    pub key: ObjectKey,
    /// Bytes of a spill file: the part plan follows from it.
    pub part_size: u64,
    pub created_micros: u64,
    /// The headers sent when it was begun, in the form of whoever began it: they are fixed from then on.
    pub headers: Vec<u8>,
}

/// A part that the service has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRecord {
    /// How often the part's bytes had changed when it was sent.
    pub generation: u64,
    pub len: u64,
    /// Of the bytes as sent; `None` for a part copied on the server.
    pub crc64: Option<u64>,
    pub etag: ETag,
    /// When its spill files were last written, in microseconds since the epoch, where any later write is sure to leave
    /// another time: with this time they hold the bytes that were sent.
    pub stable_since: Option<u64>,
}

/// A copy that the move of a directory has made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyRecord {
    /// The object that was copied.
    pub before: ETag,
    /// The copy.
    pub after: ETag,
    /// When the copy was made, on the service's clock.
    pub at: Option<SystemTime>,
}

/// A record with its version in front.
pub(super) trait Versioned: Serialize + DeserializeOwned {
    const VERSION: u8;

    fn encode(&self) -> Vec<u8> {
        let mut out = vec![Self::VERSION];
        bincode::serde::encode_into_std_write(self, &mut out, standard())
            .expect("plain values into memory always encode");
        out
    }

    /// `None` for another version, or bytes that are no record.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (version, payload) = bytes.split_first()?;
        if *version != Self::VERSION {
            return None;
        }
        let config = standard().with_limit::<{ 1 << 20 }>();
        bincode::serde::decode_from_slice(payload, config).ok().map(|(record, _)| record)
    }
}

impl Versioned for UploadRecord {
    const VERSION: u8 = 2;
}

impl Versioned for PartRecord {
    const VERSION: u8 = 2;
}

impl Versioned for CopyRecord {
    const VERSION: u8 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn other_versions_are_not_read() {
        let record = PartRecord { generation: 3, len: 4, crc64: None, etag: ETag::new("x"), stable_since: None };
        let mut bytes = record.encode();
        assert_eq!(PartRecord::decode(&bytes), Some(record));
        bytes[0] += 1;
        assert_eq!(PartRecord::decode(&bytes), None);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _: (Option<UploadRecord>, Option<PartRecord>) = (UploadRecord::decode(&bytes), PartRecord::decode(&bytes));
        }
    }
}
