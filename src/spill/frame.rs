//! The frame of a small file that must tell whether it is whole.
//!
//! Four bytes that name its kind, one version byte, three zero bytes, the length of the payload (u32 LE), the
//! payload (bincode 2, standard configuration), and the CRC-64 of everything before it (u64 LE).

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::RecordError;
use crate::base::crc64;

const HEAD: usize = 12;

/// The kind of a file, and the version of it that is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame {
    pub(crate) magic: &'static [u8; 4],
    pub(crate) version: u8,
}

impl Frame {
    /// The bytes of a file that holds `record`.
    pub(crate) fn seal(self, record: &impl Serialize) -> Vec<u8> {
        let payload = bincode::serde::encode_to_vec(record, bincode::config::standard())
            .expect("plain values without maps of unknown length always encode");
        let mut out = Vec::with_capacity(HEAD + payload.len() + 8);
        out.extend_from_slice(self.magic);
        out.extend_from_slice(&[self.version, 0, 0, 0]);
        out.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(&payload);
        let sum = crc64::checksum(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads what [`Self::seal`] wrote; `later` is what a payload of this older version lacks at its end, `None` where
    /// it is not known.
    pub(crate) fn open<T: DeserializeOwned>(
        self,
        bytes: &[u8],
        later: impl FnOnce(u8) -> Option<&'static [u8]>,
    ) -> Result<T, RecordError> {
        if bytes.len() < HEAD + 8 || &bytes[..4] != self.magic {
            return Err(RecordError::Damaged);
        }
        if bytes[4] > self.version {
            return Err(RecordError::Newer(bytes[4]));
        }
        let (body, sum) = bytes.split_at(bytes.len() - 8);
        let len = u32::from_le_bytes(body[8..12].try_into().map_err(|_| RecordError::Damaged)?);
        let sum = u64::from_le_bytes(sum.try_into().map_err(|_| RecordError::Damaged)?);
        if body.len() - HEAD != len as usize || crc64::checksum(body) != sum {
            return Err(RecordError::Damaged);
        }
        let later = if bytes[4] == self.version { Some(&[][..]) } else { later(bytes[4]) };
        let payload = [&body[HEAD..], later.ok_or(RecordError::Damaged)?].concat();
        let config = bincode::config::standard().with_limit::<{ 1 << 28 }>();
        bincode::serde::decode_from_slice(&payload, config).map(|(record, _)| record).map_err(|_| RecordError::Damaged)
    }
}
