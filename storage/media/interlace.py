"""Interlaced video: frames of two half pictures from two moments, made into pictures of one moment."""

from collections import deque
from collections.abc import Iterator
from fractions import Fraction

import av
from av.filter import Graph

from storage.media.footage import Footage

FILTER = ("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
COUNT = Fraction(1, 1000)  # a time base to count frames in; the filter looks at their order alone


class _Filter:
    """FFmpeg's bwdif, on one thread: a frame out for each frame in, one later, made of it and its two neighbours."""

    def __init__(self, frame: av.VideoFrame) -> None:
        self.graph = Graph()
        self.graph.threads = 1
        size = {"width": frame.width, "height": frame.height, "format": frame.format}
        begin, end = self.graph.add_buffer(**size, time_base=COUNT), self.graph.add("buffersink")  # type: ignore[arg-type]
        self.graph.link_nodes(begin, self.graph.add(*FILTER), end).configure()
        self.inside: deque[tuple[int, bool]] = deque()  # time, and whether it came in interlaced
        self.count = 0

    def push(self, now: int, frame: av.VideoFrame) -> Iterator[tuple[int, av.VideoFrame, bool]]:
        self.inside.append((now, bool(frame.interlaced_frame)))
        frame.pts, frame.time_base = self.count, COUNT
        self.count += 1
        self.graph.vpush(frame)
        yield from self._made()

    def end(self) -> Iterator[tuple[int, av.VideoFrame, bool]]:
        self.graph.vpush(None)
        yield from self._made()

    def _made(self) -> Iterator[tuple[int, av.VideoFrame, bool]]:
        while True:
            try:
                made = self.graph.vpull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            now, was = self.inside.popleft()
            yield now, made, was and not made.interlaced_frame


def progressive(footage: Footage) -> Iterator[tuple[int, av.VideoFrame, bool]]:
    """Yields (time, frame, whether it was changed): frames that are flagged interlaced are deinterlaced, no other.

    What a frame becomes follows from it and its neighbours, wherever ``footage`` begins.
    """
    before, between = footage.before, None
    for now, frame in footage:
        if between is None and frame.interlaced_frame:
            between = _Filter(frame)
            before = before or footage.before
            if before is not None:
                list(between.push(-1, before))
        if between is None:
            before = frame
            yield now, frame, False
            continue
        for made in between.push(now, frame):
            if made[0] >= 0:  # else what came before the first frame that is wanted
                yield made
    if between is not None:
        yield from (made for made in between.end() if made[0] >= 0)
