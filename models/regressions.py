"""Which classes does a challenger surely do worse on? Tested for all classes at once.

With many classes, each tested at 5 %, a challenger that is as good would nearly always seem to lose one. So the
p-values are adjusted: of challengers that are as good in every class, at most 5 % are said to lose any (Benjamini and
Hochberg 1995). How sure a single difference is comes from leaving each video out in turn (the jackknife; Efron and
Tibshirani 1993, chapter 11), as the bootstrap's spread is too narrow for a class that few videos have.
K classes, V videos; differences are challenger minus champion, in AP (0 ... 1).
"""

from dataclasses import dataclass

import numpy as np

from models.metrics import Array

MIN_VIDEOS = 5  # with positive frames of a class: with fewer, nobody can say how sure its fall is


@dataclass(frozen=True)
class ClassChange:
    """The AP of one class before and after; `p_worse` is 1 where its videos are too few to tell."""

    index: int
    champion: float
    challenger: float
    delta: float
    videos: int  # with positive frames of it
    p_worse: float  # adjusted for all classes: of a fall this deep where none is deeper than what is allowed


def changes(
    champion: Array, challenger: Array, without: Array, videos: Array, allowed: float = 0.0
) -> list[ClassChange]:
    """What became of each class that has positive frames.

    AP [K] of both models, the differences `without` [K, V] each video, and how many `videos` [K] have the class.
    `allowed` is the fall of AP that is let pass; ValueError where it is negative.
    """
    if allowed < 0:
        raise ValueError(f"a class may fall by {allowed}: give 0 or more")
    from scipy import stats  # which takes a second to load

    delta = challenger - champion
    p_worse = np.ones(len(delta))
    tested = np.flatnonzero(videos >= MIN_VIDEOS)
    if len(tested):
        p_worse[tested] = stats.false_discovery_control(
            single(delta[tested] + allowed, without[tested], videos[tested])
        )
    columns = (values.tolist() for values in (champion, challenger, delta, videos, p_worse))
    return [ClassChange(k, *row) for k, row in enumerate(zip(*columns, strict=True)) if row[3]]


def single(delta: Array, without: Array, videos: Array) -> Array:
    """The one-sided p-value [K] of each difference being below 0, unadjusted; 1 for one that no video changes."""
    from scipy import stats

    spread = jackknife_error(without)
    certain = spread < 1e-12
    return np.where(certain, 1.0, stats.t.cdf(delta / np.where(certain, 1, spread), videos - 1))


def jackknife_error(without: Array) -> Array:
    """The standard error of what is `without` [..., V] each of V videos in turn."""
    V = without.shape[-1]
    return np.sqrt((V - 1) / V * ((without - without.mean(-1, keepdims=True)) ** 2).sum(-1))
