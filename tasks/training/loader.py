"""Training samples out of committed parts: windows of frames with frame labels, in an order that can be resumed.

What is drawn is a function of (seed, step, place in the batch): no state has to be saved to go on exactly where a
run was interrupted, and another number of ranks draws the same samples.
"""

import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from cachetools import LRUCache, cachedmethod
from torch import Tensor

from storage import columns, files
from storage.datasets import kept
from storage.errors import Damaged, InputError
from storage.media.limits import Rejected
from storage.media.sandbox import mine
from storage.parts import Part

CACHE_BYTES = 2 << 30
FRAMES = "frames"  # the column that tasks/training/frames.py writes
HOW = 1  # of decoding and squeezing: another number is another version of it
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
class Decoded:
    """A clip: frames `[T, 3, S, S]` uint8 at the sampling rate, their times and those of all its source frames."""

    frames: Tensor
    sampled: np.ndarray
    times: np.ndarray


def decode(part: Part, row: dict[str, Any], fps: float, size: int) -> Decoded:
    """Reads and decodes one clip of a part; times are in seconds since the clip's start."""
    ((_, data),) = part.clips([row])
    try:
        frames, sampled, times = mine().sample(data, fps)
    except Rejected as error:
        raise Damaged(f"part {part.id}: clip {row['key']} does not decode ({error.reason})") from error
    return Decoded(resized(frames, size), sampled, times)


def frames_version(fps: float, size: int) -> str:
    """The version of the column of frames at a rate in frames a second, and a height and width in pixels."""
    return f"{fps:g}fps-{size}px-{files.digest_of([HOW, float(fps), size])[:8]}"


class Footage:
    """Clips as small uint8 frames, kept as far as memory allows; may be asked by threads.

    Those of a part that has the column of frames below ``root`` are taken from there; others are decoded on first use.
    """

    def __init__(self, fps: float, size: int, most: int = CACHE_BYTES, root: str = "") -> None:
        self.fps, self.size, self.root = fps, size, root
        self._kept: LRUCache[Any, Decoded] = LRUCache(most, getsizeof=lambda clip: clip.frames.nbytes)
        self._changes = threading.Condition()
        self._columns: dict[Any, dict[str, Decoded]] = {}
        self._reading = threading.Condition()

    def clip(self, part: Part, row: dict[str, Any]) -> Decoded:
        """A clip of a part."""
        return self._column(part).get(row["key"]) or self._decoded(part, row)

    @cachedmethod(
        lambda self: self._kept, lambda self, part, row: (part.id, row["key"]), condition=lambda self: self._changes
    )
    def _decoded(self, part: Part, row: dict[str, Any]) -> Decoded:
        return decode(part, row, self.fps, self.size)

    @cachedmethod(lambda self: self._columns, lambda self, part: part.id, condition=lambda self: self._reading)
    def _column(self, part: Part) -> dict[str, Decoded]:
        return stored(self.root, part, self.fps, self.size) if self.root else {}


def stored(root: str, part: Part, fps: float, size: int) -> dict[str, Decoded]:
    """What the column of frames has of a part, by key; nothing where it is not written. Raises `Damaged`."""
    try:
        table = columns.read(root, FRAMES, frames_version(fps, size), part).combine_chunks()
    except FileNotFoundError:
        return {}
    found = {}
    for row in table.to_batches()[0].to_pylist() if len(table) else ():
        pixels, sampled = torch.frombuffer(bytearray(row["frames"]), dtype=torch.uint8), np.asarray(row["sampled"])
        if not len(sampled) or len(pixels) != len(sampled) * 3 * size * size:
            raise Damaged(f"part {part.id}: column {FRAMES} has no frames of {size} pixels for clip {row['key']}")
        found[row["key"]] = Decoded(pixels.view(-1, 3, size, size), sampled, np.asarray(row["times"]))
    return found


@dataclass(frozen=True)
class Item:
    """One clip to train on and where its labels come from."""

    part: Part
    row: dict[str, Any]
    entry: dict[str, Any] | None


def items(root: str, parts: list[Part], labels: str | None = None, selection: str | None = None) -> list[Item]:
    """The clips of some parts to train on, in order of parts.

    ``labels`` names a version of the pseudo-label column; without it the segments of the index are used.
    ``selection`` names a version of the selection column: clips that it drops are left out.
    """
    found: list[Item] = []
    for part in sorted(parts, key=lambda p: p.id):
        entries: list[Any] = [None] * part.samples
        if labels is not None:
            entries = columns.read(root, "pseudo_labels", labels, part).to_pylist()
        used = kept(root, selection, part)
        found += [Item(part, row, entry) for row, entry, use in zip(part.rows(), entries, used, strict=True) if use]
    if not found:
        raise InputError("nothing to train on: the selected parts hold no clips that are kept")
    return found


def truth_of(item: Item, times: np.ndarray, classes: list[str]) -> np.ndarray:
    """The labels `[T, K]` of a clip at times since its start: pseudo labels where it has them, else its segments."""
    if item.entry is not None:
        return pseudo_labels(item.entry, times, classes)
    return frame_labels(item.row, times, classes)


@dataclass(frozen=True)
class Sample:
    """What one clip or video gives to a batch: frames or features, labels, and what goes with them."""

    seen: Tensor  # [3, T, S, S] uint8 or [T, D]
    labels: Tensor  # [N, K]
    places: Tensor | None = None  # [N]: where each label is, in frames of `seen`; None: each on its own frame
    whole: Tensor | None = None  # the video around a clip [3, F, S, S] uint8, or its Fine stream's maps [C, F, h, w]
    start: int = 0  # of the clip in the video, in frames of the clip
    step: int = 1  # frames of the clip to a frame of the whole


class Clips:
    """The clips of some parts with a label for every sampled frame."""

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
        """``labels`` and ``selection`` are those of `items`."""
        self.classes, self.footage = classes, Footage(fps, size, root=root)
        self.items = items(root, parts, labels, selection)
        self._truth: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.items)

    def clip(self, index: int) -> tuple[Tensor, Tensor]:
        """Frames `[T, 3, S, S]` uint8 at the sampling rate and labels `[T, K]` of a whole clip."""
        item = self.items[index]
        found = self.footage.clip(item.part, item.row)
        if index not in self._truth:
            self._truth[index] = torch.from_numpy(truth_of(item, found.sampled, self.classes))
        return found.frames, self._truth[index]

    def key(self, index: int) -> str:
        """The key of a clip."""
        return str(self.items[index].row["key"])

    def draw(self, index: int, length: int, rng: np.random.Generator) -> Sample:
        """A random window of a clip."""
        return Sample(*window(self.clip(index), length, rng))


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
