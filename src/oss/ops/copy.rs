//! CopyObject (OSS reference §7.8), within the bucket.

use http::HeaderName;

use super::meta;
use crate::base::{ETag, ObjectKey, crash, time};
use crate::oss::client::Client;
use crate::oss::error::Error;
use crate::oss::request::{Request, copy_source};
use crate::oss::transport::Expect;
use crate::oss::types::{CopyOptions, CopyReceipt, Operation};
use crate::oss::xml::{self, XmlError};

pub(super) const COPY_SOURCE: HeaderName = HeaderName::from_static("x-oss-copy-source");
pub(super) const COPY_IF_MATCH: HeaderName = HeaderName::from_static("x-oss-copy-source-if-match");

impl Client {
    /// Copies on the server. `PreconditionFailed` of an unknown outcome may be one's own doing: a copy onto itself
    /// can change the ETag.
    pub async fn copy_object(
        &self,
        source: &ObjectKey,
        target: &ObjectKey,
        options: &CopyOptions,
    ) -> Result<CopyReceipt, Error> {
        let mut request = Request::of_object(Operation::CopyObject, target)?
            .header(COPY_SOURCE, &copy_source(self.bucket(), source))?
            .header_if_some(COPY_IF_MATCH, options.if_match.as_ref().map(ETag::quoted).as_deref())?
            .forbid_overwrite(options.forbid_overwrite);
        request = match &options.replace {
            Some(headers) => request.header_static("x-oss-metadata-directive", "REPLACE").stored_headers(headers)?,
            None => request.header_static("x-oss-metadata-directive", "COPY"),
        };
        crash::point("copy-sending");
        let copied = self
            .ask(&request, Expect::Xml, |reply| {
                let (etag, last_modified) = parse_result(&reply.xml, "CopyObjectResult")?;
                Ok::<_, XmlError>(CopyReceipt { etag, crc64: meta::crc64(&reply.headers), last_modified })
            })
            .await;
        crash::point("copy-answered");
        copied
    }
}

/// The results of CopyObject and UploadPartCopy, which differ in their root.
pub(super) fn parse_result(body: &[u8], root: &'static str) -> Result<(ETag, Option<std::time::SystemTime>), XmlError> {
    let (mut etag, mut last_modified) = (None, None);
    xml::walk(body, root, |path, text| {
        match path {
            "ETag" => etag = xml::word(text).map(|text| ETag::new(&text)),
            "LastModified" => last_modified = time::parse_rfc3339(text),
            _ => {}
        }
        Ok(())
    })?;
    Ok((etag.ok_or(XmlError::Missing("ETag"))?, last_modified))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_samples_are_read() {
        let copy = include_bytes!("../../../tests/data/xml/copy-object.xml");
        let (etag, modified) = parse_result(copy, "CopyObjectResult").unwrap();
        assert_eq!(etag, ETag::new("F2064A169EE92E9775EE5324D0B1CCCC"));
        assert_eq!(modified, time::parse_rfc3339("2018-12-28T09:41:56Z"));
        let part = include_bytes!("../../../tests/data/xml/upload-part-copy.xml");
        let (etag, _) = parse_result(part, "CopyPartResult").unwrap();
        assert_eq!(etag, ETag::new("5B3C1A2E053D763E1B002CC607C5A0FE"));
    }

    #[test]
    fn an_error_in_a_success_is_not_a_success() {
        let error = b"<Error><Code>InternalError</Code><ETag>x</ETag></Error>";
        assert!(parse_result(error, "CopyObjectResult").is_err());
        assert!(parse_result(b"<CopyObjectResult></CopyObjectResult>", "CopyObjectResult").is_err());
    }
}
