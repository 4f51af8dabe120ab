"""Mixed tools on mounts of one bucket while everything goes wrong, against a ledger of what was acknowledged.

    mixed.py PROGRAM FOLDER URL MINUTES SEED

Four mounts: a prefix each for two, and one prefix twice, from two state folders. Tools write, workers and whole mounts
are killed, requests fail, the service goes away for seconds, keys are rotated. Every exit 0 is entered in the ledger;
what failed may have happened or not, and its names are not touched again. At the end the bucket must be what the
ledger says, with no upload and no session left that nobody knows of. Shares no code with the program.
"""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import threading
import time

from bucket import Bucket

BUCKET = "bench"
TOOL_SECONDS = 180
# Names that tools give to files of theirs until they are whole.
PASSING = re.compile(r"(^|/)(sed[A-Za-z0-9]{6}|\..*\.[A-Za-z0-9]{6}|.*\.conflict-[-0-9]+)$")
ABSENT = None


class Trouble(Exception):
    """What the soak looks for."""


class Chaos:
    """When something was last done that tools may notice."""

    def __init__(self):
        self.lock, self.until, self.counts = threading.Lock(), 0.0, {}

    def count(self, what):
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + 1

    def disturb(self, seconds):
        """What fails up to so many seconds from now is excused."""
        with self.lock:
            self.until = max(self.until, time.monotonic() + seconds)

    def excuses(self, begun):
        return begun < self.until


class Mount:
    def __init__(self, rig, name, prefix, options):
        self.rig, self.name, self.prefix = rig, name, prefix
        self.path, self.state = rig.folder / "m" / name, rig.folder / f"state-{name}"
        self.options = options
        # Tools that run, and whether more may begin: in a folder that is not mounted they would write to the disk.
        self.gate, self.running, self.is_closed = threading.Condition(), 0, False
        # What was begun before this may have met a dead mount.
        self.alive_from = 0.0
        self.path.mkdir(parents=True)

    def enter(self):
        with self.gate:
            self.gate.wait_for(lambda: not self.is_closed)
            self.running += 1

    def leave(self):
        with self.gate:
            self.running -= 1
            self.gate.notify_all()

    def close(self, closed):
        with self.gate:
            self.is_closed = closed
            self.gate.notify_all()
            if closed and not self.gate.wait_for(lambda: self.running == 0, TOOL_SECONDS):
                raise Trouble(f"tools hang on {self.name}, which was killed")

    def command(self, *words, timeout=120):
        return subprocess.run([self.rig.program, *map(str, words)], capture_output=True, text=True, timeout=timeout)

    def connection(self):
        return ["--endpoint", self.rig.url, "--region", "cn-hangzhou", "--state-dir", self.state,
                "--credentials-file", self.rig.keys]

    def mount(self):
        done = self.command("mount", f"{BUCKET}:{self.prefix}", self.path, *self.connection(), *self.options)
        if done.returncode:
            raise Trouble(f"{self.name} cannot be mounted: {done.stderr}")

    def status(self):
        done = self.command("status", self.path, "--json")
        return json.loads(done.stdout)["mounts"][0] if done.returncode == 0 else {}

    def kill_worker(self):
        if pid := self.status().get("worker_pid"):
            kill(pid, signal.SIGKILL)

    def kill_all(self):
        """Both at once: each would replace the other. Tools find their mount dead, and then mounted anew."""
        status = self.status()
        pids = [status.get("supervisor_pid"), status.get("worker_pid")]
        if not all(pids):
            return False
        # Before the first of them dies: a tool that fails tells at once.
        self.alive_from = float("inf")
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                kill(pid, number)
        self.close(True)
        subprocess.run(["umount", "-l", self.path], capture_output=True)
        # The lock of the state folder is free when the last thread has ended.
        for _ in range(600):
            if not any(os.path.exists(f"/proc/{pid}/task") and is_alive(pid) for pid in pids):
                break
            time.sleep(0.1)
        self.mount()
        self.alive_from = time.monotonic()
        self.close(False)
        return True


def kill(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def is_alive(pid):
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rsplit(") ", 1)[1][0] not in "ZX"


class Writer(threading.Thread):
    """One folder on one mount, written by one tool after the other."""

    def __init__(self, rig, mount, number, seed):
        super().__init__(daemon=True)
        self.rig, self.mount, self.rng = rig, mount, random.Random(seed)
        self.folder = f"w{number}"
        self.local = rig.folder / "local" / f"{mount.name}-{number}"
        self.local.mkdir(parents=True)
        # Name to bytes: what it holds for sure. `doubtful`: name to all that it may hold.
        self.sure, self.doubtful, self.moves = {}, {}, []
        self.next, self.done, self.failed, self.trouble = 0, 0, 0, None

    def run(self):
        try:
            while not self.rig.stop.is_set():
                self.step()
        except Exception as error:  # Whatever it is: the soak has found something.
            self.trouble = f"{self.mount.name}/{self.folder}: {type(error).__name__}: {error}"
            self.rig.stop.set()

    def fresh(self, suffix=""):
        self.next += 1
        return f"{self.folder}/f{self.next}{suffix}"

    def some(self):
        return self.rng.choice(sorted(self.sure)) if self.sure else None

    def bytes(self, most):
        return self.rng.randbytes(self.rng.randrange(most))

    def source(self, content):
        path = self.local / "source"
        path.write_bytes(content)
        return path

    def tool(self, script, *words):
        """Runs a script in the mount; whether it ended well."""
        self.mount.enter()
        try:
            return self.run_tool(script, *words)
        finally:
            self.mount.leave()

    def run_tool(self, script, *words):
        begun = time.monotonic()
        command = ["bash", "-c", f"cd -- \"$0\" && mkdir -p {self.folder} && {script}", self.mount.path, *map(str, words)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            try:
                output, _ = process.communicate(timeout=TOOL_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise Trouble(f"takes over {TOOL_SECONDS} s: {script}") from None
        self.done += 1
        if process.returncode == 0:
            return True
        self.failed += 1
        if not self.rig.chaos.excuses(begun) and begun >= self.mount.alive_from:
            raise Trouble(f"failed with nothing to excuse it: {script} {words}: {output}")
        return False

    def settle(self, after, well, *others):
        """Enters names and what they hold after a tool; `others` is what they may hold where it failed."""
        for name, content in after.items():
            before = self.sure.pop(name, ABSENT)
            if well and content is not ABSENT:
                self.sure[name] = content
            elif well:
                self.doubtful[name] = [ABSENT]
            else:
                self.doubtful[name] = [before, content, *others]

    def step(self):
        kinds = [self.copy, self.copy, self.over, self.dd, self.append, self.sed, self.move, self.move_over,
                 self.remove, self.tar, self.rsync, self.edit, self.cut, self.check, self.check]
        if len(self.sure) > 40:
            kinds = [self.remove, self.move_over]
        self.rng.choice(kinds)()

    def copy(self):
        name, content = self.fresh(), self.bytes(self.rng.choice([300, 40_000, 900_000]))
        self.settle({name: content}, self.tool('cp "$1" "$2"', self.source(content), name))

    def over(self):
        if name := self.some():
            content = self.bytes(500_000)
            self.settle({name: content}, self.tool('cp "$1" "$2"', self.source(content), name))

    def dd(self):
        name, content = self.fresh(), self.bytes(700_000)
        # Cut off after its fsync it may be there, before that in part: it had promised nothing.
        well = self.tool('dd if="$1" of="$2" bs=64k conv=fsync status=none', self.source(content), name)
        self.settle({name: content}, well)

    def append(self):
        if name := self.some():
            more = self.bytes(50_000)
            whole = self.sure[name] + more
            well = self.tool('cat "$1" >> "$2"', self.source(more), name)
            # What a killed appender had written is published.
            self.settle({name: whole}, well, *([] if well else [("prefix", len(self.sure.get(name, whole)), whole)]))

    def sed(self):
        name = self.fresh(".txt")
        text = "".join(f"line {self.rng.randrange(1000)}\n" for _ in range(self.rng.randrange(1, 3000)))
        self.settle({name: text.encode()}, self.tool('cp "$1" "$2"', self.source(text.encode()), name))
        if name in self.sure:
            changed = text.replace("1", "one")
            self.settle({name: changed.encode()}, self.tool('sed -i s/1/one/g "$1"', name))

    def move(self):
        if name := self.some():
            self.moved(name, self.fresh())

    def move_over(self):
        names = [self.some(), self.some()]
        if names[0] and names[0] != names[1]:
            self.moved(*names)

    def moved(self, name, to):
        content, before = self.sure[name], self.sure.get(to, ABSENT)
        well = self.tool('mv "$1" "$2"', name, to)
        self.settle({name: ABSENT, to: content}, well)
        if not well:
            self.moves.append((name, to, content))
            self.doubtful[to] = [before, content]

    def remove(self):
        if name := self.some():
            self.settle({name: ABSENT}, self.tool('rm "$1"', name))

    def tree(self, folder):
        tree = self.local / folder
        tree.mkdir(exist_ok=True)
        files = {f"n{number}": self.bytes(20_000) for number in range(self.rng.randrange(2, 9))}
        for name, content in files.items():
            (tree / name).write_bytes(content)
        return tree, files

    def tar(self):
        into = self.fresh()
        tree, files = self.tree(f"tar{self.next}")
        well = self.tool('mkdir "$2" && tar cf - -C "$1" . | tar xf - -C "$2"', tree, into)
        self.settle({f"{into}/{name}": content for name, content in files.items()}, well)

    def rsync(self):
        into = self.fresh()
        for _ in range(2):
            tree, files = self.tree(f"rsync{self.next}")
            well = self.tool('rsync -rtc "$1/" "$2"', tree, into)
            self.settle({f"{into}/{name}": content for name, content in files.items()}, well)
            if not well:
                return

    def edit(self):
        if (name := self.some()) and self.sure[name]:
            content = bytearray(self.sure[name])
            at, piece = self.rng.randrange(len(content)), self.bytes(3000) or b"x"
            content[at:at + len(piece)] = piece
            script = "import os,sys; f = os.open(sys.argv[1], os.O_RDWR); " \
                "os.pwrite(f, open(sys.argv[2], 'rb').read(), int(sys.argv[3])); os.close(f)"
            well = self.tool(f'python3 -c "{script}" "$1" "$2" "$3"', name, self.source(piece), at)
            self.settle({name: bytes(content)}, well)

    def cut(self):
        if name := self.some():
            size = self.rng.randrange(len(self.sure[name]) + 10_000)
            content = self.sure[name][:size].ljust(size, b"\0")
            self.settle({name: content}, self.tool('truncate -s "$2" "$1"', name, size))

    def check(self):
        if name := self.some():
            if self.tool('cat "$1" > "$2"', name, self.local / "read"):
                found = (self.local / "read").read_bytes()
                if found != self.sure[name]:
                    raise Trouble(f"{name} reads {len(found)} bytes that are not the {len(self.sure[name])} of before")


class Rig:
    def __init__(self, program, folder, url, seed):
        self.program, self.folder, self.url = program, pathlib.Path(folder), url
        self.rng, self.chaos, self.stop = random.Random(seed), Chaos(), threading.Event()
        self.bucket, self.keys, self.key = Bucket(url, BUCKET), self.folder / "keys", 0
        self.rotate()
        local = ["--part-size", "256KiB", "--close", "local"]
        plans = [("one", "one", ["--part-size", "256KiB"]), ("two", "two", local),
                 ("shared1", "shared", ["--list-ttl", "1s"]), ("shared2", "shared", ["--list-ttl", "1s"])]
        self.mounts = [Mount(self, *plan) for plan in plans]
        numbers = {"one": (1, 2), "two": (1, 2), "shared1": (1,), "shared2": (2,)}
        self.writers = [Writer(self, mount, number, seed * 100 + 10 * at + number)
                        for at, mount in enumerate(self.mounts) for number in numbers[mount.name]]

    def rotate(self):
        """New keys in the file first: whoever is refused looks there."""
        self.key += 1
        fresh = self.folder / "keys.new"
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(f"ak{self.key}:secret{self.key}\n")
        os.rename(fresh, self.keys)
        self.tell("credentials", {"access_key_id": f"ak{self.key}", "access_key_secret": f"secret{self.key}"})

    def tell(self, path, body):
        with self.bucket.call(path, body) as reply:
            reply.read()

    def fault(self):
        action = self.rng.choice([{"status": 500}, {"status": 503}, {"reset": "before"}, {"reset": "after"},
                                  {"delay_ms": 800}, {"truncate_body": 100}, {"garbage": "html"}])
        self.tell("faults", [{"operation": "*", "skip": self.rng.randrange(20), "times": 1, "action": action}])

    def outage(self):
        # Whoever holds a folder's lock fails while the service is out, and for as long as nobody has found it back.
        seconds = self.rng.uniform(1, 4)
        self.chaos.disturb(seconds + 20)
        self.tell("outage", {"on": True})
        time.sleep(seconds)
        self.tell("outage", {"on": False})
        self.chaos.disturb(20)

    def harm(self):
        kind = self.rng.choices(["worker killed", "all killed", "fault", "outage", "keys rotated"], [50, 12, 20, 6, 12])[0]
        mount = self.rng.choice(self.mounts)
        if kind == "worker killed":
            mount.kill_worker()
        elif kind == "all killed":
            if not mount.kill_all():
                return
        else:
            {"fault": self.fault, "outage": self.outage, "keys rotated": self.rotate}[kind]()
        self.chaos.count(kind)

    def run(self, minutes):
        for mount in self.mounts:
            mount.mount()
        begun = told = time.monotonic()
        for writer in self.writers:
            writer.start()
        while time.monotonic() - begun < minutes * 60 and not self.stop.is_set():
            self.stop.wait(self.rng.uniform(0.5, 4))
            self.harm()
            if time.monotonic() - told > 30:
                told = time.monotonic()
                self.tell_progress(told - begun)
        self.stop.set()
        self.chaos.disturb(600)
        self.tell("faults", [])
        for writer in self.writers:
            writer.join(TOOL_SECONDS + 60)
        troubles = [writer.trouble for writer in self.writers if writer.trouble]
        if troubles:
            raise Trouble("; ".join(troubles))
        self.tell_progress(time.monotonic() - begun)

    def tell_progress(self, seconds):
        done, failed = (sum(getattr(writer, what) for writer in self.writers) for what in ("done", "failed"))
        harm = ", ".join(f"{what} {number}" for what, number in sorted(self.chaos.counts.items()))
        print(f"{seconds:5.0f} s: {done} tools, {failed} of them cut off; {harm}", flush=True)

    def finish(self):
        """Sends what is pending and unmounts; gives what was kept."""
        kept = []
        for mount in self.mounts:
            done = mount.command("umount", mount.path, "--timeout", "3m", timeout=240)
            if done.returncode:
                raise Trouble(f"{mount.name} cannot be unmounted: {done.stderr}")
        for mount in self.mounts:
            place = f"{BUCKET}:{mount.prefix}"
            listed = mount.command("recover", "list", place, "--json", "--state-dir", mount.state)
            for entry in json.loads(listed.stdout):
                kept.append((mount.name, entry))
                gone = mount.command("recover", "discard", entry["id"], *mount.connection())
                if gone.returncode:
                    raise Trouble(f"{entry} cannot be discarded: {gone.stderr}")
        return kept

    def compare(self):
        objects = {item["key"] for item in self.bucket.objects() if not item["key"].endswith("/")}
        known, sure = set(), 0
        for writer in self.writers:
            prefix = writer.mount.prefix + "/"
            held = {}
            for name in [*writer.sure, *writer.doubtful]:
                known.add(prefix + name)
                held[name] = self.object(prefix + name) if prefix + name in objects else ABSENT
            for name, content in writer.sure.items():
                if held[name] != content:
                    raise Trouble(f"{prefix}{name}: {size(held[name])} in the bucket, {size(content)} acknowledged")
                sure += 1
            for name, legal in writer.doubtful.items():
                if name not in writer.sure and not any(fits(held[name], one) for one in legal):
                    raise Trouble(f"{prefix}{name}: {size(held[name])}, may be {[size(one) for one in legal]}")
            for name, to, content in writer.moves:
                if content not in (held[name], held[to]):
                    raise Trouble(f"{prefix}{name} was lost on its way to {to}")
        strangers = [key for key in objects - known if not PASSING.search(key)]
        if strangers:
            raise Trouble(f"nobody has written {strangers[:5]}")
        uploads = self.bucket.json(f"uploads/{BUCKET}")
        if uploads:
            raise Trouble(f"uploads are left: {uploads[:3]}")
        left = [path for mount in self.mounts for path in mount.state.glob("*/spill/*")]
        if left:
            raise Trouble(f"sessions are left: {left[:3]}")
        return sure

    def object(self, key):
        with self.bucket.call(f"object/{BUCKET}/{key}") as reply:
            return reply.read()


def size(content):
    if isinstance(content, tuple):
        return f"a beginning of {len(content[2])} bytes"
    return "nothing" if content is ABSENT else f"{len(content)} bytes"


def fits(held, legal):
    if isinstance(legal, tuple):
        _, least, whole = legal
        return held is not ABSENT and len(held) >= min(least, len(whole)) and whole.startswith(held)
    return held == legal


def main():
    _, program, folder, url, minutes, seed = sys.argv
    print(f"mixed: {minutes} minutes, seed {seed}", flush=True)
    rig = Rig(program, folder, url, int(seed))
    try:
        rig.run(float(minutes))
        kept = rig.finish()
        sure = rig.compare()
    except Trouble as trouble:
        sys.exit(f"mixed (seed {seed}): {trouble}")
    doubtful = sum(len(writer.doubtful) for writer in rig.writers)
    harm = ", ".join(f"{what} {number}" for what, number in sorted(rig.chaos.counts.items()))
    print(f"the bucket holds all {sure} files as acknowledged; {doubtful} names deleted or in doubt, "
          f"{len(kept)} sessions kept; {harm}")


if __name__ == "__main__":
    main()
