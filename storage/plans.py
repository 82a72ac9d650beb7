"""Plans: which sources an archive has and which part each belongs to, as one Parquet table sorted by part."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage import files, records, tables
from storage.errors import Conflict, Damaged
from storage.labels import Labels
from storage.ranges import opened
from storage.sources import Source

PLAN = pa.schema(
    [
        ("part", pa.string()),  # empty: a duplicate, or nothing to cut
        ("path", pa.string()),
        ("url", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("stamp", pa.string()),
        ("identity", pa.string()),
        ("content_id", pa.string()),  # where the whole source had to be read
        ("split", pa.string()),
        ("labels", pa.string()),  # JSON rows, or null
        ("metadata", pa.string()),
        ("start", pa.float64()),
        ("end", pa.float64()),  # null: up to the end of the source
        ("facts", pa.string()),  # JSON: what the header says
        ("attempt", pa.int32()),  # how often it was taken up again on request
        ("was", pa.string()),  # a committed part that holds the same clips already
    ]
)
WINDOW_BITS = 24  # low bits of a unit's place: its number within its source


@dataclass(frozen=True)
class Member:
    """A source, or a window of a long one in seconds, as a part holds it."""

    source: Source
    identity: str
    split: str
    labels: Labels | None
    start: float = 0.0
    end: float | None = None
    content_id: str = ""
    attempt: int = 0
    was: str = ""

    @property
    def labelled(self) -> str:
        return self.labels.kind if self.labels else "none"

    @property
    def whole(self) -> bool:
        return self.start == 0.0 and self.end is None

    @property
    def name(self) -> str:
        """The item as the ledger names it; a window as a media fragment."""
        if self.whole:
            return self.source.path
        return f"{self.source.path}#t={self.start:g},{'' if self.end is None else f'{self.end:g}'}"

    def facts(self) -> list[Any]:
        """What a part's id follows from; neither the place nor the name of the file."""
        rows = self.labels.rows if self.labels else None
        again = [self.attempt] if self.attempt else []
        return [self.identity, self.start, self.end, self.split, rows, self.source.metadata, *again]


@dataclass(frozen=True)
class Draft:
    """A part to be made; its members are read from the plan where it is made."""

    id: str
    plan: str
    units: int
    bytes: int


@dataclass(frozen=True)
class Limits:
    """How large a part may grow: units, bytes of sources, seconds of video (where a header says how long it is)."""

    units: int = 96
    bytes: int = 1 << 30
    seconds: float = 3600.0


def url(root: str, name: str, digest: str) -> str:
    return files.join(root, "plans", name, f"{digest}.parquet")


def place(path: str) -> int:
    """Where a source falls among all others: 40 bits that follow from its path."""
    return int(hashlib.sha256(f"part\0{path}".encode()).hexdigest()[:10], 16)


def pieces(places: np.ndarray, loads: np.ndarray, limits: Limits) -> Iterator[tuple[int, int]]:
    """Cuts units, sorted by place (uint64), into runs that are within the limits, and yields each run's ends.

    ``loads`` `[N, 3]` are units, bytes and seconds. A run that is too large is halved by the next bit of the places,
    so the runs follow from the set of places: a unit that comes splits at most the run it falls in, one that goes
    joins at most that run with its other half, and all others stay as they were. One unit is never divided.
    """
    most = np.array([limits.units, limits.bytes, limits.seconds])
    total = np.vstack([np.zeros(3), np.cumsum(loads, axis=0)])
    todo = [(0, len(places), 63)]
    while todo:
        first, last, bit = todo.pop()
        if last - first <= 1 or bit < 0 or (total[last] - total[first] <= most).all():
            if last > first:
                yield first, last
            continue
        middle = ((int(places[first]) >> bit) | 1) << bit
        cut = first + int(np.searchsorted(places[first:last], np.uint64(middle)))
        todo += [(cut, last, bit - 1), (first, cut, bit - 1)]


def part_id(recipe: dict[str, Any], members: list[list[Any]]) -> str:
    """A part's name: the digest of its members, in any order, and of how they are cut."""
    ordered = sorted(members, key=lambda facts: (facts[0], facts[1]))
    return files.digest_of({"schema": files.SCHEMA, "recipe": recipe, "members": ordered})[:16]


def drafts(root: str, name: str, digest: str) -> list[Draft]:
    """The parts of a plan."""
    table = tables.read(url(root, name, digest), ["part", "size"])
    grouped = table.group_by("part", use_threads=False).aggregate([("size", "count"), ("size", "sum")])
    found = [
        Draft(row["part"], url(root, name, digest), row["size_count"], row["size_sum"])
        for row in grouped.to_pylist()
        if row["part"]
    ]
    return sorted(found, key=lambda draft: draft.id)


def members(draft: Draft) -> list[Member]:
    """The sources of one part, in the order in which their clips lie in it."""
    try:
        try:
            rows = _rows_of(draft)
        except FileNotFoundError:
            raise
        except tables.BROKEN:  # perhaps only on the way: no digest goes with a range
            rows = _rows_of(draft)
    except FileNotFoundError as error:
        raise Damaged(f"{draft.plan}: the plan of part {draft.id} is gone; prepare again") from error
    except tables.BROKEN as error:
        tables.unless_ours(error, draft.plan)
        raise Damaged(f"{draft.plan} cannot be read ({error}); remove it and prepare again") from error
    return [member(row) for row in rows]


def _rows_of(draft: Draft) -> list[dict[str, Any]]:
    """The rows of one part; one of `tables.BROKEN` where they cannot be read, or are not as many as were planned."""
    with opened(draft.plan) as file:
        table = pq.read_table(file, filters=[("part", "=", draft.id)], page_checksum_verification=True)
    if table.num_rows != draft.units:
        raise ValueError(f"{table.num_rows} sources of part {draft.id}, {draft.units} were planned")
    return table.to_pylist()


def members_of(root: str, name: str, digest: str) -> dict[str, list[Member]]:
    """The sources of every part of a plan, which is read once."""
    found: dict[str, list[Member]] = {}
    for row in tables.read(url(root, name, digest)).to_pylist():
        if row["part"]:
            found.setdefault(row["part"], []).append(member(row))
    return found


def member(row: dict[str, Any]) -> Member:
    """A row of a plan as a member."""
    rows = json.loads(row["labels"]) if row["labels"] is not None else None
    labels = None if rows is None else Labels(tuple(tuple(r) for r in rows))
    source = Source(row["path"], row["url"], row["size"], row["stamp"], row["offset"], metadata=row["metadata"])
    known = {name: row[name] for name in ("identity", "split", "start", "end", "content_id", "attempt", "was")}
    return Member(source=source, labels=labels, **known)


def requeued_url(root: str, name: str) -> str:
    return files.join(root, "requeued", f"{name}.json")


def asked(attempts: dict[str, int]) -> bytes:
    """How often each source, by its identity, was asked to be tried again, as it is stored."""
    return json.dumps(records.seal(dict(attempts)), indent=1, sort_keys=True).encode()


def requeued(root: str, name: str) -> dict[str, int]:
    """How often each source, by its identity, was asked to be tried again."""
    try:
        found = files.read_json(requeued_url(root, name))
        return {str(k): int(v) for k, v in found.items() if k != records.DIGEST}
    except FileNotFoundError:
        return {}


def ask_again(root: str, name: str, attempts: dict[str, int]) -> None:
    """Has the next plan take sources up again that had these attempts, by identity; whoever asked before is enough."""

    def more(before: bytes | None) -> bytes:
        counts: dict[str, Any] = json.loads(before) if before else {}
        counts.pop(records.DIGEST, None)
        return asked(counts | {one: max(counts.get(one, 0), had + 1) for one, had in attempts.items()})

    if attempts:
        files.update(requeued_url(root, name), more)


def latest(root: str, name: str) -> str:
    """The digest of the newest plan of this name, empty where there is none."""
    try:
        return str(files.read_json(files.join(root, "plans", name, "latest.json"))["plan"])
    except FileNotFoundError:
        return ""


def save(root: str, name: str, path: Path, before: str) -> str:
    """Puts a written plan into the store and makes it the newest; returns the digest of the newest.

    ``before`` is the newest when this one was begun. Where another writer has made one since, it is that one.
    """
    digest = files.digest_file(path)[:16]
    files.publish(path, url(root, name, digest), same=False)
    pointer = files.join(root, "plans", name, "latest.json")
    return str(files.point({"plan": digest}, pointer, {"plan": before} if before else None)["plan"])


def newest(root: str, name: str, recipe: dict[str, Any]) -> str:
    """The digest of the newest plan; `Conflict` where it cuts clips in another way than ``recipe``."""
    digest = latest(root, name)
    if tables.about(url(root, name, digest))["recipe"] != recipe:
        raise Conflict(f"dataset {name}: another run plans it with other options at the same time; run again")
    return digest
