"""Runs checks in the order they are defined and prints one line for each.

A check is a function whose name begins with `check_`; it takes the module's client and raises if it fails.
"""

import sys
import traceback


def run(sdk, checks, client):
    """Prints `ok NAME` or `FAIL NAME: WHY` for each check; exits 1 if one failed."""
    failed = 0
    for check in checks:
        name = f"{sdk} {check.__name__.removeprefix('check_')}"
        try:
            check(client)
        except Exception as error:
            failed += 1
            print(f"FAIL {name}: {type(error).__name__}: {error}".replace("\n", " "), flush=True)
            traceback.print_exc()
        else:
            print(f"ok   {name}", flush=True)
    sys.exit(1 if failed else 0)


def defined_in(namespace):
    """The checks of a module, in order of definition."""
    return [value for name, value in namespace.items() if name.startswith("check_") and callable(value)]


def equal(found, expected):
    """Fails unless both are equal."""
    if found != expected:
        raise AssertionError(f"found {found!r}, expected {expected!r}")


def pattern(size, seed=0):
    """Bytes that differ from place to place."""
    block = bytes((i * 131 + seed) % 251 for i in range(4096))
    return (block * (size // len(block) + 1))[:size]


# Keys that encoders like to get wrong.
KEYS = ["plain", "dir/a b+c%25~.txt", "dir/文件 名", "dir//double", "q?x=1&y#z", "quote'\"<&>"]
