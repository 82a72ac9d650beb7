"""The error rates of the gate: simulated challengers that are equal, worse, better, or better but for one class."""

import os
from collections.abc import Iterator

import numpy as np
from scipy.stats import binomtest
from threadpoolctl import threadpool_limits

from bench.figures import Figure
from models.gate import Rules, objections, paired_bootstrap
from models.metrics import FrameScores
from tasks import pool

SIMULATIONS = int(os.environ.get("SIMULATIONS", "200"))
FIRST = int(os.environ.get("SEED", "0"))
DROP = 0.0  # AP that a class may lose: none, as that is what the level is stated for
VIDEOS, FRAMES, CLASSES = 40, 40, 8  # as the demo holds out
FEW = 5, 12  # videos, of which the first is the fewest that `Rules` lets decide
LEVELS = "2.5 %, one-sided", "5 %"
ALL = np.ones(CLASSES)
ONE = np.arange(CLASSES) == 0  # one class of them


def models(seed: int, gain: np.ndarray, videos: int = VIDEOS) -> tuple[FrameScores, FrameScores]:
    """A champion of gain 1 and a challenger of the given gain [K], on the same videos."""
    random = np.random.default_rng(seed)
    held: tuple[dict, dict] = {}, {}
    for v in range(videos):
        begin = random.integers(0, FRAMES, CLASSES)
        end = begin + random.integers(2, FRAMES // 2, CLASSES) * (random.uniform(size=CLASSES) < 0.6)
        t = np.arange(FRAMES)[:, None]
        truth = (t >= begin) & (t < end)
        for model, by in zip(held, (ALL, gain), strict=True):
            # Frames of a video share an error, as they do in reality.
            noise = random.normal(size=(FRAMES, CLASSES)) + 0.7 * random.normal(size=(1, CLASSES))
            model[f"{v:03d}"] = by * truth + noise, truth
    return FrameScores(CLASSES, held[0]), FrameScores(CLASSES, held[1])


def _one(given: tuple[int, np.ndarray, int]) -> tuple[bool, bool]:
    """Whether a challenger was promoted, and whether a class of it was called lost."""
    seed, gain, videos = given
    with threadpool_limits(1):
        comparison = paired_bootstrap(*models(seed, gain, videos), class_drop=DROP, seed=seed)
    return not objections(comparison, Rules()), bool(comparison.lost)


def run() -> Iterator[Figure]:
    cases = {
        "equal": (ALL, VIDEOS),
        **{f"equal on {videos} videos": (ALL, videos) for videos in FEW},
        "worse (signal 0.7)": (0.7 * ALL, VIDEOS),
        "better (signal 1.5)": (1.5 * ALL, VIDEOS),
        "better, one class lost (1.5 and 0.3)": (np.where(ONE, 0.3, 1.5), VIDEOS),
    }
    about = f"{SIMULATIONS} simulations from seed {FIRST}; {VIDEOS} videos unless said, {CLASSES} classes"
    for number, (what, (gain, videos)) in enumerate(cases.items()):
        seeds = range(FIRST + 10_000 * number, FIRST + 10_000 * number + SIMULATIONS)
        found = np.array(list(pool.processes(_one, [(seed, gain, videos) for seed in seeds])))
        for told, outcome, level in zip(("promoted", "a class is called lost"), found.T, LEVELS, strict=True):
            interval = binomtest(int(outcome.sum()), SIMULATIONS).proportion_ci(method="wilson")
            low, high = 100 * interval.low, 100 * interval.high
            note = f"95 % CI {low:.1f} to {high:.1f}; " + (f"stated: {level}; " if gain is ALL else "") + about
            yield Figure(f"{what}: {told}", 100 * outcome.mean(), "%", note)
            if gain is ALL and told == "promoted":
                yield Figure(f"{what}: {told}, surely at least", low, "%", "more than 2.5 would break what is stated")
