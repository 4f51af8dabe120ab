"""Checks a server with the SDK `oss2`: check_oss2.py ENDPOINT BUCKET v1|v4."""

import sys

import oss2
from oss2.credentials import StaticCredentialsProvider
from oss2.models import PartInfo
from oss2.utils import Crc64

from checks import KEYS, defined_in, equal, pattern, run

ENDPOINT, BUCKET, SIGNATURE = sys.argv[1:4]
PART = 100 * 1024


def bucket_with(key_id="test-ak", secret="test-sk", name=BUCKET):
    provider = StaticCredentialsProvider(key_id, secret)
    if SIGNATURE == "v4":
        return oss2.Bucket(oss2.ProviderAuthV4(provider), ENDPOINT, name, region="cn-hangzhou")
    return oss2.Bucket(oss2.ProviderAuth(provider), ENDPOINT, name)


def fails(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


def crc(data):
    sum64 = Crc64()
    sum64.update(data)
    return sum64.crc


def check_put_and_get(bucket):
    for key in [*KEYS, "dots/../kept/./x"]:
        data = key.encode() * 3
        result = bucket.put_object(key, data, headers={"x-oss-meta-Who": "me", "Content-Type": "text/x"})
        equal(result.crc, crc(data))
        got = bucket.get_object(key)
        equal(got.read(), data)
        equal(got.headers["x-oss-meta-who"], "me")
        equal(got.content_type, "text/x")


def check_large_put_and_range(bucket):
    data = pattern(3_000_000)
    bucket.put_object("large", data)
    equal(bucket.get_object("large").read(), data)
    equal(bucket.get_object("large", byte_range=(1_000_000, 2_999_999)).read(), data[1_000_000:])
    equal(bucket.get_object("large", byte_range=(None, 10)).read(), data[-10:])
    whole = bucket.get_object("large", byte_range=(2_999_990, 9_000_000))
    equal((whole.status, len(whole.read())), (200, 3_000_000))
    standard = {"x-oss-range-behavior": "standard"}
    part = bucket.get_object("large", byte_range=(2_999_990, 9_000_000), headers=standard)
    equal((part.status, part.read()), (206, data[-10:]))
    equal(part.headers["Content-Range"], "bytes 2999990-2999999/3000000")
    error = fails(oss2.exceptions.ServerError, lambda: bucket.get_object("large", byte_range=(3_000_000, None), headers=standard))
    equal((error.status, error.code), (416, "InvalidRange"))


def check_head(bucket):
    head = bucket.head_object("large")
    equal((head.content_length, head.object_type, head.server_crc), (3_000_000, "Normal", crc(pattern(3_000_000))))
    meta = bucket.get_object_meta("large")
    equal((meta.content_length, meta.etag), (3_000_000, head.etag))
    equal(bucket.object_exists("large"), True)
    equal(bucket.object_exists("no such key"), False)


def check_conditions(bucket):
    etag = bucket.head_object("large").etag
    equal(bucket.get_object("large", headers={"If-Match": f'"{etag}"'}).status, 200)
    fails(oss2.exceptions.PreconditionFailed, lambda: bucket.get_object("large", headers={"If-Match": '"0"'}))
    fails(oss2.exceptions.NotModified, lambda: bucket.get_object("large", headers={"If-None-Match": f'"{etag}"'}))


def check_forbid_overwrite(bucket):
    forbid = {"x-oss-forbid-overwrite": "true"}
    bucket.delete_object("once")
    bucket.put_object("once", b"1", headers=forbid)
    error = fails(oss2.exceptions.ServerError, lambda: bucket.put_object("once", b"2", headers=forbid))
    equal((error.status, error.code), (409, "FileAlreadyExists"))


def check_list(bucket):
    for name in ["a", "b/1", "b/2", "c d", "e+f", "文", "z\x01"]:
        bucket.put_object(f"list/{name}", b"x")
    names = [o.key for o in oss2.ObjectIterator(bucket, prefix="list/", max_keys=2)]
    equal(names, [f"list/{name}" for name in ["a", "b/1", "b/2", "c d", "e+f", "z\x01", "文"]])
    equal([o.key for o in oss2.ObjectIteratorV2(bucket, prefix="list/", max_keys=3)], names)
    grouped = bucket.list_objects_v2(prefix="list/", delimiter="/", max_keys=1000)
    equal(grouped.prefix_list, ["list/b/"])
    equal(len(grouped.object_list), 5)
    equal([o.key for o in bucket.list_objects_v2(prefix="list/", start_after="list/e+f").object_list], names[5:])
    equal([o.key for o in bucket.list_objects(prefix="list/", marker="list/e+f").object_list], names[5:])
    equal(bucket.list_objects(prefix="list/b").object_list[0].size, 1)


def check_multipart(bucket):
    parts = [pattern(PART, 1), pattern(PART + 1, 2), pattern(7, 3)]
    upload = bucket.init_multipart_upload("multi part", headers={"x-oss-meta-k": "v"}).upload_id
    infos = []
    for number, data in enumerate(parts, 1):
        result = bucket.upload_part("multi part", upload, number, data)
        infos.append(PartInfo(number, result.etag, size=len(data), part_crc=result.crc))
    listed = [(p.part_number, p.size, p.etag) for p in oss2.PartIterator(bucket, "multi part", upload, max_parts=2)]
    equal(listed, [(p.part_number, p.size, p.etag) for p in infos])
    uploads = [u.upload_id for u in oss2.MultipartUploadIterator(bucket, prefix="multi ")]
    equal(uploads, [upload])
    bucket.complete_multipart_upload("multi part", upload, infos)
    head = bucket.head_object("multi part")
    equal((head.object_type, head.server_crc, head.headers["x-oss-meta-k"]), ("Multipart", crc(b"".join(parts)), "v"))
    equal(bucket.get_object("multi part").read(), b"".join(parts))
    fails(oss2.exceptions.NoSuchUpload, lambda: bucket.upload_part("multi part", upload, 4, b""))


def check_complete_all_and_small_parts(bucket):
    upload = bucket.init_multipart_upload("all").upload_id
    bucket.upload_part("all", upload, 3, b"third")
    first = bucket.upload_part("all", upload, 1, b"first")
    small = fails(
        oss2.exceptions.ServerError,
        lambda: bucket.complete_multipart_upload("all", upload, None, headers={"x-oss-complete-all": "yes"}),
    )
    equal(small.code, "EntityTooSmall")
    bucket.upload_part("all", upload, 1, pattern(PART))
    wrong = [PartInfo(1, first.etag)]
    error = fails(oss2.exceptions.ServerError, lambda: bucket.complete_multipart_upload("all", upload, wrong))
    equal(error.code, "InvalidPart")
    bucket.complete_multipart_upload("all", upload, None, headers={"x-oss-complete-all": "yes"})
    equal(bucket.get_object("all").read(), pattern(PART) + b"third")


def check_abort(bucket):
    upload = bucket.init_multipart_upload("never").upload_id
    bucket.upload_part("never", upload, 1, b"x")
    bucket.abort_multipart_upload("never", upload)
    fails(oss2.exceptions.NoSuchUpload, lambda: bucket.list_parts("never", upload))
    fails(oss2.exceptions.NoSuchUpload, lambda: bucket.abort_multipart_upload("never", upload))


def check_copy(bucket):
    bucket.put_object("source +1", b"bytes", headers={"x-oss-meta-a": "1", "Content-Type": "text/x"})
    bucket.copy_object(BUCKET, "source +1", "copy")
    head = bucket.head_object("copy")
    equal((head.headers["x-oss-meta-a"], head.content_type), ("1", "text/x"))
    replace = {"x-oss-metadata-directive": "REPLACE", "x-oss-meta-b": "2"}
    bucket.copy_object(BUCKET, "source +1", "copy", headers=replace)
    head = bucket.head_object("copy")
    equal((head.headers.get("x-oss-meta-a"), head.headers["x-oss-meta-b"]), (None, "2"))
    etag = head.etag
    bucket.copy_object(BUCKET, "copy", "copy", headers={"x-oss-meta-c": "3"})
    head = bucket.head_object("copy")
    equal((head.headers.get("x-oss-meta-b"), head.headers["x-oss-meta-c"], head.etag), (None, "3", etag))
    equal(bucket.get_object("copy").read(), b"bytes")
    stale = {"x-oss-copy-source-if-match": '"0"'}
    fails(oss2.exceptions.PreconditionFailed, lambda: bucket.copy_object(BUCKET, "copy", "other", headers=stale))


def check_part_copy(bucket):
    data = pattern(3_000_000)
    upload = bucket.init_multipart_upload("part copy").upload_id
    first = bucket.upload_part_copy(BUCKET, "large", (1_000_000, 1_999_999), "part copy", upload, 1)
    last = bucket.upload_part("part copy", upload, 2, b"end")
    bucket.complete_multipart_upload("part copy", upload, [PartInfo(1, first.etag), PartInfo(2, last.etag)])
    expected = data[1_000_000:2_000_000] + b"end"
    equal(bucket.get_object("part copy").read(), expected)
    equal(bucket.head_object("part copy").server_crc, crc(expected))


def check_append(bucket):
    bucket.delete_object("appended")
    first = bucket.append_object("appended", 0, b"hello ")
    second = bucket.append_object("appended", first.next_position, b"world", init_crc=first.crc)
    equal(second.next_position, 11)
    equal(bucket.get_object("appended").read(), b"hello world")
    error = fails(oss2.exceptions.PositionNotEqualToLength, lambda: bucket.append_object("appended", 3, b"x"))
    equal(error.next_position, 11)
    fails(oss2.exceptions.ObjectNotAppendable, lambda: bucket.append_object("large", 0, b"x"))


def check_symlink(bucket):
    bucket.put_object("target 文", b"pointed at", headers={"x-oss-meta-t": "1"})
    bucket.put_symlink("target 文", "link", headers={"x-oss-meta-l": "2"})
    equal(bucket.get_symlink("link").target_key, "target 文")
    equal(bucket.get_object("link").read(), b"pointed at")
    head = bucket.head_object("link")
    equal((head.content_length, head.object_type), (10, "Symlink"))
    equal((head.headers.get("x-oss-meta-t"), head.headers["x-oss-meta-l"]), (None, "2"))
    equal(bucket.get_object_meta("link").content_length, len("target 文".encode()))
    bucket.put_symlink("nowhere", "dangling")
    error = fails(oss2.exceptions.ServerError, lambda: bucket.get_object("dangling"))
    equal((error.status, error.code), (404, "SymlinkTargetNotExist"))


def check_delete(bucket):
    bucket.delete_object("copy")
    bucket.delete_object("copy")
    fails(oss2.exceptions.NoSuchKey, lambda: bucket.get_object("copy"))
    keys = [o.key for o in oss2.ObjectIterator(bucket, prefix="list/")] + ["list/never there"]
    deleted = bucket.batch_delete_objects(keys).deleted_keys
    equal(sorted(deleted), sorted(keys))
    equal([o.key for o in oss2.ObjectIterator(bucket, prefix="list/")], [])


def check_presigned_urls(bucket):
    url = bucket.sign_url("PUT", "by url +1", 60, headers={"x-oss-meta-u": "1"}, slash_safe=True)
    bucket.put_object_with_url(url, b"presigned", headers={"x-oss-meta-u": "1"})
    url = bucket.sign_url("GET", "by url +1", 60, params={"response-content-type": "text/y"}, slash_safe=True)
    got = bucket.get_object_with_url(url)
    equal((got.read(), got.content_type), (b"presigned", "text/y"))
    fails(oss2.exceptions.SignatureDoesNotMatch, lambda: bucket.get_object_with_url(url.replace("text%2Fy", "text%2Fz")))


def check_bucket_queries(bucket):
    equal(bucket.get_bucket_location().location, "oss-cn-hangzhou")
    info = bucket.get_bucket_info()
    equal((info.name, info.storage_class), (BUCKET, "Standard"))
    stat = bucket.get_bucket_stat()
    equal(stat.object_count, sum(1 for _ in oss2.ObjectIterator(bucket)))
    service = oss2.Service(bucket.auth, ENDPOINT, region="cn-hangzhou")
    equal(BUCKET in [b.name for b in oss2.BucketIterator(service)], True)


def check_errors(bucket):
    error = fails(oss2.exceptions.NoSuchKey, lambda: bucket.get_object("no such key"))
    equal((error.status, error.details["EC"], len(error.request_id)), (404, "0026-00000001", 24))
    equal(fails(oss2.exceptions.NotFound, lambda: bucket.head_object("no such key")).status, 404)
    fails(oss2.exceptions.NoSuchBucket, lambda: bucket_with(name="no-such-bucket").list_objects())
    fails(oss2.exceptions.SignatureDoesNotMatch, lambda: bucket_with(secret="wrong").get_object("large"))
    equal(fails(oss2.exceptions.ServerError, lambda: bucket_with("wrong").get_object("large")).code, "InvalidAccessKeyId")
    equal(fails(oss2.exceptions.ServerError, lambda: bucket.list_objects(max_keys=1001)).code, "InvalidArgument")
    digest = {"Content-MD5": "1B2M2Y8AsgTpgAmY7PhCfg=="}
    equal(fails(oss2.exceptions.ServerError, lambda: bucket.put_object("k", b"x", headers=digest)).code, "InvalidDigest")
    equal(fails(oss2.exceptions.ServerError, lambda: bucket.put_object("/k", b"x")).code, "InvalidObjectName")


run(f"oss2 {SIGNATURE}", defined_in(globals()), bucket_with())
