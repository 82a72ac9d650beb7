"""A loss that is not finite, or far above all before it: the training stops and says since when, and on which clips."""

import math
from dataclasses import dataclass, field
from statistics import median

from tasks.training.batches import Batches

TIMES = 100.0  # what a loss may be, over the larger of the first one, of the last ones, and of 1
RECENT = 50  # steps that are the last ones
SHOWN = 3  # batches that led there
NAMED = 12  # clips of each in the message; the report has all


@dataclass
class Diverged(FloatingPointError):
    """What is known of it: the message, the first and last step that it can have begun in, and clips by step."""

    message: str
    steps: tuple[int, int]
    clips: dict[int, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.message)


def exploded(losses: list[float]) -> bool:
    """Whether the last loss is not finite, or out of all proportion to those before it."""
    last, before = losses[-1], [loss for loss in losses[:-1] if math.isfinite(loss)]
    if not math.isfinite(last):
        return True
    return bool(before) and last > TIMES * max(1.0, before[0], median(before[-RECENT:]))


def diverged(what: str, step: int, good: int, batches: Batches) -> Diverged:
    """The error for step ``step``, counted from 1; ``good`` is the step of the newest checkpoint, 0 for none."""
    clips = {s: batches.keys(s - 1) for s in range(max(1, step - SHOWN + 1), step + 1)}
    since = f"the checkpoint of step {good} is the last good one" if good else "there is no checkpoint before it"
    named = "; ".join(f"step {s}: {_named(keys)}" for s, keys in clips.items())
    steps = (good + 1, step)
    message = (
        f"{what} at step {step}: it went wrong in steps {steps[0]} to {steps[1]} ({since}). "
        f"Lower the learning rate, clip the gradient, or look at the last clips: {named}"
    )
    return Diverged(message, steps, clips)


def _named(keys: list[str]) -> str:
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return ", ".join(keys[:NAMED]) + more
