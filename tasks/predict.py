"""Batch inference: a checkpoint over committed parts, into a predictions column and a table of segments."""

import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from storage import carry, checkpoints, claims, columns, datasets, files, lease, ledger
from storage.carry import Before
from storage.checkpoints import Checkpoint
from storage.errors import Damaged, Incomplete, InputError
from storage.ledger import Entry, Report
from storage.parts import Part
from tasks import calibration, naming, pool, precedence, registry, segment_tables, segments
from tasks.calibration import Calibration
from tasks.precedence import Order
from tasks.report import say
from tasks.scorer import takes
from tasks.segment_tables import Made
from tasks.spending import staged
from tasks.stage import Left, cover
from tasks.training.videos import Neighbours, beside, in_turn
from tasks.training.videos import version as complete
from tasks.training.views import scored

COLUMN = "predictions"
STEP = "infer"  # of the ledger
AGAIN = 5.0  # seconds between two looks at parts that others have, on a cluster


@dataclass(frozen=True)
class Bounds:
    """What goes for a run of `infer` alone: until when it begins parts, by the clock, and that it shares them."""

    until: float | None = None  # seconds since 1970
    shared: bool = False


def version(checkpoint: Checkpoint) -> str:
    """The version of the predictions column: the weights and how they are run."""
    return (
        f"{checkpoint.digest[:12]}-{files.digest_of({'overlap': 'half', 'average': 'logits', 'over': 'stretches'})[:4]}"
    )


def predict_part(
    unit: Neighbours,
    *,
    root: str,
    checkpoint: str,
    before: Before | None = None,
    thresholds: Calibration | None = None,
    bounds: Bounds = Bounds(),  # noqa: B008  it never changes
) -> Report:
    """Predicts one part: scores of every source frame, and the segments beside it where there are ``thresholds``.

    Clips that a part ``before`` has predictions of are not predicted again. What is around a clip is looked for in
    the parts that hold other clips of the same videos, too.
    Raises `Left` where the time of the run is over, or another run has the part.
    """
    if bounds.until is not None and time.time() >= bounds.until:
        raise Left("the time of this run is over")
    part, found = unit.part, checkpoints.describe(checkpoint)
    with nullcontext("") if not bounds.shared else claims.claimed(root, f"infer-{version(found)}-{part.id}") as other:
        if other:
            raise Left(other)
        if made(root, found, part, thresholds):  # meanwhile
            return Report()
        return _predicted(unit, root, found, before, thresholds)


def _predicted(
    unit: Neighbours, root: str, found: Checkpoint, before: Before | None, thresholds: Calibration | None
) -> Report:
    part = unit.part
    name, index, decoded, todo = version(found), part.rows(), 0, []
    about = {
        "checkpoint": found.url,
        "model": found.digest,
        "classes": found.about["classes"],
        "clock": "source seconds",
    }
    mine: pa.Table | None = None  # what this call has committed
    if not columns.has(root, COLUMN, name, part.id):
        had = carry.known(root, COLUMN, name, index, before)
        todo = _again(index, carry.missing(index, had))
        decoded = 0 if takes(found.about) == "features" else len(todo)
        table = carry.together(index, _scores(root, unit, todo, found), had)
        mine = table if columns.write(root, COLUMN, name, part, table, about, index) else None
    if thresholds is not None:
        clips = read_predictions(root, name, part) if mine is None else _clips(mine.combine_chunks())
        segments.write(root, segments.version(name, thresholds), part, index, clips, about, thresholds)
    return Report(items=len(todo), kept=len(todo), decoded=decoded)


def _again(index: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of all clips of the sources of new ones: what those before were given, they saw without these."""
    paths = {row["path"] for row in new}
    return [row for row in index if row["path"] in paths]


def _scores(root: str, unit: Neighbours, todo: list[dict[str, Any]], checkpoint: Checkpoint) -> pa.Table | None:
    """The rows of some clips of a part; those whose bytes are damaged are in the ledger, and nothing is committed."""
    if not todo:
        return None
    part, account = unit.part, ledger.url(root, STEP, unit.id)
    try:
        rows = [
            {"key": key, "times": times, "scores": scores.astype(np.float16)}
            for key, times, scores in scored(root, unit, todo, checkpoint)
        ]
    except Damaged as error:
        ledger.write(root, STEP, part.id, _damaged(part, todo, error))
        raise
    if files.exists(account):  # of an attempt before the part was mended
        files.remove(account)
    return _as_table(rows, len(checkpoint.about["classes"]))


def _damaged(part: Part, todo: list[dict[str, Any]], error: Damaged) -> list[Entry]:
    """What the ledger says of a part with damage: every clip whose bytes are not as they were committed."""
    entries = []
    for row in todo:
        try:
            next(part.clips([row]))
        except Damaged as found:
            entries.append(_entry(row, found))
    return entries or [_entry(row, error) for row in todo]


def _entry(row: dict[str, Any], error: Damaged) -> Entry:
    name = f"{row['path']}#t={row['start']:g},{row['end']:g}"
    return Entry(
        name, "quarantined", "damaged", str(error), row["content_id"], duration=row["duration"], error="Damaged"
    )


def made(root: str, checkpoint: Checkpoint, part: Part, thresholds: Calibration | None) -> bool:
    """Whether a part has a model's predictions, and the segments in them where there are ``thresholds``."""
    name = version(checkpoint)
    if not columns.has(root, COLUMN, name, part.id):
        return False
    return thresholds is None or segments.has(root, segments.version(name, thresholds), part.id)


def _as_table(rows: list[dict[str, Any]], K: int) -> pa.Table:
    """Keys, frame times and `[T, K]` float16 scores as Arrow lists, without a Python object per number."""
    lengths = [len(row["times"]) for row in rows]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    flat = np.concatenate([row["scores"] for row in rows]).reshape(-1)
    scores = pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float16()), K)
    times = pa.array(np.concatenate([row["times"] for row in rows]), pa.float64())
    columns_ = [
        pa.array([row["key"] for row in rows]),
        pa.ListArray.from_arrays(offsets, times),
        pa.ListArray.from_arrays(offsets, scores),
    ]
    return pa.Table.from_arrays(columns_, names=["key", "times", "scores"])


def read_predictions(root: str, name: str, part: Part) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(key, times `[T]` on the source clock, scores `[T, K]`) of each clip of a part."""
    return _clips(columns.read(root, COLUMN, name, part, ["times", "scores"]).combine_chunks())


def _clips(table: pa.Table) -> list[tuple[str, np.ndarray, np.ndarray]]:
    found = []
    for i in range(table.num_rows):
        times, scores = table["times"][i].values, table["scores"][i].values
        K = scores.type.list_size
        flat = scores.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        found.append((table["key"][i].as_py(), times.to_numpy(zero_copy_only=False), flat.reshape(-1, K)))
    return found


def predict_parts(
    root: str,
    parts: list[Part],
    checkpoint: Checkpoint,
    title: str = "predict",
    before: Before | None = None,
    thresholds: Calibration | None = None,
    bounds: Bounds = Bounds(),  # noqa: B008  it never changes
) -> tuple[str, Report]:
    """Predicts the parts that lack this model's predictions; returns the column's version and this run's counts.

    All clips of a part are predicted, as all have features: another selection then computes nothing again.
    """
    others = beside(parts)
    if takes(checkpoint.about) == "features":
        complete(root, parts, checkpoint.about["spec"]["features"])
    work = partial(
        predict_part,
        root=root,
        checkpoint=checkpoint.url,
        before=before,
        thresholds=thresholds,
        bounds=bounds,
    )
    ready = partial(made, root, checkpoint, thresholds=thresholds)
    with pool.on_gpus():
        done = cover(title, in_turn(parts, others), work, lambda unit: ready(unit.part), patient=bounds.shared)
    return version(checkpoint), done


@task(task_run_name="predict · {dataset}", cache_policy=NO_CACHE)
@staged("predict")
def predict(
    root: str,
    dataset: str,
    model: str,
    splits: list[str],
    order: Order = "newest",
    max_hours: float | None = None,
) -> dict[str, Any]:
    """Runs the champion of a model over the parts of some splits, only where its predictions are missing.

    Says what is missing before anything is loaded, and what is left where the time was over or another run has it.
    """
    began, data = time.time(), datasets.load(root, dataset)
    champion = registry.champion(root, model)
    if champion is None:
        raise InputError(f"no model {model!r} has the alias champion; run `reelmill retrain` first")
    naming.entitle(f"infer · champion v{champion.version}", dataset, model, f"champion v{champion.version}")
    checkpoint = checkpoints.describe(champion.checkpoint)
    thresholds = calibration.load(checkpoint.url, champion.tags.get(calibration.TAG, ""))
    parts = [part for part in data.parts if not splits or part.split in splits]
    todo, done, failure = _lacking(root, parts, checkpoint, thresholds), Report(), None
    if todo:
        bounds = Bounds(None if max_hours is None else began + 3600 * max_hours, shared=True)
        first = precedence.in_order(root, data, todo, order)
        ordered = [*first, *(part for part in parts if part not in set(first))]
        begin = partial(predict_parts, root, ordered, checkpoint, "predict", carry.replaced(root, data), thresholds)
        try:
            _, done = begin(bounds)
            todo = _lacking(root, parts, checkpoint, thresholds)
            waited = time.time() + lease.EXPIRY + lease.BEAT
            while todo and pool.scheduler() and time.time() < min(waited, bounds.until or waited):
                time.sleep(AGAIN)  # a worker of this run that was lost keeps its part until it is taken for dead
                done += begin(bounds)[1]
                todo = _lacking(root, parts, checkpoint, thresholds)
        except (Damaged, Incomplete) as error:
            failure = error  # once what was found so far is in the tables
    name = version(checkpoint)
    tables = segment_tables.write(
        root, data, Made(model, champion.version, segments.version(name, thresholds), thresholds)
    )
    if failure is not None:
        raise failure
    return {
        "champion": champion.version,
        "version": name,
        "parts": len(parts),
        "clips": sum(part.samples for part in parts),
        "clips_selected": sum(sum(data.kept(root, part)) for part in parts),
        "predicted": done.items,
        "predictions_path": files.join(root, "columns", COLUMN, name),
        **tables,
        **_left(todo, max_hours, time.time() - began),
    }


def _lacking(root: str, parts: list[Part], checkpoint: Checkpoint, thresholds: Calibration) -> list[Part]:
    known = files.at_once(lambda part: made(root, checkpoint, part, thresholds), parts)
    return [part for part, there in zip(parts, known, strict=True) if not there]


def _left(todo: list[Part], max_hours: float | None, seconds: float) -> dict[str, Any]:
    """What a run did not do, in numbers and words."""
    clips = sum(part.samples for part in todo)
    if not todo:
        return {"left": 0}
    over = max_hours is not None and seconds >= 3600 * max_hours
    why = f"--max-hours {max_hours:g} are over; the next run goes on" if over else "another run has them"
    say(f"  predict      {clips} clips in {len(todo)} parts are left: {why}")
    return {"left": clips, "why_left": why}
