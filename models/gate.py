"""The gate: is the challenger better than the champion by more than the choice of videos explains?

Frames of one video are near copies of each other, so what is drawn with replacement is whole videos, the same
draw for both models (paired percentile bootstrap; Efron and Tibshirani 1993, chapters 6 and 13). Its percentiles are
too narrow for tens of videos; the interval is the hull of theirs and of Student's, whose error is the jackknife's (each
video left out in turn; chapter 11).
V videos, N frames of all of them, K classes, S draws, G groups of frames with equal score.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from models.metrics import (
    CHARADES_PRIOR,
    MODES,
    Array,
    FrameScores,
    Prior,
    Ranking,
    class_mean,
    frame_map,
    precision_at,
    rank_classes,
)
from models.regressions import ClassChange, changes, jackknife_error

CELLS = 1 << 18  # numbers in one block of groups by draws or videos: 2 MB, which stays in cache


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a challenger has to show to be promoted.

    On fewer than `min_videos` nobody can say how wide an interval has to be. Of a thousand or more simulated
    challengers no better than the champion (95 %: 2.5 % should pass), 1.2 to 2.4 % passed on 5, 8, 12, 20 and 40
    videos; by the draws alone 3.5 to 5.0 % would have. `python -m bench gate` simulates it on seeds of one's own.
    """

    metric: str = "map"
    margin: float = 0.0  # that the interval's lower bound has to exceed, in units of the metric
    confidence: float = 0.95
    min_videos: int = 5
    class_drop: float = 0.05  # AP that a class may lose; one that surely loses more refuses the challenger
    successor_drop: float = 0.05  # that may be lost where the champion was trained on what was taken down since
    slower: float | None = None  # times the champion's latency that are allowed
    costlier: float | None = None  # times its multiply-accumulates


@dataclass(frozen=True)
class Comparison:
    """Challenger minus champion on the same videos; values and bounds are in units of the metric (0 … 1)."""

    metric: str
    champion: float
    challenger: float
    delta: float  # on all videos, each once
    ci_low: float  # the lower of two bounds of the difference, by the draws and by leaving each video out
    ci_high: float
    p_worse: float  # share of draws in which the challenger is not better
    confidence: float
    samples: int
    undefined: int  # draws without a positive frame of any class; they count in none of the above
    videos: int
    excluded: list[int]  # classes without a positive frame in any video
    classes: list[ClassChange] = field(default_factory=list)  # those with positive frames

    @property
    def interval(self) -> str:
        """The interval as people read it."""
        return f"the {self.confidence:.0%} interval [{self.ci_low:+.4f}, {self.ci_high:+.4f}]"

    @property
    def lost(self) -> list[ClassChange]:
        """The classes that the challenger surely does worse on."""
        return [change for change in self.classes if change.p_worse <= 1 - self.confidence]


def paired_bootstrap(
    champion: FrameScores,
    challenger: FrameScores,
    *,
    metric: str = "map",
    samples: int = 1000,
    confidence: float = 0.95,
    class_drop: float = 0.0,
    seed: int = 0,
) -> Comparison:
    """Difference of a metric between two models, with its bootstrap interval over videos, and that of every class.

    A class that loses all its positives in a draw is out of that draw's mean for both models. A class is `lost` where
    its AP fell by more than `class_drop` (see `models.regressions`). ValueError when the two differ in videos or
    truth, for fewer than two videos, and when no class has a positive frame.
    """
    if metric not in MODES:
        raise ValueError(f"metric {metric!r} is none of {MODES}")
    if not 0 < confidence < 1 or samples < 100:
        raise ValueError(f"confidence {confidence} must lie in 0 … 1, and samples {samples} be 100 or more")
    require_same(champion, challenger)
    before, after = (frame_map(*model.arrays()[:2]) for model in (champion, challenger))
    value, value_after = (float(getattr(result, metric)) for result in (before, after))
    if np.isnan(value):
        raise ValueError("no class has a positive frame: there is nothing to compare")
    V = len(champion.videos)
    draws = np.random.default_rng(seed).multinomial(V, np.full(V, 1 / V), size=samples).T.astype(float)
    each = 1 - np.eye(V)  # every video left out in turn
    counts = np.hstack([draws, each])
    both = np.subtract(*(class_mean(*resampled(model, counts, metric), metric) for model in (challenger, champion)))
    drawn, left = both[:samples], both[samples:]
    without = np.subtract(*(resampled(model, each)[0] for model in (challenger, champion)))
    differences = drawn[~np.isnan(drawn)]
    low, high = np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    delta, reach = value_after - value, student(left, confidence)
    return Comparison(
        metric=metric,
        champion=value,
        challenger=value_after,
        delta=delta,
        ci_low=min(float(low), delta - reach),
        ci_high=max(float(high), delta + reach),
        p_worse=float((differences <= 0).mean()),
        confidence=confidence,
        samples=samples,
        undefined=samples - len(differences),
        videos=V,
        excluded=before.excluded,
        classes=changes(before.per_class, after.per_class, without, videos_with(champion), class_drop),
    )


def student(left: Array, confidence: float) -> float:
    """How far Student's interval reaches to each side, by the differences [V] with every video left out in turn."""
    from scipy import stats  # which takes a second to load

    known = left[~np.isnan(left)]  # without the one video that has all positive frames there is no metric
    return float(stats.t.ppf((1 + confidence) / 2, len(left) - 1) * jackknife_error(known))


def objections(
    comparison: Comparison,
    rules: Rules,
    classes: Sequence[str] = (),
    costs: tuple[Mapping[str, float], Mapping[str, float]] = ({}, {}),
) -> list[str]:
    """Why a challenger is not to be promoted, a phrase each: its interval, too few videos, lost classes, its cost.

    `classes` are the names by index; `costs` the `latency_ms` and `gmacs` of champion and challenger, where known.
    """
    found = []
    if not comparison.ci_low > rules.margin:
        found.append(f"{comparison.interval} is not above the margin {rules.margin:g}")
    if comparison.videos < rules.min_videos:
        found.append(f"{comparison.videos} videos are too few for {comparison.interval} to mean anything")
    if lost := sorted(comparison.lost, key=lambda change: change.delta):
        named = [f"{classes[c.index] if classes else c.index} ({c.delta:+.3f} AP)" for c in lost]
        found.append(f"surely worse on {', '.join(named)}")
    measures = (
        ("latency_ms", "latency", "ms", rules.slower),
        ("gmacs", "multiply-accumulates", "G", rules.costlier),
    )
    for name, what, unit, limit in measures:
        before, after = (measured.get(name) for measured in costs)
        if limit is not None and before and after and after > limit * before:
            said = f"{after / before:.2f} times the champion's {what} of {before:.3g} {unit}"
            found.append(f"{said}, more than the {limit:g} that are allowed")
    return found


def require_same(champion: FrameScores, challenger: FrameScores) -> None:
    """ValueError that names the first difference in classes, videos or truth between the two models."""
    if champion.num_classes != challenger.num_classes:
        raise ValueError(f"champion has {champion.num_classes} classes, challenger {challenger.num_classes}")
    for name, ours, theirs in (("champion", champion, challenger), ("challenger", challenger, champion)):
        if alone := sorted(ours.videos.keys() - theirs.videos.keys()):
            raise ValueError(f"only the {name} has scored {len(alone)} videos, the first is {alone[0]}")
    for key, (_, targets) in champion.videos.items():
        if not np.array_equal(targets, challenger.videos[key][1]):
            raise ValueError(f"video {key}: the two models were measured on different frames or labels")
    if len(champion.videos) < 2:
        raise ValueError(f"{len(champion.videos)} videos cannot be resampled: at least two are needed")


def videos_with(frames: FrameScores) -> Array:
    """In how many videos each class [K] has a positive frame."""
    return np.sum([targets.any(0) for _, targets in frames.videos.values()], axis=0)


def resampled(frames: FrameScores, counts: Array, metric: str = "map") -> tuple[Array, Array]:
    """AP and positive frames [K, S] when video v counts counts[v, s] times; counts [V, S], videos by sorted key."""
    scores, targets, video = frames.arrays()
    prior = CHARADES_PRIOR if metric == "map_prior_normalised" else None
    classes = [resampled_ap(ranking, video, counts, prior) for ranking in rank_classes(scores, targets)]
    ap, positives = (np.stack(parts) for parts in zip(*classes, strict=True))
    return ap, positives


def resampled_ap(ranking: Ranking, video: Array, counts: Array, prior: Prior = None) -> tuple[Array, Array]:
    """AP [S] of one class under every draw, NaN where it holds no positive, and its positive frames [S].

    The frames are sorted once. What a draw has counted down to some rank is what each video has counted there
    times how often the draw holds it: one matrix product for all draws, exact because counts are integers.
    """
    order, hits, _ = ranking
    V, S = counts.shape
    positives = np.bincount(video[order], hits, V) @ counts
    negatives = np.bincount(video[order], ~hits, V) @ counts
    area, reached = np.zeros(S), np.zeros(S)
    for tp, fp in cumulative_by_video(ranking, video, V, rows=max(1, CELLS // max(V, S))):
        tp, fp = tp @ counts, fp @ counts
        gained = np.diff(tp, axis=0, prepend=reached[None])
        area += np.einsum("gs,gs->s", gained, precision_at(tp, fp, positives, negatives, prior))
        reached = tp[-1]
    return area / np.where(positives > 0, positives, np.nan), positives


def cumulative_by_video(ranking: Ranking, video: Array, V: int, rows: int) -> Iterator[tuple[Array, Array]]:
    """True and false positives [rows, V] of each video down to each group that holds a positive, in blocks.

    Precision is only ever read at such groups, so the frames between two of them are counted together.
    """
    order, hits, ends = ranking
    ends = ends[np.diff(np.cumsum(hits)[ends], prepend=0) > 0]
    start, tp, fp = 0, np.zeros((1, V)), np.zeros((1, V))
    for block in np.split(ends, range(rows, len(ends), rows)):
        if not len(block):
            return
        ranks = np.arange(start, block[-1] + 1)
        cell = np.searchsorted(block, ranks) * V + video[order[ranks]]
        shape = len(block), V
        tp = tp[-1] + np.bincount(cell, hits[ranks], len(block) * V).reshape(shape).cumsum(0)
        fp = fp[-1] + np.bincount(cell, ~hits[ranks], len(block) * V).reshape(shape).cumsum(0)
        start = block[-1] + 1
        yield tp, fp
