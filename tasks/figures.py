"""The pictures of a run: precision-recall curves, timelines under a filmstrip, contact sheets of augmented clips."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure  # not pyplot: its current figure is shared between threads

from models.metrics import FrameScores, ScoredVideo, average_precision
from models.metrics import precision_recall as pr_curve
from storage.media.sandbox import mine
from storage.parts import Part

STRIP = 12  # frames across a timeline
TRUTH, SCORE = "#2b6cb0", "#dd6b20"
PALETTE = [colormaps["tab10"](i) for i in range(10)]


def save(figure: Figure, path: Path) -> Path:
    """Writes a figure as PNG, the same bytes every time."""
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
    return path


def precision_recall(frames: FrameScores, classes: list[str], path: Path) -> Path:
    """Draws precision against recall of each class on every frame, with its AP in the legend."""
    scores, targets, _ = frames.arrays()
    figure = Figure(figsize=(6.4, 4.6))
    axes = figure.subplots()
    for k, name in enumerate(classes):
        if targets[:, k].any():
            recall, precision = pr_curve(scores[:, k], targets[:, k])
            ap = average_precision(scores[:, k], targets[:, k])
            axes.plot(recall, precision, color=PALETTE[k % 10], lw=1.6, label=f"{name}  {100 * ap:.0f}")
    axes.set(
        xlabel="recall",
        ylabel="precision",
        xlim=(0, 1),
        ylim=(0, 1.02),
        title="Per-frame precision and recall",
    )
    axes.legend(title="class  AP", fontsize=8, title_fontsize=8, loc="lower left", frameon=False)
    axes.grid(alpha=0.25)
    return save(figure, path)


def filmstrip(clips: list[tuple[Part, dict[str, Any]]]) -> np.ndarray:
    """`STRIP` frames `[n, H, W, 3]` uint8 spread evenly over the clips of a source video, in order."""
    pictures: list[np.ndarray] = []
    for part, row in clips:
        ((_, data),) = part.clips([row])
        pictures += list(mine().sample(data, 2.0)[0])
    chosen = np.linspace(0, len(pictures) - 1, min(STRIP, len(pictures))).round().astype(int)
    return np.stack([pictures[i] for i in chosen])


def _side_by_side(frames: np.ndarray) -> np.ndarray:
    """Frames `[n, H, W, 3]` in a row, with a white gap between them."""
    gap = max(1, frames.shape[2] // 40)
    return np.concatenate(list(np.pad(frames, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)), axis=1)


def timeline(video: ScoredVideo, classes: list[str], strip: np.ndarray, path: Path) -> Path:
    """Draws truth (bars) and scores (curves) of every class against time, under frames of the video."""
    name, scores, times, (starts, ends, labels), duration = video
    K = len(classes)
    figure = Figure(figsize=(11, 1.3 + 0.55 * K), layout="constrained")
    top, main = figure.subplots(2, 1, height_ratios=[1.1, 0.42 * K])
    top.imshow(_side_by_side(strip), aspect="auto", extent=(0, duration, 0, 1))
    top.set(title=name, yticks=[], xticks=[])
    for k, label in enumerate(classes):
        base = K - 1 - k
        main.axhline(base, color="0.85", lw=0.8)
        for start, end in ((s, e) for s, e, c in zip(starts, ends, labels, strict=True) if c == k):
            main.axvspan(start, end, base / K, (base + 0.85) / K, color=TRUTH, alpha=0.28, lw=0)
        main.plot(times, base + 0.85 * scores[:, k], color=SCORE, lw=1.3)
        main.text(-0.01 * duration, base + 0.3, label, ha="right", va="center", fontsize=9)
    main.set(xlim=(0, duration), ylim=(0, K), yticks=[], xlabel="seconds of the source video")
    main.plot([], [], color=TRUTH, alpha=0.4, lw=6, label="truth")
    main.plot([], [], color=SCORE, lw=1.3, label="score (0 to 1)")
    main.legend(loc="upper right", bbox_to_anchor=(1.0, -0.04), ncols=2, fontsize=8, frameon=False)
    return save(figure, path)


def contact_sheet(rows: list[tuple[str, np.ndarray, np.ndarray]], classes: list[str], path: Path) -> Path:
    """Draws clips as rows of frames with the curves of their labels.

    ``rows`` holds (title, frames `[T, H, W, 3]` uint8, labels `[T, K]`).
    """
    figure = Figure(figsize=(13, 1.02 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 2, width_ratios=[4.2, 1], squeeze=False)
    for (title, frames, labels), (left, right) in zip(rows, axes, strict=True):
        left.imshow(_side_by_side(frames), aspect="auto")
        left.set(xticks=[], yticks=[])
        left.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
        for k in np.flatnonzero(labels.any(0)):
            right.plot(labels[:, k], color=PALETTE[k % 10], lw=1.8, label=classes[k])
        right.set(ylim=(-0.08, 1.08), xticks=[], yticks=[0, 1])
        right.tick_params(labelsize=7)
        right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return save(figure, path)


def curves(series: dict[str, list[tuple[int, float]]], path: Path) -> Path:
    """Draws training losses against steps."""
    figure = Figure(figsize=(6.4, 3.6))
    axes = figure.subplots()
    for number, (name, points) in enumerate(series.items()):
        steps, losses = zip(*points, strict=True) if points else ((), ())
        axes.plot(steps, losses, color=PALETTE[number % 10], lw=1.2, label=name)
    axes.set(xlabel="step", ylabel="loss", title="Training loss")
    axes.legend(fontsize=8, frameon=False)
    axes.grid(alpha=0.25)
    return save(figure, path)


def shots_sheet(frames: np.ndarray, times: np.ndarray, boundaries: list[float], path: Path) -> Path:
    """Draws a row for every shot: its first, middle and last frame, and when it begins and ends.

    ``frames`` `[T, H, W, 3]` uint8 at ``times`` `[T]`; ``boundaries`` in seconds since the first frame.
    """
    since = np.asarray(times, float) - times[0]
    # Half a millisecond: a boundary is the time of a frame, rounded somewhere on its way.
    begins = [0, *np.searchsorted(since, np.asarray(boundaries, float) - 5e-4).tolist(), len(since)]
    figure = Figure(figsize=(7.2, 1.25 * (len(begins) - 1) + 0.5), layout="constrained")
    axes = figure.subplots(len(begins) - 1, 3, squeeze=False)
    for number, (begin, end) in enumerate(zip(begins, begins[1:], strict=False)):
        for axis, at in zip(axes[number], (begin, (begin + end - 1) // 2, end - 1), strict=True):
            axis.imshow(frames[at])
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(f"{since[at]:.2f} s", fontsize=8, labelpad=2)
        axes[number][0].set_ylabel(f"shot {number + 1}\n{since[end - 1] - since[begin]:.1f} s", fontsize=8)
    for axis, title in zip(axes[0], ("first", "middle", "last"), strict=True):
        axis.set_title(title, fontsize=9)
    return save(figure, path)
