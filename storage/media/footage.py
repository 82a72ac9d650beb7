"""The frames of a video with their times: of a file, from any moment on, or of a clip's bytes."""

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Self

import av

from storage.media.limits import Limits
from storage.media.video import NEAR, Clock, Damage, decode, open_bytes, open_video, packets, video_stream

SEEKABLE = ("mp4", "matroska")  # containers with an index that can be believed
BACK = (0, 10, 60)  # seconds before the wanted frame, tried in turn until a key frame comes out in time


class Unsure(Exception):
    """After a seek, frames cannot be proven to be those of a decode from the beginning."""


class Footage:
    """The frames of a file, or of a clip's bytes, with their times from ``start`` seconds on.

    To be iterated once, within ``with``.

    With ``seek`` it goes to a key frame at or before the start where the container has an index, and raises `Unsure`
    as soon as a frame could differ from one decoded from the beginning; the caller then starts over without.
    """

    def __init__(
        self,
        source: str | bytes,
        limits: Limits,
        *,
        start: float = 0.0,
        seek: bool = True,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self.limits, self.beat = limits, beat
        self.container = open_bytes(source, limits) if isinstance(source, bytes) else open_video(source, limits)
        try:
            self.stream = video_stream(self.container, limits)
        except BaseException:
            self.container.close()
            raise
        self.clock, self.damage = Clock(self.stream, limits), Damage()
        self.from_tick = math.ceil((Fraction(str(start)) - NEAR) / self.clock.base) if start > 0 else 0
        kind = self.container.format.name
        self.sought = seek and self.from_tick > 0 and any(name in kind for name in SEEKABLE)
        self.begun = self.from_tick == 0  # whether what was seen is ours to judge
        self.before: av.VideoFrame | None = None  # the frame before the start, which an interlaced one leans on

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def __iter__(self) -> Iterator[tuple[int, av.VideoFrame]]:
        for frame in self._from_key() if self.sought else self._decode():
            if self.sought and (frame.pts is None or frame.pts - (self.clock.first or 0) <= self.clock.last):
                raise Unsure("times that need repair")
            since = self.clock.read(frame.pts)
            if since < self.from_tick:
                self.before = frame
                continue
            if not self.begun:
                self.begun = True
                self.damage.forget()
            yield since, frame

    def _decode(self) -> Iterator[av.VideoFrame]:
        found = packets(self.container, self.stream)
        return decode(found, self.stream, self.limits, self.damage, self.beat)

    def _seek(self, pts: int) -> None:
        self.container.seek(pts, stream=self.stream)

    def _from_key(self) -> Iterator[av.VideoFrame]:
        """Seeks, and yields the frames from the start on; those from the key frame to the start are passed over."""
        opening = next(self._decode(), None)
        if opening is None or opening.pts is None:
            raise Unsure("no first time")
        first, near = (opening.pts, math.ceil(NEAR / self.clock.base))
        self.clock.first = first
        for back in BACK:
            key = False
            self.clock.last, self.before = -1, None
            self._seek(max(first, first + self.from_tick - round(back / self.clock.base)))
            frames = self._decode()
            for frame in frames:
                if frame.pts is None:
                    raise Unsure("a frame without a time")
                since = frame.pts - first
                if since - self.from_tick <= near:  # a later key frame would leave open what came before it
                    key = key or bool(frame.key_frame)
                if since < self.from_tick:
                    self.clock.last = max(self.clock.last, since)
                    self.before = frame if key else None
                elif key and (self.before is not None or not frame.interlaced_frame):
                    yield frame
                    yield from frames
                    return
                else:
                    break  # landed late: frames before this one may be missing, or the one that it leans on
            else:
                if key:
                    return  # the video ends before the start
        raise Unsure("no key frame before the start")
