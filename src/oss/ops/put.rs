//! PutObject (OSS reference §7.6).

use super::meta;
use crate::base::{ObjectKey, crash};
use crate::oss::client::Client;
use crate::oss::error::Error;
use crate::oss::request::Request;
use crate::oss::transport::Expect;
use crate::oss::types::{Body, Operation, PutHeaders, PutReceipt};

impl Client {
    /// Replaces the object as a whole. With `forbid_overwrite`, `AlreadyExists` of an unknown outcome may be one's own
    /// doing.
    pub async fn put_object(&self, key: &ObjectKey, body: &Body, headers: &PutHeaders) -> Result<PutReceipt, Error> {
        let request = Request::of_object(Operation::PutObject, key)?.put_headers(headers)?.body(body.clone());
        crash::point("put-sending");
        let stored = self
            .ask(&request, Expect::Nothing, |reply| {
                meta::etag(&reply.headers).map(|etag| meta::put_receipt(&reply.headers, etag))
            })
            .await;
        crash::point("put-answered");
        stored
    }
}
