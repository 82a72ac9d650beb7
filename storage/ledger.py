"""The ledger: one row per source item and step, saying whether it was kept, dropped or quarantined, and why."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from storage import files, tables

SCHEMA = pa.schema(
    [
        ("step", pa.string()),
        ("item", pa.string()),
        ("content_id", pa.string()),
        ("verdict", pa.string()),  # kept | dropped | quarantined
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("clips", pa.int32()),
        ("seconds", pa.float64()),  # of video
    ]
)


@dataclass(frozen=True)
class Entry:
    """What one step did with one item."""

    item: str
    verdict: str
    reason: str = ""
    detail: str = ""
    content_id: str = ""
    clips: int = 0
    seconds: float = 0.0


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


def write(root: str, step: str, name: str, entries: list[Entry]) -> None:
    """Writes the entries of one part (or one listing), replacing those of an attempt that never committed."""
    rows = [{"step": step, **asdict(entry)} for entry in entries]
    files.replace(
        tables.pack(pa.Table.from_pylist(rows, schema=SCHEMA)), files.join(root, "ledger", step, f"{name}.parquet")
    )


def read(root: str, step: str, name: str) -> list[Entry]:
    rows: list[dict[str, Any]] = tables.read(files.join(root, "ledger", step, f"{name}.parquet")).to_pylist()
    return [Entry(**{k: v for k, v in row.items() if k != "step"}) for row in rows]
