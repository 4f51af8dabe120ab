//! A request being served: what was asked, and the body that is still to come.

use std::sync::Arc;
use std::time::SystemTime;

use http::header::EXPECT;
use http::{HeaderMap, Method, Request};
use hyper::body::{Body, Incoming};

use super::attributes::text;
use super::failure::Failure;
use super::receive::{Intake, drain};
use super::request::{Operation, Parameters, Target};
use super::s3;
use super::service::Shared;
use super::store::{StoreError, Written};
use crate::base::limits::PART_BYTES_MAX;

/// A request being served.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) shared: Arc<Shared>,
    pub(crate) operation: Operation,
    pub(crate) method: Method,
    pub(crate) target: Target,
    pub(crate) parameters: Parameters,
    pub(crate) headers: HeaderMap,
    pub(crate) host: String,
    pub(crate) now: SystemTime,
    /// Whether it came in the dress of S3.
    pub(crate) is_s3: bool,
    body: Option<Incoming>,
    /// Whether a fault rule changes a byte of the body as it comes.
    pub(crate) corrupt_body: bool,
    /// Bytes of the body that were taken in.
    pub(crate) received: u64,
}

impl Call {
    /// Reads a request's head; beside it, why no operation could be made of it.
    pub(crate) fn new(shared: Arc<Shared>, request: Request<Incoming>, host: String) -> (Self, Result<(), Failure>) {
        let is_s3 = shared.s3 && s3::is_s3(&request);
        let (mut head, body) = request.into_parts();
        let adopted = if is_s3 { s3::adopt(&mut head.headers) } else { Ok(()) };
        let (target, parameters, mut parsed) = parse(&head, &host);
        if is_s3 && head.method == Method::HEAD && target.bucket.is_some() && target.key.is_none() {
            // S3 clients ask so whether a bucket is there.
            parsed = Ok(Operation::GetBucketLocation);
        }
        let parsed = adopted.and(parsed);
        let call = Self {
            now: shared.now(),
            shared,
            is_s3,
            operation: *parsed.as_ref().unwrap_or(&Operation::Unknown),
            method: head.method,
            target,
            parameters,
            headers: head.headers,
            host,
            body: Some(body).filter(|body| !body.is_end_stream()),
            corrupt_body: false,
            received: 0,
        };
        (call, parsed.map(drop))
    }

    /// The bucket; empty at the service level, where no handler asks.
    pub(crate) fn bucket(&self) -> &str {
        self.target.bucket.as_deref().unwrap_or_default()
    }

    /// The key; empty at the bucket level, where no handler asks.
    pub(crate) fn key(&self) -> &str {
        self.target.key.as_deref().unwrap_or_default()
    }

    pub(crate) fn upload_id(&self) -> &str {
        self.parameters.get("uploadId").unwrap_or_default()
    }

    pub(crate) fn part_number(&self) -> Option<u32> {
        self.parameters.get("partNumber")?.parse().ok()
    }

    pub(crate) fn header(&self, name: &str) -> Option<String> {
        text(&self.headers, name)
    }

    /// Whether a header says `true`.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.header(name).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    /// What the store's error means here.
    pub(crate) fn failure(&self, error: StoreError) -> Failure {
        Failure::of_store(error, self.bucket(), self.upload_id())
    }

    /// Takes the body into memory, at most `limit` bytes.
    pub(crate) async fn collect_body(&mut self, limit: u64) -> Result<Vec<u8>, Failure> {
        let Some(mut body) = self.body.take() else { return Ok(Vec::new()) };
        let mut intake = self.intake(&mut body, limit);
        let bytes = intake.collect().await;
        self.received = intake.received;
        self.body = Some(body);
        bytes
    }

    /// Takes the body to disk, at most the service's limit.
    pub(crate) async fn store_body(&mut self) -> Result<Written, Failure> {
        let Some(mut body) = self.body.take() else { return Ok(self.shared.store.writer().finish()) };
        let mut intake = self.intake(&mut body, PART_BYTES_MAX);
        let written = intake.store().await;
        self.received = intake.received;
        self.body = Some(body);
        written
    }

    fn intake<'a>(&self, body: &'a mut Incoming, limit: u64) -> Intake<'a> {
        let operation = Some(self.operation);
        Intake { shared: self.shared.clone(), operation, body, corrupt: self.corrupt_body, received: 0, limit }
    }

    /// Reads the rest of the body, so that the client is done sending when the reply comes. False where the
    /// connection cannot go on.
    pub(crate) async fn finish_body(&mut self) -> bool {
        let waits_for_leave = self.headers.contains_key(EXPECT);
        match &mut self.body {
            None => true,
            Some(_) if waits_for_leave => false,
            Some(body) => drain(body).await,
        }
    }
}

/// What can be read of a request, and the operation or why there is none.
fn parse(head: &http::request::Parts, host: &str) -> (Target, Parameters, Result<Operation, Failure>) {
    let target = Target::parse(host, head.uri.path());
    let parameters = Parameters::parse(head.uri.query().unwrap_or_default());
    match (target, parameters) {
        (Ok(target), Ok(parameters)) => {
            let copies = head.headers.contains_key("x-oss-copy-source");
            let operation = Operation::of(&head.method, &target, &parameters, copies);
            (target, parameters, operation)
        }
        (Err(failure), _) | (_, Err(failure)) => (Target::default(), Parameters::default(), Err(failure)),
    }
}
