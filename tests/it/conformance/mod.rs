//! What the service does, checked over the wire: requests as bytes, signed by a signer of the tests' own.
//!
//! Runs against the dev server and pins down the behaviour that the client relies on. Uses neither the client nor
//! the server's inside, so that a mistake the two share is seen here.

mod compose;
mod control;
mod copies;
mod listings;
mod multipart;
mod objects;
mod reads;
mod s3;
mod server;
mod sign;
mod signatures;
mod wire;

pub(crate) use compose::repeat;
