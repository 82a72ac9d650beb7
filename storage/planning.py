"""Planning on disk: an archive of any length is listed, joined with the plan before it, and cut into parts.

The rows live in a DuckDB file in a scratch folder, under a limit of memory; Python sees the new ones, in batches.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from storage import ledger, plans, tables
from storage.labels import Labels, split_of
from storage.ledger import Report
from storage.plans import PLAN, WINDOW_BITS, Limits
from storage.sources import TAR, Source, is_video

MEMORY = "256MB"
BATCH = 10_000
LISTED = pa.schema(
    [(name, pa.string()) for name in ("path", "url", "stamp", "problem", "metadata", "labels", "split", "kind")]
    + [("size", pa.int64()), ("offset", pa.int64()), ("place", pa.uint64()), ("video", pa.bool_())]
    + [("modified", pa.float64())]
)
SAID = ("path", "url", "size", "stamp", "offset", "problem", "metadata", "modified")  # by a source of itself
ATTEMPTS = pa.schema([("identity", pa.string()), ("attempt", pa.int32())])
TEXTS = ("path", "identity", "content_id", "facts", "problem", "detail", "error")
FOUND = pa.schema([*((name, pa.string()) for name in TEXTS), ("seconds", pa.float64())])
BLANK = {"identity": "", "content_id": "", "facts": "", "problem": "", "detail": "", "error": "", "seconds": 0.0}


def batches(rows: Iterable[Any]) -> Iterator[list[Any]]:
    """Lists of up to `BATCH` rows."""
    rows = iter(rows)
    while some := list(islice(rows, BATCH)):
        yield some


class Planning:
    """One planning of one archive; use in a scratch folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.db = duckdb.connect(str(folder / "planning.duckdb"))
        self.db.execute(f"SET memory_limit='{MEMORY}'; SET temp_directory='{folder}'; SET threads=2")
        schemas = {"listed": LISTED, "found": FOUND, "known": PLAN, "places": PLAN, "attempts": ATTEMPTS}
        for name, schema in schemas.items():
            self.db.register("empty", schema.empty_table())
            self.db.execute(f"CREATE TABLE {name} AS SELECT * FROM empty")

    def close(self) -> None:
        self.db.close()

    def _insert(self, table: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
        self.db.register("batch", pa.Table.from_pylist(rows, schema=schema))
        self.db.execute(f"INSERT INTO {table} SELECT * FROM batch")

    def _one(self, query: str) -> Any:
        ((value,),) = self.db.execute(query).fetchall()
        return value

    def _rows(self, query: str) -> Iterator[dict[str, Any]]:
        """The rows of a query, a batch at a time; in a cursor of its own, so that others may run beside it."""
        for batch in self.db.cursor().sql(query).to_arrow_reader(BATCH):
            yield from batch.to_pylist()

    def listed(self, sources: Iterable[Source], labels: dict[str, Labels], held_out: float) -> int:
        """Takes the listing in and returns how many files it has; of rows with one path the first URL counts."""
        for some in batches(sources):
            self._insert(
                "listed",
                [_listed(source, labels.get(source.path) or source.labels, held_out) for source in some],
                LISTED,
            )
        self.db.execute("CREATE TABLE sources AS SELECT DISTINCT ON (path) * FROM listed ORDER BY path, url")
        return int(self._one("SELECT count(*) FROM sources"))

    def videos(self) -> int:
        return int(self._one("SELECT count(*) FROM sources WHERE video"))

    def unlisted(self, paths: Iterable[str]) -> set[str]:
        """Those of the paths that were not listed."""
        self.db.register("asked", pa.table({"path": pa.array(list(paths), pa.string())}))
        rows = self.db.execute("SELECT path FROM asked ANTI JOIN sources USING (path)").fetchall()
        return {path for (path,) in rows}

    def only(self, begin: float, end: float) -> tuple[int, int]:
        """Puts off what was not modified from ``begin`` to before ``end`` (seconds since 1970) and was not taken in
        before; how many that are, and of how many of them the store tells no time."""
        late = "path NOT IN (SELECT path FROM known) AND NOT coalesce(modified >= ? AND modified < ?, false)"
        rows = self.db.execute(f"SELECT count(*), count(*) - count(modified) FROM sources WHERE {late}", [begin, end])
        ((off, timeless),) = rows.fetchall()
        self.db.execute(f"DELETE FROM sources WHERE {late}", [begin, end])
        return int(off), int(timeless)

    def requeue(self, attempts: dict[str, int]) -> None:
        """Takes in which sources are to be tried again: another attempt is another part."""
        rows = [{"identity": identity, "attempt": count} for identity, count in attempts.items()]
        self._insert("attempts", rows, ATTEMPTS)

    def recall(self, before: Iterable[pa.RecordBatch]) -> None:
        """Takes the plan before this one in: a file with the same URL and stamp is not read again.

        One whose store says nothing that would change with its bytes is, and so is one that is tried again.
        """
        for batch in before:
            self.db.register("before", pa.Table.from_batches([batch]))
            self.db.execute("INSERT INTO known SELECT * FROM before")
        self.db.execute("""
            INSERT INTO places SELECT DISTINCT ON (url, "offset", stamp) * FROM known
            ORDER BY url, "offset", stamp, start""")
        self.db.execute("""
            INSERT INTO found SELECT s.path, k.identity, k.content_id, k.facts, '', '', '', 0.0 FROM sources s
            JOIN places k USING (url, "offset", stamp) ANTI JOIN attempts a ON a.identity = k.identity
            WHERE s.video AND s.problem = '' AND NOT regexp_matches(stamp, ':(:|$)')""")

    def fresh(self) -> Iterator[Source]:
        """The videos of which nothing is known yet."""
        query = "SELECT * FROM sources s ANTI JOIN found USING (path) WHERE video AND problem = '' ORDER BY path"
        return (_source(row) for row in self._rows(query))

    def count_fresh(self) -> int:
        return int(self._one("SELECT count(*) FROM sources ANTI JOIN found USING (path) WHERE video AND problem = ''"))

    def identified(self, rows: Iterable[dict[str, Any]]) -> None:
        """Takes in what was found of fresh videos: path and identity (the fingerprint), or problem and detail."""
        for some in batches(rows):
            self._insert("found", [BLANK | row for row in some], FOUND)
        self.db.execute("""
            UPDATE found SET identity = k.identity, content_id = k.content_id, facts = k.facts
            FROM sources s JOIN places k USING (url, "offset", stamp)
            WHERE found.path = s.path AND found.problem = '' AND found.identity = left(k.identity, 32)""")

    def doubts(self, whole: int) -> int:
        """How many new videos a fingerprint leaves a doubt about: those over ``whole`` bytes that share it."""
        self.db.execute(f"""
            CREATE TABLE doubtful AS SELECT row_number() OVER (ORDER BY mark) - 1 AS id, mark, files FROM (
            SELECT f.identity AS mark, count(*) AS files FROM found f JOIN sources s USING (path)
            ANTI JOIN places k ON k.url = s.url AND k."offset" = s."offset" AND k.stamp = s.stamp
              AND k.identity = f.identity
            WHERE s.size > {whole} AND f.problem = '' AND (
              f.identity IN (SELECT left(identity, 32) FROM known)
              OR f.identity IN (SELECT left(identity, 32) FROM found GROUP BY 1 HAVING count(*) > 1))
            GROUP BY 1)""")
        return int(self._one("SELECT coalesce(sum(files), 0) FROM doubtful"))

    def doubtful(self) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
        """Yields (videos of this listing, rows of the plan before) that share such fingerprints, some at a time."""
        for first in range(0, self._one("SELECT count(*) FROM doubtful"), BATCH):
            some = f"JOIN doubtful d ON left(identity, 32) = d.mark AND d.id BETWEEN {first} AND {first + BATCH - 1}"
            now = f"SELECT * FROM found JOIN sources USING (path) {some} ORDER BY mark, path"
            then = f"SELECT * FROM known {some} ORDER BY mark, path"
            yield list(self._rows(now)), list(self._rows(then))

    def like(self, identities: Iterable[str]) -> list[dict[str, Any]]:
        """The videos of this listing that have the fingerprint of one of some identities."""
        self.db.register("asked", pa.table({"mark": pa.array({one[:32] for one in identities}, pa.string())}))
        self.db.execute("CREATE OR REPLACE TABLE marks AS FROM asked")  # a cursor sees nothing that is registered
        query = "SELECT * FROM found f JOIN sources s USING (path) WHERE left(f.identity, 32) IN (FROM marks)"
        return list(self._rows(query))

    def settle(self, rows: Iterable[dict[str, Any]]) -> None:
        """Takes in what doubtful videos are: path, identity and content id, or problem and detail."""
        for some in batches(rows):
            self.db.register("batch", pa.Table.from_pylist([BLANK | row for row in some], schema=FOUND))
            self.db.execute("""UPDATE found SET identity = batch.identity, content_id = batch.content_id,
                problem = batch.problem, detail = batch.detail, error = batch.error,
                seconds = found.seconds + batch.seconds FROM batch WHERE found.path = batch.path""")

    def unprobed(self) -> Iterator[Source]:
        """The one file of each content that counts, if its header was not read yet.

        Of files with the same bytes that is one that is held out, then one that is labelled, then the first by path.
        """
        self.db.execute("""
            CREATE OR REPLACE TABLE owners AS SELECT DISTINCT ON (f.identity) f.identity, s.path, s.split, s.labels
            FROM found f JOIN sources s USING (path) WHERE f.problem = ''
            ORDER BY f.identity, coalesce(list_position(['heldout', 'train'], s.split), 3),
              coalesce(list_position(['segments', 'video'], s.kind), 3), s.path""")
        query = """SELECT s.* FROM owners JOIN found f USING (path) JOIN sources s USING (path) WHERE f.facts = ''
            ORDER BY s.path"""
        return (_source(row) for row in self._rows(query))

    def probed(self, rows: Iterable[tuple[str, dict[str, Any], str]]) -> None:
        """Takes in (path, facts, content id where it was read)."""
        schema = pa.schema([(name, pa.string()) for name in ("path", "facts", "content_id")])
        for some in batches(rows):
            values = [{"path": p, "facts": json.dumps(f, sort_keys=True), "content_id": c} for p, f, c in some]
            self.db.register("batch", pa.Table.from_pylist(values, schema=schema))
            self.db.execute("""UPDATE found SET facts = batch.facts, content_id = CASE WHEN batch.content_id = ''
                THEN found.content_id ELSE batch.content_id END FROM batch WHERE found.path = batch.path""")

    def assign(self, recipe: dict[str, Any], limits: Limits, window: float) -> int:
        """Divides long videos into windows of ``window`` seconds and all units into parts; returns how many parts."""
        self.db.execute(f"""
            CREATE TABLE units AS SELECT row_number() OVER (ORDER BY split, kind, place, path, start) - 1 AS id, *
            FROM (SELECT * REPLACE ((place::HUGEINT * {1 << WINDOW_BITS} + i)::UBIGINT AS place),
                i * {window}::DOUBLE AS start,
                CASE WHEN i + 1 < n THEN (i + 1) * {window}::DOUBLE END AS "end", duration / n AS seconds
              FROM (SELECT s.*, f.identity, f.content_id, f.facts, d.duration,
                      coalesce(a.attempt, 0)::INTEGER AS attempt,
                      greatest(1, floor(d.duration / {window}))::BIGINT AS n, unnest(range(n)) AS i
                    FROM owners o JOIN found f USING (path) JOIN sources s USING (path)
                    LEFT JOIN attempts a ON a.identity = f.identity, LATERAL
                    (SELECT coalesce((f.facts::JSON->>'duration')::DOUBLE, 0) AS duration) d))""")
        pieces = pa.table({"id": pa.array([], pa.int64()), "piece": pa.array([], pa.int64())})
        for split, kind in self.db.execute("SELECT DISTINCT split, kind FROM units ORDER BY 1, 2").fetchall():
            query = "SELECT id, place, size, seconds FROM units WHERE split = ? AND kind = ? ORDER BY id"
            found = self.db.execute(query, [split, kind]).fetchnumpy()
            loads = np.stack([np.ones(len(found["id"])), found["size"], found["seconds"]], axis=1).astype(float)
            runs = np.empty(len(found["id"]), np.int64)
            for first, last in plans.pieces(found["place"], loads, limits):
                runs[first:last] = found["id"][first]
            pieces = pa.concat_tables([pieces, pa.table({"id": found["id"], "piece": runs})])
        self.db.register("pieces", pieces)
        self.db.execute("CREATE TABLE runs AS SELECT * FROM units JOIN pieces USING (id)")
        query = "SELECT * FROM runs ORDER BY piece, id"
        grouped = groupby(self._rows(query), key=lambda row: row["piece"])
        blank = {"part": "", "was": ""}
        parts = {
            piece: plans.part_id(recipe, [plans.member(blank | row).facts() for row in rows]) for piece, rows in grouped
        }
        owners = pa.table({"piece": pa.array(parts.keys(), pa.int64()), "part": pa.array(parts.values(), pa.string())})
        self.db.register("owners_of_pieces", owners)
        self.db.execute("CREATE TABLE placed AS SELECT * FROM runs JOIN owners_of_pieces USING (piece)")
        return len(parts)

    def moved(self) -> list[str]:
        """The parts of the plan before that are in this one no longer."""
        rows = self.db.execute(
            "SELECT DISTINCT part FROM known WHERE part != '' AND part NOT IN (SELECT part FROM placed)"
        )
        return sorted(part for (part,) in rows.fetchall())

    def write(self, recipe: dict[str, Any], committed: list[str]) -> Path:
        """Writes the plan as a local file; ``committed`` are the parts that clips may be taken from."""
        self.db.register("asked", pa.table({"part": pa.array(committed, pa.string())}))
        self.db.execute("CREATE TABLE committed AS FROM asked")
        names = ", ".join(f'"{name}"' for name in PLAN.names)
        query = f"""
            WITH before AS (SELECT DISTINCT ON (identity, start, "end") * FROM known WHERE part != ''
                            ORDER BY identity, start, "end", part),
            kept AS (SELECT p.* EXCLUDE (piece), CASE WHEN b.part IS NULL THEN '' WHEN b.part = p.part THEN b.was
                WHEN b.part IN (FROM committed) THEN b.part ELSE b.was END AS was FROM placed p LEFT JOIN before b
                ON b.identity = p.identity AND b.start = p.start AND b."end" IS NOT DISTINCT FROM p."end"
                AND b.attempt = p.attempt),
            others AS (SELECT '' AS part, s.*, f.identity, f.content_id, f.facts, 0.0 AS start, NULL::DOUBLE AS "end",
                0::INTEGER AS attempt, '' AS was FROM found f JOIN sources s USING (path)
                ANTI JOIN owners USING (path) WHERE f.problem = '')
            SELECT {names} FROM (SELECT {names} FROM kept UNION ALL SELECT {names} FROM others)
            ORDER BY part, identity, start, path"""
        path = self.folder / "plan.parquet"
        tables.write(path, self.db.cursor().sql(query).to_arrow_reader(BATCH), PLAN, {"recipe": recipe})
        return path

    def account(self) -> tuple[Path, Report]:
        """Writes the ledger of the listing as a local file, and counts it: every file has one verdict."""
        self.db.execute("""
            CREATE TABLE accounts AS SELECT
            CASE WHEN f.problem = 'forgotten' THEN 'forgotten source ' || f.identity ELSE s.path END AS item,
            coalesce(f.content_id, '') AS content_id,
            CASE WHEN NOT s.video OR f.problem = 'forgotten' THEN 'dropped'
              WHEN s.problem || coalesce(f.problem, '') != '' THEN 'quarantined'
              WHEN o.path != s.path THEN 'dropped' ELSE 'kept' END AS verdict,
            CASE WHEN NOT s.video THEN 'unknown_extension' WHEN s.problem != '' THEN s.problem
              WHEN f.problem != '' THEN f.problem WHEN o.path != s.path THEN 'duplicate' ELSE '' END AS reason,
            CASE WHEN f.problem != '' THEN f.detail WHEN o.path != s.path THEN 'same bytes as ' || o.path ||
                CASE WHEN s.split = 'train' AND o.split = 'heldout' THEN ', which is held out' ELSE '' END ||
                CASE WHEN s.labels IS NOT NULL AND s.labels IS DISTINCT FROM o.labels
                  THEN ', whose labels count' ELSE '' END
              ELSE '' END AS detail,
            coalesce(f.error, '') AS error, coalesce(f.seconds, 0.0) AS seconds,
            coalesce((nullif(f.facts, '')::JSON->>'duration')::DOUBLE, 0) AS duration
            FROM sources s LEFT JOIN found f USING (path) LEFT JOIN owners o ON o.identity = f.identity""")
        report = Report()
        for verdict, reason, count in self.db.execute(
            "SELECT verdict, reason, count(*) FROM accounts GROUP BY ALL"
        ).fetchall():
            report += Report(
                items=count, **({"kept": count} if verdict == "kept" else {verdict: Counter({reason: count})})
            )
        path = self.folder / "ledger.parquet"
        rows = ({"step": "list", **row} for row in self._rows("SELECT * FROM accounts ORDER BY item"))
        tables.write(path, (ledger.batch(some) for some in batches(rows)), ledger.SCHEMA)
        return path, report


def _listed(source: Source, labels: Labels | None, held_out: float) -> dict[str, Any]:
    rows = json.dumps(labels.rows) if labels else None
    return {
        **{name: getattr(source, name) for name in SAID},
        "labels": rows,
        "split": split_of(source.path, labels, held_out),
        "kind": labels.kind if labels else "none",
        "place": plans.place(source.path),
        "video": is_video(source) or bool(source.problem) and TAR in source.path,
    }


def _source(row: dict[str, Any]) -> Source:
    return Source(row["path"], row["url"], row["size"], row["stamp"], row["offset"], metadata=row["metadata"])
