//! Values without I/O that every layer shares: ids, keys, ranges, checksums, sizes, times.
//!
//! Nothing here reads a file, a socket or the environment, and nothing here knows OSS requests or the
//! kernel. The exceptions are [`time`], the only place that asks for the wall clock, and [`crash`], which is empty but
//! for tests.

pub mod budget;
pub mod caller;
pub mod crash;
pub mod crc64;
pub mod fields;
pub mod ids;
pub mod key;
pub mod limits;
pub mod mime;
pub mod posix;
pub mod range;
pub mod syscall;
pub mod time;
pub mod units;
pub mod xattr;

pub use budget::{Budget, Grant, Reclaim};
pub use ids::{ETag, PartNumber, SessionId, UploadId};
pub use key::{KeyError, ObjectKey, Prefix};
pub use range::ByteRange;
pub use syscall::checked;
