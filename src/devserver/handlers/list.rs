//! ListObjects and ListObjectsV2: the same pages in two dresses.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::bucket::owner;
use crate::base::limits::{KEY_BYTES_MAX, PAGE_MAX};
use crate::base::time;
use crate::devserver::call::Call;
use crate::devserver::failure::Failure;
use crate::devserver::reply::Reply;
use crate::devserver::s3;
use crate::devserver::store::{ListQuery, Object, Page};
use crate::devserver::xml::Document;

const MAX_KEYS_DEFAULT: u64 = 100;
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// `encoding-type`: how names are written in the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Plain,
    Url,
}

impl Encoding {
    pub(super) fn of(call: &Call) -> Result<Self, Failure> {
        match call.parameters.get("encoding-type") {
            None | Some("") => Ok(Self::Plain),
            Some("url") => Ok(Self::Url),
            Some(other) => Err(Failure::bad_value("encoding-type", other)),
        }
    }

    pub(super) fn apply(self, text: &str) -> String {
        match self {
            Self::Plain => text.into(),
            Self::Url => utf8_percent_encode(text, ENCODED).to_string(),
        }
    }

    pub(super) fn announce(self, document: &mut Document) {
        if self == Self::Url {
            document.element("EncodingType", "url");
        }
    }
}

/// A parameter that is a piece of a key.
pub(super) fn short(call: &Call, name: &str) -> Result<String, Failure> {
    let value = call.parameters.get(name).unwrap_or_default();
    if value.len() > KEY_BYTES_MAX { Err(Failure::bad_value(name, value)) } else { Ok(value.into()) }
}

/// What both versions have in common.
struct Listing {
    encoding: Encoding,
    query: ListQuery,
}

impl Listing {
    fn of(call: &Call, after: String) -> Result<Self, Failure> {
        let default = if call.is_s3 { s3::MAX_KEYS_DEFAULT } else { MAX_KEYS_DEFAULT };
        let limit = call.parameters.number("max-keys", 1..=u64::from(PAGE_MAX), default)? as usize;
        let query = ListQuery { prefix: short(call, "prefix")?, delimiter: short(call, "delimiter")?, after, limit };
        Ok(Self { encoding: Encoding::of(call)?, query })
    }

    fn page(&self, call: &Call) -> Result<Page<Arc<Object>>, Failure> {
        call.shared.store.list(call.bucket(), &self.query).map_err(|error| call.failure(error))
    }

    fn head(&self, call: &Call, markers: &[(&'static str, &str)], page: &Page<Arc<Object>>) -> Document {
        let mut document = Document::new("ListBucketResult");
        document.element("Name", call.bucket()).element("Prefix", self.encoding.apply(&self.query.prefix));
        for (name, value) in markers {
            document.element(name, self.encoding.apply(value));
        }
        document.element("MaxKeys", self.query.limit).element("Delimiter", self.encoding.apply(&self.query.delimiter));
        self.encoding.announce(&mut document);
        document.element("IsTruncated", page.next.is_some());
        document
    }

    fn items(&self, document: &mut Document, page: &Page<Arc<Object>>, with_owner: bool) {
        for (key, object) in &page.entries {
            let head = &object.head;
            document
                .open("Contents")
                .element("Key", self.encoding.apply(key))
                .element("LastModified", time::xml_utc(head.modified_at()))
                .element("ETag", format!("\"{}\"", head.etag))
                .element("Type", head.kind.name())
                .element("Size", head.size)
                .element("StorageClass", &head.attributes.storage_class);
            if with_owner {
                owner(document);
            }
            document.close();
        }
        for prefix in &page.common_prefixes {
            document.open("CommonPrefixes").element("Prefix", self.encoding.apply(prefix)).close();
        }
    }
}

pub(super) fn list_v1(call: &Call) -> Result<Reply, Failure> {
    let marker = short(call, "marker")?;
    let listing = Listing::of(call, marker.clone())?;
    let page = listing.page(call)?;
    let mut document = listing.head(call, &[("Marker", &marker)], &page);
    if let Some(next) = &page.next {
        document.element("NextMarker", listing.encoding.apply(next));
    }
    listing.items(&mut document, &page, true);
    Ok(Reply::xml(document.finish()))
}

pub(super) fn list_v2(call: &Call) -> Result<Reply, Failure> {
    let start_after = short(call, "start-after")?;
    let token = call.parameters.get("continuation-token").filter(|token| !token.is_empty());
    let resumed = token.map(|token| decode_token(token).ok_or_else(|| Failure::bad_value("continuation-token", token)));
    let listing = Listing::of(call, resumed.transpose()?.unwrap_or_else(|| start_after.clone()))?;
    let page = listing.page(call)?;
    let mut markers = Vec::new();
    if !start_after.is_empty() {
        markers.push(("StartAfter", start_after.as_str()));
    }
    markers.extend(token.map(|token| ("ContinuationToken", token)));
    let mut document = listing.head(call, &markers, &page);
    if let Some(next) = &page.next {
        document.element("NextContinuationToken", listing.encoding.apply(&encode_token(next)));
    }
    listing.items(&mut document, &page, call.parameters.get("fetch-owner") == Some("true"));
    document.element("KeyCount", page.entries.len() + page.common_prefixes.len());
    Ok(Reply::xml(document.finish()))
}

/// Tokens look like the service's: base64 with `-` for padding, and no character that an encoding would change,
/// since not every SDK decodes them.
fn encode_token(item: &str) -> String {
    STANDARD.encode(item).replace('=', "-").replace('+', "_").replace('/', ".")
}

fn decode_token(token: &str) -> Option<String> {
    let text = token.replace('-', "=").replace('_', "+").replace('.', "/");
    String::from_utf8(STANDARD.decode(text).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_encoded_as_the_samples_show() {
        assert_eq!(Encoding::Url.apply("p q/c?d#e=f+!'\n\u{1}文"), "p%20q%2Fc%3Fd%23e%3Df%2B%21%27%0A%01%E6%96%87");
        assert_eq!(Encoding::Plain.apply("p q"), "p q");
    }

    #[test]
    fn tokens_survive_and_need_no_encoding() {
        for item in ["", "a", "d/", "ü?>~\u{1f600}\n", "\u{7f}\u{3ff}\u{ffff}"] {
            let token = encode_token(item);
            assert_eq!(decode_token(&token).as_deref(), Some(item));
            assert_eq!(Encoding::Url.apply(&token), token);
        }
        assert_eq!(decode_token("not a token"), None);
    }
}
