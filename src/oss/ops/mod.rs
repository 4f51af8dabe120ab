//! The operations, a file a family: each builds a request and reads the reply (OSS reference §§7 and 8).
//!
//! All of them are methods of `Client`; signing, sending and repeating are its business, not theirs.

mod bucket;
mod copy;
mod delete;
mod get;
mod list;
mod meta;
mod multipart;
mod put;
mod symlink;

pub(super) use list::parse as parse_listing;
