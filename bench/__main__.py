"""`python -m bench [NAME …]`: takes the figures, prints them as a table, and holds them against expected.yaml."""

import importlib
import os
import platform
import sys

from flows.__main__ import quiet

quiet()

from bench.figures import HEAD, Expected, expected  # noqa: E402

NAMES = ("sharding", "decoding", "lookup", "planning", "objects", "detection", "inference", "workers", "scale")
LONG = ("learning", "duplicates", "upkeep", "gate", "training", "tracing")  # only when it is asked for


def main() -> None:
    """Prints the figures that are asked for; ends with 1 where one is not what bench/expected.yaml says it must be."""
    if {"--help", "-h"} & {*sys.argv[1:]}:
        sys.exit(f"python -m bench [NAME …]: {', '.join(NAMES)}; and, only when asked for, {', '.join(LONG)}")
    asked = sys.argv[1:] or list(NAMES)
    if strangers := [name for name in asked if name not in NAMES + LONG]:
        sys.exit(f"unknown: {', '.join(strangers)}; there are {', '.join(NAMES + LONG)}")
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}\n")
    print(HEAD, flush=True)
    broken = []
    for name in asked:
        rules = expected().get(name, {})
        for figure in importlib.import_module(f"bench.{name}").run():
            rule = rules.pop(figure.what, Expected())
            print(rule.row(figure), flush=True)
            broken += [f"{name}: {figure.what}"] * rule.broken(figure.value)
        broken += [f"{name}: {what} was not measured" for what in rules]
    if broken:
        sys.exit("\nnot as bench/expected.yaml says:\n  " + "\n  ".join(broken))


if __name__ == "__main__":
    main()
