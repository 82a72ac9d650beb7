"""Batch inference: a checkpoint over committed parts, into a predictions column and a table of segments."""

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from storage import carry, checkpoints, columns, datasets, files, tables
from storage.carry import Before
from storage.checkpoints import Checkpoint
from storage.errors import InputError
from storage.ledger import Report
from storage.parts import Part
from tasks import registry, segments
from tasks.scorer import takes
from tasks.stage import cover
from tasks.videos import beside, in_turn
from tasks.videos import version as complete
from tasks.views import scored

COLUMN = "predictions"


def version(checkpoint: Checkpoint) -> str:
    """The version of the predictions column: the weights and how they are run."""
    how = {"overlap": "half", "average": "logits", "threshold": segments.THRESHOLD, "shortest": segments.SHORTEST}
    return f"{checkpoint.digest[:12]}-{files.digest_of(how)[:4]}"


def predict_part(
    part: Part, *, root: str, checkpoint: str, before: Before | None = None, others: dict[str, list[Part]] | None = None
) -> Report:
    """Predicts one part: scores of every source frame, and the segments table beside it, which is written first.

    Clips that a part ``before`` has predictions of are not predicted again. ``others`` are the parts, by the id of
    this one, that hold other clips of the same videos: systems that see whole videos look there.
    """
    found = checkpoints.describe(checkpoint)
    about, name = found.about, version(found)
    index = part.rows()
    had = carry.known(root, COLUMN, name, index, before)
    todo = carry.missing(index, had)
    rows = [
        {"key": key, "times": times, "scores": scores.astype(np.float16)}
        for key, times, scores in scored(root, part, todo, found, (others or {}).get(part.id, []))
    ]
    table = carry.together(index, had, _as_table(rows, len(about["classes"])) if rows else None)
    runs = [
        {"key": key, "source": row["source"], **segment}
        for row, (key, clock, scores) in zip(index, _clips(table), strict=True)
        for segment in segments.find(scores, clock, about["classes"])
    ]
    made = {
        "checkpoint": checkpoint,
        "model": found.digest,
        "classes": about["classes"],
        "clock": "source seconds",
    }
    packed = tables.pack(pa.Table.from_pylist(runs, schema=segments.SCHEMA), made)
    files.publish_bytes(packed, segments.url(root, name, part.id), same=False)
    columns.write(root, COLUMN, name, part, table, made, index)
    decoded = 0 if takes(about) == "features" else len(todo)
    return Report(items=len(todo), kept=len(todo), decoded=decoded)


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
    root: str, parts: list[Part], checkpoint: Checkpoint, title: str = "predict", before: Before | None = None
) -> tuple[str, Report]:
    """Predicts the parts that lack this model's predictions; returns the column's version and this run's counts.

    All clips of a part are predicted, as all have features: another selection then computes nothing again.
    """
    name = version(checkpoint)
    others = beside(parts) if takes(checkpoint.about) != "clip" else {}
    if takes(checkpoint.about) == "features":
        complete(root, parts, checkpoint.about["spec"]["features"])
    done = cover(
        title,
        in_turn(parts, others),
        partial(predict_part, root=root, checkpoint=checkpoint.url, before=before, others=others),
        lambda part: columns.has(root, COLUMN, name, part.id),
    )
    return name, done


@task(task_run_name="predict · {dataset}", cache_policy=NO_CACHE)
def predict(root: str, dataset: str, model: str, splits: list[str]) -> dict[str, Any]:
    """Runs the champion of a model over the parts of some splits, only where its predictions are missing."""
    data = datasets.load(root, dataset)
    champion = registry.champion(root, model)
    if champion is None:
        raise InputError(f"no model {model!r} has the alias champion; run `reelmill retrain` first")
    parts = [part for part in data.parts if not splits or part.split in splits]
    before = carry.replaced(root, data)
    name, done = predict_parts(root, parts, checkpoints.describe(champion.checkpoint), before=before)
    return {
        "champion": champion.version,
        "version": name,
        "parts": len(parts),
        "clips": sum(part.samples for part in parts),
        "clips_selected": sum(sum(data.kept(root, part)) for part in parts),
        "predicted": done.items,
        "segments": segments.count(root, name, parts, data.selection),
        "predictions_path": files.join(root, "columns", COLUMN, name),
        "segments_path": files.join(root, "segments", name),
    }
