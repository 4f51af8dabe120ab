"""Measures how long nobody answers when a worker dies: from the SIGKILL to the first answer of the next one.

Once with a mount that has done nothing yet, and once with one that has told the kernel of many files, holds some open,
and is being written to.
"""

import argparse
import os
import signal
import statistics
import subprocess
import threading
import time

DEADLINE = 60


def wait_until(what, is_so):
    begun = time.monotonic()
    while not is_so():
        if time.monotonic() - begun > DEADLINE:
            raise SystemExit(f"waited too long: {what}")
        time.sleep(0.001)


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as listed:
        return [int(child) for child in listed.read().split()]


def is_dead(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(") ", 1)[1][0] in "ZX"
    except OSError:
        return True


def serves(pid):
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/comm") as name:
                if name.read().startswith("fuser-"):
                    return True
    except OSError:
        pass
    return False


def takeover(supervisor, place, last):
    """Milliseconds from the death of the worker to the first answer, and who died."""
    found = []

    def look():
        found[:] = [pid for pid in children(supervisor) if pid != last and serves(pid)]
        return found

    wait_until("a worker serves", look)
    worker = found[-1]
    os.statvfs(place)
    time.sleep(0.05)
    begun = time.monotonic()
    os.kill(worker, signal.SIGKILL)
    wait_until("it is dead", lambda: is_dead(worker))
    # The kernel never knows this by itself.
    os.statvfs(place)
    return (time.monotonic() - begun) * 1000, worker


def measure(title, supervisor, place, deaths):
    times, last = [], 0
    for _ in range(deaths):
        taken, last = takeover(supervisor, place, last)
        times.append(taken)
    times.sort()
    median, high = statistics.median(times), times[int(len(times) * 0.95)]
    print(f"{title}: median {median:.0f} ms, 95 % within {high:.0f} ms, longest {times[-1]:.0f} ms, {deaths} deaths")


def main():
    parser = argparse.ArgumentParser()
    for name in ("--ossfuse", "--rig", "--url"):
        parser.add_argument(name, required=True)
    parser.add_argument("--deaths", type=int, default=100)
    parser.add_argument("--files", type=int, default=10_000)
    options = parser.parse_args()
    place = os.path.join(options.rig, "takeover")
    os.mkdir(place)
    command = [options.ossfuse, "mount", "bench:takeover", place, "-f", "--endpoint", options.url,
               "--region", "cn-hangzhou", "--state-dir", os.path.join(options.rig, "state")]
    with open(os.path.join(options.rig, "takeover.log"), "wb") as log:
        mount = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until("the mount is up", lambda: os.path.ismount(place))
        measure("a new mount", mount.pid, place, options.deaths)
        for number in range(options.files):
            os.mknod(os.path.join(place, f"file-{number}"))
        opened = [open(os.path.join(place, f"file-{number}"), "rb") for number in range(min(options.files, 100))]
        stop = threading.Event()
        written = open(os.path.join(place, "written"), "wb", buffering=0)

        def write():
            while not stop.is_set():
                os.pwrite(written.fileno(), bytes(1 << 20), 0)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            measure(f"with {options.files} files known, {len(opened)} open, one being written", mount.pid, place,
                    options.deaths)
        finally:
            stop.set()
            writer.join()
    finally:
        mount.kill()
        mount.wait()
        subprocess.run(["umount", "-l", place], check=False, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
