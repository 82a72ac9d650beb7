"""Multigrid training: smaller clips in larger batches for most of the steps, the same work in each.

Source: thesis 001, section 3.4, after Wu et al., "A Multigrid Method for Efficiently Training Video Models", CVPR
2020. The long cycle goes through four grids, as often as the learning rate falls, and once at least; inside each the
short cycle goes through three sizes step by step:

    long    1/4 of the frames at 0.7 of the pixels, 8 times the clips;  1/2 at 0.7, 4;  1/2 at 1, 2;  the base grid
    short   at most 0.5 of the pixels;  at most 0.7;  those of the long cycle; the clips make up for it

The learning rate follows the batch of the long cycle (the linear rule), and normalisation takes the same number of
clips in each group (`models.sub_batch_norm`).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from tasks.training.batches import Shape

LONG = ((4, 0.5**0.5, 8), (2, 0.5**0.5, 4), (2, 1.0, 2), (1, 1.0, 1))  # frames are divided, pixels and clips multiplied
SHORT = (0.5, 0.5**0.5, 1.0)
PIXELS = 4  # sizes are multiples of it


def grid(step: int, spec: Any) -> tuple[int, float, int]:
    """The grid of the long cycle that a step is in; each stretch between milestones has one cycle."""
    bounds = [0, *(round(share * spec.steps) for share in spec.milestones), spec.steps]
    for begin, end in zip(bounds, bounds[1:], strict=False):
        if begin <= step < end:
            # As many steps on each grid; the coarse ones see more clips in theirs.
            return LONG[(step - begin) * len(LONG) // (end - begin)]
    return LONG[-1]


def times(step: int, spec: Any) -> float:
    """What the learning rate of a step is multiplied by."""
    return float(grid(step, spec)[2])


def shape(step: int, spec: Any) -> tuple[int, int, int]:
    """Clips, frames and pixels of a step: as many clips more as they are smaller."""
    frames, pixels, clips = grid(step, spec)
    smaller = min(pixels, SHORT[step % len(SHORT)])
    more = round((pixels / smaller) ** 2)
    size = max(PIXELS, round(spec.size * smaller / PIXELS) * PIXELS)
    return spec.batch * clips * more, max(1, spec.frames // frames), size


def splits(clips: int, group: int) -> int:
    """In how many equal parts a batch is normalised: the most that have ``group`` clips or more."""
    return max(parts for parts in range(1, max(1, clips // group) + 1) if clips % parts == 0)


def shapes(spec: Any) -> Callable[[int], Shape]:
    """The shape of every step, with its first sample's place in the stream, a function of the step alone."""
    made = [shape(step, spec) for step in range(spec.steps)]
    firsts = np.concatenate([[0], np.cumsum([clips for clips, _, _ in made])]).tolist()
    return lambda step: Shape(*made[step], firsts[step])
