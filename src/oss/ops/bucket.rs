//! GetBucketInfo and GetBucketStat (OSS reference §7.1).

use crate::oss::client::Client;
use crate::oss::error::Error;
use crate::oss::request::Request;
use crate::oss::transport::Expect;
use crate::oss::types::{BucketInfo, BucketStat, Operation};
use crate::oss::xml::{self, XmlError};

impl Client {
    /// Often denied to users who may do all else.
    pub async fn get_bucket_info(&self) -> Result<BucketInfo, Error> {
        let request = Request::of_bucket(Operation::GetBucketInfo).param("bucketInfo", "");
        self.ask(&request, Expect::Xml, |reply| parse_info(&reply.xml)).await
    }

    /// About an hour old.
    pub async fn get_bucket_stat(&self) -> Result<BucketStat, Error> {
        let request = Request::of_bucket(Operation::GetBucketStat).param("stat", "");
        self.ask(&request, Expect::Xml, |reply| parse_stat(&reply.xml)).await
    }
}

fn parse_info(body: &[u8]) -> Result<BucketInfo, XmlError> {
    let mut info = BucketInfo::default();
    xml::walk(body, "BucketInfo", |path, text| {
        match path {
            "Bucket/Name" => info.name = text.trim().into(),
            "Bucket/Location" => info.location = xml::word(text),
            "Bucket/ExtranetEndpoint" => info.extranet_endpoint = xml::word(text),
            "Bucket/IntranetEndpoint" => info.intranet_endpoint = xml::word(text),
            "Bucket/StorageClass" => info.storage_class = xml::word(text),
            "Bucket/Versioning" => info.versioning = xml::word(text),
            "Bucket/HierarchicalNamespace" => info.hierarchical_namespace = text.trim() == "Enabled",
            _ => {}
        }
        Ok(())
    })?;
    if info.name.is_empty() { Err(XmlError::Missing("Name")) } else { Ok(info) }
}

fn parse_stat(body: &[u8]) -> Result<BucketStat, XmlError> {
    let (mut storage, mut object_count, mut multipart_upload_count) = (None, None, 0);
    xml::walk(body, "BucketStat", |path, text| {
        match path {
            "Storage" => storage = Some(xml::number(text, "Storage")?),
            "ObjectCount" => object_count = Some(xml::number(text, "ObjectCount")?),
            "MultipartUploadCount" => multipart_upload_count = xml::number(text, "MultipartUploadCount")?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(BucketStat {
        storage: storage.ok_or(XmlError::Missing("Storage"))?,
        object_count: object_count.ok_or(XmlError::Missing("ObjectCount"))?,
        multipart_upload_count,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_info_of_the_sample_is_read() {
        let info = parse_info(include_bytes!("../../../tests/data/xml/bucket-info.xml")).unwrap();
        let wanted = BucketInfo {
            name: "sample-bucket".into(),
            location: Some("oss-cn-hangzhou".into()),
            extranet_endpoint: Some("oss-cn-hangzhou.aliyuncs.com".into()),
            intranet_endpoint: Some("oss-cn-hangzhou-internal.aliyuncs.com".into()),
            storage_class: Some("Standard".into()),
            versioning: Some("Suspended".into()),
            hierarchical_namespace: true,
        };
        assert_eq!(info, wanted);
        assert!(parse_info(b"<BucketInfo><Bucket/></BucketInfo>").is_err());
    }

    #[test]
    fn the_stat_of_the_sample_is_read() {
        let stat = parse_stat(include_bytes!("../../../tests/data/xml/bucket-stat.xml")).unwrap();
        assert_eq!(stat, BucketStat { storage: 1600, object_count: 230, multipart_upload_count: 40 });
        assert!(parse_stat(b"<BucketStat><Storage>x</Storage></BucketStat>").is_err());
    }
}
