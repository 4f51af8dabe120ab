//! ListObjectsV2 (OSS reference §8).

use crate::base::limits::PAGE_MAX;
use crate::base::{ETag, time};
use crate::oss::client::Client;
use crate::oss::error::Error;
use crate::oss::request::Request;
use crate::oss::transport::Expect;
use crate::oss::types::{ListEntry, ListPage, ListRequest, ObjectKind, Operation};
use crate::oss::xml::{self, XmlError};

use super::meta::object_kind;

impl Client {
    /// One page. `max_keys` of 0 counts as 1000.
    pub async fn list_objects(&self, request: &ListRequest) -> Result<ListPage, Error> {
        let max_keys = if request.max_keys == 0 { PAGE_MAX } else { request.max_keys.min(PAGE_MAX) };
        let sent = Request::of_bucket(Operation::ListObjectsV2)
            .param("list-type", "2")
            .param("encoding-type", "url")
            .param("max-keys", max_keys.to_string())
            .param_if_any("prefix", &request.prefix)
            .param_if_any("delimiter", request.delimiter.as_deref().unwrap_or_default())
            .param_if_any("start-after", request.start_after.as_deref().unwrap_or_default())
            .param_if_any("continuation-token", request.continuation_token.as_deref().unwrap_or_default());
        self.ask(&sent, Expect::Xml, |reply| parse(&reply.xml)).await
    }
}

/// A `Contents` element while it is read.
#[derive(Default)]
struct Entry {
    key: Option<String>,
    size: Option<u64>,
    etag: Option<ETag>,
    last_modified: Option<std::time::SystemTime>,
    kind: ObjectKind,
    storage_class: Option<String>,
}

impl Entry {
    fn finish(self) -> Result<ListEntry, XmlError> {
        Ok(ListEntry {
            key: self.key.ok_or(XmlError::Missing("Key"))?,
            size: self.size.ok_or(XmlError::Missing("Size"))?,
            etag: self.etag.ok_or(XmlError::Missing("ETag"))?,
            last_modified: self.last_modified.ok_or(XmlError::Missing("LastModified"))?,
            kind: self.kind,
            storage_class: self.storage_class,
        })
    }
}

fn parse(body: &[u8]) -> Result<ListPage, XmlError> {
    let mut page = ListPage::default();
    let mut entry = Entry::default();
    let (mut encoded, mut truncated, mut token) = (false, false, None);
    xml::walk(body, "ListBucketResult", |path, text| {
        match path {
            "Contents/Key" => entry.key = Some(text.into()),
            "Contents/Size" => entry.size = Some(xml::number(text, "Size")?),
            "Contents/ETag" => entry.etag = Some(ETag::new(text)),
            "Contents/LastModified" => entry.last_modified = time::parse_rfc3339(text),
            "Contents/Type" => entry.kind = object_kind(text),
            "Contents/StorageClass" => entry.storage_class = xml::word(text),
            "Contents" => page.entries.push(std::mem::take(&mut entry).finish()?),
            "CommonPrefixes/Prefix" => page.common_prefixes.push(text.into()),
            "EncodingType" => encoded = xml::is_url(text),
            "IsTruncated" => truncated = xml::flag(text),
            "NextContinuationToken" => token = xml::word(text),
            _ => {}
        }
        Ok(())
    })?;
    let keys = page.entries.iter_mut().map(|entry| &mut entry.key);
    keys.chain(&mut page.common_prefixes).chain(&mut token).for_each(|text| xml::decode_if(encoded, text));
    if truncated {
        // To go on without a token would begin anew, for ever.
        page.next_token = Some(token.ok_or(XmlError::Missing("NextContinuationToken"))?);
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoded_page_is_read() {
        let page = parse(include_bytes!("../../../tests/data/xml/list-v2-url-encoded.xml")).unwrap();
        let keys: Vec<&str> = page.entries.iter().map(|entry| entry.key.as_str()).collect();
        assert_eq!(
            keys,
            [
                "data/a b/",
                "data/a b/ctl\u{1}\t\n\r\u{7f}",
                "data/a b/link&<>\"'",
                "data/a b/mp-文件😀.bin",
                "data/a b/plus+.txt",
            ]
        );
        assert_eq!(page.common_prefixes, ["data/a b//", "data/a b/sub dir/"]);
        assert_eq!(page.next_token.as_deref(), Some("CiBkYXRhL2EgYi9wbHVzKy50eHQQAQ--"));
        let kinds: Vec<ObjectKind> = page.entries.iter().map(|entry| entry.kind).collect();
        use ObjectKind::{Appendable, Multipart, Normal, Symlink};
        assert_eq!(kinds, [Normal, Normal, Symlink, Multipart, Appendable]);
        let large = &page.entries[3];
        assert_eq!(large.size, 5_368_709_121);
        assert_eq!(large.etag, ETag::new("B864DB6A936D376F9F8D3ED3BBE540DD-3"));
        assert_eq!(Some(large.last_modified), time::parse_rfc3339("2024-03-07T08:09:13Z"));
        assert_eq!(large.storage_class.as_deref(), Some("IA"));
    }

    #[test]
    fn a_page_of_the_first_version_has_the_same_entries() {
        // It lacks the token of the second version: what is truncated and has none is refused.
        let sample = include_str!("../../../tests/data/xml/list-v1-url-encoded.xml");
        assert_eq!(parse(sample.as_bytes()), Err(XmlError::Missing("NextContinuationToken")));
        let whole = sample.replace("<IsTruncated>true", "<IsTruncated>false");
        let page = parse(whole.as_bytes()).unwrap();
        assert_eq!(page.entries[0].key, "p q/b+c");
        assert_eq!((page.entries[1].key.as_str(), page.entries[1].size), ("p q/c?d#e=f", 0));
    }

    #[test]
    fn empty_and_unencoded_pages_are_read() {
        let empty = parse(include_bytes!("../../../tests/data/xml/list-v2-empty.xml")).unwrap();
        assert_eq!(empty, ListPage::default());
        let grouped = parse(include_bytes!("../../../tests/data/xml/list-v2-grouped-prefixes.xml")).unwrap();
        assert_eq!(grouped.common_prefixes, ["a/", "b/", "c & d/"]);
        assert!(grouped.entries.is_empty() && grouped.next_token.is_none());
    }

    #[test]
    fn keys_keep_their_white_space_and_percent_signs() {
        let xml = "<ListBucketResult><CommonPrefixes><Prefix> a%20b </Prefix></CommonPrefixes></ListBucketResult>";
        assert_eq!(parse(xml.as_bytes()).unwrap().common_prefixes, [" a%20b "]);
    }

    #[test]
    fn pages_without_sense_are_refused() {
        for (inside, missing) in [
            ("<Contents><Size>1</Size></Contents>", "Key"),
            ("<Contents><Key>a</Key><Size>-1</Size></Contents>", "Size"),
            ("<Contents><Key>a</Key><Size>99999999999999999999</Size></Contents>", "Size"),
            ("<IsTruncated>true</IsTruncated>", "NextContinuationToken"),
        ] {
            let xml = format!("<ListBucketResult>{inside}</ListBucketResult>");
            assert_eq!(parse(xml.as_bytes()), Err(XmlError::Missing(missing)), "{inside}");
        }
    }

    #[test]
    fn a_page_cut_off_anywhere_is_refused() {
        let sample = include_bytes!("../../../tests/data/xml/list-v2-url-encoded.xml").trim_ascii_end();
        for end in 0..sample.len() {
            assert!(parse(&sample[..end]).is_err(), "cut at {end}");
        }
    }
}
