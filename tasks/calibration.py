"""Thresholds of segments, chosen on held-out videos: for every class the pair that finds its segments best.

A segment begins where the score reaches ``high`` and goes on while it is at least ``low`` (hysteresis; Canny 1986).
Calibrations lie beside their checkpoint, named by their digest, and never change.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from models.metrics import ScoredVideo
from storage import files, records
from storage.errors import Damaged

GRID = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
TAG = "calibration"  # of a registered version: the digest of its calibration
FIXED = 0.5  # where nothing is known
OVERLAP = 0.5  # of a segment with a true one, over their union: from here on it is found
SHORTEST = 0.25  # seconds; a shorter run of frames is not a segment
Found = tuple[int, float, float, float]  # video, start, end, mean score
True_ = tuple[int, float, float]


@dataclass(frozen=True)
class Pair:
    """Two thresholds of a class, ``low`` <= ``high``."""

    high: float = FIXED
    low: float = FIXED


@dataclass(frozen=True)
class Calibration:
    """The thresholds of every class that was calibrated, and those of all others."""

    pairs: dict[str, Pair] = field(default_factory=dict)
    others: Pair = field(default_factory=Pair)

    def of(self, name: str) -> Pair:
        """The thresholds of a class."""
        return self.pairs.get(name, self.others)

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        pairs = {name: [pair.high, pair.low] for name, pair in sorted(self.pairs.items())}
        return {"classes": pairs, "others": [self.others.high, self.others.low]}


def parse(plain: dict[str, Any]) -> Calibration:
    """What `Calibration.plain` gave."""
    return Calibration({name: Pair(*pair) for name, pair in plain["classes"].items()}, Pair(*plain["others"]))


def url(checkpoint: str, digest: str) -> str:
    """Where a calibration of a checkpoint is."""
    return files.join(checkpoint, f"calibration-{digest}.json")


def save(checkpoint: str, calibration: Calibration) -> str:
    """Puts a calibration beside a checkpoint; returns its digest."""
    plain = calibration.plain()
    digest = files.digest_of(plain)[:16]
    files.publish_bytes(json.dumps(records.seal(plain), sort_keys=True, indent=1).encode(), url(checkpoint, digest))
    return digest


def load(checkpoint: str, digest: str) -> Calibration:
    """The calibration of this digest; without one, `FIXED` for every class. Raises `Damaged` where it is altered."""
    if not digest:
        return Calibration()
    plain = files.read_json(url(checkpoint, digest))
    if not isinstance(plain, dict) or not records.fits(plain):
        raise Damaged(f"{url(checkpoint, digest)} is not as it was written; restore it, or judge the model again")
    return parse(plain)


def calibrate(videos: list[ScoredVideo], classes: list[str]) -> Calibration:
    """The pair of `GRID` with the best segment F1 of each class; of the pairs that are as good, the nearest to `FIXED`.

    A class without a true segment has the pair that is best for the mean of the others.
    """
    pairs, tables = {}, []
    for k, name in enumerate(classes):
        truth = _truth(videos, k)
        if truth:
            table = {pair: f1(found, truth) for pair, found in _every(videos, k)}
            pairs[name] = _best(table)
            tables.append(table)
    if not tables:
        return Calibration()
    return Calibration(pairs, _best({pair: float(np.mean([table[pair] for table in tables])) for pair in tables[0]}))


def _best(table: dict[Pair, float]) -> Pair:
    def worth(pair: Pair) -> tuple[float, float, float]:
        return round(table[pair], 9), -abs(pair.high - FIXED) - abs(pair.low - FIXED), pair.high

    return max(table, key=worth)


def _truth(videos: list[ScoredVideo], k: int) -> list[True_]:
    return [
        (v, float(start), float(end))
        for v, (_, _, _, (starts, ends, kinds), _) in enumerate(videos)
        for start, end, kind in zip(starts, ends, kinds, strict=True)
        if kind == k
    ]


def _every(videos: list[ScoredVideo], k: int) -> Iterator[tuple[Pair, list[Found]]]:
    """What every pair of `GRID` finds of a class."""
    for low in GRID:
        found = [piece for v, video in enumerate(videos) for piece in _pieces(video, v, k, low)]
        for high in GRID:
            if high >= low:
                yield Pair(high, low), [piece for piece, peak in found if peak >= high]


def _pieces(video: ScoredVideo, v: int, k: int, low: float) -> Iterator[tuple[Found, float]]:
    _, scores, times, _, _ = video
    column = scores[:, k]
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    for first, last in runs(column >= low):
        start, end = float(times[first]), float(times[last - 1]) + step
        if end - start >= SHORTEST:
            yield (v, start, end, float(column[first:last].mean())), float(column[first:last].max())


def runs(on: np.ndarray) -> np.ndarray:
    """Where runs of True begin and end (the first place after them): `[N, 2]`."""
    return np.flatnonzero(np.diff(np.concatenate([[False], on, [False]]).astype(np.int8))).reshape(-1, 2)


def f1(found: list[Found], truth: list[True_]) -> float:
    """The F1 of segments against true ones: each finds one at most, the best first, by an overlap of `OVERLAP`."""
    waiting: dict[int, list[tuple[float, float]]] = {}
    for v, start, end in truth:
        waiting.setdefault(v, []).append((start, end))
    hits = 0
    for v, start, end, _ in sorted(found, key=lambda one: -one[3]):
        left = waiting.get(v, [])
        best = max(left, key=lambda one: overlap(one, (start, end)), default=None)
        if best is not None and overlap(best, (start, end)) >= OVERLAP:
            left.remove(best)
            hits += 1
    return 2 * hits / (len(found) + len(truth)) if found or truth else 0.0


def overlap(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Intersection over union of two times (start, end)."""
    both = min(one[1], other[1]) - max(one[0], other[0])
    return max(0.0, both) / max(max(one[1], other[1]) - min(one[0], other[0]), 1e-9)
