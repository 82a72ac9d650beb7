"""Per-frame average precision: the three Charades numbers, the two frame protocols, and what adds up.

    map                    plain mean over classes             (Charades_v1_localize)
    wap                    mean weighted by positive frames    (Charades_v1_localize)
    map_prior_normalised   plain mean, every class scaled to one share of positives   (vu17 challenge)

T frames of a video, N of all videos, K classes, G groups of equal score; seconds count from a video's start.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

Array = np.ndarray
Segments = tuple[Array, Array, Array]  # start [M] and end [M] in seconds, class index [M]
ScoredVideo = tuple[str, Array, Array, Segments, float]  # key, scores [T, K], times [T], truth, duration
Ranking = tuple[Array, Array, Array]  # frame at each rank [N], its target [N], last rank of each group [G]
Total = float | Array  # of one weighting, or one for each of many [S]
Prior = tuple[float, float] | None  # how many positives and negatives every class is scaled to
PROTOCOLS = ("every_frame", "charades_25")
MODES = ("map", "wap", "map_prior_normalised")
CHARADES_PRIOR: Prior = (1100.0, 45000.0)  # the vu17 challenge, localisation


def rank(scores: Array, targets: Array, name: str = "") -> Ranking:
    """Sort the frames [N] of one class by falling score; frames of equal score form one group.

    ValueError for NaN or +inf scores (-inf is allowed: a missing frame) and for targets other than 0 and 1.
    """
    scores, targets = np.asarray(scores, dtype=float), np.asarray(targets)
    if scores.ndim != 1 or scores.shape != targets.shape:
        raise ValueError(f"{name}scores {scores.shape} and targets {targets.shape} must both be [N]")
    if bad := int((np.isnan(scores) | np.isposinf(scores)).sum()):
        raise ValueError(f"{name}{bad} of {len(scores)} scores are NaN or +inf")
    hits = targets >= 0.5
    if not np.array_equal(hits, targets):
        raise ValueError(f"{name}targets must be 0 or 1: cut soft labels at 0.5 before measuring")
    order = np.argsort(-scores)
    falls = scores[order[1:]] != scores[order[:-1]]
    return order, hits[order], np.flatnonzero(np.append(falls, len(scores) > 0))


def rank_classes(scores: Array, targets: Array) -> Iterator[Ranking]:
    """`rank` for each column of scores and targets [N, K], one at a time; its ValueError names the class."""
    scores, targets = np.asarray(scores), np.asarray(targets)
    if scores.ndim != 2 or scores.shape != targets.shape:
        raise ValueError(f"scores {scores.shape} and targets {targets.shape} must both be [N, K]")
    return (rank(scores[:, k], targets[:, k], f"class {k}: ") for k in range(scores.shape[1]))


def precision_at(tp: Array, fp: Array, positives: Total, negatives: Total, prior: Prior = None) -> Array:
    """Precision [G, ...] from cumulative counts [G, ...] and totals [...]; 0 where nothing is counted yet.

    With a prior (N, F): tp·k / (fp·k2 + tp·k), k = N/positives, k2 = F/negatives (vu17), cancelled by k here.
    """
    cost = 1.0 if prior is None else (prior[1] / prior[0]) * positives / np.where(negatives > 0, negatives, 1)
    return tp / np.maximum(tp + fp * cost, np.finfo(float).tiny)


def cumulative(ranking: Ranking, weights: Array | None = None) -> tuple[Array, Array, float, float]:
    """True and false positives [G] down to the end of each group, then all positives and all negatives."""
    order, hits, ends = ranking
    weights = np.asarray(np.ones(len(order)) if weights is None else weights, dtype=float)
    if weights.shape != order.shape or not (weights >= 0).all():
        raise ValueError(f"weights {weights.shape} must be {order.shape} and not negative")
    tp, fp = np.cumsum(weights[order] * hits), np.cumsum(weights[order] * ~hits)
    return tp[ends], fp[ends], tp[-1] if len(tp) else 0.0, fp[-1] if len(fp) else 0.0


def _area(tp: Array, fp: Array, positives: float, negatives: float, prior: Prior = None) -> float:
    precision = precision_at(tp, fp, positives, negatives, prior)
    return float(np.diff(tp, prepend=0) @ precision / (positives or np.nan))


def average_precision(scores: Array, targets: Array, weights: Array | None = None) -> float:
    """Mean over the positives of the precision at their rank, not interpolated (Charades_v1_localize).

    Scores, binary targets and optional weights are [N]; equal scores share one rank, so input order never
    matters. NaN without a positive; ValueError as in `rank`, and for negative weights.
    """
    return _area(*cumulative(rank(scores, targets), weights))


def precision_recall(scores: Array, targets: Array) -> tuple[Array, Array]:
    """Recall [G] and precision [G] at each distinct score, highest first; recall NaN without a positive."""
    tp, fp, positives, negatives = cumulative(rank(scores, targets))
    return tp / (positives or np.nan), precision_at(tp, fp, positives, negatives)


def class_mean(ap: Array, positives: Array, mode: str) -> Array:
    """Mean AP [K, ...] of the classes with positives [K, ...], weighted by them for "wap"; NaN if none."""
    weight = (positives if mode == "wap" else positives > 0).astype(float)
    total = weight.sum(0)
    return np.where(weight > 0, ap * weight, 0).sum(0) / np.where(total > 0, total, np.nan)


@dataclass(frozen=True, eq=False)
class Result:
    """The three numbers, AP [K] (NaN if excluded) and positives [K] of each class, and those left out."""

    map: float
    wap: float
    map_prior_normalised: float
    per_class: Array
    positives: Array
    frames: int
    excluded: list[int]  # classes without a positive frame: in none of the three means


def frame_map(scores: Array, targets: Array) -> Result:
    """All three numbers from scores and binary targets [N, K]; ValueError as in `rank_classes`."""
    counts = map(cumulative, rank_classes(scores, targets))
    rows = [(count[2], _area(*count), _area(*count, CHARADES_PRIOR)) for count in counts]
    positives, plain, normalised = np.array(rows, dtype=float).reshape(-1, 3).T
    aps = zip(MODES, (plain, plain, normalised), strict=True)
    mean, wap, scaled = (float(class_mean(ap, positives, mode)) for mode, ap in aps)
    excluded = np.flatnonzero(positives == 0).tolist()
    return Result(mean, wap, scaled, plain, positives.astype(int), len(scores), excluded)


def charades_frames(length_seconds: float, n: int = 25) -> Array:
    """The n times (j-1)/n·length, j = 1 … n: 0 is measured, the end is not (Charades_v1_localize)."""
    if not 0 < length_seconds < float("inf"):
        raise ValueError(f"a video cannot be {length_seconds} seconds long")
    # Divided first, as in the original: a segment may end exactly on a frame, and then the last bit decides.
    return np.arange(n) / n * length_seconds


def labels_at(times: Array, segments: Segments, num_classes: int) -> Array:
    """Truth [T, K] (bool) at times [T]: start <= t <= end, both ends inclusive (Charades_v1_localize)."""
    times = np.asarray(times, dtype=float)
    labels = np.zeros((len(times), num_classes), dtype=bool)
    for start, end, k in zip(*segments, strict=True):
        if k not in range(num_classes):
            raise ValueError(f"segment {start}-{end} has class {k}, outside 0 … {num_classes - 1}")
        labels[(start <= times) & (times <= end), int(k)] = True
    return labels


def sample_at(scores: Array, times: Array, wanted: Array) -> Array:
    """Scores [T, K] at rising times [T], interpolated linearly at the wanted times [n]: [n, K].

    A time over one median step from every scored frame is missing: -inf, not a guess; nearer ends are held.
    """
    scores, times, wanted = (np.asarray(array, dtype=float) for array in (scores, times, wanted))
    steps = np.diff(times)
    if len(scores) != len(times) or not len(times) or not (steps > 0).all():
        raise ValueError(f"{len(scores)} scored frames need as many times, one or more, each after the last")
    right = np.searchsorted(times, wanted).clip(0, len(times) - 1)
    left = np.where(times[right] > wanted, right - 1, right).clip(0)
    before, after = wanted - times[left], times[right] - wanted
    share = (before / np.where(right > left, before + after, np.inf))[:, None]
    # A share of 0 or 1 must not touch the other neighbour: 0 · -inf is NaN.
    low, high = np.where(share < 1, scores[left], 0), np.where(share > 0, scores[right], 0)
    reach = np.median(steps) * (1 + 1e-9) if len(steps) else np.inf
    missing = np.minimum(abs(before), abs(after)) > reach
    return np.where(missing[:, None], -np.inf, low * (1 - share) + high * share)


@dataclass(frozen=True, eq=False)
class FrameScores:
    """An AP is not a sum; this adds up over parts and ranks, in any order: scores, truth [T, K] per video."""

    num_classes: int
    videos: Mapping[str, tuple[Array, Array]] = field(default_factory=dict)

    def __add__(self, other: "FrameScores") -> "FrameScores":
        if twice := sorted(self.videos.keys() & other.videos.keys()):
            raise ValueError(f"these videos would count twice: {twice}")
        return FrameScores(self.num_classes, {**self.videos, **other.videos})

    def arrays(self) -> tuple[Array, Array, Array]:
        """Scores [N, K], targets [N, K] and video index [N], videos in the order of their sorted keys."""
        held = [self.videos[key] for key in sorted(self.videos)]
        scores = np.concatenate([np.zeros((0, self.num_classes), np.float32), *(pair[0] for pair in held)])
        targets = np.concatenate([np.zeros((0, self.num_classes), bool), *(pair[1] for pair in held)])
        return scores, targets, np.repeat(np.arange(len(held)), [len(pair[0]) for pair in held])


def frames_of(video: ScoredVideo, num_classes: int, protocol: str) -> tuple[Array, Array]:
    """Scores and truth [T, K] where the protocol looks: at every scored frame, or at the 25 of Charades."""
    _, scores, times, segments, duration = video
    scores, times = np.asarray(scores), np.asarray(times, dtype=float)
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r} is none of {PROTOCOLS}")
    if scores.shape != (len(times), num_classes) or np.isnan(scores).any():
        raise ValueError(f"scores {scores.shape} hold NaN or are not [T = {len(times)}, K = {num_classes}]")
    wanted = charades_frames(duration) if protocol == "charades_25" else times
    sampled = sample_at(scores, times, wanted).astype(np.result_type(scores, np.float32))
    return sampled, labels_at(wanted, segments, num_classes)


def collect(videos: Iterable[ScoredVideo], num_classes: int, protocol: str = "every_frame") -> FrameScores:
    """`frames_of` every video; a ValueError, also for a key seen twice, names the video."""
    held: dict[str, tuple[Array, Array]] = {}
    for video in videos:
        try:
            if video[0] in held:
                raise ValueError("it would count twice")
            held[video[0]] = frames_of(video, num_classes, protocol)
        except ValueError as error:
            raise ValueError(f"video {video[0]}: {error}") from error
    return FrameScores(num_classes, held)


def circumstances(times: Array, segments: Segments, labels: Array, near: float) -> dict[str, Array]:
    """Which frames [T] are of each kind: one action, several, near a boundary, away from all (bool each).

    A boundary is the start or end of any action; near is at most that many seconds away. Frames without an action
    are of neither of the first two kinds. The thesis (Table 4.4e) names the kinds and no distance.
    """
    actions, edges = labels.sum(1), np.sort(np.concatenate([[-np.inf], *segments[:2], [np.inf]]))
    after = np.searchsorted(edges, times).clip(1)
    boundary = np.minimum(times - edges[after - 1], edges[after] - times) <= near
    return {"single": actions == 1, "several": actions > 1, "boundary": boundary, "away": ~boundary}


def breakdown(videos: Iterable[ScoredVideo], num_classes: int, near: float = 0.5) -> dict[str, Result]:
    """`frame_map` of the frames of each kind of `circumstances`, of every scored frame of the videos (Table 4.4e).

    A class without a positive frame of some kind is left out of its means. ValueError as in `collect`.
    """
    if not 0 <= near < float("inf"):
        raise ValueError(f"near is {near} seconds, must be finite and at least 0")
    videos = list(videos)
    frames = collect(videos, num_classes)
    kinds = [
        circumstances(np.asarray(times, dtype=float), segments, frames.videos[key][1], near)
        for key, _, times, segments, _ in sorted(videos, key=lambda video: video[0])
    ]
    scores, targets, _ = frames.arrays()
    chosen = {name: np.concatenate([of[name] for of in kinds]) for name in (kinds[0] if kinds else ())}
    return {name: frame_map(scores[rows], targets[rows]) for name, rows in chosen.items()}
