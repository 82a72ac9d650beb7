"""Training samples out of committed parts: windows of frames with frame labels, in an order that can be resumed.

What is drawn is a function of (seed, step, place in the batch): no state has to be saved to go on exactly where a
run was interrupted, and another number of ranks draws the same samples.
"""

import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from storage import columns
from storage.datasets import kept
from storage.errors import Damaged, InputError
from storage.limits import Rejected
from storage.parts import Part
from storage.sandbox import mine

CACHE_BYTES = 2 << 30
SLACK = 1e-6  # seconds, so that float rounding moves no frame across a label's end


def resized(frames: np.ndarray, size: int) -> Tensor:
    """Frames `[T, H, W, 3]` uint8 as `[T, 3, size, size]` uint8, antialiased.

    The whole frame is kept and squeezed: a crop could lose the actor that a label speaks of.
    """
    from torchvision.transforms.v2 import functional

    video = torch.from_numpy(frames.copy()).permute(0, 3, 1, 2)
    return functional.resize(video, [size, size], antialias=True)


def frame_labels(row: dict[str, Any], times: np.ndarray, classes: list[str]) -> np.ndarray:
    """The truth `[T, K]` of a clip with segments at times since its start; both ends are inclusive."""
    truth = np.zeros((len(times), len(classes)), np.float32)
    clock = times + row["start"]
    for label in row["labels"]:
        if label["label"] in classes and label["start"] is not None:
            on = (clock >= label["start"] - SLACK) & (clock <= label["end"] + SLACK)
            truth[on, classes.index(label["label"])] = 1.0
    return truth


def pseudo_labels(entry: dict[str, Any], times: np.ndarray, classes: list[str]) -> np.ndarray:
    """The pseudo labels `[T, K]` of a clip at times since its start, from a row of the pseudo-label column."""
    truth = np.zeros((len(times), len(classes)), np.float32)
    scores = np.asarray(entry["scores"], np.float32).reshape(len(entry["times"]), len(entry["labels"]))
    nearest = np.searchsorted(np.asarray(entry["times"]), times + SLACK, side="right").clip(1) - 1
    for column, label in enumerate(entry["labels"]):
        if label in classes:
            truth[:, classes.index(label)] = scores[nearest, column]
    return truth


@dataclass(frozen=True)
class Item:
    """One clip to train on and where its labels come from."""

    part: Part
    row: dict[str, Any]
    entry: dict[str, Any] | None


class Clips:
    """The clips of some parts, decoded on first use and kept as small uint8 frames as far as memory allows."""

    def __init__(
        self,
        root: str,
        parts: list[Part],
        classes: list[str],
        fps: float,
        size: int,
        labels: str | None = None,
        selection: str | None = None,
    ) -> None:
        """``labels`` names a version of the pseudo-label column; without it the segments of the index are used.

        ``selection`` names a version of the selection column: clips that it drops are left out.
        """
        self.classes, self.fps, self.size = classes, fps, size
        self.items: list[Item] = []
        for part in sorted(parts, key=lambda p: p.id):
            entries: list[Any] = [None] * part.samples
            if labels is not None:
                entries = columns.read(root, "pseudo_labels", labels, part).to_pylist()
            used = kept(root, selection, part)
            self.items += [
                Item(part, row, entry) for row, entry, use in zip(part.rows(), entries, used, strict=True) if use
            ]
        if not self.items:
            raise InputError("nothing to train on: the selected parts hold no clips that are kept")
        self._kept: OrderedDict[int, tuple[Tensor, Tensor]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.items)

    def clip(self, index: int) -> tuple[Tensor, Tensor]:
        """Frames `[T, 3, S, S]` uint8 at the sampling rate and labels `[T, K]` of a whole clip."""
        with self._lock:
            if index in self._kept:
                self._kept.move_to_end(index)
                return self._kept[index]
        made = self._decode(self.items[index])
        with self._lock:
            if index not in self._kept:
                self._kept[index] = made
                self._bytes += made[0].nbytes
            while self._bytes > CACHE_BYTES and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1][0].nbytes
        return made

    def _decode(self, item: Item) -> tuple[Tensor, Tensor]:
        ((_, data),) = item.part.clips([item.row])
        try:
            frames, times, _ = mine().sample(data, self.fps)
        except Rejected as error:
            raise Damaged(f"part {item.part.id}: clip {item.row['key']} does not decode ({error.reason})") from error
        if item.entry is not None:
            truth = pseudo_labels(item.entry, times, self.classes)
        else:
            truth = frame_labels(item.row, times, self.classes)
        return resized(frames, self.size), torch.from_numpy(truth)


@lru_cache(maxsize=4)
def _shuffled(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def place(seed: int, count: int, position: int) -> int:
    """The clip at a position of the endless stream: every epoch is one permutation drawn from (seed, epoch)."""
    epoch, index = divmod(position, count)
    return int(_shuffled(seed, epoch, count)[index])


def window(clip: tuple[Tensor, Tensor], length: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A random run of ``length`` frames `[3, length, S, S]` with labels; a short clip is played over again."""
    frames, labels = clip
    T = len(frames)
    begin = int(rng.integers(0, max(1, T - length + 1)))
    chosen = (torch.arange(begin, begin + length) % T) if length > T else torch.arange(begin, begin + length)
    return frames[chosen].transpose(0, 1), labels[chosen]


@dataclass
class Batches:
    """Batches `[B, 3, T, S, S]` uint8 with labels `[B, T, K]` for one rank, from a step on; counts the time waited."""

    clips: Clips
    batch: int  # of all ranks together
    length: int
    seed: int
    rank: int = 0
    ranks: int = 1
    ahead: int = 4
    waited: float = 0.0

    def _make(self, step: int, pool: ThreadPoolExecutor) -> tuple[Tensor, Tensor]:
        def one(position: int) -> tuple[Tensor, Tensor]:
            rng = np.random.default_rng((self.seed, 7, position))
            return window(self.clips.clip(place(self.seed, len(self.clips), position)), self.length, rng)

        mine_of = range(step * self.batch + self.rank, (step + 1) * self.batch, self.ranks)
        drawn = list(pool.map(one, mine_of))
        return torch.stack([video for video, _ in drawn]), torch.stack([labels for _, labels in drawn])

    def from_step(self, first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the batches of steps first … last - 1, made ahead of time by other threads."""
        ready: queue.Queue = queue.Queue(self.ahead)

        def fill() -> None:
            with ThreadPoolExecutor(2) as pool:
                try:
                    for step in range(first, last):
                        ready.put(self._make(step, pool))
                except Exception as error:
                    ready.put(error)

        threading.Thread(target=fill, daemon=True).start()
        for _ in range(first, last):
            began = time.monotonic()
            made = ready.get()
            self.waited += time.monotonic() - began
            if isinstance(made, Exception):
                raise made
            yield made
