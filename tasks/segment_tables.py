"""The segments of a dataset as one table, and how many there are of each class and day.

``tables/segments/{dataset}/{model}.parquet`` is sorted by class and day, in row groups with statistics: a query for one
class and one day reads little. It has the parts of the current version alone. ``tables/days/…`` is the summary.
"""

from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from storage import claims, files, tables
from storage.datasets import Dataset
from storage.errors import Damaged
from storage.parts import Part
from storage.planning import batches
from tasks import calibration, precedence, segments
from tasks.calibration import SHORTEST, Calibration
from tasks.gathering import SCHEMA, Gathering
from tasks.report import say
from tasks.spending import staged

SIGMA = 0.5  # of the decay of segments that overlap (soft-NMS; Bodla et al. 2017)
GROUP = 4096  # rows
AHEAD = 32  # parts whose pieces are in memory


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
    codes = [found[name].combine_chunks().dictionary_encode().indices.to_numpy() for name in ("path", "class")]
    other = (np.diff(codes[0]) != 0) | (np.diff(codes[1]) != 0)
    apart = np.flatnonzero(np.concatenate([[True], other, [True]]))
    crossed = np.flatnonzero(~other & (start[1:] < end[:-1]))  # nearly all do not
    keep = np.ones(len(score), bool)
    for group in np.unique(np.searchsorted(apart, crossed, side="right") - 1):
        rows = np.arange(apart[group], apart[group + 1])
        score[rows] = soft_nms(start[rows], end[rows], score[rows])
        keep[rows] = score[rows] >= thresholds.of(found["class"][int(rows[0])].as_py()).low
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


def _dated(root: str, dataset: Dataset, gathering: Gathering) -> None:
    """Says on which days (UTC) sources were modified: as the plan says, else as their store does."""
    for rows in batches(precedence.planned(root, dataset)):
        gathering.date((row["path"], _day(precedence.stamped(row["stamp"]))) for row in rows)
    for some in batches(gathering.sources()):
        asked = files.at_once(lambda source: precedence.asked(source[1]), some)
        gathering.date((path, _day(time)) for (path, _), time in zip(some, asked, strict=True))


def _day(time: float | None) -> date | None:
    return None if time is None else datetime.fromtimestamp(time, UTC).date()


@staged("tables")
def write(root: str, dataset: Dataset, made: Made) -> dict[str, Any]:
    """Writes both tables of what a model found in the parts of a dataset so far; nothing where they are there.

    One run writes at a time, so that a table is never replaced by one of fewer parts.
    """
    name = f"table-{files.digest_of([dataset.name, made.model])[:16]}"
    with claims.in_turn(root, name, lambda who: say(f"  tables       waits, {who}")):
        there = _there(root, dataset, made)
        names = [part.id for part in there]
        about = {
            "dataset": dataset.name, "version": dataset.version, "model": made.model, "champion": made.champion,
            "segments": made.segments, "thresholds": made.thresholds.plain(), "parts": len(there),
            "digest": files.digest_of(names)[:16],
        }  # fmt: skip
        place, days = (url(root, dataset.name, made.model, table) for table in ("segments", "days"))
        if (rows := current(root, dataset.name, made.model, about)) is None:
            with files.scratch() as folder, closing(Gathering(folder)) as gathering:
                _gathered(root, dataset, made, there, gathering)
                rows = gathering.count()
                about["rows"] = rows
                files.replace(tables.pack(gathering.summary(), about), days)
                tables.write(folder / "sorted", gathering.sorted(), SCHEMA, about, group=GROUP)
                files.replace((folder / "sorted").read_bytes(), place)
    return {"segments": rows, "segments_path": place, "days_path": days}


def current(root: str, dataset: str, model: str, about: dict[str, Any]) -> int | None:
    """How many segments a table has, where it says the same ``about`` itself; else None."""
    try:
        said = tables.about(url(root, dataset, model))
        rows = said.pop("rows", None)
        return rows if said == about and files.exists(url(root, dataset, model, "days")) else None
    except (FileNotFoundError, Damaged):
        return None


def _there(root: str, dataset: Dataset, made: Made) -> list[Part]:
    parts = dataset.parts
    known = files.at_once(lambda part: segments.has(root, made.segments, part.id), parts)
    return [part for part, there in zip(parts, known, strict=True) if there]


def _gathered(root: str, dataset: Dataset, made: Made, parts: list[Part], gathering: Gathering) -> None:
    for first in range(0, len(parts), AHEAD):
        some = parts[first : first + AHEAD]
        read = files.at_once(lambda part: segments.read(root, made.segments, part, dataset.selection), some)
        gathering.take("pieces", pa.concat_tables(table.replace_schema_metadata(None) for table in read))
    for pieces in gathering.of_sources():
        gathering.take("whole", decayed(joined(pieces, made.thresholds), made.thresholds))
    _dated(root, dataset, gathering)


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
