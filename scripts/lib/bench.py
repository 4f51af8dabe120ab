"""Runs the cases of scripts/bench through each program, a fresh mount for each, and prints one table.

What is measured of a case: the time until the command returned (`done`) and until the bytes were in the bucket
(`stored`, as the server's control endpoint shows it), CPU seconds and peak resident memory of all processes of the
program, and the requests that the server counted.
"""

import argparse
import http.client
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
BUCKET = "bench"
DEADLINE = 900
TICKS = os.sysconf("SC_CLK_TCK")


class Server:
    """The dev server's control endpoints, and its unsigned S3 side for preparing objects."""

    def __init__(self, url):
        self.url, self.host = url, urllib.parse.urlsplit(url).netloc

    def ask(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection(self.host, timeout=DEADLINE)
        connection.request(method, path, body, headers or {})
        reply = connection.getresponse()
        found = reply.read()
        connection.close()
        if reply.status >= 400:
            raise SystemExit(f"{method} {path}: {reply.status} {found[:300]!r}")
        return found

    def reset(self):
        self.ask("POST", "/_dev/stats/reset", b"")

    def counts(self):
        requests = json.loads(self.ask("GET", "/_dev/stats"))["requests"]
        return {name: {"n": c["ok"] + c["error"], "in": c["bytes_in"], "out": c["bytes_out"]}
                for name, c in requests.items()}

    def objects(self, prefix):
        return {item["key"].removeprefix(prefix): item
                for item in json.loads(self.ask("GET", f"/_dev/objects/{BUCKET}?prefix={urllib.parse.quote(prefix)}"))}

    def put(self, key, body, headers=None):
        self.ask("PUT", f"/{BUCKET}/{urllib.parse.quote(key)}", body, headers)

    def copy(self, source, key):
        self.put(key, None, {"x-amz-copy-source": f"/{BUCKET}/{urllib.parse.quote(source)}", "Content-Length": "0"})


class Program:
    """A program that mounts; a new process for each case."""

    def __init__(self, name, command, environment=None):
        self.name, self.command, self.environment = name, command, environment or {}

    def mount(self, bench, prefix):
        return Mounted(self, bench, prefix)


def programs(arguments):
    ossfuse = lambda name, *options: Program(name, lambda prefix, mnt, own: [
        arguments.ossfuse, "mount", f"{BUCKET}:{prefix}", mnt, "-f", "--endpoint", arguments.url, "--region",
        "cn-hangzhou", "--state-dir", f"{own}/state", *options])
    passwd = f"{arguments.rig}/passwd-s3fs"
    with open(os.open(passwd, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
        file.write("any:any\n")
    s3fs = Program("s3fs", lambda prefix, mnt, own: [
        "s3fs", f"{BUCKET}:/{prefix}", mnt, "-f", "-o", f"url={arguments.url}", "-o", "use_path_request_style",
        "-o", f"passwd_file={passwd}", "-o", f"tmpdir={own}"])
    settings = {"TYPE": "s3", "PROVIDER": "Other", "ENDPOINT": arguments.url, "ACCESS_KEY_ID": "any",
                "SECRET_ACCESS_KEY": "any", "FORCE_PATH_STYLE": "true", "NO_CHECK_BUCKET": "true"}
    environment = {f"RCLONE_CONFIG_DEV_{name}": value for name, value in settings.items()}
    # It would wait 5 s before it sends; without that it is at its best.
    rclone = lambda mode: Program(f"rclone-{mode}", lambda prefix, mnt, own: [
        "rclone", "mount", f"dev:{BUCKET}/{prefix}", mnt, "--vfs-cache-mode", mode, "--vfs-write-back", "0s",
        "--cache-dir", f"{own}/cache", "--config", f"{own}/none"], environment)
    # The same program without write-back is what an older binary has to offer. It too sends at once here.
    said = subprocess.run([arguments.ossfuse, "mount", "--help"], capture_output=True, text=True, check=True).stdout
    local = [ossfuse("ossfuse-local", "--close", "local", "--send-after", "0s")] if "--close " in said else []
    return [ossfuse("ossfuse"), s3fs, *local, rclone("writes"), rclone("full")]


def clean_environment():
    """Nothing of this machine's own account or proxies has a say."""
    foreign = ("AWS_", "RCLONE_", "HTTP_", "HTTPS_", "ALL_PROXY")
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(foreign)}


class Mounted:
    def __init__(self, program, bench, prefix):
        self.bench, self.own = bench, f"{bench.rig}/own"
        self.mnt = f"{bench.rig}/mnt"
        for folder in (self.own, self.mnt):
            os.makedirs(folder, exist_ok=True)
        self.log = open(f"{bench.rig}/{program.name}.log", "wb")
        self.process = subprocess.Popen(program.command(prefix, self.mnt, self.own), stdout=self.log,
                                        stderr=self.log, env=clean_environment() | program.environment)
        begun = time.monotonic()
        while not os.path.ismount(self.mnt):
            if self.process.poll() is not None or time.monotonic() - begun > 60:
                raise SystemExit(f"{program.name} does not mount; see its log:\n" + open(self.log.name).read()[-2000:])
            time.sleep(0.02)
        os.listdir(self.mnt)
        time.sleep(0.3)

    def tree(self):
        """The program's processes."""
        children = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/stat") as file:
                    children.setdefault(int(file.read().rsplit(")", 1)[1].split()[1]), []).append(int(pid))
            except OSError:
                pass
        found = [self.process.pid]
        for pid in found:
            found += children.get(pid, [])
        return found

    def cpu(self):
        total = 0
        for pid in self.tree():
            try:
                with open(f"/proc/{pid}/stat") as file:
                    total += sum(map(int, file.read().rsplit(")", 1)[1].split()[11:15]))
            except OSError:
                pass
        return total / TICKS

    def forget_peak(self):
        for pid in self.tree():
            try:
                with open(f"/proc/{pid}/clear_refs", "w") as file:
                    file.write("5")
            except OSError:
                pass

    def peak(self):
        total = 0
        for pid in self.tree():
            try:
                with open(f"/proc/{pid}/status") as file:
                    total += sum(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
            except OSError:
                pass
        return total * KIB

    def close(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(120)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        subprocess.run(["umount", "-l", self.mnt], stderr=subprocess.DEVNULL, check=False)
        self.log.close()
        shutil.rmtree(self.own, ignore_errors=True)


class Bench:
    def __init__(self, arguments):
        self.rig, self.server, self.quick = arguments.rig, Server(arguments.url), arguments.quick
        self.large = (64 if self.quick else 1024) * MIB
        self.middle = (32 if self.quick else 256) * MIB
        self.small = (16 if self.quick else 64) * MIB
        self.files = 100 if self.quick else 1000
        rng = random.Random(1)
        self.noise = f"{self.rig}/noise"
        with open(self.noise, "wb") as file:
            for _ in range(self.large // MIB):
                file.write(rng.randbytes(MIB))
        self.tree = f"{self.rig}/tree"
        for folder in range(8):
            os.makedirs(f"{self.tree}/{folder}")
        for number in range(self.files):
            with open(f"{self.tree}/{number % 8}/{number}", "wb") as file:
                file.write(rng.randbytes(4 * KIB))
        with open(self.noise, "rb") as file:
            self.server.put("base/large", file, {"Content-Length": str(self.large)})
        with open(self.noise, "rb") as file:
            self.server.put("base/middle", file.read(self.middle))
        self.server.put("base/small", rng.randbytes(4 * KIB))

    def shell(self, script, mnt):
        return subprocess.run(["bash", "-euc", script], cwd=mnt, check=True, stdin=subprocess.DEVNULL)


# A case: what is in the prefix before, what is timed, and when it is stored.

def holds(name, size):
    return lambda bench, found, before: found.get(name, {}).get("size") == size and (
        found[name]["etag"] != before.get(name, {}).get("etag"))


class Case:
    def __init__(self, name, what, run, prepare=lambda bench, prefix: None, stored=lambda bench, found, before: True,
                 warm=None):
        self.name, self.what, self.run, self.prepare, self.stored, self.warm = name, what, run, prepare, stored, warm


def object_of(source, name):
    return lambda bench, prefix: bench.server.copy(f"base/{source}", f"{prefix}/{name}")


def many(folder, number):
    def prepare(bench, prefix):
        bench.server.put(f"{prefix}/{folder}/", b"")
        for item in range(number(bench)):
            bench.server.copy("base/small", f"{prefix}/{folder}/f{item}")
    return prepare


def random_writes(bench, mounted):
    rng, file = random.Random(2), os.open(f"{mounted.mnt}/f", os.O_RDWR)
    for _ in range(200 if bench.quick else 2000):
        os.pwrite(file, rng.randbytes(4 * KIB), rng.randrange(bench.middle // (4 * KIB)) * 4 * KIB)
    os.close(file)


def one_byte(bench, mounted):
    file = os.open(f"{mounted.mnt}/f", os.O_WRONLY)
    # Not right at the half: s3fs 1.90 makes a copied part there that is too small for the service.
    os.pwrite(file, b"!", bench.large // 2 + bench.large // 16 + 12345)
    os.close(file)


def script(text):
    return lambda bench, mounted: bench.shell(text.format(b=bench), mounted.mnt)


def all_files(bench, found, before):
    return sum(1 for name, item in found.items() if not name.endswith("/") and item["size"] == 4 * KIB) == bench.files


CASES = [
    Case("cp-in", "cp of one large file into the mount", script("cp {b.noise} f"),
         stored=lambda bench, found, before: holds("f", bench.large)(bench, found, before)),
    Case("cp-out", "cp of one large file out of a fresh mount", script("cp f {b.rig}/out; rm {b.rig}/out"),
         prepare=object_of("large", "f")),
    Case("write-4k", "one file by writes of 4 KiB", script("dd if={b.noise} of=f bs=4k count=$(({b.small} / 4096)) status=none"),
         stored=lambda bench, found, before: holds("f", bench.small)(bench, found, before)),
    Case("files-1", "files of 4 KiB, one after the other", script("cp -r {b.tree} t"), stored=all_files),
    Case("files-8", "files of 4 KiB, by eight processes",
         script("for p in 0 1 2 3 4 5 6 7; do cp -r {b.tree}/$p t$p & done; for j in $(jobs -p); do wait $j; done"),
         stored=all_files),
    Case("append", "append 1 KiB to a large object", script("head -c 1024 {b.noise} >> f"),
         prepare=object_of("large", "f"),
         stored=lambda bench, found, before: holds("f", bench.large + KIB)(bench, found, before)),
    Case("one-byte", "change one byte in the middle of a large object", one_byte, prepare=object_of("large", "f"),
         stored=lambda bench, found, before: holds("f", bench.large)(bench, found, before)),
    Case("random-4k", "random writes of 4 KiB into an object of a quarter of that", random_writes,
         prepare=object_of("middle", "f"),
         stored=lambda bench, found, before: holds("f", bench.middle)(bench, found, before)),
    Case("rename-dir", "rename a directory of 100 files", script("mv d e"), prepare=many("d", lambda bench: 100),
         stored=lambda bench, found, before: sum(name.startswith("e/f") for name in found) == 100
         and not any(name.startswith("d/f") for name in found)),
    Case("ls-l", "ls -l of a directory, the first time", script("ls -l d > /dev/null"),
         prepare=many("d", lambda bench: bench.files)),
    Case("ls-l-again", "the same at once again", script("ls -l d > /dev/null"),
         prepare=many("d", lambda bench: bench.files), warm=script("ls -l d > /dev/null")),
]


def measure(bench, case, program, number):
    prefix = f"{program.name}-{case.name}-{number}"
    bench.server.put(f"{prefix}/", b"", {"Content-Type": "application/x-directory"})
    case.prepare(bench, prefix)
    mounted = program.mount(bench, prefix)
    try:
        if case.warm:
            case.warm(bench, mounted)
        before = bench.server.objects(f"{prefix}/")
        mounted.forget_peak()
        bench.server.reset()
        cpu, begun = mounted.cpu(), time.monotonic()
        try:
            case.run(bench, mounted)
        except (OSError, subprocess.CalledProcessError) as error:
            refused = [line for line in bench.server.ask("GET", "/_dev/log").decode().splitlines()
                       if (status := json.loads(line)["status"]) >= 400 and status != 404]
            print(*refused[-5:], sep="\n", file=sys.stderr)
            with open(mounted.log.name, errors="replace") as log:
                raise SystemExit(f"{program.name}, {case.name}: {error}; its log ends:\n{log.read()[-3000:]}") from error
        done = time.monotonic() - begun
        while not case.stored(bench, bench.server.objects(f"{prefix}/"), before):
            if time.monotonic() - begun > DEADLINE:
                raise SystemExit(f"{program.name}, {case.name}: not in the bucket after {DEADLINE} s")
            time.sleep(0.01)
        stored = time.monotonic() - begun
        counts = bench.server.counts()
        return {"case": case.name, "program": program.name, "done_s": done, "stored_s": stored,
                "cpu_s": mounted.cpu() - cpu, "rss_bytes": mounted.peak(), "requests": counts,
                "requests_total": sum(count["n"] for count in counts.values()),
                "bytes_in": sum(count["in"] for count in counts.values()),
                "bytes_out": sum(count["out"] for count in counts.values())}
    finally:
        mounted.close()
        for key in bench.server.objects(f"{prefix}/"):
            bench.server.ask("DELETE", f"/{BUCKET}/" + urllib.parse.quote(f"{prefix}/{key}"))


def best(results):
    """Of several rounds the one that stored soonest: what disturbs a machine only ever adds."""
    return min(results, key=lambda result: result["stored_s"])


def show(result):
    megabytes = lambda number: f"{number / MIB:.1f}"
    print(f"{result['case']:12} {result['program']:14} {result['done_s']:8.3f} {result['stored_s']:8.3f} "
          f"{result['cpu_s']:7.2f} {megabytes(result['rss_bytes']):>8} {result['requests_total']:7} "
          f"{megabytes(result['bytes_in']):>9} {megabytes(result['bytes_out']):>9}", flush=True)


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench")
    for name in ("--ossfuse", "--rig", "--url"):
        parser.add_argument(name, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="small sizes: whether it runs, not how fast")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES])
    parser.add_argument("--program", action="append")
    parser.add_argument("--rounds", type=int, default=1, metavar="N")
    arguments = parser.parse_args()
    known = programs(arguments)
    unknown = set(arguments.program or []) - {program.name for program in known}
    if unknown:
        sys.exit(f"no such program: {', '.join(unknown)}; there are {', '.join(p.name for p in known)}")
    bench, results = Bench(arguments), []
    print(f"{'case':12} {'program':14} {'done s':>8} {'stored s':>8} {'CPU s':>7} {'RSS MiB':>8} {'requests':>7} "
          f"{'MiB up':>9} {'MiB down':>9}")
    for case in CASES:
        if arguments.case and case.name not in arguments.case:
            continue
        chosen = [program for program in known if not arguments.program or program.name in arguments.program]
        rounds = {program.name: [] for program in chosen}
        for number in range(arguments.rounds):
            for program in chosen:
                rounds[program.name].append(measure(bench, case, program, number))
        for name in rounds:
            results.append(best(rounds[name]))
            show(results[-1])
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"large": bench.large, "middle": bench.middle, "small": bench.small, "files": bench.files,
                       "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
