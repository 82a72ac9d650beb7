"""Batches of samples for one rank, made ahead of time, from any step on.

What is drawn is a function of (seed, place in the stream), and where a step begins in the stream is one of the step:
no state has to be saved to go on exactly where a run was interrupted.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from tasks.training.loader import Sample, place
from tasks.training.spec import share_of
from tasks.training.threads import beside

AHEAD = 64 << 20  # bytes of frames that are made ahead of time
MOST_AHEAD = 16  # batches


class Samples(Protocol):
    """Clips or videos to draw from."""

    def __len__(self) -> int: ...

    def draw(self, index: int, length: int, rng: np.random.Generator) -> Sample:
        """A random window of ``length`` frames."""
        ...

    def key(self, index: int) -> str:
        """What a person finds the clip or video by."""
        ...


@dataclass(frozen=True)
class Shape:
    """What a step takes: clips of all ranks together, frames and pixels of each, and the first one's place."""

    batch: int
    frames: int
    size: int
    first: int


@dataclass(frozen=True)
class Batch:
    """Frames `[B, 3, T, S, S]` uint8 or features `[B, T, D]`, labels `[B, N, K]`, and what goes with them."""

    seen: Tensor
    labels: Tensor
    inputs: dict[str, Tensor] = field(default_factory=dict)  # what else the system is given, by name
    places: Tensor | None = None  # [B, N], in frames of `seen`
    mask: Tensor | None = None  # bool [B, N]: true where a label is

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        inputs = {name: change(value) for name, value in self.inputs.items()}
        places, mask = (None if value is None else change(value) for value in (self.places, self.mask))
        return Batch(change(self.seen), change(self.labels), inputs, places, mask)

    def rows(self, chosen: slice) -> "Batch":
        """Some samples of the batch."""
        return self._each(lambda tensor: tensor[chosen])

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))


def collate(samples: list[Sample]) -> Batch:
    """Samples as a batch; shorter ones are padded and masked."""
    first = samples[0]
    if first.places is None:
        return Batch(torch.stack([s.seen for s in samples]), torch.stack([s.labels for s in samples]))
    places, mask = padded([s.places for s in samples if s.places is not None])
    labels = padded([s.labels for s in samples])[0]
    if not first.seen.dtype.is_floating_point:
        seen = torch.stack([s.seen for s in samples])
        return Batch(seen, labels, _context(samples) if first.whole is not None else {}, places, mask)
    seen, there = padded([s.seen for s in samples])
    return Batch(seen, labels, {"mask": there}, places, mask)


def padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows `[n, …]` of several lengths as one tensor `[B, N, …]`, zero beyond each, and where they are `[B, N]`."""
    made = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return made, torch.arange(made.shape[1]) < lengths[:, None]


def _context(samples: list[Sample]) -> dict[str, Tensor]:
    wholes = [s.whole for s in samples if s.whole is not None]
    ends = [-(-(s.start + s.seen.shape[1]) // s.step) for s in samples]
    length = max(*(w.shape[1] for w in wholes), *ends)
    lengths = torch.tensor([w.shape[1] for w in wholes])
    placed = {
        "start": torch.tensor([s.start for s in samples]),
        "step": torch.tensor([float(s.step) for s in samples]),
        "valid": torch.arange(length) < lengths[:, None],
    }
    if wholes[0].dtype.is_floating_point:  # maps: no layer is left that would see the zeros beyond a video's end
        return placed | {"fine": torch.stack([pad(w, (0, 0, 0, 0, 0, length - w.shape[1])) for w in wholes])}
    # A short video is played again, not followed by black: normalisation and squeeze-excites average over all frames.
    frames = [torch.arange(length) % w.shape[1] for w in wholes]
    return placed | {"whole": torch.stack([w[:, chosen] for w, chosen in zip(wholes, frames, strict=True)])}


def resized(batch: Batch, size: int) -> Batch:
    """A batch of video at another height and width."""
    from torchvision.transforms.v2 import functional

    if batch.seen.shape[-1] == size:
        return batch
    frames = batch.seen.transpose(1, 2).flatten(0, 1)
    small = functional.resize(frames, [size, size], antialias=True)
    seen = small.unflatten(0, (len(batch.seen), -1)).transpose(1, 2)
    return Batch(seen, batch.labels, batch.inputs, batch.places, batch.mask)


@dataclass
class Batches:
    """The batches of one rank from a step on; counts the time that was waited for them."""

    samples: Samples
    shape: Callable[[int], Shape]
    seed: int
    rank: int = 0
    ranks: int = 1
    waited: float = 0.0

    def __post_init__(self) -> None:
        share_of(self.shape(0).batch, self.ranks, 1)

    @property
    def ahead(self) -> int:
        """How many batches are made ahead of time: of small ones more, so that a slow one is not felt."""
        shape = self.shape(0)
        return min(MOST_AHEAD, max(2, AHEAD // (3 * shape.batch // self.ranks * shape.frames * shape.size**2)))

    def places(self, step: int) -> range:
        """The places in the stream of what this rank takes in a step."""
        shape = self.shape(step)
        return range(shape.first + self.rank, shape.first + shape.batch, self.ranks)

    def keys(self, step: int) -> list[str]:
        """The clips or videos that all ranks together take in a step, in order."""
        shape, count = self.shape(step), len(self.samples)
        return [self.samples.key(place(self.seed, count, shape.first + i)) for i in range(shape.batch)]

    def _make(self, step: int, pool: ThreadPoolExecutor) -> Batch:
        shape = self.shape(step)

        def one(position: int) -> Sample:
            rng = np.random.default_rng((self.seed, 7, position))
            return self.samples.draw(place(self.seed, len(self.samples), position), shape.frames, rng)

        made = collate(list(pool.map(one, self.places(step))))
        return resized(made, shape.size) if not made.seen.is_floating_point() else made

    def from_step(self, first: int, last: int) -> Iterator[Batch]:
        """The batches of steps first … last - 1, made ahead of time by threads that begin with this call."""
        ready: queue.Queue[Any] = queue.Queue(self.ahead)
        width = max(2, torch.get_num_threads())

        def fill() -> None:
            beside()
            with ThreadPoolExecutor(width, initializer=beside) as pool:
                try:
                    for step in range(first, last):
                        ready.put(self._make(step, pool))
                except Exception as error:
                    ready.put(error)

        threading.Thread(target=fill, daemon=True).start()
        return self._taken(ready, last - first)

    def _taken(self, ready: queue.Queue[Any], count: int) -> Iterator[Batch]:
        for _ in range(count):
            began = time.monotonic()
            made = ready.get()
            self.waited += time.monotonic() - began
            if isinstance(made, Exception):
                raise made
            yield made
