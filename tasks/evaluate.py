"""Evaluate a checkpoint per frame on the held-out videos, with figures."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from models.metrics import PROTOCOLS, FrameScores, ScoredVideo, collect, frame_map
from storage.checkpoints import Checkpoint
from storage.datasets import Dataset
from storage.errors import InputError
from storage.parts import Part
from tasks.predict import predict_parts, read_predictions

SPLIT = "heldout"


@dataclass
class Evaluation:
    """Metrics of one model: every protocol × mode as a flat dict, and the per-class table of every frame."""

    metrics: dict[str, float]
    per_class: list[dict[str, Any]]
    excluded: list[str]
    version: str
    digest: str  # of the weights
    frames: FrameScores = field(repr=False)
    videos: list[ScoredVideo] = field(repr=False)


def held_out(dataset: Dataset) -> list[Part]:
    """The held-out parts with segments; InputError where there are none, or where a source is in training too."""
    parts = dataset.select(split=SPLIT, labelled="segments")
    if not parts:
        raise InputError(
            f"dataset {dataset.name} has no held-out videos with segments; give labels with path,start,end,label "
            "and, if you like, split (train or heldout)"
        )
    trained_on = {
        content
        for part in dataset.parts
        if part.split == "train"
        for content in part.table(["content_id"])["content_id"].to_pylist()
    }
    for part in parts:
        both = trained_on & set(part.table(["content_id"])["content_id"].to_pylist())
        if both:
            raise InputError(f"{len(both)} sources are in both train and held-out, the first {min(both)[:20]}")
    return parts


def scored_videos(root: str, parts: list[Part], version: str, classes: list[str]) -> list[ScoredVideo]:
    """The predictions of whole source videos, their clips joined on the source clock, with the truth."""
    pieces: dict[str, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
    truth: dict[str, set[tuple[float, float, int]]] = defaultdict(set)
    ends: dict[str, float] = defaultdict(float)
    for part in parts:
        for row, (_, times, scores) in zip(part.rows(), read_predictions(root, version, part), strict=True):
            video = row["path"]
            pieces[video].append((times, scores))
            ends[video] = max(ends[video], row["end"])
            for label in row["labels"]:
                if label["label"] in classes:
                    truth[video].add((label["start"], label["end"], classes.index(label["label"])))
    found = []
    for video in sorted(pieces):
        ordered = sorted(pieces[video], key=lambda piece: piece[0][0])
        times = np.concatenate([t for t, _ in ordered])
        scores = np.concatenate([s for _, s in ordered])
        columns = np.array(sorted(truth[video]), dtype=float).reshape(-1, 3)
        segments = (columns[:, 0], columns[:, 1], columns[:, 2].astype(int))
        found.append((video, scores, times, segments, ends[video]))
    return found


def evaluate_checkpoint(root: str, dataset: Dataset, checkpoint: Checkpoint, title: str) -> Evaluation:
    """Predicts the held-out parts (where that is missing) and measures both protocols in all three modes."""
    parts = held_out(dataset)
    classes = checkpoint.about["classes"]
    version, _ = predict_parts(root, parts, checkpoint, title)
    videos = scored_videos(root, parts, version, classes)
    metrics: dict[str, float] = {}
    for protocol in PROTOCOLS:
        frames = collect(videos, len(classes), protocol)
        result = frame_map(*frames.arrays()[:2])
        for mode in ("map", "wap", "map_prior_normalised"):
            metrics[f"{protocol}_{mode}"] = getattr(result, mode)
        if protocol == "every_frame":
            every, of_every = result, frames
    per_class = [
        {"class": name, "ap": float(every.per_class[k]), "frames": int(every.positives[k])}
        for k, name in enumerate(classes)
    ]
    excluded = [classes[k] for k in every.excluded]
    return Evaluation(metrics, per_class, excluded, version, checkpoint.digest, of_every, videos)


def summary_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The per-class table as people read it."""
    rows = [{"class": r["class"], "AP": f"{100 * r['ap']:.1f}", "frames": r["frames"]} for r in evaluation.per_class]
    return [
        *rows,
        {"class": "mean", "AP": f"{100 * evaluation.metrics['every_frame_map']:.1f}", "frames": ""},
    ]


def as_plain(evaluation: Evaluation) -> dict[str, Any]:
    """What is kept of an evaluation as JSON."""
    kept = ("metrics", "per_class", "excluded", "version")
    return {name: getattr(evaluation, name) for name in kept}


def draw(evaluation: Evaluation, classes: list[str], folder: Path, parts: list[Part]) -> list[Path]:
    """Draws precision-recall curves and, for two videos, truth and prediction against time under their frames."""
    from tasks import figures

    made = [figures.precision_recall(evaluation.frames, classes, folder / "precision_recall.png")]
    for number, video in enumerate(evaluation.videos[:2]):
        strip = figures.filmstrip(parts, video[0])
        made.append(figures.timeline(video, classes, strip, folder / f"timeline_{number}.png"))
    return made
