"""What the systems are trained on beyond a clip: source-rate labels, the whole video beside a clip, feature columns."""

import threading
from typing import Any

import numpy as np
import torch
from cachetools import LRUCache, cachedmethod

from storage.datasets import kept
from storage.errors import InputError
from storage.parts import Part
from tasks.training.loader import SLACK, Clips, Footage, Item, Sample, frame_labels, items, truth_of
from tasks.training.videos import Features, FineMaps, Whole, videos, whole

WHOLES = 1 << 30  # bytes of whole videos that are kept


def source_times(row: dict[str, Any]) -> np.ndarray:
    """The times of all frames of a clip since its start, from its index row: nothing is decoded."""
    return np.arange(row["frames"]) / row["fps"]


class SourceRate:
    """Clips with a label for every source frame, and with the whole video around each where ``most`` is not 0.

    With ``maps`` that is what the Fine stream makes of it, from their column, and no other clip is decoded.
    """

    def __init__(
        self, root: str, parts: list[Part], classes: list[str], footage: Footage, most: int = 0,
        labels: str | None = None, selection: str | None = None, maps: FineMaps | None = None,
    ) -> None:  # fmt: skip
        self.classes, self.footage, self.most, self.maps = classes, footage, most, maps
        self.items: list[Item] = items(root, parts, labels, selection)
        self.videos = videos(parts) if most else {}
        self._wholes: LRUCache[Any, Whole] = LRUCache(WHOLES, getsizeof=lambda video: video.frames.nbytes)
        self._changes = threading.Condition()

    def __len__(self) -> int:
        return len(self.items)

    def key(self, index: int) -> str:
        """The key of a clip."""
        return str(self.items[index].row["key"])

    def draw(self, index: int, length: int, rng: np.random.Generator) -> Sample:
        """A random window of a clip; a short clip is played over again, without labels."""
        item = self.items[index]
        found = self.footage.clip(item.part, item.row)
        T = len(found.frames)
        begin = int(rng.integers(0, max(1, T - length + 1)))
        chosen = torch.arange(begin, begin + length) % T
        at, times = placed(found.sampled, found.times, begin, length)
        labels = torch.from_numpy(truth_of(item, times, self.classes))
        seen, places = found.frames[chosen].transpose(0, 1), torch.from_numpy(at)
        if not self.most:
            return Sample(seen, labels, places)
        video = self._whole(item.row["path"])
        start = video.begins[item.row["key"]] + begin
        return Sample(seen, labels, places, video.frames.transpose(0, 1), start, video.step)

    def _whole(self, path: str) -> Whole:
        return self.maps.video(self.videos[path]) if self.maps is not None else self._decoded(path)

    @cachedmethod(lambda self: self._wholes, lambda self, path: path, condition=lambda self: self._changes)
    def _decoded(self, path: str) -> Whole:
        return whole(self.videos[path], self.footage, self.most)


def placed(sampled: np.ndarray, times: np.ndarray, begin: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The source frames under a window of sampled frames: their places in it, float32, and their times.

    A window that reaches the last sampled frame has all source frames after that, too, on its last place.
    """
    inside = sampled[begin : begin + length]
    last = np.inf if begin + length >= len(sampled) else inside[-1] + SLACK
    first = -np.inf if begin == 0 else inside[0] - SLACK
    chosen = times[(times >= first) & (times <= last)]
    if not len(chosen):  # a source of fewer frames than are sampled may have none just there
        chosen = inside[:1]
    return np.interp(chosen, inside, np.arange(len(inside))).astype(np.float32), chosen


class FeatureVideos:
    """Whole videos as a column's features, with a label for every source frame; no video is decoded."""

    def __init__(
        self, root: str, parts: list[Part], classes: list[str], version: str, selection: str | None = None
    ) -> None:
        self.classes, self.features = classes, Features(root, version)
        used = {
            (part.id, row["key"])
            for part in parts
            for row, use in zip(part.rows(), kept(root, selection, part), strict=True)
            if use
        }
        found = videos(parts).values()
        self.videos = [(clips, [c for c in clips if (c[0].id, c[1]["key"]) in used]) for clips in found]
        self.videos = [(clips, chosen) for clips, chosen in self.videos if chosen]
        if not self.videos:
            raise InputError("nothing to train on: the selected parts hold no clips that are kept")

    def __len__(self) -> int:
        return len(self.videos)

    def key(self, index: int) -> str:
        """The key of a video's first clip."""
        return str(self.videos[index][1][0][1]["key"])

    def draw(self, index: int, length: int, rng: np.random.Generator) -> Sample:
        """A video, or of a longer one a random window of ``length`` features."""
        clips, chosen = self.videos[index]
        found = self.features.video(clips)
        clocks = [source_times(row) for _, row in chosen]
        times = np.concatenate([row["start"] + clock for (_, row), clock in zip(chosen, clocks, strict=True)])
        truth = [frame_labels(row, clock, self.classes) for (_, row), clock in zip(chosen, clocks, strict=True)]
        begin = int(rng.integers(0, max(1, len(found.times) - length + 1)))
        at, inside = placed(found.times, times, begin, length)
        there = np.searchsorted(times, inside).clip(max=len(times) - 1)
        labels = torch.from_numpy(np.concatenate(truth)[there])
        return Sample(found.features[begin : begin + length], labels, torch.from_numpy(at))


def samples_of(spec: Any) -> Clips | SourceRate | FeatureVideos:
    """What a training draws from, by what its spec says of features, the whole video and the labels' rate."""
    parts = [Part(**record) for record in spec.parts]
    if spec.features:
        return FeatureVideos(spec.root, parts, spec.classes, spec.features, spec.selection)
    if spec.rate == "source" or spec.whole:
        footage = Footage(spec.fps, spec.size, root=spec.root)
        maps = FineMaps(spec.root, spec.fine, spec.options["cells"]) if spec.fine else None
        return SourceRate(spec.root, parts, spec.classes, footage, spec.whole, spec.labels, spec.selection, maps)
    return Clips(spec.root, parts, spec.classes, spec.fps, spec.size, spec.labels, spec.selection)
