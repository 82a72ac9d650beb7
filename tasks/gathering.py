"""Segments of all parts put together on disk: however many there are, a limited number is in memory.

Pieces go in part by part, come out source by source, and what becomes of them is read sorted by class and day.
"""

from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path

import duckdb
import pyarrow as pa

from tasks import segments

MEMORY = "64MB"
BATCH = 4096  # rows
SCHEMA = pa.schema(
    [
        ("class", pa.string()),
        ("day", pa.date32()),  # on which the source was modified last, UTC; null where nobody says
        ("path", pa.string()),
        ("source", pa.string()),
        ("key", pa.string()),  # of the clip that it begins in
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("score", pa.float32()),
        ("peak", pa.float32()),
    ]
)
DAYS = pa.schema([("path", pa.string()), ("day", pa.date32())])
NAMES = ", ".join(f'"{name}"' for name in SCHEMA.names)
KNOWN = "SELECT path, max(day) AS day FROM days GROUP BY path"  # a long source is told of in windows
DATED = f"SELECT {NAMES} FROM whole LEFT JOIN known USING (path)"
SUMMARY = """
    SELECT class, day, count(*) AS segments, sum("end" - start) AS seconds, avg(score) AS score
    FROM dated GROUP BY class, day ORDER BY class, day NULLS LAST
"""


class Gathering:
    """One table in the making; use in a scratch folder. One thread, so that sums are the same every time."""

    def __init__(self, folder: Path) -> None:
        self.db = duckdb.connect(str(folder / "segments.duckdb"))
        self.db.execute(f"SET memory_limit='{MEMORY}'; SET temp_directory='{folder}'; SET threads=1")
        for name, schema in (("pieces", segments.SCHEMA), ("whole", segments.SCHEMA), ("days", DAYS)):
            self.db.register("empty", schema.empty_table())
            self.db.execute(f"CREATE TABLE {name} AS SELECT * FROM empty")
        self.db.execute(f"CREATE VIEW known AS {KNOWN}; CREATE VIEW dated AS {DATED}")

    def close(self) -> None:
        self.db.close()

    def take(self, table: str, rows: pa.Table) -> None:
        """Takes rows into ``pieces``, ``whole`` (both `segments.SCHEMA`) or ``days`` (`DAYS`)."""
        self.db.register("batch", rows)
        self.db.execute(f"INSERT INTO {table} SELECT * FROM batch")
        self.db.unregister("batch")

    def of_sources(self) -> Iterator[pa.Table]:
        """The pieces of some sources at a time, of each all."""
        held: list[pa.RecordBatch] = []
        for batch in self._read("SELECT * FROM pieces ORDER BY path, key, start"):
            ends = batch["path"].to_pylist()
            last = ends.index(ends[-1]) if len(batch) else 0  # where the source begins that may go on
            if held and ends[0] != held[-1]["path"][-1].as_py() or last:
                yield pa.Table.from_batches([*held, batch.slice(0, last)])
                held = []
            held.append(batch.slice(last))
        if held:
            yield pa.Table.from_batches(held)

    def sources(self) -> Iterator[tuple[str, str]]:
        """Path and URL of the sources with segments of which it was said that their day is not known."""
        unknown = "SELECT path, min(source) FROM whole SEMI JOIN (FROM known WHERE day IS NULL) USING (path) GROUP BY 1"
        for batch in self._read(unknown):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

    def date(self, days: Iterable[tuple[str, date | None]]) -> None:
        """Says on which days sources, by path, were modified; None: that is not known."""
        rows = list(days)
        paths, known = [path for path, _ in rows], [day for _, day in rows]
        self.take("days", pa.table([pa.array(paths, pa.string()), pa.array(known, pa.date32())], schema=DAYS))

    def count(self) -> int:
        """How many whole segments there are."""
        ((rows,),) = self.db.execute("SELECT count(*) FROM whole").fetchall()
        return int(rows)

    def sorted(self) -> Iterator[pa.RecordBatch]:
        """The whole segments with their days (`SCHEMA`), sorted by class and day."""
        return self._read(f"SELECT {NAMES} FROM dated ORDER BY class, day NULLS LAST, path, start, key")

    def summary(self) -> pa.Table:
        """How many segments there are of each class on each day, how long they are together, and their mean score."""
        return self.db.cursor().sql(SUMMARY).to_arrow_table()

    def _read(self, query: str) -> Iterator[pa.RecordBatch]:
        """The rows of a query, a batch at a time; in a cursor of its own, so that others may run beside it."""
        yield from self.db.cursor().sql(query).to_arrow_reader(BATCH)
