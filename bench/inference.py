"""Inference against a bare loop of decoding and model on one thread, and what a part costs besides at tiny clips.

With an untrained X3D TINY on rendered weak clips, as the demo has them.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.figures import Figure, against, seconds
from bench.training import _prepared as prepared
from storage import checkpoints
from storage.checkpoints import Checkpoint
from storage.datasets import Dataset
from storage.media import synthetic
from tasks import pool, predict, train_rank
from tasks.calibration import Calibration
from tasks.scorer import at_source_rate, frame_logits, load
from tasks.training.loader import decode
from tasks.training.pretrain import classes_of
from tasks.training.spec import Spec

CLIPS = 192  # of the usual number to a part, as committing one costs the same for few and for many


def run() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as folder:
        root = str(Path(folder) / "root")
        with redirect_stdout(StringIO()), pool.at_most(1):
            data, checkpoint = _prepared(root, Path(folder))
            ratio, took = against(lambda: _ours(root, data, checkpoint), lambda: bare(data, checkpoint), rounds=9)
        note = f"{data.clips} clips, {1000 * took / data.clips:.1f} ms a clip, one thread"
        yield Figure("inference / bare loop of decoding and model", ratio, note=note)
        with redirect_stdout(StringIO()):
            again = seconds(lambda: predict.predict_parts(root, data.parts, checkpoint, thresholds=Calibration()))
        note = f"{len(data.parts)} parts that are all there"
        yield Figure("a run with nothing to do", 1000 * again, unit="ms", note=note)


def _ours(root: str, data: Dataset, checkpoint: Checkpoint) -> None:
    """All parts from nothing: predictions and segments, committed."""
    for folder in ("columns/predictions", "segments"):
        shutil.rmtree(Path(root, folder), ignore_errors=True)
    predict.predict_parts(root, data.parts, checkpoint, thresholds=Calibration())


def bare(data: Dataset, checkpoint: Checkpoint) -> int:
    """The same frames through the same model as one writes it down, a video at a time: nothing written or claimed."""
    spec, model, frames = checkpoint.about["spec"], load(checkpoint.url), 0
    for part in data.parts:
        for _, rows in groupby(sorted(part.rows(), key=_place), key=lambda row: row["path"]):
            clips = [(row["start"], decode(part, row, spec["fps"], spec["size"])) for row in rows]
            logits = frame_logits(model, torch.cat([clip.frames for _, clip in clips]), spec["frames"]).numpy()
            sampled, times = (
                np.concatenate([getattr(c, n) + start for start, c in clips]) for n in ("sampled", "times")
            )
            frames += len(at_source_rate(logits, sampled, times))
    return frames


def _place(row: dict[str, Any]) -> tuple[str, float]:
    return row["path"], row["start"]


def _prepared(root: str, home: Path) -> tuple[Dataset, Checkpoint]:
    synthetic.render_archive(home, 0, CLIPS, 2, run=pool.processes)
    data = prepared(root, home)
    classes = classes_of(data.select(split="train", labelled="video"))
    spec = Spec(root=root, parts=[], classes=classes, objective="dense", options={"size": "TINY"}, size=24)
    weights = train_rank.build(spec).state_dict()
    return data, checkpoints.save(root, "untrained", 1, weights, {}, train_rank._about(spec), True)
