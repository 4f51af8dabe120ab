//! HeadObject, GetObjectMeta, GetObject (OSS reference §§7.3 to 7.5).

use http::header::{CONTENT_RANGE, IF_MATCH, IF_NONE_MATCH, RANGE};
use http::{HeaderMap, StatusCode};

use super::meta::{content_length, object_meta};
use crate::base::{ByteRange, ObjectKey};
use crate::oss::client::Client;
use crate::oss::download::{Download, Origin};
use crate::oss::error::{Error, REQUEST_ID};
use crate::oss::request::Request;
use crate::oss::transport::{Expect, Reply, header};
use crate::oss::types::{GetOptions, GetReply, ObjectMeta, Operation};

impl Client {
    /// Follows symlinks, as the service does.
    pub async fn head_object(&self, key: &ObjectKey) -> Result<ObjectMeta, Error> {
        let request = Request::of_object(Operation::HeadObject, key)?;
        self.head(&request, true).await
    }

    /// Does not follow symlinks; `headers` stay empty.
    pub async fn get_object_meta(&self, key: &ObjectKey) -> Result<ObjectMeta, Error> {
        let request = Request::of_object(Operation::GetObjectMeta, key)?.param("objectMeta", "");
        self.head(&request, false).await
    }

    async fn head(&self, request: &Request<'_>, stored: bool) -> Result<ObjectMeta, Error> {
        self.ask(request, Expect::Nothing, |reply| {
            content_length(&reply.headers).and_then(|size| object_meta(&reply.headers, size, stored))
        })
        .await
    }

    /// The head of the reply is here when this returns; the body comes as it is read.
    pub async fn get_object(&self, key: &ObjectKey, options: &GetOptions) -> Result<GetReply, Error> {
        let mut request = Request::of_object(Operation::GetObject, key)?;
        if let Some(range) = options.range {
            if range.is_empty() {
                return Err(Error::unsendable(
                    Operation::GetObject,
                    key.as_str(),
                    "an empty range cannot be asked for",
                ));
            }
            // Without it a range past the end is answered with the whole object.
            request = request.header(RANGE, &range.http())?.header_static("x-oss-range-behavior", "standard");
        }
        let (matching, other) = (options.if_match.as_ref(), options.if_none_match.as_ref());
        request = request
            .header_if_some(IF_MATCH, matching.map(|etag| etag.quoted()).as_deref())?
            .header_if_some(IF_NONE_MATCH, other.map(|etag| etag.quoted()).as_deref())?;
        let prepaid =
            self.prepay((Operation::GetObject, key.as_str()), options.range.map_or(0, |range| range.len())).await?;
        self.ask(&request, Expect::Stream, |reply| self.get_reply(key, options.range, prepaid, reply)).await
    }

    fn get_reply(
        &self,
        key: &ObjectKey,
        asked: Option<ByteRange>,
        prepaid: u64,
        reply: &mut Reply,
    ) -> Result<GetReply, String> {
        let (range, size) = answered_range(reply.status, &reply.headers, asked)?;
        let meta = object_meta(&reply.headers, size, true).map_err(|error| error.to_string())?;
        let request_id: Option<Box<str>> = header(&reply.headers, REQUEST_ID).map(Into::into);
        let origin = Origin {
            operation: Operation::GetObject,
            subject: key.as_str().into(),
            request_id: request_id.clone().map(Into::into),
            status: reply.status.as_u16(),
        };
        let transport = self.transport();
        let body = reply.stream.take().unwrap_or_default();
        let body = Download::new(body, range.len(), transport.patience, origin, transport.counters.clone())
            .shaped(transport.download.as_ref(), prepaid);
        Ok(GetReply { meta, range, body: Box::pin(body), request_id })
    }
}

/// The range that a reply carries, and the size of the whole object, held against what was asked for.
fn answered_range(
    status: StatusCode,
    headers: &HeaderMap,
    asked: Option<ByteRange>,
) -> Result<(ByteRange, u64), String> {
    let (range, size) = match status {
        StatusCode::OK => {
            let size = content_length(headers).map_err(|error| error.to_string())?;
            (ByteRange::at(0, size), size)
        }
        StatusCode::PARTIAL_CONTENT => {
            let text = header(headers, CONTENT_RANGE.as_str()).unwrap_or_default();
            content_range(text).ok_or_else(|| format!("`{text}` is no range of content"))?
        }
        _ => return Err(format!("status {status} answers no GET")),
    };
    // The whole object is as good as a range that holds all of it; some servers answer so.
    let wanted = asked.unwrap_or(ByteRange::new(0, u64::MAX)).intersect(&ByteRange::new(0, size));
    if range != wanted {
        return Err(format!("asked for the bytes {asked:?} and got {range:?} of {size}"));
    }
    if content_length(headers).is_ok_and(|length| length != range.len()) {
        return Err("length and range of the content do not agree".into());
    }
    Ok((range, size))
}

/// `bytes a-b/total`.
fn content_range(text: &str) -> Option<(ByteRange, u64)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, size): (u64, u64, u64) = (first.parse().ok()?, last.parse().ok()?, size.parse().ok()?);
    (first <= last && last < size).then(|| (ByteRange::new(first, last + 1), size))
}

#[cfg(test)]
mod tests {
    use super::super::meta::tests::parse;
    use super::*;

    fn answer(status: u16, headers: &str, asked: Option<(u64, u64)>) -> Option<(ByteRange, u64)> {
        let asked = asked.map(|(start, end)| ByteRange::new(start, end));
        answered_range(StatusCode::from_u16(status).unwrap(), &parse(headers), asked).ok()
    }

    #[test]
    fn a_range_is_believed_only_if_it_is_the_one_asked_for() {
        let part = "Content-Range: bytes 500-999/1000\nContent-Length: 500";
        let sound = Some((ByteRange::new(500, 1000), 1000));
        assert_eq!(answer(206, part, Some((500, 1000))), sound);
        assert_eq!(answer(206, part, Some((500, 2001))), sound);
        assert_eq!(answer(206, part, Some((500, 600))), None);
        assert_eq!(answer(206, part, Some((400, 1000))), None);
        assert_eq!(answer(206, part, None), None);
        assert_eq!(answer(206, "Content-Range: bytes 500-999/1000\nContent-Length: 499", Some((500, 1000))), None);
        for garbage in ["bytes 500-999/*", "bytes 999-500/1000", "bytes 500-1000/1000", "500-999/1000", ""] {
            assert_eq!(answer(206, &format!("Content-Range: {garbage}"), Some((500, 1000))), None, "{garbage}");
        }
    }

    #[test]
    fn a_whole_object_must_be_what_was_asked_for() {
        let whole = "Content-Length: 1000";
        assert_eq!(answer(200, whole, None), Some((ByteRange::new(0, 1000), 1000)));
        assert_eq!(answer(200, whole, Some((0, 1000))), Some((ByteRange::new(0, 1000), 1000)));
        assert_eq!(answer(200, whole, Some((0, 999))), None);
        assert_eq!(answer(200, whole, Some((1000, 2000))), None);
        assert_eq!(answer(200, "", None), None);
        assert_eq!(answer(204, whole, None), None);
    }
}
