"""Evaluate a checkpoint per frame on the held-out videos, with figures."""

from collections import defaultdict
from collections.abc import Container
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from models.metrics import PROTOCOLS, FrameScores, ScoredVideo, breakdown, collect, frame_map
from storage.checkpoints import Checkpoint
from storage.datasets import Dataset, kept
from storage.errors import InputError
from storage.parts import Part
from tasks.calibration import Calibration, calibrate
from tasks.duplicates import across, read_pairs
from tasks.footprint import footprint
from tasks.predict import predict_parts, read_predictions
from tasks.report import say
from tasks.training.videos import videos as clips_of

SPLIT = "heldout"


@dataclass
class Evaluation:
    """Metrics of one model, flat, and the per-class table of every frame.

    The metrics are every protocol × mode, the mAP of frames of each kind of `models.metrics.circumstances`, and costs.
    """

    metrics: dict[str, float]
    per_class: list[dict[str, Any]]
    excluded: list[str]  # classes
    leaks: list[dict[str, Any]]  # held-out videos left out because a training clip shows the same
    checked: str  # what of the clips was compared to find those
    version: str
    digest: str  # of the weights
    frames: FrameScores = field(repr=False)
    videos: list[ScoredVideo] = field(repr=False)
    thresholds: Calibration = field(default_factory=Calibration)  # of segments


def held_out(dataset: Dataset) -> list[Part]:
    """The held-out parts with segments; InputError where there are none, or where a source is in training too."""
    parts = dataset.select(split=SPLIT, labelled="segments")
    if not parts:
        raise InputError(
            f"dataset {dataset.name} has no held-out videos with segments; give labels with path,start,end,label "
            "and, if you like, split (train or heldout)"
        )
    _apart(tuple(part for part in dataset.parts if part.split == "train"), tuple(parts))
    return parts


@lru_cache(maxsize=4)
def _apart(training: tuple[Part, ...], tested: tuple[Part, ...]) -> None:
    """Raises `InputError` where a source is in both. Parts never change, so their indexes are read once a process."""
    trained_on = {content for part in training for content in part.table(["content_id"])["content_id"].to_pylist()}
    for part in tested:
        both = trained_on & set(part.table(["content_id"])["content_id"].to_pylist())
        if both:
            raise InputError(f"{len(both)} sources are in both train and held-out, the first {min(both)[:20]}")


def leaks(root: str, dataset: Dataset, parts: list[Part]) -> tuple[list[dict[str, Any]], str]:
    """The held-out videos of which a clip shows what a training clip shows, and what was compared to know.

    Where the dataset was not searched for near-duplicates (`tasks.duplicates`), only contents were: see `held_out`.
    """
    pairs = read_pairs(root, dataset)
    if pairs is None:
        return [], "content"
    of = {part.id: part for part in dataset.parts}
    training = {part.id for part in dataset.parts if part.split == "train"}
    tested = {part.id for part in parts}
    sides = [((p["part"], p["key"]), (p["other_part"], p["other"]), p) for p in across(pairs)]
    crossing = [(a, b, p) for one, other, p in sides for a, b in ((one, other), (other, one))
                if a[0] in tested and b[0] in training]  # fmt: skip
    rows = {
        (id, row["key"]): row for id in {c[0] for s in crossing for c in s[:2]} for row in dataset.rows(root, of[id])
    }
    found: dict[str, dict[str, Any]] = {}
    for mine, theirs, pair in sorted(crossing, key=lambda c: c[:2]):
        if mine in rows and theirs in rows:  # clips that the selection drops can leak nothing
            video = rows[mine]["path"]
            facts = {
                "video": video,
                "clip": mine[1],
                "training_video": rows[theirs]["path"],
                "training_clip": theirs[1],
            }
            found.setdefault(video, facts | {name: pair[name] for name in ("kind", "look", "move", "share")})
    return [found[video] for video in sorted(found)], "content and pictures"


def scored_videos(
    root: str,
    parts: list[Part],
    version: str,
    classes: list[str],
    selection: str | None = None,
    without: Container[str] = (),
) -> list[ScoredVideo]:
    """The predictions of whole source videos, their clips joined on the source clock, with the truth.

    Clips that the selection drops are left out with their truth, and so are the videos in ``without``.
    """
    pieces: dict[str, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
    truth: dict[str, set[tuple[float, float, int]]] = defaultdict(set)
    ends: dict[str, float] = defaultdict(float)
    gaps: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for part in parts:
        used = kept(root, selection, part)
        for row, (_, times, scores), use in zip(part.rows(), read_predictions(root, version, part), used, strict=True):
            video = row["path"]
            if video in without:
                continue
            if not use:
                gaps[video].append((row["start"], row["end"]))
                continue
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
        columns = np.array(sorted(_outside(truth[video], gaps[video])), dtype=float).reshape(-1, 3)
        segments = (columns[:, 0], columns[:, 1], columns[:, 2].astype(int))
        found.append((video, scores, times, segments, ends[video]))
    return found


def _outside(segments: set[tuple[float, float, int]], gaps: list[tuple[float, float]]) -> set[tuple[float, float, int]]:
    """Segments without what lies in the gaps, so that no model is blamed for what it was not asked."""
    for begin, end in gaps:
        pieces = [((s, min(e, begin), k), (max(s, end), e, k)) for s, e, k in segments]
        segments = {piece for pair in pieces for piece in pair if piece[0] < piece[1]}
    return segments


def evaluate_checkpoint(root: str, dataset: Dataset, checkpoint: Checkpoint, title: str) -> Evaluation:
    """Predicts the held-out parts (where that is missing) and measures both protocols in all three modes.

    A held-out video that shows what a training clip shows is not measured; `Evaluation.leaks` names it.
    """
    parts = held_out(dataset)
    classes = checkpoint.about["classes"]
    version, _ = predict_parts(root, parts, checkpoint, title)
    leaked, checked = leaks(root, dataset, parts)
    names = {leak["video"] for leak in leaked}
    videos = scored_videos(root, parts, version, classes, dataset.selection, names)
    if names:
        shown = ", ".join(sorted(names)[:3])
        say(f"  {title:<12} {len(names)} held-out videos show what training clips show and do not count ({shown})")
    if not videos:
        raise InputError(
            f"dataset {dataset.name}: no held-out video is left to measure: {len(names)} show what training clips "
            "show, the others are not selected; hold out other videos or change the thresholds"
        )
    metrics: dict[str, float] = footprint(checkpoint)
    for protocol in PROTOCOLS:
        frames = collect(videos, len(classes), protocol)
        result = frame_map(*frames.arrays()[:2])
        for mode in ("map", "wap", "map_prior_normalised"):
            metrics[f"{protocol}_{mode}"] = getattr(result, mode)
        if protocol == "every_frame":
            every, of_every = result, frames
    for kind, of_kind in breakdown(videos, len(classes)).items():
        if not np.isnan(of_kind.map):  # an archive may have no frame of several actions
            metrics[f"every_frame_map_{kind}"] = of_kind.map
    per_class = [
        {"class": name, "ap": float(every.per_class[k]), "frames": int(every.positives[k])}
        for k, name in enumerate(classes)
    ]
    excluded, thresholds = [classes[k] for k in every.excluded], calibrate(videos, classes)
    return Evaluation(
        metrics, per_class, excluded, leaked, checked, version, checkpoint.digest, of_every, videos, thresholds
    )


def summary_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The per-class table as people read it."""
    rows = [{"class": r["class"], "AP": f"{100 * r['ap']:.1f}", "frames": r["frames"]} for r in evaluation.per_class]
    return [
        *rows,
        {"class": "mean", "AP": f"{100 * evaluation.metrics['every_frame_map']:.1f}", "frames": ""},
    ]


def as_plain(evaluation: Evaluation) -> dict[str, Any]:
    """What is kept of an evaluation as JSON."""
    names = ("metrics", "per_class", "excluded", "leaks", "checked", "version")
    return {name: getattr(evaluation, name) for name in names} | {"thresholds": evaluation.thresholds.plain()}


def draw(evaluation: Evaluation, classes: list[str], folder: Path, parts: list[Part]) -> list[Path]:
    """Draws precision-recall curves and, for two videos, truth and prediction against time under their frames."""
    from tasks import figures

    made = [figures.precision_recall(evaluation.frames, classes, folder / "precision_recall.png")]
    clips = clips_of(parts)
    for number, video in enumerate(evaluation.videos[:2]):
        strip = figures.filmstrip(clips[video[0]])
        made.append(figures.timeline(video, classes, strip, folder / f"timeline_{number}.png"))
    return made
