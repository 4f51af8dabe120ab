//! Doors for `tests/benches` alone, to hot paths that nobody else outside of this module needs to see.

use std::time::SystemTime;

use http::HeaderMap;

use super::ops::parse_listing;
use super::sign::{Signable, Signer};
use super::types::{Credentials, ListPage, SignatureVersion};

/// A signer with a credential and a region, and a request that it signs over and over.
#[derive(Debug)]
pub struct Signing(Signer);

impl Signing {
    /// `None` where the credential cannot stand in a header.
    pub fn new(credentials: Credentials, region: &str) -> Option<Self> {
        Signer::new(credentials, SignatureVersion::V4, Some(region)).ok().map(Self)
    }

    /// Signs an UploadPart of this key; the number of headers it took.
    pub fn upload_part(&self, key: &str, at: SystemTime) -> usize {
        let query = [("partNumber", "7".into()), ("uploadId", "0004B9894A22E5B1888A1E29F8236E2D".into())];
        let request = Signable { method: "PUT", bucket: Some("bucket"), key: Some(key), query: &query };
        let mut headers = HeaderMap::new();
        self.0.sign(&request, &mut headers, at);
        headers.len()
    }
}

/// Reads the body of a ListObjectsV2 reply; `None` where it is none.
pub fn listing(body: &[u8]) -> Option<ListPage> {
    parse_listing(body).ok()
}
