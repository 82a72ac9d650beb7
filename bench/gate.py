"""The error rates of the gate: simulated challengers that are equal, worse, better, or better but for one class."""

import os
from collections.abc import Iterator

import numpy as np
from threadpoolctl import threadpool_limits

from bench.figures import Figure
from models.gate import Rules, objections, paired_bootstrap
from models.metrics import FrameScores
from tasks import pool

SIMULATIONS = int(os.environ.get("SIMULATIONS", "200"))
FIRST = int(os.environ.get("SEED", "0"))
DROP = 0.0  # AP that a class may lose: none, as that is what the level is stated for
VIDEOS, FRAMES, CLASSES = 40, 40, 8  # as the demo holds out
ALL = np.ones(CLASSES)
ONE = np.arange(CLASSES) == 0  # one class of them


def models(seed: int, gain: np.ndarray) -> tuple[FrameScores, FrameScores]:
    """A champion of gain 1 and a challenger of the given gain [K], on the same videos."""
    random = np.random.default_rng(seed)
    held: tuple[dict, dict] = {}, {}
    for v in range(VIDEOS):
        begin = random.integers(0, FRAMES, CLASSES)
        end = begin + random.integers(2, FRAMES // 2, CLASSES) * (random.uniform(size=CLASSES) < 0.6)
        t = np.arange(FRAMES)[:, None]
        truth = (t >= begin) & (t < end)
        for model, by in zip(held, (ALL, gain), strict=True):
            # Frames of a video share an error, as they do in reality.
            noise = random.normal(size=(FRAMES, CLASSES)) + 0.7 * random.normal(size=(1, CLASSES))
            model[f"{v:03d}"] = by * truth + noise, truth
    return FrameScores(CLASSES, held[0]), FrameScores(CLASSES, held[1])


def _one(given: tuple[int, np.ndarray]) -> tuple[bool, bool]:
    """Whether a challenger was promoted, and whether a class of it was called lost."""
    seed, gain = given
    with threadpool_limits(1):
        comparison = paired_bootstrap(*models(seed, gain), class_drop=DROP, seed=seed)
    return not objections(comparison, Rules()), bool(comparison.lost)


def run() -> Iterator[Figure]:
    cases = {
        "equal": ALL,
        "worse (signal 0.7)": 0.7 * ALL,
        "better (signal 1.5)": 1.5 * ALL,
        "better, one class lost (1.5 and 0.3)": np.where(ONE, 0.3, 1.5),
    }
    note = f"{SIMULATIONS} simulations from seed {FIRST}; {VIDEOS} videos, {CLASSES} classes"
    for number, (what, gain) in enumerate(cases.items()):
        seeds = range(FIRST + 10_000 * number, FIRST + 10_000 * number + SIMULATIONS)
        promoted, lost = np.mean(list(pool.processes(_one, [(seed, gain) for seed in seeds])), axis=0)
        level = ("of a one-sided 2.5 %", "of 5 %") if what == "equal" else ("", "")
        yield Figure(f"{what}: promoted", 100 * promoted, unit="%", note=f"{level[0]} {note}".strip())
        yield Figure(f"{what}: a class is called lost", 100 * lost, unit="%", note=level[1])
