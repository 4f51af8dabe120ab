"""Writes a file on the mount at random, sparse in one half and dense in the other, and the same to a local file.

    random_write.py write MOUNTED LOCAL SIZE SEED

Dense: blocks in random order until the half is covered, then overwritten here and there. Sparse: few writes far
apart. Some handles are closed and opened again, so that the object is edited too, and some bytes are read back.
"""

import os
import random
import sys

UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
BLOCK = 4 << 20


def size_of(text):
    for unit, factor in UNITS.items():
        if text.endswith(unit):
            return int(text.removesuffix(unit)) * factor
    return int(text)


class Both:
    """The two files under the same operations."""

    def __init__(self, paths, rng):
        self.paths, self.rng, self.files = paths, rng, []
        self.open(os.O_CREAT | os.O_TRUNC)

    def open(self, flags=0):
        self.files = [os.open(path, os.O_RDWR | flags, 0o644) for path in self.paths]

    def close(self):
        for file in self.files:
            os.close(file)

    def reopen(self):
        self.close()
        self.open()

    def write(self, at, length):
        data = self.rng.randbytes(length)
        for file in self.files:
            done = 0
            while done < length:
                done += os.pwrite(file, data[done:], at + done)

    def truncate(self, size):
        for file in self.files:
            os.ftruncate(file, size)

    def check(self, at, length):
        found = [os.pread(file, length, at) for file in self.files]
        if found[0] != found[1]:
            sys.exit(f"differs within {length} bytes from {at}")


def write(mounted, local, size, seed):
    size, rng = size_of(size), random.Random(int(seed))
    print(f"random writes: {size} bytes, seed {seed}", flush=True)
    both, half = Both([mounted, local], rng), size // 2
    blocks = list(range(half // BLOCK))
    rng.shuffle(blocks)
    for done, block in enumerate(blocks):
        both.write(block * BLOCK, BLOCK)
        if rng.random() < 0.3:
            both.write(rng.randrange(half), rng.randrange(1, 100_000))
        if rng.random() < 0.05:
            both.check(rng.randrange(half), 1 << 20)
        if done == len(blocks) // 2:
            both.reopen()
    for _ in range(300):
        both.write(half + rng.randrange(half - 100_000), rng.randrange(1, 100_000))
    both.truncate(size)
    both.reopen()
    for _ in range(200):
        both.write(rng.randrange(size - 10_000), rng.randrange(1, 10_000))
        both.check(rng.randrange(size - 1), 1 << 18)
    both.truncate(size - 12_345)
    both.close()


if __name__ == "__main__":
    _, command, *arguments = sys.argv
    {"write": write}[command](*arguments)
