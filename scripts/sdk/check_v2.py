"""Checks a server with the SDK `alibabacloud_oss_v2`: check_v2.py ENDPOINT BUCKET v1|v4."""

import datetime
import sys
from io import BytesIO
from urllib.parse import quote, unquote

import alibabacloud_oss_v2 as oss
import requests

from checks import KEYS, defined_in, equal, pattern, run

ENDPOINT, BUCKET, SIGNATURE = sys.argv[1:4]
PART = 100 * 1024


def client_with(key_id="test-ak", secret="test-sk", region="cn-hangzhou"):
    config = oss.config.load_default()
    config.credentials_provider = oss.credentials.StaticCredentialsProvider(key_id, secret)
    config.region = region
    config.endpoint = ENDPOINT
    config.signature_version = SIGNATURE
    return oss.Client(config)


def fails(call):
    """The service's error that `call` ends with."""
    try:
        call()
    except oss.exceptions.OperationError as error:
        return error.unwrap()
    raise AssertionError("no error was raised")


def put(client, key, data, **more):
    return client.put_object(oss.PutObjectRequest(BUCKET, key, body=data, **more))


def get(client, key, **more):
    return client.get_object(oss.GetObjectRequest(BUCKET, key, **more))


def head(client, key):
    return client.head_object(oss.HeadObjectRequest(BUCKET, key))


def check_put_and_get(client):
    for key in KEYS:
        data = key.encode() * 3
        put(client, key, data, metadata={"Who": "me"}, content_type="text/x", cache_control="no-cache")
        got = get(client, key)
        equal(got.body.content, data)
        equal((dict(got.metadata), got.content_type, got.cache_control), ({"who": "me"}, "text/x", "no-cache"))


def check_large_put_and_range(client):
    data = pattern(3_000_000)
    put(client, "v2/large", data)
    equal(get(client, "v2/large").body.content, data)
    part = get(client, "v2/large", range_header="bytes=2999990-9000000", range_behavior="standard")
    equal((part.status_code, part.content_range, part.body.content), (206, "bytes 2999990-2999999/3000000", data[-10:]))
    whole = get(client, "v2/large", range_header="bytes=2999990-9000000")
    equal((whole.status_code, len(whole.body.content)), (200, 3_000_000))
    error = fails(lambda: get(client, "v2/large", range_header="bytes=3000000-", range_behavior="standard"))
    equal((error.status_code, error.code), (416, "InvalidRange"))


def check_head(client):
    found = head(client, "v2/large")
    equal((found.content_length, found.object_type, found.storage_class), (3_000_000, "Normal", "Standard"))
    meta = client.get_object_meta(oss.GetObjectMetaRequest(BUCKET, "v2/large"))
    equal((meta.content_length, meta.etag, meta.hash_crc64), (3_000_000, found.etag, found.hash_crc64))
    equal(client.is_object_exist(BUCKET, "v2/large"), True)
    equal(client.is_object_exist(BUCKET, "v2/none"), False)


def check_conditions(client):
    etag = head(client, "v2/large").etag
    equal(get(client, "v2/large", if_match=etag).status_code, 200)
    equal(fails(lambda: get(client, "v2/large", if_match='"0"')).status_code, 412)
    equal(fails(lambda: get(client, "v2/large", if_none_match=etag)).status_code, 304)


def check_list(client):
    names = [f"v2/list/{name}" for name in ["a", "b/1", "b/2", "c d", "e+f", "z\x01", "文"]]
    for name in names:
        put(client, name, b"x")
    request = oss.ListObjectsRequest(BUCKET, prefix="v2/list/", max_keys=2)
    pages = list(client.list_objects_paginator().iter_page(request))
    equal([o.key for page in pages for o in page.contents or []], names)
    request = oss.ListObjectsV2Request(BUCKET, prefix="v2/list/", max_keys=3)
    pages = list(client.list_objects_v2_paginator().iter_page(request))
    equal([o.key for page in pages for o in page.contents or []], names)
    equal(len(pages), 3)
    grouped = client.list_objects_v2(oss.ListObjectsV2Request(BUCKET, prefix="v2/list/", delimiter="/"))
    equal(([p.prefix for p in grouped.common_prefixes], grouped.key_count), (["v2/list/b/"], 6))
    later = client.list_objects_v2(oss.ListObjectsV2Request(BUCKET, prefix="v2/list/", start_after=names[4]))
    equal([o.key for o in later.contents], names[5:])


def check_multipart(client):
    key, parts = "v2/multi part", [pattern(PART, 1), pattern(PART + 1, 2), pattern(7, 3)]
    upload = client.initiate_multipart_upload(oss.InitiateMultipartUploadRequest(BUCKET, key, metadata={"k": "v"})).upload_id
    done = []
    for number, data in enumerate(parts, 1):
        request = oss.UploadPartRequest(BUCKET, key, part_number=number, upload_id=upload, body=data)
        done.append(oss.UploadPart(part_number=number, etag=client.upload_part(request).etag))
    pages = client.list_parts_paginator().iter_page(oss.ListPartsRequest(BUCKET, key, upload_id=upload, max_parts=2))
    equal([p.size for page in pages for p in page.parts], [len(data) for data in parts])
    pages = client.list_multipart_uploads_paginator().iter_page(oss.ListMultipartUploadsRequest(BUCKET, prefix=key))
    equal([(u.key, u.upload_id) for page in pages for u in page.uploads], [(key, upload)])
    body = oss.CompleteMultipartUpload(parts=done)
    client.complete_multipart_upload(
        oss.CompleteMultipartUploadRequest(BUCKET, key, upload_id=upload, complete_multipart_upload=body)
    )
    equal(get(client, key).body.content, b"".join(parts))
    found = head(client, key)
    equal((found.object_type, dict(found.metadata)), ("Multipart", {"k": "v"}))


def check_complete_all_and_abort(client):
    key = "v2/all"
    upload = client.initiate_multipart_upload(oss.InitiateMultipartUploadRequest(BUCKET, key)).upload_id
    client.upload_part(oss.UploadPartRequest(BUCKET, key, part_number=2, upload_id=upload, body=b"end"))
    client.upload_part(oss.UploadPartRequest(BUCKET, key, part_number=1, upload_id=upload, body=pattern(PART)))
    client.complete_multipart_upload(oss.CompleteMultipartUploadRequest(BUCKET, key, upload_id=upload, complete_all="yes"))
    equal(get(client, key).body.content, pattern(PART) + b"end")
    upload = client.initiate_multipart_upload(oss.InitiateMultipartUploadRequest(BUCKET, key)).upload_id
    client.abort_multipart_upload(oss.AbortMultipartUploadRequest(BUCKET, key, upload_id=upload))
    error = fails(lambda: client.list_parts(oss.ListPartsRequest(BUCKET, key, upload_id=upload)))
    equal((error.status_code, error.code), (404, "NoSuchUpload"))


def check_copy(client):
    put(client, "v2/source +1", b"bytes", metadata={"a": "1"})
    copy = dict(source_bucket=BUCKET, source_key="v2/source +1")
    client.copy_object(oss.CopyObjectRequest(BUCKET, "v2/copy", **copy))
    equal(dict(head(client, "v2/copy").metadata), {"a": "1"})
    client.copy_object(oss.CopyObjectRequest(BUCKET, "v2/copy", metadata_directive="REPLACE", metadata={"b": "2"}, **copy))
    equal(dict(head(client, "v2/copy").metadata), {"b": "2"})
    equal(get(client, "v2/copy").body.content, b"bytes")
    error = fails(lambda: client.copy_object(oss.CopyObjectRequest(BUCKET, "v2/other", if_match='"0"', **copy)))
    equal((error.status_code, error.code), (412, "PreconditionFailed"))


def check_part_copy(client):
    key, data = "v2/part copy", pattern(3_000_000)
    upload = client.initiate_multipart_upload(oss.InitiateMultipartUploadRequest(BUCKET, key)).upload_id
    client.upload_part_copy(
        oss.UploadPartCopyRequest(
            BUCKET, key, part_number=1, upload_id=upload, source_bucket=BUCKET, source_key="v2/large",
            source_range="bytes=1000000-1999999",
        )
    )
    client.complete_multipart_upload(oss.CompleteMultipartUploadRequest(BUCKET, key, upload_id=upload, complete_all="yes"))
    equal(get(client, key).body.content, data[1_000_000:2_000_000])


def check_managed_transfers(client):
    data = pattern(2_500_000, 5)
    request = oss.PutObjectRequest(BUCKET, "v2/managed")
    client.uploader(part_size=PART, parallel_num=4).upload_from(request, BytesIO(data))
    equal(get(client, "v2/managed").body.content, data)
    into = BytesIO()
    client.downloader(part_size=PART, parallel_num=4).download_to(oss.GetObjectRequest(BUCKET, "v2/managed"), into)
    equal(into.getvalue(), data)


def check_append(client):
    key = "v2/appended"
    client.delete_object(oss.DeleteObjectRequest(BUCKET, key))
    first = client.append_object(oss.AppendObjectRequest(BUCKET, key, position=0, body=b"hello "))
    client.append_object(oss.AppendObjectRequest(BUCKET, key, position=first.next_position, body=b"world"))
    equal(get(client, key).body.content, b"hello world")
    error = fails(lambda: client.append_object(oss.AppendObjectRequest(BUCKET, key, position=3, body=b"x")))
    equal((error.status_code, error.code), (409, "PositionNotEqualToLength"))


def check_symlink(client):
    put(client, "v2/target 文", b"pointed at")
    client.put_symlink(oss.PutSymlinkRequest(BUCKET, "v2/link", symlink_target=quote("v2/target 文")))
    target = client.get_symlink(oss.GetSymlinkRequest(BUCKET, "v2/link")).target
    equal(unquote(target), "v2/target 文")
    equal(get(client, "v2/link").body.content, b"pointed at")
    error = fails(lambda: client.get_symlink(oss.GetSymlinkRequest(BUCKET, "v2/large")))
    equal((error.status_code, error.code), (400, "NotSymlink"))


def check_delete(client):
    equal(client.delete_object(oss.DeleteObjectRequest(BUCKET, "v2/copy")).status_code, 204)
    equal(client.delete_object(oss.DeleteObjectRequest(BUCKET, "v2/copy")).status_code, 204)
    keys = [f"v2/list/{name}" for name in ["a", "b/1", "b/2", "c d", "e+f", "文"]]
    objects = [oss.DeleteObject(key=key) for key in keys]
    request = oss.DeleteMultipleObjectsRequest(BUCKET, objects=objects, encoding_type="url")
    equal([d.key for d in client.delete_multiple_objects(request).deleted_objects], keys)
    left = client.list_objects_v2(oss.ListObjectsV2Request(BUCKET, prefix="v2/list/"))
    equal([o.key for o in left.contents], ["v2/list/z\x01"])


def check_presigned_urls(client):
    life = datetime.timedelta(seconds=60)
    url = client.presign(oss.PutObjectRequest(BUCKET, "v2/by url +1"), expires=life).url
    equal(requests.put(url, data=b"presigned", headers={"Content-Type": None}, timeout=10).status_code, 200)
    url = client.presign(oss.GetObjectRequest(BUCKET, "v2/by url +1"), expires=life).url
    equal(requests.get(url, timeout=10).content, b"presigned")
    equal(requests.get(url.replace("by%20url", "by%20urn"), timeout=10).status_code, 403)


def check_bucket_queries(client):
    info = client.get_bucket_info(oss.GetBucketInfoRequest(BUCKET)).bucket_info
    equal((info.name, info.location), (BUCKET, "oss-cn-hangzhou"))
    equal(client.get_bucket_location(oss.GetBucketLocationRequest(BUCKET)).location, "oss-cn-hangzhou")
    stat = client.get_bucket_stat(oss.GetBucketStatRequest(BUCKET))
    equal(stat.object_count > 0 and stat.storage > 3_000_000, True)
    equal(BUCKET in [b.name for b in client.list_buckets(oss.ListBucketsRequest()).buckets], True)
    client.put_bucket(oss.PutBucketRequest("sdk-check-second"))
    client.list_objects_v2(oss.ListObjectsV2Request("sdk-check-second"))
    client.delete_bucket(oss.DeleteBucketRequest("sdk-check-second"))
    error = fails(lambda: client.list_objects_v2(oss.ListObjectsV2Request("sdk-check-second")))
    equal((error.status_code, error.code), (404, "NoSuchBucket"))


def check_errors(client):
    error = fails(lambda: get(client, "v2/none"))
    equal((error.status_code, error.code, error.ec), (404, "NoSuchKey", "0026-00000001"))
    error = fails(lambda: head(client, "v2/none"))
    equal((error.status_code, error.code, error.ec), (404, "NoSuchKey", "0026-00000001"))
    equal(fails(lambda: get(client_with(secret="wrong"), "v2/large")).code, "SignatureDoesNotMatch")
    equal(fails(lambda: head(client_with(secret="wrong"), "v2/large")).code, "SignatureDoesNotMatch")
    equal(fails(lambda: get(client_with("wrong"), "v2/large")).code, "InvalidAccessKeyId")
    if SIGNATURE == "v4":
        equal(fails(lambda: get(client_with(region="cn-beijing"), "v2/large")).ec, "0002-00000228")
    forbid = fails(lambda: put(client, "v2/large", b"x", forbid_overwrite=True))
    equal((forbid.status_code, forbid.code), (409, "FileAlreadyExists"))


run(f"v2 {SIGNATURE}", defined_in(globals()), client_with())
