"""Writing video: H.264 in MP4 whose bytes follow from the frames alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Self

import av
import numpy as np

from storage.errors import StoreError

FALLBACK_TIME_BASE = Fraction(1, 90_000)


@contextmanager
def ours() -> Iterator[None]:
    """What goes wrong while we write is the store's fault or the memory limit's, never the video's."""
    try:
        yield
    except MemoryError:
        raise
    except av.error.ExternalError as error:  # x264 has no other words for it
        raise MemoryError(str(error)) from error
    except OSError as error:
        raise StoreError(f"{type(error).__name__}: {error}") from error


class Encoder:
    """Writes H.264 in MP4 with one thread: x264's output depends on its thread count, and parts are byte-stable."""

    def __init__(
        self,
        path: Path,
        width: int,
        height: int,
        rate: Fraction,
        time_base: Fraction | None = None,
        crf: int = 21,
    ) -> None:
        with ours():
            self.container = av.open(str(path), "w", format="mp4")
        # Without mbtree: its AVX code reads memory it never wrote, and small frames then differ from run to run.
        options = {"preset": "veryfast", "crf": str(crf), "g": "30", "mbtree": "0"}
        self.stream = self.container.add_stream("libx264", rate=rate, options=options)
        self.stream.width, self.stream.height, self.stream.pix_fmt = width, height, "yuv420p"
        self.time_base = time_base or FALLBACK_TIME_BASE
        self.stream.codec_context.time_base = self.time_base
        self.stream.codec_context.thread_count = 1

    def write(self, frame: np.ndarray | av.VideoFrame, time: Fraction) -> None:
        """Adds a frame (`[H, W, 3]` uint8 or a decoded one) shown ``time`` seconds after the start."""
        if isinstance(frame, np.ndarray):
            frame = av.VideoFrame.from_ndarray(frame, "rgb24")
        frame.pts, frame.time_base = round(time / self.time_base), self.time_base
        frame.pict_type = 0
        with ours():
            self.container.mux(self.stream.encode(frame))

    def close(self) -> None:
        with ours():
            self.container.mux(self.stream.encode(None))
            self.container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.container.close()
