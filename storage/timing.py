"""What the seconds of a piece of work go into: starting, listing, reading, decoding, the model, writing, waiting.

Marks stand where all work passes: requests to a store, calls of a decoder, calls of a model. They cost next to nothing
where nobody collects, and a thread collects for itself alone.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

KINDS = ("start", "list", "read", "decode", "model", "write", "wait")
OTHER = "other"  # what none of these was
_mine = threading.local()


@contextmanager
def collected() -> Iterator[Counter[str]]:
    """Seconds by kind of what this thread does while the block lasts; what an inner block collects is the inner's."""
    before = getattr(_mine, "book", None), getattr(_mine, "busy", False)
    _mine.book, _mine.busy = Counter(), False
    try:
        yield _mine.book
    finally:
        _mine.book, _mine.busy = before


@contextmanager
def during(kind: str) -> Iterator[None]:
    """Counts the block as one of `KINDS`, unless it is part of something that is counted already."""
    book = getattr(_mine, "book", None)
    if book is None or _mine.busy:
        yield
        return
    _mine.busy, began = True, time.perf_counter()
    try:
        yield
    finally:
        _mine.busy = False
        book[kind] += time.perf_counter() - began


@dataclass
class Spent:
    """What a stage took: wall seconds, units done, items (such as clips) in them, and the seconds by kind of work.

    ``wall`` is its part of the run's time: stages that ran side by side have it in equal parts (0: as ``seconds``).
    """

    seconds: float = 0.0
    units: int = 0
    items: int = 0
    into: Counter[str] = field(default_factory=Counter)
    wall: float = 0.0

    @property
    def part(self) -> float:
        """The seconds of the run that are this stage's: those of all stages together are no more than the run took."""
        return self.wall or self.seconds


def shares(into: Counter[str] | dict[str, float], least: float = 0.005) -> str:
    """What seconds went into as shares, the largest first; where there are none it says so."""
    total = sum(into.values())
    if not total:
        return "not measured"
    order = sorted((name for name in into if into[name] > 0), key=lambda name: -into[name])
    return ", ".join(f"{name} {100 * into[name] / total:.0f} %" for name in order if into[name] >= least * total)


def rows(took: dict[str, Spent]) -> list[dict[str, str]]:
    """A row for each stage, the largest first: its share of the run's time, how long it took, and what that was."""
    total = sum(one.part for one in took.values()) or 1.0
    order = sorted(took, key=lambda name: -took[name].part)
    return [
        {
            "stage": name,
            "share": f"{100 * took[name].part / total:.0f} %",
            "seconds": f"{took[name].seconds:.1f}",
            "within the stage": shares(took[name].into),
        }
        for name in order
        if took[name].part >= 0.005 * total
    ]


def markdown(rows: list[dict[str, str]]) -> str:
    """`rows` as a section of a page in Prefect; empty where there are none."""
    if not rows:
        return ""
    body = "\n".join("| " + " | ".join(row.values()) + " |" for row in rows)
    return f"\n## Where the time went\n\n| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}\n{body}\n"
