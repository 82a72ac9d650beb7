"""The segments of a dataset as one table, and how many there are of each class and day.

``tables/segments/{dataset}/{model}.parquet`` is sorted by class and day, in row groups with statistics: a query for one
class and one day reads little. It has the parts of the current version alone. ``tables/days/…`` is the summary.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage import claims, files, tables
from storage.datasets import Dataset
from storage.errors import Damaged
from storage.parts import Part
from tasks import calibration, precedence, segments
from tasks.calibration import SHORTEST, Calibration
from tasks.report import say

SIGMA = 0.5  # of the decay of segments that overlap (soft-NMS; Bodla et al. 2017)
GROUP = 4096  # rows
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
ORDER = [(name, "ascending") for name in ("class", "day", "path", "start", "key")]


@dataclass(frozen=True)
class Made:
    """What segments were made by: names of the champion and of its segments' version, and its thresholds."""

    model: str
    champion: int
    segments: str
    thresholds: Calibration


def url(root: str, dataset: str, model: str, table: str = "segments") -> str:
    """Where the table of a dataset is."""
    return files.join(root, "tables", table, dataset, f"{model}.parquet")


def joined(pieces: pa.Table, thresholds: Calibration) -> pa.Table:
    """Whole segments of pieces (`segments.SCHEMA`): those that touch where two clips of a source meet are one."""
    pieces = pieces.sort_by([(name, "ascending") for name in ("path", "class", "start", "key")]).combine_chunks()
    if not pieces.num_rows:
        return pieces
    path, kind, key = (pieces[name].combine_chunks().dictionary_encode() for name in ("path", "class", "key"))
    start, end, score, peak, frames = (pieces[name].to_numpy() for name in ("start", "end", "score", "peak", "frames"))
    paths, kinds, keys = (column.indices.to_numpy() for column in (path, kind, key))
    step, gap = (end - start) / frames, start[1:] - end[:-1]
    step = np.maximum(step[1:], step[:-1])  # a clip of one frame says nothing
    meets = (paths[1:] == paths[:-1]) & (kinds[1:] == kinds[:-1]) & (keys[1:] != keys[:-1])
    meets &= (gap <= 1.5 * step) & (gap >= -0.5 * step)
    first = np.flatnonzero(np.concatenate([[True], ~meets]))
    whole = pieces.take(pa.array(first))
    ends, peaks = np.maximum.reduceat(end, first), np.maximum.reduceat(peak, first)
    counts = np.add.reduceat(frames, first)
    means = np.add.reduceat(score.astype(np.float64) * frames, first) / counts
    high = np.array([thresholds.of(name).high for name in kind.dictionary.to_pylist()])[kinds[first]]
    for name, values in (("end", ends), ("peak", peaks), ("frames", counts), ("score", means)):
        place = whole.schema.get_field_index(name)
        whole = whole.set_column(place, name, pa.array(values).cast(whole.schema.field(name).type))
    return whole.filter(pa.array((peaks >= high) & (ends - start[first] >= SHORTEST)))


def decayed(found: pa.Table, thresholds: Calibration) -> pa.Table:
    """Segments, sorted as by `joined`, with lower scores where better ones of the class overlap them (soft-NMS).

    One that falls below the low threshold of its class is no segment.
    """
    if not found.num_rows:
        return found
    start, end, score = (found[name].to_numpy() for name in ("start", "end", "score"))
    score = score.copy()
    names = found["class"].to_pylist()
    codes = [found[name].combine_chunks().dictionary_encode().indices.to_numpy() for name in ("path", "class")]
    apart = np.flatnonzero(np.concatenate([[True], (np.diff(codes[0]) != 0) | (np.diff(codes[1]) != 0), [True]]))
    keep = np.ones(len(score), bool)
    for first, last in zip(apart[:-1], apart[1:], strict=True):
        rows = np.arange(first, last)
        if (start[rows[1:]] >= np.maximum.accumulate(end[rows])[:-1]).all():
            continue
        low = thresholds.of(names[first]).low
        score[rows] = soft_nms(start[rows], end[rows], score[rows])
        keep[rows] = score[rows] >= low
    place = found.schema.get_field_index("score")
    return found.set_column(place, "score", pa.array(score, pa.float32())).filter(pa.array(keep))


def soft_nms(start: np.ndarray, end: np.ndarray, score: np.ndarray) -> np.ndarray:
    """The scores `[N]` of segments, each multiplied by exp(-IoU² / `SIGMA`) for every better one, best first."""
    score, left = score.astype(np.float64), np.ones(len(score), bool)
    while left.any():
        best = int(np.argmax(np.where(left, score, -np.inf)))
        left[best] = False
        both = np.maximum(0, np.minimum(end, end[best]) - np.maximum(start, start[best]))
        either = np.maximum(end, end[best]) - np.minimum(start, start[best])
        score = np.where(left, score * np.exp(-((both / np.maximum(either, 1e-9)) ** 2) / SIGMA), score)
    return score


def days(root: str, dataset: Dataset, sources: dict[str, str]) -> dict[str, date]:
    """The day (UTC) on which sources, URLs by path, were modified: as the plan says, else as their store does."""
    times = {row["path"]: precedence.stamped(row["stamp"]) for row in precedence.planned(root, dataset)}
    unknown = [path for path in sources if path in times and times[path] is None]
    for path, time in zip(unknown, files.at_once(lambda path: _asked(sources[path]), unknown), strict=True):
        times[path] = time
    known = ((path, times.get(path)) for path in sources)
    return {path: datetime.fromtimestamp(time, UTC).date() for path, time in known if time is not None}


def _asked(url: str) -> float | None:
    try:
        return files.modified(files.info(url))
    except (OSError, ValueError):  # it may be gone, or be no URL
        return None


def summary(found: pa.Table) -> pa.Table:
    """How many segments there are of each class on each day, how long they are together, and their mean score."""
    seconds = pc.subtract(found["end"], found["start"])
    table = found.select(["class", "day", "score"]).append_column("seconds", seconds)
    table = table.append_column("segments", pa.array(np.ones(len(found), np.int64)))
    sums = [("segments", "sum"), ("seconds", "sum"), ("score", "mean")]
    grouped = table.group_by(["class", "day"], use_threads=False).aggregate(sums)
    names = {"segments_sum": "segments", "seconds_sum": "seconds", "score_mean": "score"}
    grouped = grouped.rename_columns([names.get(name, name) for name in grouped.column_names])
    return grouped.select(["class", "day", "segments", "seconds", "score"]).sort_by(ORDER[:2])


def write(root: str, dataset: Dataset, made: Made) -> dict[str, Any]:
    """Writes both tables of what a model found in the parts of a dataset so far; nothing where they are there.

    One run writes at a time, so that a table is never replaced by one of fewer parts.
    """
    name = f"table-{files.digest_of([dataset.name, made.model])[:16]}"
    with claims.in_turn(root, name, lambda who: say(f"  tables       waits, {who}")):
        there = [part.id for part in _there(root, dataset, made)]
        about = {
            "dataset": dataset.name, "version": dataset.version, "model": made.model, "champion": made.champion,
            "segments": made.segments, "thresholds": made.thresholds.plain(), "parts": len(there),
            "digest": files.digest_of(there)[:16],
        }  # fmt: skip
        place = url(root, dataset.name, made.model)
        if (rows := current(root, dataset.name, made.model, about)) is None:
            found = _gathered(root, dataset, made, set(there))
            rows = found.num_rows
            days_ = tables.pack(summary(found), about)
            files.replace(days_, url(root, dataset.name, made.model, "days"))
            files.replace(tables.pack(found, about, group=GROUP), place)
    return {"segments": rows, "segments_path": place, "days_path": url(root, dataset.name, made.model, "days")}


def current(root: str, dataset: str, model: str, about: dict[str, Any]) -> int | None:
    """How many segments a table has, where it says the same ``about`` itself; else None."""
    place = url(root, dataset, model)
    try:
        table, said = tables.both(place)
        return table.num_rows if said == about and files.exists(url(root, dataset, model, "days")) else None
    except (FileNotFoundError, Damaged):
        return None


def _there(root: str, dataset: Dataset, made: Made) -> list[Part]:
    parts = dataset.parts
    known = files.at_once(lambda part: segments.has(root, made.segments, part.id), parts)
    return [part for part, there in zip(parts, known, strict=True) if there]


def _gathered(root: str, dataset: Dataset, made: Made, there: set[str]) -> pa.Table:
    chosen = [part for part in dataset.parts if part.id in there]
    read = files.at_once(lambda part: segments.read(root, made.segments, part, dataset.selection), chosen)
    pieces = [table.replace_schema_metadata(None) for table in read]
    whole = pa.concat_tables(pieces or [segments.SCHEMA.empty_table()])
    found = decayed(joined(whole, made.thresholds), made.thresholds)
    sources = dict(zip(found["path"].to_pylist(), found["source"].to_pylist(), strict=True))
    known = days(root, dataset, sources)
    day = pa.array([known.get(path) for path in found["path"].to_pylist()], pa.date32())
    return found.append_column("day", day).select(SCHEMA.names).cast(SCHEMA).sort_by(ORDER).combine_chunks()


def refresh(root: str, dataset: Dataset) -> None:
    """Makes the tables that a dataset has follow its current version: rows of what it lost go; nothing is predicted."""
    for file in files.names(files.join(root, "tables", "segments", dataset.name), ".parquet"):
        model = file.removesuffix(".parquet")
        try:
            about = tables.about(url(root, dataset.name, model))
        except Damaged:  # the next `infer` writes it anew
            continue
        thresholds = calibration.parse(about["thresholds"])
        write(root, dataset, Made(model, about["champion"], about["segments"], thresholds))
