"""Small films for tests of scores, selection and duplicates: textured actors that cross a textured background."""

import csv
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np

from storage.media.encoder import Encoder
from storage.media.scenes import texture_of
from tests.preparing import prepare

H, W = 48, 64


def film(seed: int, room: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A background `[H, W, 3]` and an actor `[20, 20, 3]`; the background is that of ``room`` where one is given."""
    rng = np.random.default_rng((seed, 1))
    back = texture_of(np.random.default_rng((seed if room is None else room, 2)), H, W, 5) * 0.7 + 20
    fine = np.random.default_rng((seed if room is None else room, 3)).uniform(-12, 12, (H, W, 3))
    return np.clip(back + fine, 0, 255).astype(np.uint8), rng.integers(60, 255, (20, 20, 3)).astype(np.uint8) // 2 + 100


def moving(seed: int, frames: int, fps: int = 12, room: int | None = None) -> list[np.ndarray]:
    """An actor on a curve of its own before the background, the same at any frame rate."""
    back, actor = film(seed, room)
    a, b, c, d = np.random.default_rng((seed, 4)).uniform(0.4, 2.4, 4)
    made = []
    for t in range(frames):
        frame, s = back.copy(), t / fps
        y = round((H - 20) * (0.5 + 0.5 * np.sin(a * s * 2 + c * 3)))
        x = round((W - 20) * (0.5 + 0.5 * np.sin(b * s * 2 + d * 3)))
        frame[y : y + 20, x : x + 20] = actor
        made.append(frame)
    return made


def write(frames: list[np.ndarray], path: Path, fps: int = 12, crf: int = 21) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames[0].shape[:2]
    with Encoder(path, width, height, Fraction(fps), crf=crf) as encoder:
        for t, frame in enumerate(frames):
            encoder.write(np.ascontiguousarray(frame), Fraction(t, fps))
    return path


def encode(frames: list[np.ndarray], fps: int = 12, crf: int = 21) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write(frames, Path(folder) / "x.mp4", fps, crf).read_bytes()


def prepare_films(folder: Path, films: dict, labels: list[tuple] = ()):
    """Writes films by path below an archive, prepares it, and returns (root, dataset).

    ``labels`` holds (path, start, end, label, split).
    """
    for name, frames in films.items():
        if not (folder / "archive" / name).exists():
            write(frames, folder / "archive" / name)
    where = None
    if labels:
        where = folder / "labels.csv"
        with where.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([("path", "start", "end", "label", "split"), *labels])
    root = str(folder / "root")
    dataset, _ = prepare(root, str(folder / "archive"), where and str(where), units=3)
    return root, dataset
