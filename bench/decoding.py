"""Sampling a clip through the sandbox against a bare PyAV loop that keeps the same frames."""

import io
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np

from bench.figures import Figure, against
from storage.media.encoder import Encoder
from storage.media.sandbox import Sandbox


def run() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as name:
        for width, height in ((320, 240), (1280, 720)):
            data = _clip(Path(name) / f"{height}.mp4", width, height)
            box = Sandbox()
            for fps in (1.0, 8.0):
                ratio, _ = against(partial(box.sample, data, fps), partial(_bare, data, fps))
                note = "10 s at 25 fps, in the child, frames handed over"
                yield Figure(f"sampling {width}×{height} at {fps:g} fps / bare PyAV loop", ratio, note=note)
            box.close()


def _clip(path: Path, width: int, height: int) -> bytes:
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    with Encoder(path, width, height, Fraction(25), Fraction(1, 25)) as encoder:
        for t in range(250):
            encoder.write(np.roll(texture, (t, 2 * t), (0, 1)), Fraction(t, 25))
    return path.read_bytes()


def _bare(data: bytes, fps: float) -> np.ndarray:
    """What a careful person writes by hand: one thread, the first frame at or after each grid time."""
    kept = []
    with av.open(io.BytesIO(data), format="mp4") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            if frame.time >= len(kept) / fps - 1e-9:
                kept.append(frame.to_ndarray(format="rgb24"))
    return np.stack(kept)
