"""What a page says of a model: classes with intervals, curves, timelines, and the clips that it is unsure of."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from threadpoolctl import threadpool_limits

from models.gate import require_same, resampled, videos_with
from models.metrics import FrameScores, ScoredVideo, collect, frame_map, labels_at, precision_recall
from storage import checkpoints, columns
from storage.checkpoints import Checkpoint
from storage.datasets import Dataset
from storage.errors import InputError, StoreError
from storage.parts import Part
from tasks.evaluate import held_out, leaks, scored_videos
from tasks.lineage import ancestry
from tasks.pages import pictures
from tasks.pages.pictures import Clip
from tasks.predict import COLUMN, read_predictions, version
from tasks.training import videos

DRAWS, CONFIDENCE = 500, 0.95  # of the bootstrap over videos
CELLS = 40_000_000  # frames by classes that are resampled, at most: some seconds
SHOWN, STEPS, TICKS = 4, 200, 6  # videos under a filmstrip, places of its cursor, labels of its clock
STRIP = 20  # frames of a strip
UNSURE, PARTS, LOOK = 12, 64, 4  # clips shown, parts that are read to find them, frames of each
DECISIONS = 8  # versions of a model whose decisions are shown
CLASSES, LANES = 48, 16  # curves, and rows of a timeline, at most


@dataclass(frozen=True)
class Measured:
    """A version of a model on the held-out videos that it has predictions of."""

    number: int
    column: str  # version of the predictions
    classes: list[str]
    videos: list[ScoredVideo]
    frames: FrameScores


@dataclass(frozen=True)
class Standing:
    """The versions of a model: (number, tags, the gate's decision or None), the newest first; the champion's number."""

    name: str
    versions: list[tuple[int, dict[str, str], dict[str, Any] | None]]
    champion: int | None
    reigns: list[int]

    @property
    def tags(self) -> dict[int, dict[str, str]]:
        return {number: tags for number, tags, _ in self.versions}

    @property
    def decisions(self) -> dict[int, dict[str, Any]]:
        return {number: decision for number, _, decision in self.versions if decision}


def standing(root: str, model: str) -> Standing:
    """What the registry says of a model; nothing where nothing is tracked, without loading MLflow."""
    if not ancestry.tracked(root):
        return Standing(model, [], None, [])
    from tasks import registry

    known = registry.versions(root, model)
    rows = [(number, known[number], registry.decided(root, model, number)) for number in sorted(known, reverse=True)]
    best = registry.champion(root, model)
    return Standing(model, rows, best.version if best else None, registry.reigns(root, model))


def checkpoint_of(root: str, known: Standing, number: int) -> Checkpoint | None:
    """The checkpoint of a version; None where it is gone."""
    url = known.tags.get(number, {}).get("checkpoint")
    try:
        return checkpoints.describe(ancestry.here(root, url)) if url else None
    except (FileNotFoundError, StoreError):
        return None


def measured(root: str, dataset: Dataset, known: Standing, number: int) -> Measured | str:
    """A version on the held-out videos, from the predictions that are stored; or why that cannot be said."""
    checkpoint = checkpoint_of(root, known, number)
    if checkpoint is None:
        return f"The checkpoint of version {number} is gone."
    try:
        parts = held_out(dataset)
    except InputError as error:
        return f"Nothing is measured: {error}."
    column, classes = version(checkpoint), checkpoint.about["classes"]
    if not all(columns.has(root, COLUMN, column, part.id) for part in parts):
        return f"Version {number} has no predictions of all held-out videos of this version of the dataset."
    leaked = {leak["video"] for leak in leaks(root, dataset, parts)[0]}
    found = scored_videos(root, parts, column, classes, dataset.selection, leaked)
    if not found:
        return "No held-out video is left to measure."
    return Measured(number, column, classes, found, collect(found, len(classes)))


@dataclass(frozen=True)
class ClassRow:
    """A class on the held-out frames: AP in percent, and the difference to the model before with its interval."""

    name: str
    frames: int
    videos: int
    ap: float | None
    before: float | None = None
    delta: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def word(self) -> str:
        """What the interval says."""
        if self.low is None or self.high is None:
            return ""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "no sure difference"


def class_rows(now: Measured, before: Measured | None, decision: dict[str, Any] | None) -> tuple[list[ClassRow], str]:
    """A row for each class, and a sentence where intervals are missing.

    Where the other model's predictions are gone, the differences are those that the gate's decision has.
    """
    scores, targets, _ = now.frames.arrays()
    ap, count = 100 * frame_map(scores, targets).per_class, targets.sum(0)
    seen = videos_with(now.frames)
    empty = [np.full(len(now.classes), np.nan)] * 3
    older, low, high = empty
    why = "" if before else "There is no model before it whose predictions could be compared."
    if before:
        try:
            older, low, high = differences(before, now)
        except ValueError as error:
            why = f"The two cannot be compared: {error}."
    elif decision and decision.get("classes"):
        told = {row["class"]: row for row in decision["classes"]}
        older = np.array([100 * told[name]["champion"] if name in told else np.nan for name in now.classes])
        why = "The predictions of the champion before are gone; its AP is what the gate wrote down, without intervals."
    rows = [
        ClassRow(name, int(count[k]), int(seen[k]), *(_number(v[k]) for v in (ap, older, ap - older, low, high)))
        for k, name in enumerate(now.classes)
    ]
    return sorted(rows, key=lambda row: (row.ap is None, -(row.ap or 0.0), row.name)), why


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def differences(before: Measured, now: Measured) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AP `[K]` of the model before, and the percentile bounds `[K]` of each class's difference over draws of videos.

    In percent. Videos that only one of the two has are left out. Raises ValueError where the two differ in classes or
    truth, for fewer than two videos, and where there is too much to resample for a page.
    """
    if before.classes != now.classes:
        raise ValueError("they know other classes")
    both = before.frames.videos.keys() & now.frames.videos.keys()
    sides = [FrameScores(len(now.classes), {k: one.frames.videos[k] for k in both}) for one in (before, now)]
    require_same(*sides)
    V = len(both)
    frames = sum(len(scores) for scores, _ in sides[0].videos.values())
    if frames * len(now.classes) > CELLS:
        raise ValueError(f"{frames:,} frames of {len(now.classes)} classes are too many to draw from here")
    counts = np.random.default_rng(0).multinomial(V, np.full(V, 1 / V), size=DRAWS).T.astype(float)
    with threadpool_limits(1):
        old, new = (resampled(side, counts)[0] for side in sides)
    gaps = np.ma.masked_invalid(100 * (new - old))
    ends = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    bounds = [np.quantile(row.compressed(), ends) if row.count() else (np.nan, np.nan) for row in gaps]
    return 100 * frame_map(*sides[0].arrays()[:2]).per_class, *np.array(bounds).T


@dataclass(frozen=True)
class Curve:
    """Precision against recall of a class, drawn."""

    name: str
    ap: float
    before: float | None
    picture: Markup


def curves(now: Measured, before: Measured | None, rows: list[ClassRow]) -> list[Curve]:
    """A curve for each class that has positive frames, over that of the model before where they know the same."""
    scores, targets, _ = now.frames.arrays()
    other = before.frames.arrays() if before and before.classes == now.classes else None
    found = []
    for row in [row for row in rows if row.ap is not None][:CLASSES]:
        k = now.classes.index(row.name)
        old = precision_recall(other[0][:, k], other[1][:, k]) if other and other[1][:, k].any() else None
        picture = pictures.curve(precision_recall(scores[:, k], targets[:, k]), old)
        found.append(Curve(row.name, row.ap or 0.0, row.before, picture))
    return found


@dataclass(frozen=True)
class Timeline:
    """A video under its frames: pictures with their seconds, and for each class the drawn row and what it holds."""

    name: str
    duration: float
    wrong: float | None  # mean distance of scores and truth, in percent
    frames: list[tuple[float, Markup]]
    rows: list[dict[str, Any]]
    ticks: list[tuple[float, float]]  # share of the width in percent, second
    more: int  # classes that have no row
    missing: str = ""  # why there are no frames


def timelines(parts: list[Part], scored: list[ScoredVideo], classes: list[str], truth: bool) -> list[Timeline]:
    """The videos that the model is most wrong about, the worst first, and the one that it is most right about."""
    errors = {}
    for name, scores, times, segments, _ in scored:
        errors[name] = 100 * float(np.abs(scores - labels_at(times, segments, len(classes))).mean()) if truth else 0.0
    ordered = sorted(scored, key=lambda video: (-errors[video[0]], video[0]))
    chosen = ordered[: SHOWN - 1] + ordered[-1:] if len(ordered) >= SHOWN else ordered
    clips = videos.videos(parts)
    return [_timeline(video, classes, clips[video[0]], errors[video[0]] if truth else None) for video in chosen]


def _timeline(video: ScoredVideo, classes: list[str], clips: list[Clip], wrong: float | None) -> Timeline:
    name, scores, times, (starts, ends, labels), duration = video
    grid = np.linspace(0, duration, STEPS + 1)
    # The largest score around each place: a peak between two of them would vanish.
    nearest = np.clip(np.searchsorted(grid, times), 0, STEPS)
    peaks = np.full((STEPS + 1, len(classes)), np.nan)
    np.fmax.at(peaks, nearest, np.asarray(scores, float))
    seen = ~np.isnan(peaks[:, 0])
    filled = np.column_stack([np.interp(grid, grid[seen], peaks[seen, k]) for k in range(len(classes))])
    rows = []
    for k in sorted(range(len(classes)), key=lambda k: (k not in labels, -filled[:, k].max(), k))[:LANES]:
        spans = [(float(s), float(e)) for s, e, c in zip(starts, ends, labels, strict=True) if c == k]
        data = {"scores": np.round(100 * filled[:, k]).astype(int).tolist(), "spans": spans}
        rows.append({"name": classes[k], "data": data, "picture": pictures.track(grid, filled[:, k], spans, duration)})
    ticks = [(100 * i / (TICKS - 1), duration * i / (TICKS - 1)) for i in range(TICKS)]
    try:
        frames, missing = pictures.frames(clips, STRIP), ""
    except pictures.UNREADABLE as error:
        frames, missing = [], f"Its frames cannot be read: {error}"
    return Timeline(name, duration, wrong, frames, rows, ticks, len(classes) - len(rows), missing)


@dataclass(frozen=True)
class Unsure:
    """A clip that the model is least sure about: 0 (cannot tell) to 100."""

    video: str
    start: float
    end: float
    sure: float
    best: str  # the class of its highest score
    score: float
    frames: list[tuple[float, Markup]]


def unsure(root: str, dataset: Dataset, column: str, classes: list[str]) -> tuple[list[Unsure], int, int]:
    """The selected clips whose scores are nearest to one half, and how many parts of how many were read for that."""
    there = [part for part in dataset.parts if columns.has(root, COLUMN, column, part.id)]
    least = heapq.nsmallest(UNSURE, _sureness(root, dataset, there[:PARTS], column), key=lambda one: one[:2])
    found = []
    for sure, _, part, row, best, score in least:
        try:
            frames = pictures.frames([(part, row)], LOOK)
        except pictures.UNREADABLE:
            frames = []
        found.append(Unsure(row["path"], row["start"], row["end"], sure, classes[best], score, frames))
    return found, min(len(there), PARTS), len(there)


def _sureness(root: str, dataset: Dataset, parts: list[Part], column: str) -> Iterator[tuple[Any, ...]]:
    """(how sure 0 to 100, key, part, row, class, score) of each selected clip: twice the distance from one half."""
    for part in parts:
        read = zip(part.rows(), dataset.kept(root, part), read_predictions(root, column, part), strict=True)
        for row, used, (key, _, scores) in read:
            if used and scores.size:
                nearest = np.abs(2 * scores - 1).min(1).mean()
                place = int(scores.max(0).argmax())
                yield 100 * float(nearest), key, part, row, place, 100 * float(scores[:, place].max())
