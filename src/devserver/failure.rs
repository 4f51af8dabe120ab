//! The service's errors: status, code, message, fine-grained code, and the fields beside them.
//!
//! Codes and statuses: OSS reference §6.2. An EC is given only where the reference names one.

use std::io;

use http::StatusCode;

use super::store::StoreError;
use super::xml::Document;

/// An error reply.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) status: StatusCode,
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) ec: Option<&'static str>,
    /// Further elements of the body.
    pub(crate) details: Vec<(&'static str, String)>,
    /// Further headers of the reply.
    pub(crate) headers: Vec<(String, String)>,
}

impl Failure {
    pub(crate) fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self { status, code: code.into(), message: message.into(), ec: None, details: Vec::new(), headers: Vec::new() }
    }

    pub(crate) fn ec(mut self, ec: &'static str) -> Self {
        self.ec = Some(ec);
        self
    }

    pub(crate) fn detail(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.details.push((name, value.into()));
        self
    }

    pub(crate) fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The body.
    pub(crate) fn xml(&self, request_id: &str, host: &str) -> String {
        let mut document = Document::new("Error");
        document
            .element("Code", &self.code)
            .element("Message", &self.message)
            .element("RequestId", request_id)
            .element("HostId", host);
        for (name, value) in &self.details {
            document.element(name, value);
        }
        if let Some(ec) = self.ec {
            document.element("EC", ec);
        }
        document.finish()
    }

    pub(crate) fn invalid_argument(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "InvalidArgument", message)
    }

    /// An argument by name and value.
    pub(crate) fn bad_value(name: &str, value: impl Into<String>) -> Self {
        Self::invalid_argument(format!("The value of {name} is invalid."))
            .detail("ArgumentName", name)
            .detail("ArgumentValue", value)
    }

    pub(crate) fn no_such_key(key: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NoSuchKey", "The specified key does not exist.")
            .ec("0026-00000001")
            .detail("Key", key)
    }

    pub(crate) fn no_such_bucket(bucket: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NoSuchBucket", "The specified bucket does not exist.")
            .ec("0015-00000101")
            .detail("BucketName", bucket)
    }

    pub(crate) fn no_such_upload(id: &str) -> Self {
        let message = "The specified upload does not exist. \
                       The upload ID may be invalid, or the upload may have been aborted or completed.";
        Self::new(StatusCode::NOT_FOUND, "NoSuchUpload", message).ec("0017-00000244").detail("UploadId", id)
    }

    pub(crate) fn already_exists(ec: &'static str) -> Self {
        let message = "The object you specified already exists and can not be overwritten.";
        Self::new(StatusCode::CONFLICT, "FileAlreadyExists", message).ec(ec)
    }

    pub(crate) fn precondition(condition: &str) -> Self {
        let message = "At least one of the pre-conditions you specified did not hold.";
        Self::new(StatusCode::PRECONDITION_FAILED, "PreconditionFailed", message).detail("Condition", condition)
    }

    pub(crate) fn malformed_xml() -> Self {
        let message = "The XML you provided was not well-formed or did not validate against our published schema.";
        Self::new(StatusCode::BAD_REQUEST, "MalformedXML", message).ec("0042-00000205")
    }

    pub(crate) fn not_implemented(what: &str) -> Self {
        let message = "A header or parameter you provided implies functionality that is not implemented.";
        Self::new(StatusCode::BAD_REQUEST, "NotImplemented", message).detail("Header", what)
    }

    pub(crate) fn access_denied(message: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "AccessDenied", message)
    }

    pub(crate) fn too_large(limit: u64) -> Self {
        let message = "Your proposed upload exceeds the maximum allowed size.";
        Self::new(StatusCode::BAD_REQUEST, "EntityTooLarge", message).detail("MaxSizeAllowed", limit.to_string())
    }

    /// What `error` means to a request for this bucket and upload.
    pub(crate) fn of_store(error: StoreError, bucket: &str, upload: &str) -> Self {
        match error {
            StoreError::NoSuchBucket => Self::no_such_bucket(bucket),
            StoreError::NoSuchUpload => Self::no_such_upload(upload),
            StoreError::ObjectExists => Self::already_exists("0026-00000002"),
            StoreError::ObjectChanged => Self::precondition("the object changed during the request"),
            StoreError::BucketNotEmpty => {
                Self::new(StatusCode::CONFLICT, "BucketNotEmpty", "The bucket you tried to delete is not empty.")
            }
            StoreError::Io(error) => error.into(),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        log::error!("dev server: {error}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "We encountered an internal error.")
    }
}
