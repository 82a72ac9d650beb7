"""Scores: what the luma of every clip says, as a column beside the media. Thresholds come later: tasks/select.py."""

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from storage import carry, columns
from storage.carry import Before
from storage.datasets import Dataset
from storage.errors import Damaged
from storage.ledger import Report
from storage.media import scores
from storage.media.limits import Rejected
from storage.media.sandbox import mine
from storage.parts import Part
from tasks.spending import staged
from tasks.stage import cover

COLUMN = "scores"
INTEGERS = ("duplicate_frames", "frames")


def _lists(hashes: list[np.ndarray]) -> pa.Array:
    """Hashes of varying number as an Arrow list<uint64>, without a Python object per hash."""
    offsets = np.concatenate([[0], np.cumsum([len(h) for h in hashes])]).astype(np.int32)
    flat = np.concatenate(hashes) if hashes else np.zeros(0)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat.astype(np.uint64)))


def score_part(part: Part, *, root: str, before: Before | None = None) -> Report:
    """Decodes each clip of a part once and commits its scores and signature; parts ``before`` may have them."""
    rows = part.rows()
    had = carry.known(root, COLUMN, scores.version(), rows, before)
    todo = carry.missing(rows, had)
    made = _measured(part, todo) if todo else None
    columns.write(root, COLUMN, scores.version(), part, carry.together(rows, had, made), scores.SETTINGS, rows)
    return Report(items=part.samples, kept=part.samples, decoded=len(todo))


def _measured(part: Part, rows: list[dict[str, Any]]) -> pa.Table:
    found = []
    for row, data in part.clips(rows):
        try:
            found.append((row, *mine().score(data)))
        except Rejected as error:
            raise Damaged(f"part {part.id}: clip {row['key']} does not decode ({error.reason})") from error
    table = {"key": [r["key"] for r in rows], "duration": pa.array([r["duration"] for r in rows], pa.float64())}
    for name in scores.NAMES:
        kind = pa.int32() if name in INTEGERS else pa.float64()
        table[name] = pa.array([getattr(measured, name) for _, measured, *_ in found], kind)
    return pa.table(table | {"looks": _lists([f[2] for f in found]), "moves": _lists([f[3] for f in found])})


def score_dataset(root: str, dataset: Dataset) -> tuple[str, Report]:
    """Scores the parts that lack the column; returns its version and the counts of this run."""
    name = scores.version()
    done = cover(
        "score",
        dataset.parts,
        partial(score_part, root=root, before=carry.replaced(root, dataset)),
        lambda part: columns.has(root, COLUMN, name, part.id),
    )
    return name, done


@task(task_run_name="score · {dataset.name}", cache_policy=NO_CACHE)
@staged("score")
def score(root: str, dataset: Dataset) -> tuple[str, Report]:
    """Scores what is missing of a dataset; see `score_dataset`."""
    return score_dataset(root, dataset)
