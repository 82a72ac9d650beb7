"""Pseudo labels: the video-level label of a weakly labelled clip, on every one of its frames (thesis 001, 4.2.1)."""

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from storage import columns, files
from storage.datasets import Dataset
from storage.ledger import Report
from storage.parts import Part
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


def version() -> str:
    """The version of the column: the method and the digest of all that decides its values."""
    return f"replicate-{files.digest_of(METHOD)[:8]}"


def replicate(row: dict[str, Any]) -> dict[str, Any]:
    """The pseudo labels of a clip: its video-level labels with score 1 on each frame."""
    names = sorted({label["label"] for label in row["labels"]})
    times = np.arange(row["frames"]) * (row["duration"] / row["frames"])
    return {
        "key": row["key"],
        "times": times.astype(np.float32).tolist(),
        "labels": names,
        "scores": [[1.0] * len(names)] * row["frames"],
        "confidence": 1.0,
        "provenance": f"{METHOD['method']}: {METHOD['source']}",
    }


def label_part(part: Part, *, root: str) -> Report:
    """Writes the pseudo labels of one part."""
    rows = [replicate(row) for row in part.rows()]
    columns.write(root, COLUMN, version(), part, pa.Table.from_pylist(rows, schema=SCHEMA), METHOD)
    return Report(items=part.samples, kept=part.samples)


def label_dataset(root: str, dataset: Dataset) -> tuple[str, Report]:
    """Labels the weakly labelled parts that lack the column; returns its version and the counts of this run."""
    parts = dataset.select(labelled="video")
    done = cover("label", parts, partial(label_part, root=root), lambda p: columns.has(root, COLUMN, version(), p.id))
    return version(), done


@task(task_run_name="pseudo-label · {dataset.name}", cache_policy=NO_CACHE)
def label(root: str, dataset: Dataset) -> tuple[str, Report]:
    """Pseudo-labels what is missing of a dataset; see `label_dataset`."""
    return label_dataset(root, dataset)
