//! Buckets: their making, their end, and what can be asked of them.

use http::StatusCode;

use crate::base::time;
use crate::devserver::call::Call;
use crate::devserver::failure::Failure;
use crate::devserver::reply::Reply;
use crate::devserver::store::at_seconds;
use crate::devserver::xml::Document;

const OWNER: &str = "1000000000000001";

pub(super) fn owner(document: &mut Document) {
    document.open("Owner").element("ID", OWNER).element("DisplayName", OWNER).close();
}

pub(super) fn list_buckets(call: &Call) -> Result<Reply, Failure> {
    let location = format!("oss-{}", call.shared.region);
    let mut document = Document::new("ListAllMyBucketsResult");
    owner(&mut document);
    document.open("Buckets");
    for (name, created) in call.shared.store.buckets() {
        document
            .open("Bucket")
            .element("CreationDate", time::xml_utc(at_seconds(created)))
            .element("ExtranetEndpoint", format!("{location}.aliyuncs.com"))
            .element("IntranetEndpoint", format!("{location}-internal.aliyuncs.com"))
            .element("Location", &location)
            .element("Name", name)
            .element("Region", &call.shared.region)
            .element("StorageClass", "Standard")
            .close();
    }
    Ok(Reply::xml(document.finish()))
}

pub(super) fn put_bucket(call: &Call) -> Result<Reply, Failure> {
    call.shared.store.create_bucket(call.bucket(), call.now).map_err(|error| call.failure(error))?;
    Ok(Reply::ok().header("location", &format!("/{}", call.bucket())))
}

pub(super) fn delete_bucket(call: &Call) -> Result<Reply, Failure> {
    call.shared.store.delete_bucket(call.bucket()).map_err(|error| call.failure(error))?;
    Ok(Reply::new(StatusCode::NO_CONTENT))
}

pub(super) fn get_info(call: &Call) -> Result<Reply, Failure> {
    let figures = call.shared.store.figures(call.bucket()).map_err(|error| call.failure(error))?;
    let location = format!("oss-{}", call.shared.region);
    let mut document = Document::new("BucketInfo");
    document
        .open("Bucket")
        .element("AccessMonitor", "Disabled")
        .element("CreationDate", time::xml_utc(at_seconds(figures.created)))
        .element("CrossRegionReplication", "Disabled")
        .element("DataRedundancyType", "LRS")
        .element("ExtranetEndpoint", format!("{location}.aliyuncs.com"))
        .element("IntranetEndpoint", format!("{location}-internal.aliyuncs.com"))
        .element("Location", &location)
        .element("Name", call.bucket())
        .element("StorageClass", "Standard")
        .element("TransferAcceleration", "Disabled");
    owner(&mut document);
    document.open("AccessControlList").element("Grant", "private").close();
    document.open("ServerSideEncryptionRule").element("SSEAlgorithm", "None").close();
    document.element("Comment", "");
    Ok(Reply::xml(document.finish()))
}

pub(super) fn get_stat(call: &Call) -> Result<Reply, Failure> {
    let figures = call.shared.store.figures(call.bucket()).map_err(|error| call.failure(error))?;
    let mut document = Document::new("BucketStat");
    document
        .element("Storage", figures.bytes)
        .element("ObjectCount", figures.objects)
        .element("MultipartUploadCount", figures.uploads)
        .element("LiveChannelCount", 0)
        .element("LastModifiedTime", time::since_epoch(call.now).as_secs())
        .element("StandardStorage", figures.bytes)
        .element("StandardObjectCount", figures.objects);
    Ok(Reply::xml(document.finish()))
}

pub(super) fn get_location(call: &Call) -> Result<Reply, Failure> {
    let mut document = Document::new("LocationConstraint");
    document.text(&format!("oss-{}", call.shared.region));
    Ok(Reply::xml(document.finish()))
}
