"""Frames of a clip at a regular rate, and small pictures of every frame of a file."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

import av
import numpy as np

from storage.media.footage import Footage, Unsure
from storage.media.interlace import progressive
from storage.media.limits import DEFAULT, Limits
from storage.media.picture import Upright
from storage.media.sparse import sparse
from storage.media.video import NEAR

T = TypeVar("T")

CHUNK = 8 << 20  # bytes of thumbnails that are handed over at a time


def sample(
    data: bytes, fps: float | None = None, limits: Limits = DEFAULT, beat: Callable[[], None] = lambda: None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decodes a clip's bytes (MP4, WebM, Matroska, AVI, MPEG, FLV) and keeps the frames nearest to a grid of ``fps``.

    Returns the kept frames `[T, H, W, 3]` uint8, upright, deinterlaced and of square pixels, their times `[T]` and
    the times of all frames `[N]`, in seconds since the clip's start; every frame where ``fps`` is None. ``beat()`` is
    called once a packet. Raises `Rejected`.
    """
    kept: list[np.ndarray] = []
    kept_times, times = picked(data, kept.append, kept.clear, fps, limits, beat)
    return np.stack(kept), np.asarray(kept_times), np.asarray(times)


def picked(
    data: bytes,
    take: Callable[[np.ndarray], None],
    forget: Callable[[], None],
    fps: float | None = None,
    limits: Limits = DEFAULT,
    beat: Callable[[], None] = lambda: None,
) -> tuple[list[float], list[float]]:
    """`sample`, which hands over each frame `[H, W, 3]` uint8 as it is decoded, all of one size; returns the times.

    ``forget()`` says that the frames that were handed over come once more.
    """
    if fps is not None:
        try:
            with Footage(data, limits, beat=beat) as footage:
                return _picked(footage, sparse(footage, partial(nearest, fps=fps)), take, fps)
        except Unsure:
            forget()
    with Footage(data, limits, beat=beat) as footage:
        # A clip that was adopted may be interlaced; ours are not.
        return _picked(footage, ((now, frame) for now, frame, _ in progressive(footage)), take, fps)


def _picked(
    footage: Footage,
    found: Iterable[tuple[int, av.VideoFrame | None]],
    take: Callable[[np.ndarray], None],
    fps: float | None,
) -> tuple[list[float], list[float]]:
    kept: list[float] = []
    times: list[float] = []
    upright = Upright(footage.stream.sample_aspect_ratio)
    shape: tuple[int, ...] = ()

    def clocked() -> Iterator[tuple[float, av.VideoFrame | None]]:
        for now, frame in found:
            times.append(float(now * footage.clock.base))
            yield times[-1], frame
        footage.damage.judge(footage.limits, at_end=True)

    for time, frame in clocked() if fps is None else nearest(clocked(), fps):
        assert frame is not None, "every frame that is picked is decoded"
        picture = upright.rgb(frame)
        shape = shape or picture.shape
        if picture.shape != shape:
            raise ValueError("frames of several sizes")
        kept.append(time)
        take(picture)
    if not kept:
        raise ValueError("no frames")
    return kept, times


def nearest(found: Iterable[tuple[float, T]], fps: float) -> Iterator[tuple[float, T]]:
    """Of things with increasing times the nearest to each moment of a grid of ``fps``, with that moment.

    The first alone where none is left of the grid: the grid ends with the last of them.
    """
    held: tuple[float, T] | None = None
    count = 0
    for time, item in found:
        # A moment of the grid lies between the one held and this one: the nearer of the two is its own.
        while held is not None and count / fps <= time:
            moment = count / fps
            yield moment, held[1] if moment - held[0] <= time - moment else item
            count += 1
        held = (time, item)
    if held is not None and not count:
        yield 0.0, held[1]


def thumbnails(
    path: str,
    *,
    size: tuple[int, int] = (27, 48),
    window: tuple[float, float | None] | None = None,
    fps: float | None = None,
    limits: Limits = DEFAULT,
    beat: Callable[[], None] = lambda: None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields chunks of (frames `[n, *size, 3]` uint8, times `[n]` in seconds since the first frame), in order.

    Frames are squeezed to ``size`` (height, width). With ``window`` only those of start <= time < end; with ``fps``
    at most so many a second: the first frame at or after each moment of that grid. Raises `Rejected`.
    """
    start, end = window or (0.0, None)
    room = max(1, CHUNK // (size[0] * size[1] * 3))
    last = -1.0  # the time of the latest picture that was handed over
    for seek in (True, False):
        frames, times = np.empty((room, *size, 3), np.uint8), np.empty(room)
        count, slot = 0, -1
        try:
            with Footage(path, limits, start=start, seek=seek, beat=beat) as footage:
                upright = Upright(footage.stream.sample_aspect_ratio, size=size)
                for now, frame in footage:
                    time = float(now * footage.clock.base)
                    if end is not None and time >= end - float(NEAR):
                        break
                    before, slot = slot, int((time + float(NEAR)) * fps) if fps else slot + 1
                    if slot == before or time <= last:
                        continue
                    frames[count], times[count] = upright.rgb(frame), time
                    count += 1
                    if count == room:
                        yield frames.copy(), times.copy()
                        last, count = time, 0
                else:
                    footage.clock.check(whole=start <= 0)
                if footage.begun:
                    footage.damage.judge(limits, at_end=False)
            yield frames[:count].copy(), times[:count].copy()
            return
        except Unsure:
            continue
