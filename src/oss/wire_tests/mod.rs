//! What the client puts on the wire, and what it makes of faults there.

mod bodies;
mod faults;
mod patience;
mod requests;
mod server;

use crate::base::ObjectKey;

fn key(text: &str) -> ObjectKey {
    ObjectKey::parse(text).unwrap()
}

const OBJECT: &str = "ETag: \"E\"\nLast-Modified: Thu, 07 Mar 2024 08:00:00 GMT";
