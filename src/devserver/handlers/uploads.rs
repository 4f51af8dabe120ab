//! ListParts and ListMultipartUploads.

use crate::base::limits::PAGE_MAX;
use crate::base::time;
use crate::devserver::call::Call;
use crate::devserver::failure::Failure;
use crate::devserver::reply::Reply;
use crate::devserver::store::{Upload, at_seconds};
use crate::devserver::xml::Document;

use super::list::{Encoding, short};

pub(super) fn list_parts(call: &Call) -> Result<Reply, Failure> {
    let encoding = Encoding::of(call)?;
    let limit = call.parameters.number("max-parts", 1..=u64::from(PAGE_MAX), PAGE_MAX.into())? as usize;
    let marker = call.parameters.number("part-number-marker", 0..=u64::from(u32::MAX), 0)?;
    let upload = call.shared.store.upload(call.bucket(), call.key(), call.upload_id());
    let upload = upload.map_err(|error| call.failure(error))?;
    let mut later = upload.parts.values().filter(|part| u64::from(part.head.number) > marker);
    let page: Vec<_> = later.by_ref().take(limit).collect();
    let last = page.last().map_or(0, |part| part.head.number);
    let mut document = Document::new("ListPartsResult");
    encoding.announce(&mut document);
    document
        .element("Bucket", call.bucket())
        .element("Key", encoding.apply(call.key()))
        .element("UploadId", call.upload_id())
        .element("StorageClass", &upload.head.attributes.storage_class)
        .element("PartNumberMarker", marker)
        .element("NextPartNumberMarker", last)
        .element("MaxParts", limit)
        .element("IsTruncated", later.next().is_some());
    for part in page {
        let head = &part.head;
        document
            .open("Part")
            .element("PartNumber", head.number)
            .element("LastModified", time::xml_utc(at_seconds(head.modified)))
            .element("ETag", format!("\"{}\"", head.etag))
            .element("HashCrc64ecma", head.crc64)
            .element("Size", head.size)
            .close();
    }
    Ok(Reply::xml(document.finish()))
}

/// An item of the listing: uploads with keys under one common prefix count once.
enum Item<'a> {
    Upload(&'a str, &'a str, &'a Upload),
    Prefix(&'a str),
}

pub(super) fn list_uploads(call: &Call) -> Result<Reply, Failure> {
    let encoding = Encoding::of(call)?;
    let limit = call.parameters.number("max-uploads", 1..=u64::from(PAGE_MAX), PAGE_MAX.into())? as usize;
    let (prefix, delimiter) = (short(call, "prefix")?, short(call, "delimiter")?);
    let (key_marker, id_marker) = (short(call, "key-marker")?, short(call, "upload-id-marker")?);
    let uploads = call.shared.store.uploads(call.bucket()).map_err(|error| call.failure(error))?;
    let mut items: Vec<Item<'_>> = Vec::new();
    for ((key, id), upload) in &uploads {
        let Some(rest) = key.strip_prefix(&prefix) else { continue };
        let end = if delimiter.is_empty() { None } else { rest.find(&delimiter) };
        let group = end.map(|end| &key[..prefix.len() + end + delimiter.len()]);
        let name = group.unwrap_or(key);
        let same_key_later = group.is_none() && name == key_marker && !id_marker.is_empty() && *id > id_marker;
        if name <= key_marker.as_str() && !same_key_later {
            continue;
        }
        match group {
            None => items.push(Item::Upload(key, id, upload)),
            Some(group) if matches!(items.last(), Some(Item::Prefix(last)) if *last == group) => {}
            Some(group) => items.push(Item::Prefix(group)),
        }
    }
    let truncated = items.len() > limit;
    items.truncate(limit);
    let (next_key, next_id) = match items.last() {
        Some(Item::Upload(key, id, _)) if truncated => (*key, *id),
        Some(Item::Prefix(prefix)) if truncated => (*prefix, ""),
        _ => ("", ""),
    };
    let mut document = Document::new("ListMultipartUploadsResult");
    encoding.announce(&mut document);
    document
        .element("Bucket", call.bucket())
        .element("KeyMarker", encoding.apply(&key_marker))
        .element("UploadIdMarker", &id_marker)
        .element("NextKeyMarker", encoding.apply(next_key))
        .element("NextUploadIdMarker", next_id)
        .element("Delimiter", encoding.apply(&delimiter))
        .element("Prefix", encoding.apply(&prefix))
        .element("MaxUploads", limit)
        .element("IsTruncated", truncated);
    for item in &items {
        match item {
            Item::Upload(key, id, upload) => document
                .open("Upload")
                .element("Key", encoding.apply(key))
                .element("UploadId", id)
                .element("StorageClass", &upload.head.attributes.storage_class)
                .element("Initiated", time::xml_utc(at_seconds(upload.head.initiated)))
                .close(),
            Item::Prefix(prefix) => document.open("CommonPrefixes").element("Prefix", encoding.apply(prefix)).close(),
        };
    }
    Ok(Reply::xml(document.finish()))
}
