//! Multipart uploads (OSS reference §7.11).
//!
//! A lost reply to Complete is not settled here: the error says that the outcome is unknown, and whoever knows the
//! bytes looks at the object.

use std::convert::Infallible;
use std::fmt::Write as _;

use bytes::Bytes;
use http::HeaderName;
use http::header::CONTENT_TYPE;

use super::copy::{COPY_IF_MATCH, COPY_SOURCE, parse_result};
use super::meta;
use crate::base::limits::PAGE_MAX;
use crate::base::{ByteRange, ETag, ObjectKey, PartNumber, UploadId, crash, time};
use crate::oss::client::Client;
use crate::oss::error::{Error, ErrorKind};
use crate::oss::request::{Request, copy_source};
use crate::oss::transport::Expect;
use crate::oss::types::{
    Body, Operation, PartInfo, PartReceipt, PartsPage, PutHeaders, PutReceipt, UploadInfo, UploadsPage,
};
use crate::oss::xml::{self, XmlError};

const COPY_RANGE: HeaderName = HeaderName::from_static("x-oss-copy-source-range");

impl Client {
    /// Metadata is fixed here. After a lost reply another is begun; the one that nobody knows stands in the bucket,
    /// empty, until aborted.
    pub async fn initiate_upload(&self, key: &ObjectKey, headers: &PutHeaders) -> Result<UploadId, Error> {
        let operation = Operation::InitiateMultipartUpload;
        let request = Request::of_object(operation, key)?
            .param("uploads", "")
            .param("encoding-type", "url")
            .put_headers(headers)?;
        crash::point("initiate-sending");
        let begun = self.ask(&request, Expect::Xml, |reply| parse_initiated(&reply.xml)).await;
        crash::point("initiate-answered");
        begun
    }

    /// Replaces the part if it was sent before.
    pub async fn upload_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        part: PartNumber,
        body: &Body,
    ) -> Result<PartReceipt, Error> {
        let operation = Operation::UploadPart;
        let request =
            Request::of_upload(operation, key, upload)?.param("partNumber", part.to_string()).body(body.clone());
        crash::point("part-sending");
        let stored = self
            .ask(&request, Expect::Nothing, |reply| {
                let etag = meta::etag(&reply.headers)?;
                Ok::<_, meta::Missing>(PartReceipt { etag, crc64: reply.sent_crc64, size: body.len() })
            })
            .await;
        crash::point("part-answered");
        stored
    }

    /// The range must lie inside the source: the service copies the whole of it otherwise.
    pub async fn upload_part_copy(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        part: PartNumber,
        source: &ObjectKey,
        range: ByteRange,
        if_match: &ETag,
    ) -> Result<ETag, Error> {
        let operation = Operation::UploadPartCopy;
        if range.is_empty() {
            return Err(Error::unsendable(operation, key.as_str(), "an empty range cannot be copied"));
        }
        let request = Request::of_upload(operation, key, upload)?
            .param("partNumber", part.to_string())
            .header(COPY_SOURCE, &copy_source(self.bucket(), source))?
            .header(COPY_RANGE, &range.http())?
            .header(COPY_IF_MATCH, &if_match.quoted())?;
        crash::point("part-copy-sending");
        let copied = self.ask(&request, Expect::Xml, |reply| parse_result(&reply.xml, "CopyPartResult")).await;
        crash::point("part-copy-answered");
        copied.map(|(etag, _)| etag)
    }

    /// Parts ascending. The receipt's CRC64 is the service's; comparing it is up to the caller. `NoSuchUpload` of an
    /// unknown outcome may be one's own doing: a try whose reply was lost has completed it.
    pub async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[(PartNumber, ETag)],
        forbid_overwrite: bool,
    ) -> Result<PutReceipt, Error> {
        let operation = Operation::CompleteMultipartUpload;
        let request = Request::of_upload(operation, key, upload)?
            .param("encoding-type", "url")
            .header(CONTENT_TYPE, "application/xml")?
            .forbid_overwrite(forbid_overwrite)
            .body(Body::Bytes(Bytes::from(complete_body(parts))));
        crash::point("complete-sending");
        let completed = self
            .ask(&request, Expect::Xml, |reply| {
                parse_completed(&reply.xml).map(|etag| meta::put_receipt(&reply.headers, etag))
            })
            .await;
        crash::point("complete-answered");
        completed
    }

    /// An upload that is gone already counts as aborted.
    pub async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<(), Error> {
        let request = Request::of_upload(Operation::AbortMultipartUpload, key, upload)?;
        crash::point("abort-sending");
        let aborted = self.ask(&request, Expect::Nothing, |_| Ok::<_, Infallible>(())).await;
        crash::point("abort-answered");
        match aborted {
            Err(error) if error.kind == ErrorKind::NoSuchUpload => Ok(()),
            result => result,
        }
    }

    /// Parts with numbers above `marker`.
    pub async fn list_parts(&self, key: &ObjectKey, upload: &UploadId, marker: u32) -> Result<PartsPage, Error> {
        let operation = Operation::ListParts;
        let request = Request::of_upload(operation, key, upload)?
            .param("max-parts", PAGE_MAX.to_string())
            .param("part-number-marker", marker.to_string())
            .param("encoding-type", "url");
        self.ask(&request, Expect::Xml, |reply| parse_parts(&reply.xml)).await
    }

    /// `after` is the `next` of the page before.
    pub async fn list_uploads(&self, prefix: &str, after: Option<&(String, String)>) -> Result<UploadsPage, Error> {
        let operation = Operation::ListMultipartUploads;
        let (key_marker, id_marker) = after.map_or(("", ""), |(key, id)| (key, id));
        let request = Request::of_bucket(operation)
            .param("uploads", "")
            .param("max-uploads", PAGE_MAX.to_string())
            .param("encoding-type", "url")
            .param_if_any("prefix", prefix)
            .param_if_any("key-marker", key_marker)
            .param_if_any("upload-id-marker", id_marker);
        self.ask(&request, Expect::Xml, |reply| parse_uploads(&reply.xml)).await
    }
}

fn parse_initiated(body: &[u8]) -> Result<UploadId, XmlError> {
    let mut id = None;
    xml::walk(body, "InitiateMultipartUploadResult", |path, text| {
        if path == "UploadId" {
            id = xml::word(text);
        }
        Ok(())
    })?;
    id.map(UploadId::new).ok_or(XmlError::Missing("UploadId"))
}

fn complete_body(parts: &[(PartNumber, ETag)]) -> String {
    let mut out = String::with_capacity(64 + parts.len() * 100);
    out.push_str("<CompleteMultipartUpload>");
    for (number, etag) in parts {
        write!(out, "<Part><PartNumber>{number}</PartNumber><ETag>\"").expect("a String takes any text");
        xml::push_escaped(&mut out, etag.as_str());
        out.push_str("\"</ETag></Part>");
    }
    out.push_str("</CompleteMultipartUpload>");
    out
}

fn parse_completed(body: &[u8]) -> Result<ETag, XmlError> {
    let mut etag = None;
    xml::walk(body, "CompleteMultipartUploadResult", |path, text| {
        if path == "ETag" {
            etag = xml::word(text);
        }
        Ok(())
    })?;
    etag.map(|text| ETag::new(&text)).ok_or(XmlError::Missing("ETag"))
}

/// A `Part` element while it is read.
#[derive(Default)]
struct Part {
    number: Option<PartNumber>,
    etag: Option<ETag>,
    size: Option<u64>,
    crc64: Option<u64>,
}

impl Part {
    fn finish(self) -> Result<PartInfo, XmlError> {
        Ok(PartInfo {
            number: self.number.ok_or(XmlError::Missing("PartNumber"))?,
            etag: self.etag.ok_or(XmlError::Missing("ETag"))?,
            size: self.size.ok_or(XmlError::Missing("Size"))?,
            crc64: self.crc64,
        })
    }
}

fn parse_parts(body: &[u8]) -> Result<PartsPage, XmlError> {
    let mut page = PartsPage::default();
    let mut part = Part::default();
    let (mut truncated, mut marker) = (false, None);
    xml::walk(body, "ListPartsResult", |path, text| {
        match path {
            "Part/PartNumber" => part.number = PartNumber::new(xml::number(text, "PartNumber")?),
            "Part/ETag" => part.etag = Some(ETag::new(text)),
            "Part/Size" => part.size = Some(xml::number(text, "Size")?),
            "Part/HashCrc64ecma" => part.crc64 = text.trim().parse().ok(),
            "Part" => page.parts.push(std::mem::take(&mut part).finish()?),
            "IsTruncated" => truncated = xml::flag(text),
            "NextPartNumberMarker" => marker = text.trim().parse().ok(),
            _ => {}
        }
        Ok(())
    })?;
    if truncated {
        page.next_marker = Some(marker.ok_or(XmlError::Missing("NextPartNumberMarker"))?);
    }
    Ok(page)
}

/// An `Upload` element while it is read.
#[derive(Default)]
struct Upload {
    key: Option<String>,
    id: Option<String>,
    initiated: Option<std::time::SystemTime>,
}

impl Upload {
    fn finish(self) -> Result<UploadInfo, XmlError> {
        Ok(UploadInfo {
            key: self.key.ok_or(XmlError::Missing("Key"))?,
            upload_id: self.id.map(UploadId::new).ok_or(XmlError::Missing("UploadId"))?,
            initiated: self.initiated,
        })
    }
}

fn parse_uploads(body: &[u8]) -> Result<UploadsPage, XmlError> {
    let mut page = UploadsPage::default();
    let mut upload = Upload::default();
    let (mut encoded, mut truncated) = (false, false);
    let (mut next_key, mut next_id) = (None, String::new());
    xml::walk(body, "ListMultipartUploadsResult", |path, text| {
        match path {
            "Upload/Key" => upload.key = Some(text.into()),
            "Upload/UploadId" => upload.id = xml::word(text),
            "Upload/Initiated" => upload.initiated = time::parse_rfc3339(text),
            "Upload" => page.uploads.push(std::mem::take(&mut upload).finish()?),
            "EncodingType" => encoded = xml::is_url(text),
            "IsTruncated" => truncated = xml::flag(text),
            "NextKeyMarker" => next_key = Some(text.to_owned()).filter(|text| !text.is_empty()),
            "NextUploadIdMarker" => next_id = text.trim().into(),
            _ => {}
        }
        Ok(())
    })?;
    let keys = page.uploads.iter_mut().map(|upload| &mut upload.key);
    keys.chain(&mut next_key).for_each(|text| xml::decode_if(encoded, text));
    if truncated {
        page.next = Some((next_key.ok_or(XmlError::Missing("NextKeyMarker"))?, next_id));
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_samples_of_begin_and_end_are_read() {
        let id = parse_initiated(include_bytes!("../../../tests/data/xml/initiate-multipart.xml")).unwrap();
        assert_eq!(id.as_str(), "0004B9894A22E5B1888A1E29F8236E2D");
        let etag = parse_completed(include_bytes!("../../../tests/data/xml/complete-multipart.xml")).unwrap();
        assert_eq!(etag, ETag::new("B864DB6A936D376F9F8D3ED3BBE540DD-2"));
        assert!(parse_completed(b"<Error><Code>x</Code></Error>").is_err());
        assert!(parse_initiated(b"<InitiateMultipartUploadResult/>").is_err());
    }

    #[test]
    fn the_body_of_complete_is_as_the_sample() {
        let part = |number, etag| (PartNumber::new(number).unwrap(), ETag::new(etag));
        let parts = [part(1, "3349DC700140D7F86A0784842780AAAA"), part(5, "\"8EFDA8BE206636A695359836FE0ABBBB\"")];
        let wanted = include_str!("../../../tests/data/xml/complete-multipart-request.xml");
        assert_eq!(complete_body(&parts), wanted.trim_end());
    }

    #[test]
    fn parts_are_read() {
        let sample = include_str!("../../../tests/data/xml/list-parts.xml");
        let page = parse_parts(sample.as_bytes()).unwrap();
        assert_eq!(page.parts.len(), 2);
        assert_eq!((page.parts[0].number.get(), page.parts[0].size), (1, 6_291_456));
        assert_eq!(page.parts[0].crc64, Some(9_278_727_616_179_404_104));
        assert_eq!(page.parts[1].etag, ETag::new("7265F4D211B56873A381D321F586BBBB"));
        assert_eq!((page.parts[1].number.get(), page.parts[1].crc64), (5, None));
        assert_eq!(page.next_marker, None);
        let truncated = sample.replace("<IsTruncated>false", "<IsTruncated>true");
        assert_eq!(parse_parts(truncated.as_bytes()).unwrap().next_marker, Some(5));
        let bad = sample.replace("<PartNumber>5<", "<PartNumber>10001<");
        assert_eq!(parse_parts(bad.as_bytes()), Err(XmlError::Missing("PartNumber")));
    }

    #[test]
    fn uploads_are_read() {
        let sample = include_str!("../../../tests/data/xml/list-multipart-uploads.xml");
        let page = parse_uploads(sample.as_bytes()).unwrap();
        assert_eq!(page.uploads.len(), 3);
        assert_eq!(page.uploads[0].key, "multi+part.data");
        assert_eq!(page.uploads[2].key, "oss b.avi");
        assert_eq!(page.uploads[1].upload_id.as_str(), "0004B999EF5A239BB9138C6227D69F95");
        assert_eq!(page.uploads[2].initiated, time::parse_rfc3339("2012-02-23T06:14:27Z"));
        assert_eq!(page.next, None);
        let truncated = sample.replace("<IsTruncated>false", "<IsTruncated>true");
        let next = ("oss b.avi".into(), "0004B99B8E707874FC2D692FA5D77D3F".into());
        assert_eq!(parse_uploads(truncated.as_bytes()).unwrap().next, Some(next));
    }
}
