"""What can be said of a clip from its luma: motion, sharpness, black and repeated frames, and a signature.

`measure` decodes in whatever process calls it; the `sandbox` calls it in a child. All sums are over integers and
all results are rounded, so the same clip has the same scores on every machine.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any

import av
import numpy as np

from storage import files
from storage.media.footage import Footage
from storage.media.limits import DEFAULT, Limits

GRID = 4.0  # moments a second that the signature and the sharpness are taken at
LONG = 96  # cells along the longer side of a thumbnail
CELLS = 32  # a signature is made of the picture on CELLS x CELLS
DARK = 38  # luma; a tenth of the way from black (16) to white (235)
BARS = 30  # luma; darker than this at all times is a border, not a picture
FAINT = 6.0  # coefficients of the picture below this are noise of an encoder
FAINT_MOVE = 4.0  # the same for what moves
INFORMED = 12  # of 63 coefficients that have to be above it; else a frame has no hash
COARSE = 24  # the same for change: an encoder's noise averages out in cells this large, an actor does not
MIDDLES = (0.9, 0.8)  # shares of the sides; the signature has the middle of the picture too, which crops leave
MIDDLE_EVERY = 2  # moments; the middles are looked at less often
STILL = 2  # luma; coarse thumbnails that differ by no more in any cell show the same
MAX_MOMENTS = 240  # one minute of signature; longer clips are known by their first minute
PLANAR = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "nv12", "gray")
SETTINGS = {
    "method": 2,  # goes up when what is measured changes
    "grid": GRID,
    "thumbnails": [LONG, COARSE],
    "cells": CELLS,
    "dark": DARK,
    "bars": BARS,
    "faint": [FAINT, FAINT_MOVE, INFORMED],
    "middles": [*MIDDLES, MIDDLE_EVERY],
    "still": STILL,
    "moments": MAX_MOMENTS,
}


@dataclass(frozen=True)
class Scores:
    """The scores of one clip; luma is 0 to 255."""

    motion: float  # mean absolute change of luma over a quarter of a second (coarse thumbnails), over 255: 0 to 1
    sharpness: float  # median over the grid of var(Laplacian) / var(luma): 0 for a flat picture, about 20 for noise
    black: float  # share of frames with at least 98 % of their pixels darker than `DARK`
    static: float  # share of frames, the first left out, whose coarse thumbnail is that of the frame before
    duplicate_frames: int  # frames that equal the one before in every luma sample
    luma_mean: float
    luma_std: float  # over all pixels of all frames
    frames: int


VIEWS = 1 + len(MIDDLES)
NAMES = tuple(field.name for field in fields(Scores))


def version() -> str:
    """The version of the column: the digest of the method and its settings."""
    return f"luma-{files.digest_of(SETTINGS)[:8]}"


def _luma(frame: av.VideoFrame) -> np.ndarray:
    """The luma plane without the padding at the ends of its lines."""
    if frame.format.name not in PLANAR:
        frame = frame.reformat(format="gray")
    plane = frame.planes[0]
    return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]


def _shrink(picture: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Means over a grid of ``rows`` x ``columns`` cells, rounded to uint8; integers only."""
    height, width = picture.shape
    top, left = (np.arange(n) * side // n for n, side in ((rows, height), (columns, width)))
    sums = np.add.reduceat(np.add.reduceat(picture.astype(np.uint32), left, axis=1), top, axis=0)
    counts = np.outer(np.diff(top, append=height), np.diff(left, append=width)).astype(np.uint32)
    return ((sums + counts // 2) // counts).astype(np.uint8)


def _thumbnail(luma: np.ndarray, long: int) -> np.ndarray:
    scale = min(1.0, long / max(luma.shape))
    return _shrink(luma, *(max(1, round(side * scale)) for side in luma.shape))


def _change(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.abs(one.astype(np.int16) - other)


def _sharpness(luma: np.ndarray) -> float:
    """var(Laplacian) / var(luma) of one frame; 0 where there is nothing to be sharp."""
    if min(luma.shape) < 3 or luma.std() < 2:
        return 0.0
    p = luma.astype(np.int32)
    laplacian = p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:] - 4 * p[1:-1, 1:-1]
    return float(laplacian.var() / p.var())


@lru_cache(maxsize=1)
def _cosines() -> np.ndarray:
    """The first eight rows of the orthonormal DCT-II of `CELLS` samples."""
    k, n = np.arange(8)[:, None], np.arange(CELLS)[None, :]
    matrix = np.cos(np.pi * (2 * n + 1) * k / (2 * CELLS)) * np.sqrt(2 / CELLS)
    matrix[0] /= np.sqrt(2)
    return matrix


def hashes(pictures: np.ndarray, faint: float) -> np.ndarray:
    """64-bit hashes `[N]` of pictures `[N, CELLS, CELLS]`: the signs of the 63 lowest frequencies, and a bit that is 1.

    0 says that a picture has too little in it to be told from others.
    """
    cosines = _cosines()
    waves = np.round(cosines @ pictures.astype(np.float64) @ cosines.T, 3).reshape(len(pictures), 64)
    bits = np.packbits(waves > 0, axis=1).view(">u8")[:, 0].astype(np.uint64) | np.uint64(1 << 63)
    informed = (np.abs(waves[:, 1:]) > faint).sum(1) >= INFORMED
    return np.where(informed, bits, np.uint64(0))


def signature(moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(looks, moves), two `[V * N]` uint64, of thumbnails `[N, h, w]` on the grid, for `VIEWS` views end to end.

    Looks are hashes of the picture without black borders; moves are hashes of its difference from the mean picture
    of the clip, which leaves out a still background, and with it what all recordings of one camera have in common.
    The first view is the whole picture, the others are its `MIDDLES`, 0 at the moments that are passed over.
    """
    rows, columns = (np.flatnonzero(moments.max(axis) >= BARS) for axis in ((0, 2), (0, 1)))
    if len(rows) and len(columns):
        moments = moments[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    found = [_hashed(moments)]
    for share in MIDDLES:
        every = np.zeros((2, len(moments)), np.uint64)
        every[:, ::MIDDLE_EVERY] = _hashed(_middle(moments[::MIDDLE_EVERY], share))
        found.append((every[0], every[1]))
    looks, moves = zip(*found, strict=True)
    return np.concatenate(looks), np.concatenate(moves)


def _hashed(moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    small = np.stack([_spread(picture) for picture in moments]).astype(np.float64)
    return hashes(small, FAINT), hashes(small - small.mean(0), FAINT_MOVE)


def _middle(moments: np.ndarray, share: float) -> np.ndarray:
    top, left = (round(side * (1 - share) / 2) for side in moments.shape[1:])
    return moments[:, top : moments.shape[1] - top, left : moments.shape[2] - left]


def _spread(picture: np.ndarray) -> np.ndarray:
    """A picture on `CELLS` x `CELLS`, whatever its size."""
    height, width = picture.shape
    if height < CELLS or width < CELLS:
        picture = np.repeat(np.repeat(picture, -(-CELLS // height), axis=0), -(-CELLS // width), axis=1)
    return _shrink(picture, CELLS, CELLS)


def measure(
    data: bytes, limits: Limits = DEFAULT, beat: Callable[[], None] = lambda: None
) -> tuple[Scores, np.ndarray, np.ndarray]:
    """Decodes a clip's bytes once, as `storage.media.sampling.sample` does; returns its scores and signature.

    ``beat()`` is called once a packet. Raises `Rejected`.
    """
    moments: list[np.ndarray] = []
    sharp: list[float] = []
    changes: list[float] = []
    count = black = still = same = total = squares = pixels = reached = 0
    before: np.ndarray | None = None
    coarse_before = coarse_moment = np.zeros((0, 0), np.uint8)
    with Footage(data, limits, beat=beat) as footage:
        for now, frame in footage:
            time, luma = float(now * footage.clock.base), _luma(frame)
            coarse = _thumbnail(luma, COARSE)
            if time >= reached / GRID - 1e-6:
                skipped = int(time * GRID + 1e-6) - reached  # moments that still show the frame before
                moments += moments[-1:] * min(skipped, MAX_MOMENTS - len(moments))
                if len(moments) < MAX_MOMENTS:
                    moments.append(_thumbnail(luma, LONG))
                    sharp.append(_sharpness(luma))
                if coarse.shape == coarse_moment.shape:
                    changes.append(float(_change(coarse, coarse_moment).mean()))
                coarse_moment = coarse
                reached += skipped + 1
            black += int((luma < DARK).sum() >= 0.98 * luma.size)
            values = np.bincount(luma.reshape(-1), minlength=256)
            total += int(values @ np.arange(256))
            squares += int(values @ np.arange(256) ** 2)
            pixels += luma.size
            if before is not None:
                still += int(_change(coarse, coarse_before).max() <= STILL)
                same += int(np.array_equal(luma, before))
            before, coarse_before = luma, coarse
            count += 1
        footage.damage.judge(limits, at_end=True)
    mean = total / pixels
    scores = Scores(
        motion=round(float(np.mean(changes or [0.0])) / 255, 6),
        sharpness=round(float(np.median(sharp)), 6),
        black=round(black / count, 6),
        static=round(still / (count - 1), 6) if count > 1 else 1.0,
        duplicate_frames=same,
        luma_mean=round(mean, 4),
        luma_std=round(max(0.0, squares / pixels - mean * mean) ** 0.5, 4),
        frames=count,
    )
    return scores, *signature(np.stack(moments))


def pack(measured: tuple[Scores, np.ndarray, np.ndarray]) -> tuple[dict[str, Any], bytes]:
    """A measurement as JSON and bytes, to cross the pipe of the sandbox."""
    scores, looks, moves = measured
    return {"scores": asdict(scores)}, looks.astype("<u8").tobytes() + moves.astype("<u8").tobytes()


def unpack(answer: dict[str, Any], blob: bytes) -> tuple[Scores, np.ndarray, np.ndarray]:
    """The measurement that `pack` packed; ValueError, TypeError or KeyError where it is none."""
    values = answer["scores"]
    whole = ("duplicate_frames", "frames")
    numbers: dict[str, Any] = {name: (int if name in whole else float)(values[name]) for name in NAMES}
    scores = Scores(**numbers)
    looks, moves = np.frombuffer(blob, "<u8").reshape(2, -1)
    return scores, looks, moves
