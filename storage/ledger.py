"""The ledger: one row per source item and step, saying whether it was kept, dropped or quarantined, and why."""

import socket
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from storage import files, tables
from storage.errors import Damaged
from storage.secrets import redact

SCHEMA = pa.schema(
    [
        ("step", pa.string()),
        ("item", pa.string()),
        ("content_id", pa.string()),
        ("verdict", pa.string()),  # kept | dropped | quarantined
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("clips", pa.int32()),
        ("duration", pa.float64()),  # seconds of video
        ("error", pa.string()),  # class of the exception behind the reason
        ("scores", pa.map_(pa.string(), pa.float64())),
        ("thresholds", pa.map_(pa.string(), pa.float64())),
        ("seconds", pa.float64()),  # spent on the item
        ("host", pa.string()),
    ]
)
VOLATILE = ("seconds", "host")  # differ from run to run; all else follows from the input
OLD = {"seconds": "duration"}  # names of schema 1


@dataclass(frozen=True)
class Entry:
    """What one step did with one item."""

    item: str
    verdict: str
    reason: str = ""
    detail: str = ""
    content_id: str = ""
    clips: int = 0
    duration: float = 0.0
    error: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    host: str = field(default_factory=socket.gethostname)


@dataclass
class Report:
    """Counts of one step; reports add up over parts. ``decoded`` counts the videos that were decoded."""

    items: int = 0
    kept: int = 0
    dropped: Counter = field(default_factory=Counter)
    quarantined: Counter = field(default_factory=Counter)
    decoded: int = 0
    seconds: float = 0.0
    bytes: int = 0

    def __add__(self, other: "Report") -> "Report":
        return Report(
            self.items + other.items,
            self.kept + other.kept,
            self.dropped + other.dropped,
            self.quarantined + other.quarantined,
            self.decoded + other.decoded,
            self.seconds + other.seconds,
            self.bytes + other.bytes,
        )

    @property
    def balanced(self) -> bool:
        """in = kept + dropped + quarantined."""
        return self.items == self.kept + self.dropped.total() + self.quarantined.total()


def tally(entries: Iterable[Entry]) -> Report:
    """Counts entries by verdict and reason."""
    report = Report()
    for entry in entries:
        report.items += 1
        if entry.verdict == "kept":
            report.kept += 1
        else:
            getattr(report, entry.verdict)[entry.reason] += 1
    return report


def total(root: str, step: str, names: list[str], shown: int) -> tuple[Report, list[Entry]]:
    """The counts over many ledgers of a step, and up to ``shown`` of the quarantined entries."""
    report = Report()
    bad: list[Entry] = []
    for entries in files.at_once(lambda name: _there(root, step, name), names):
        report += tally(entries)
        bad += [entry for entry in entries if entry.verdict == "quarantined"][: shown - len(bad)]
    return report, bad


def _there(root: str, step: str, name: str) -> list[Entry]:
    try:
        return read(root, step, name)
    except FileNotFoundError as error:
        raise Damaged(f"{url(root, step, name)} is gone; run `reelmill repair`, which makes it again") from error


def batch(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    """Rows with some of the fields as a batch of the ledger; the others are blank."""
    blank = {"detail": "", "clips": 0, "error": "", "scores": [], "thresholds": [], "seconds": 0.0}
    blank["host"] = socket.gethostname()
    rows = [{**blank, **row, "detail": redact(row["detail"]) if row.get("detail") else ""} for row in rows]
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


def url(root: str, step: str, name: str) -> str:
    return files.join(root, "ledger", step, f"{name}.parquet")


def write(root: str, step: str, name: str, entries: list[Entry]) -> None:
    """Writes the entries of one part (or one listing), replacing those of an attempt that never committed."""
    rows = [{"step": step, **asdict(entry), "detail": redact(entry.detail)} for entry in entries]
    files.replace(tables.pack(pa.Table.from_pylist(rows, schema=SCHEMA)), url(root, step, name))


def digest(entries: Iterable[Entry]) -> str:
    """The digest of what entries say, whoever made them and when."""
    said = [{name: value for name, value in asdict(entry).items() if name not in VOLATILE} for entry in entries]
    return files.digest_of([row | {"detail": redact(row["detail"])} for row in said])


def read(root: str, step: str, name: str) -> list[Entry]:
    """The entries of one part, or of one listing. Raises `Damaged`, and FileNotFoundError where there are none."""
    table = tables.read(url(root, step, name))
    if "host" not in table.column_names:  # schema 1
        table = table.rename_columns([OLD.get(column, column) for column in table.column_names])
        table = table.append_column("host", pa.array([""] * table.num_rows))
    rows: list[dict[str, Any]] = table.drop_columns(["step"]).to_pylist(maps_as_pydicts="strict")
    return [Entry(**row) for row in rows]
