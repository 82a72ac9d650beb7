"""Pseudo labels: the video-level labels of a weakly labelled clip on its frames (thesis 001, 4.2.1).

Replicated on every frame; or, where a clip has several and a column of scores proposes where each is, on those.
"""

from collections import defaultdict
from functools import partial
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import Field

from storage import columns, datasets, files, versions
from storage.datasets import Dataset
from storage.errors import InputError
from storage.ledger import Report
from storage.parts import Part
from tasks.proposals import Column, Proposals, place, scores_of
from tasks.spending import staged
from tasks.stage import cover

COLUMN = "pseudo_labels"
METHOD = {"method": "replicate", "source": "video-level label on every frame, thesis 001 section 4.2.1"}
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("times", pa.list_(pa.float32())),  # of every frame, seconds since the clip's start
        ("labels", pa.list_(pa.string())),
        ("scores", pa.list_(pa.list_(pa.float32()))),  # [frames][labels]
        ("confidence", pa.float32()),
        ("provenance", pa.string()),
    ]
)
PROPOSED = SCHEMA.append(pa.field("unplaced", pa.list_(pa.string())))  # labels no run was proposed for


def version(proposals: Proposals | None = None) -> str:
    """The version of the column: the method and the digest of all that decides its values."""
    return proposals.name() if proposals else f"replicate-{files.digest_of(METHOD)[:8]}"


def _names(row: dict[str, Any]) -> list[str]:
    return sorted({label["label"] for label in row["labels"]})


def _times(row: dict[str, Any]) -> np.ndarray:
    return np.arange(row["frames"]) * (row["duration"] / row["frames"])


def replicate(row: dict[str, Any]) -> dict[str, Any]:
    """The pseudo labels of a clip: its video-level labels with score 1 on each frame."""
    names = _names(row)
    return {
        "key": row["key"],
        "times": _times(row).astype(np.float32).tolist(),
        "labels": names,
        "scores": [[1.0] * len(names)] * row["frames"],
        "confidence": 1.0,
        "provenance": f"{METHOD['method']}: {METHOD['source']}",
    }


def placed(row: dict[str, Any], at: np.ndarray, scores: np.ndarray, how: Proposals) -> dict[str, Any]:
    """The pseudo labels of a clip where scores [S, L] at times [S] since its start propose its L labels.

    A label with no run is somewhere all the same: it stays on every frame, is named as unplaced, and adds nothing
    to the confidence, the mean score of the frames that a label is on. A clip of one label is replicated.
    """
    plain = replicate(row)
    names = plain["labels"]
    if len(names) < 2:
        return plain | {"unplaced": []}
    on, mean = place(scores, at, _times(row), row["duration"] / row["frames"], how)
    found: np.ndarray = np.any(on, axis=0)
    sure = [mean[on[:, k], k].mean() if found[k] else 0.0 for k in range(len(names))]
    return plain | {
        "scores": np.where(found, on, True).astype(np.float32).tolist(),
        "confidence": float(np.mean(sure)),
        "provenance": f"proposals: {how.column} {how.version} at {how.threshold:g}",
        "unplaced": [name for name, there in zip(names, found, strict=True) if not there],
    }


def label_part(part: Part, *, root: str, proposals: Proposals | None = None) -> Report:
    """Writes the pseudo labels of one part."""
    rows = part.rows()
    if proposals is None:
        table = pa.Table.from_pylist([replicate(row) for row in rows], schema=SCHEMA)
    else:
        scores = scores_of(root, part, [_names(row) for row in rows], proposals)
        made = [placed(row, *of_clip, proposals) for row, of_clip in zip(rows, scores, strict=True)]
        table = pa.Table.from_pylist(made, schema=PROPOSED)
    about = proposals.about() if proposals else METHOD
    columns.write(root, COLUMN, version(proposals), part, table, about, rows)
    return Report(items=part.samples, kept=part.samples)


def label_dataset(root: str, dataset: Dataset, proposals: Proposals | None = None) -> tuple[str, Report]:
    """Labels the weakly labelled parts that lack the column; returns its version and the counts of this run.

    Raises `InputError` where the column that proposes does not cover them.
    """
    parts, name = dataset.select(labelled="video"), version(proposals)
    if proposals:
        lacking = [p.id for p in parts if not columns.has(root, proposals.column, proposals.version, p.id)]
        if lacking:
            maker = {"predictions": "infer", "features": "prepare"}[proposals.column]
            raise InputError(
                f"{len(lacking)} of {len(parts)} weakly labelled parts have no {proposals.column} {proposals.version} "
                f"({', '.join(lacking[:3])}); run `reelmill {maker}` first, or name another version"
            )
    work = partial(label_part, root=root, proposals=proposals)
    return name, cover("label", parts, work, lambda part: columns.has(root, COLUMN, name, part.id))


@task(task_run_name="pseudo-label · {dataset.name}", cache_policy=NO_CACHE)
@staged("label")
def label(root: str, dataset: Dataset) -> tuple[str, Report]:
    """Pseudo-labels what is missing of a dataset; see `label_dataset`."""
    return label_dataset(root, dataset)


def churn(root: str, parts: list[Part], before: str, after: str) -> list[dict[str, Any]]:
    """How far the labels of two versions differ, by class: frames on in each, and the share of them that changed.

    The share is the sum of |after - before| over that of the larger of the two: 0 the same, 1 nothing in common.
    """
    sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(4))
    for part in parts:
        pairs = [columns.read(root, COLUMN, v, part, ["labels", "scores"]).to_pylist() for v in (before, after)]
        for old, new in zip(*pairs, strict=True):
            for name in {*old["labels"], *new["labels"]}:
                a, b = (_curve(entry, name) for entry in (old, new))
                sums[name] += [a.sum(), b.sum(), np.abs(a - b).sum(), np.maximum(a, b).sum()]
    rows = sorted(sums.items()) + ([("all", sum(sums.values(), np.zeros(4)))] if sums else [])
    return [
        {"class": name, "before": float(a), "after": float(b), "changed": float(gap), "churn": float(gap / (most or 1))}
        for name, (a, b, gap, most) in rows
    ]


def _curve(entry: dict[str, Any], name: str) -> np.ndarray:
    """The score of a label on every frame of a clip, [T]."""
    scores = np.asarray(entry["scores"], dtype=np.float64).reshape(len(entry["scores"]), -1)
    return scores[:, entry["labels"].index(name)] if name in entry["labels"] else np.zeros(len(scores))


def relabel(
    root: Annotated[str, Field(description="Folder or URL that `prepare` has written to.")],
    dataset: Annotated[str, Field(description="Name of the dataset.")] = "archive",
    column: Annotated[
        Column, Field(description="What proposes: a model's predictions, or features by text.")
    ] = "predictions",
    version: Annotated[
        str | None, Field(description="Version of that column; else the newest that covers all.")
    ] = None,
    threshold: Annotated[float, Field(description="Least averaged score of a frame.", ge=0, le=1)] = 0.5,
    smooth: Annotated[float, Field(description="Seconds that scores are averaged over.", ge=0)] = 0.5,
    shortest: Annotated[float, Field(description="Seconds of the shortest run that stays.", ge=0)] = 0.5,
    prompt: Annotated[str, Field(description="What is made of a label's name before it is compared.")] = "{}",
    against: Annotated[
        str | None, Field(description="Version of pseudo labels to compare with; else the newest.")
    ] = None,
) -> str:
    """Place the labels of clips with several actions where a column of scores proposes them, as a new version.

    Prints how far it differs from the version before, by class; `reelmill retrain --pseudo-labels` trains on it.
    """
    root = files.existing_root(root)
    data = datasets.load(root, dataset)
    parts = data.select(labelled="video")
    if not parts:
        raise InputError(f"dataset {dataset} has no videos with a label for the whole video; nothing to place")
    source = version or versions.newest(root, column, parts)
    if source is None:
        raise InputError(f"no version of {column} covers the weakly labelled parts of {dataset}; make one first")
    how = Proposals(column=column, version=source, threshold=threshold, smooth=smooth, shortest=shortest, prompt=prompt)
    before = against or versions.newest(root, COLUMN, parts, other_than=how.name())
    if against and not all(columns.has(root, COLUMN, against, part.id) for part in parts):
        raise InputError(f"there are no pseudo labels {against} of all these parts; `reelmill columns` lists them")
    made, _ = label_dataset(root, data, how)
    text = f"pseudo labels {made}: {_counted(root, parts, made)}"
    if before is None:
        return text
    rows = churn(root, parts, before, made)
    files.replace_json(
        {"before": before, "after": made, "classes": rows}, files.join(root, "figures", dataset, f"churn-{made}.json")
    )
    lines = [f"| {r['class']} | {r['before']:.0f} | {r['after']:.0f} | {100 * r['churn']:.1f} % |" for r in rows]
    return "\n".join([text, f"\n| class | frames in {before} | in {made} | churn |\n|---|---|---|---|", *lines])


def _counted(root: str, parts: list[Part], name: str) -> str:
    """How many clips and labels the proposals were for, and how many found a place."""
    clips = labels = lost = 0
    for part in parts:
        for entry in columns.read(root, COLUMN, name, part, ["labels", "unplaced"]).to_pylist():
            if len(entry["labels"]) > 1:
                clips, labels, lost = clips + 1, labels + len(entry["labels"]), lost + len(entry["unplaced"])
    return f"{clips} clips with several actions, {labels - lost} of {labels} labels placed, {lost} left on all frames"
