"""Frames at the rate and size that trainings see, as a column: decoded once, in sandboxes, and read by all of them.

The bytes are those that a training would decode itself, so it draws the same batches with the column and without.
Only what a rank can hold in its memory is kept: of more frames, or larger ones, each training decodes as it goes.
"""

import threading
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from storage import carry, columns
from storage.carry import Before
from storage.datasets import Dataset
from storage.ledger import Report
from storage.parts import Part
from tasks.stage import cover
from tasks.training.loader import FRAMES, decode, frames_version

MOST = 1 << 30  # bytes of frames of a training's clips together
ONE = threading.Lock()  # of trainings side by side, one writes what all read


def weight(parts: list[Part], fps: float, size: int) -> int:
    """How many bytes the frames of some parts come to, by their indexes alone; a few more than they have."""
    durations = [part.table(["duration"])["duration"].to_numpy() for part in parts]
    return sum(int(np.ceil(clips * fps + 1).sum()) for clips in durations) * 3 * size * size


def keep(root: str, dataset: Dataset, parts: list[Part], fps: float, size: int) -> str:
    """Writes the column where parts lack it, and returns its version; "" where the frames are too many to be kept."""
    if weight(parts, fps, size) > MOST:
        return ""
    name = frames_version(fps, size)
    work = partial(write_part, root=root, fps=fps, size=size, before=carry.replaced(root, dataset))
    with ONE:
        cover("frames", parts, work, lambda part: columns.has(root, FRAMES, name, part.id))
    return name


def write_part(part: Part, *, root: str, fps: float, size: int, before: Before | None = None) -> Report:
    """Commits the frames of a part's clips; those that a part ``before`` had are not decoded again."""
    name, rows = frames_version(fps, size), part.rows()
    had = carry.known(root, FRAMES, name, rows, before)
    todo = carry.missing(rows, had)
    made = _decoded(part, todo, fps, size) if todo else None
    columns.write(root, FRAMES, name, part, carry.together(rows, had, made), {"fps": fps, "size": size}, rows)
    return Report(items=part.samples, kept=part.samples, decoded=len(todo))


def _decoded(part: Part, rows: list[dict[str, Any]], fps: float, size: int) -> pa.Table:
    clips = [decode(part, row, fps, size) for row in rows]
    return pa.table(
        {
            "key": [row["key"] for row in rows],
            "frames": pa.array([clip.frames.numpy().tobytes() for clip in clips], pa.binary()),
            "sampled": pa.array([clip.sampled for clip in clips], pa.list_(pa.float64())),
            "times": pa.array([clip.times for clip in clips], pa.list_(pa.float64())),
        }
    )
