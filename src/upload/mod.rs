//! The part engine: how a file is cut, how its parts reach the service, and how an object is finished.
//!
//! Ties the service (`oss`), the spill files and the journal together. Knows no file handles and no inodes, and
//! can be driven without a mount.

mod plan;
mod replace;
mod transfer;

pub use plan::Plan;
pub use replace::{Standing, replace_headers};
pub use transfer::{Finished, PartOutcome, Transfer, UploadEngine, UploadOptions, headers_of, record_of, whole_crc};
