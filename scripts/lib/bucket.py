"""Looks at the dev server's bucket from outside the mount, for scripts/demo.

Speaks to the control endpoints (docs/DEVSERVER.md) alone and shares no code with the program, so that what it finds
is not what the program believes. Exits 1 on any difference.

    bucket.py URL BUCKET COMMAND ...
"""

import hashlib
import json
import os
import sys
import urllib.parse
import urllib.request

CHUNK = 1 << 20
# A proxy of this machine has no say about its own address.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Bucket:
    def __init__(self, url, name):
        self.url, self.name = url, name

    def call(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        return OPENER.open(urllib.request.Request(f"{self.url}/_dev/{path}", data=data), timeout=60)

    def json(self, path, body=None):
        with self.call(path, body) as reply:
            return json.load(reply)

    def sum(self, key, length=None):
        """Hash and length of an object's bytes."""
        with self.call(f"object/{self.name}/{urllib.parse.quote(key)}") as reply:
            return sum_of(reply, length)

    def objects(self, prefix=""):
        return self.json(f"objects/{self.name}?prefix={urllib.parse.quote(prefix)}")


def sum_of(stream, length=None):
    digest, done = hashlib.sha256(), 0
    while length is None or done < length:
        chunk = stream.read(CHUNK if length is None else min(CHUNK, length - done))
        if not chunk:
            break
        digest.update(chunk)
        done += len(chunk)
    return digest.hexdigest(), done


def sum_of_file(path, length=None):
    with open(path, "rb") as file:
        return sum_of(file, length)


def fail(message):
    print(message, file=sys.stderr)
    sys.exit(1)


def ready(bucket):
    """Whether the server answers."""
    bucket.json("stats")


def counted(bucket, *operations):
    """`N BYTES` for each operation that was named: requests that succeeded, and what they carried in."""
    counts = bucket.json("stats")["requests"]
    for operation in operations:
        count = counts.get(operation, {"ok": 0, "bytes_in": 0})
        print(count["ok"], count["bytes_in"], end=" ")
    print()


def reset(bucket):
    bucket.json("stats/reset", {})


def connections(bucket):
    """Connections of clients that stand open."""
    print(bucket.json("stats")["connections"])


def bandwidth(bucket, bytes_per_second):
    bucket.json("bandwidth", {"bytes_per_second": int(bytes_per_second) or None})


def parts(bucket, key):
    """`N BYTES`: the parts of the unfinished upload of a key that the service holds."""
    found = [upload["parts"] for upload in bucket.json(f"uploads/{bucket.name}") if upload["key"] == key]
    held = [part for upload in found for part in upload]
    print(len(held), sum(part["size"] for part in held))


def size(bucket, key):
    """An object's size; `-` where there is none."""
    print(next((item["size"] for item in bucket.objects(key) if item["key"] == key), "-"))


def same_tree(bucket, prefix, folder):
    """Every file of a folder is an object under the prefix with the same bytes, and nothing else is there."""
    local = set()
    for path, _, names in os.walk(folder):
        local |= {os.path.relpath(os.path.join(path, name), folder) for name in names}
    remote = {item["key"].removeprefix(prefix) for item in bucket.objects(prefix) if not item["key"].endswith("/")}
    if local != remote:
        fail(f"the bucket lacks {sorted(local - remote)[:5]} and has besides {sorted(remote - local)[:5]}")
    total = 0
    for name in sorted(local):
        wanted = sum_of_file(os.path.join(folder, name))
        if bucket.sum(prefix + name) != wanted:
            fail(f"{prefix}{name} differs in the bucket")
        total += wanted[1]
    print(len(local), total)


def same_file(bucket, key, path, length):
    """The object is the first `length` bytes of the file; prints its SHA-256."""
    wanted = sum_of_file(path, int(length))
    found = bucket.sum(key)
    if found != wanted:
        fail(f"{key}: {found[1]} bytes with SHA-256 {found[0]}; wanted {wanted[1]} bytes with {wanted[0]}")
    print(found[0])


COMMANDS = {
    "ready": ready,
    "counted": counted,
    "reset": reset,
    "connections": connections,
    "bandwidth": bandwidth,
    "parts": parts,
    "size": size,
    "same-tree": same_tree,
    "same-file": same_file,
}

if __name__ == "__main__":
    _, url, name, command, *arguments = sys.argv
    COMMANDS[command](Bucket(url, name), *arguments)
