"""Scores: what the luma of every clip says, as a column beside the media. Thresholds come later: tasks/select.py."""

import time
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from storage import carry, columns, ledger, plans
from storage.carry import Before
from storage.datasets import Dataset
from storage.errors import Damaged
from storage.ledger import Entry, Report
from storage.media import scores
from storage.media.limits import Rejected
from storage.media.sandbox import mine
from storage.parts import Part
from tasks.report import say
from tasks.spending import staged
from tasks.stage import Left, cover

COLUMN = "scores"
INTEGERS = ("duplicate_frames", "frames")
SHOWN = ("duration", *scores.NAMES)  # scores in the ledger


class Undecodable(Left):
    """Clips of a part do not decode, though their bytes are those that were cut; by key, the identity of the source."""

    def __init__(self, part: str, clips: dict[str, str], why: str) -> None:
        super().__init__(part, clips, why)
        self.part, self.clips, self.why = part, clips, why

    def __str__(self) -> str:
        return f"part {self.part}: clip {next(iter(self.clips))} does not decode ({self.why})"


def _lists(hashes: list[np.ndarray]) -> pa.Array:
    """Hashes of varying number as an Arrow list<uint64>, without a Python object per hash."""
    offsets = np.concatenate([[0], np.cumsum([len(h) for h in hashes])]).astype(np.int32)
    flat = np.concatenate(hashes) if hashes else np.zeros(0)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat.astype(np.uint64)))


def score_part(part: Part, *, root: str, before: Before | None = None) -> Report:
    """Decodes each clip of a part once and commits its scores and signature; parts ``before`` may have them.

    Raises `Undecodable` where packets that were copied into a clip turn out to be damaged.
    """
    rows = part.rows()
    had = carry.known(root, COLUMN, scores.version(), rows, before)
    todo = carry.missing(rows, had)
    spent: dict[str, float] = {}
    made = _measured(part, todo, spent) if todo else None
    table = carry.together(rows, had, made)
    entries = [
        Entry(row["key"], "kept", clips=1, duration=row["duration"], scores={name: float(row[name]) for name in SHOWN},
              content_id=about["content_id"], seconds=spent.get(row["key"], 0.0))
        for row, about in zip(table.select(["key", *SHOWN]).to_pylist(), rows, strict=True)
    ]  # fmt: skip
    ledger.write(root, "score", part.id, entries)
    columns.write(root, COLUMN, scores.version(), part, table, scores.SETTINGS, rows)
    return Report(items=part.samples, kept=part.samples, decoded=len(todo))


def _measured(part: Part, rows: list[dict[str, Any]], spent: dict[str, float]) -> pa.Table:
    """The scores of clips; ``spent`` is told the seconds that each took."""
    found, bad, why = [], dict[str, str](), ""
    for row, data in part.clips(rows):
        began = time.monotonic()
        try:
            found.append((row, *mine().score(data)))
        except Rejected as error:
            bad[row["key"]], why = row["identity"], error.reason
        spent[row["key"]] = time.monotonic() - began
    if bad:
        raise Undecodable(part.id, bad, why)
    table = {"key": [r["key"] for r in rows], "duration": pa.array([r["duration"] for r in rows], pa.float64())}
    for name in scores.NAMES:
        kind = pa.int32() if name in INTEGERS else pa.float64()
        table[name] = pa.array([getattr(measured, name) for _, measured, *_ in found], kind)
    return pa.table(table | {"looks": _lists([f[2] for f in found]), "moves": _lists([f[3] for f in found])})


def score_dataset(root: str, dataset: Dataset, *, last: bool = True) -> tuple[str, Report]:
    """Scores the parts that lack the column; returns its version and the counts of this run.

    Where clips do not decode, the next plan takes their sources up again (see `tasks.shard`): they are counted as
    quarantined, or `Damaged` is raised if this was the ``last`` try.
    """
    name, left = scores.version(), dict[Part, Exception]()
    done = cover(
        "score",
        dataset.parts,
        partial(score_part, root=root, before=carry.replaced(root, dataset)),
        lambda part: columns.has(root, COLUMN, name, part.id),
        left=left,
    )
    found = [error for error in left.values() if isinstance(error, Undecodable)]
    if found:
        attempts = plans.requeued(root, dataset.name)
        again = {identity for error in found for identity in error.clips.values() if identity}
        plans.ask_again(root, dataset.name, {identity: attempts.get(identity, 0) for identity in again})
        if last:
            raise Damaged(f"{found[0]}; `reelmill prepare` takes its source up again")
        for error in found:
            done.quarantined[error.why] += len(error.clips)
        say(f"  score        {done.quarantined.total()} copied clips do not decode; their sources are cut anew")
    return name, done


@task(task_run_name="score · {dataset.name}", cache_policy=NO_CACHE)
@staged("score")
def score(root: str, dataset: Dataset, last: bool = True) -> tuple[str, Report]:
    """Scores what is missing of a dataset; see `score_dataset`."""
    return score_dataset(root, dataset, last=last)
