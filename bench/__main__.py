"""`python -m bench [NAME …]`: takes the figures and prints them as a table."""

import importlib
import os
import platform
import sys

from flows.__main__ import quiet

quiet()

from bench.figures import HEAD  # noqa: E402

NAMES = ("sharding", "decoding", "lookup", "planning", "objects", "detection")
LONG = ("learning", "duplicates", "upkeep", "gate", "training", "tracing", "inference")  # only when it is asked for


def main() -> None:
    asked = sys.argv[1:] or list(NAMES)
    if strangers := [name for name in asked if name not in NAMES + LONG]:
        sys.exit(f"unknown: {', '.join(strangers)}; there are {', '.join(NAMES + LONG)}")
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}\n")
    print(HEAD, flush=True)
    for name in asked:
        for figure in importlib.import_module(f"bench.{name}").run():
            print(figure.row(), flush=True)


if __name__ == "__main__":
    main()
