//! The operations, one file a family. A handler finds the request authenticated and decides the rest.

mod append;
mod bucket;
mod complete;
mod copy;
mod delete;
mod list;
mod multipart;
mod put;
mod read;
mod symlink;
mod uploads;

use super::call::Call;
use super::failure::Failure;
use super::reply::Reply;
use super::request::{Operation, check_bucket, check_key};
pub(crate) use read::object_headers;

/// Does what the request asks.
pub(crate) async fn handle(call: &mut Call) -> Result<Reply, Failure> {
    if let Some(bucket) = &call.target.bucket {
        check_bucket(bucket)?;
        if call.operation != Operation::PutBucket && !call.shared.store.has_bucket(bucket) {
            return Err(Failure::no_such_bucket(bucket));
        }
    }
    if let Some(key) = &call.target.key {
        check_key(key)?;
    }
    match call.operation {
        Operation::ListBuckets => bucket::list_buckets(call),
        Operation::PutBucket => bucket::put_bucket(call),
        Operation::DeleteBucket => bucket::delete_bucket(call),
        Operation::GetBucketInfo => bucket::get_info(call),
        Operation::GetBucketStat => bucket::get_stat(call),
        Operation::GetBucketLocation => bucket::get_location(call),
        Operation::ListObjects => list::list_v1(call),
        Operation::ListObjectsV2 => list::list_v2(call),
        Operation::ListMultipartUploads => uploads::list_uploads(call),
        Operation::DeleteMultipleObjects => delete::delete_many(call).await,
        Operation::PutObject => put::put_object(call).await,
        Operation::GetObject => read::get_object(call),
        Operation::HeadObject => read::head_object(call),
        Operation::GetObjectMeta => read::get_object_meta(call),
        Operation::CopyObject => copy::copy_object(call),
        Operation::DeleteObject => delete::delete_one(call),
        Operation::AppendObject => append::append_object(call).await,
        Operation::PutSymlink => symlink::put_symlink(call),
        Operation::GetSymlink => symlink::get_symlink(call),
        Operation::InitiateMultipartUpload => multipart::initiate(call),
        Operation::UploadPart => multipart::upload_part(call).await,
        Operation::UploadPartCopy => copy::upload_part_copy(call).await,
        Operation::CompleteMultipartUpload => complete::complete(call).await,
        Operation::AbortMultipartUpload => multipart::abort(call),
        Operation::ListParts => uploads::list_parts(call),
        Operation::Unknown => Err(Failure::not_implemented("")),
    }
}
