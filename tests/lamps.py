"""An archive that is learned in seconds: on dark noise, a patch in the colour of an action is on while it lasts."""

from fractions import Fraction
from pathlib import Path

import numpy as np

from storage.media import synthetic
from storage.media.encoder import Encoder

COLOURS = {"red": (220, 40, 30), "green": (30, 210, 40), "blue": (40, 60, 230)}
FPS, SIDE, SECONDS = 8, 32, 6


def render(folder: Path, train: int = 8, held_out: int = 4, weak: int = 6) -> None:
    """Renders ``folder/archive`` and ``folder/labels.csv``: videos with segments, and ``weak`` ones of one action."""
    rows: list[dict[str, object]] = []
    for i in range(train + held_out):
        split = "train" if i < train else "heldout"
        rows += _video(folder / "archive", f"dense/{i:02d}.mp4", i, split)
    for i in range(weak):
        label = list(COLOURS)[i % len(COLOURS)]
        _write(folder / "archive" / f"weak/{i:02d}.mp4", 100 + i, [(0, 3 * FPS, label)], 3 * FPS)
        rows.append({"path": f"weak/{i:02d}.mp4", "start": "", "end": "", "label": label, "split": "train"})
    synthetic.write_labels(rows, folder / "labels.csv")


def _video(archive: Path, path: str, seed: int, split: str) -> list[dict[str, object]]:
    rng = np.random.default_rng((7, seed))
    runs = []
    for label in rng.permutation(list(COLOURS)).tolist():
        begin = int(rng.integers(0, FPS * SECONDS - 16))
        runs.append((begin, begin + int(rng.integers(8, 16)), label))
    _write(archive / path, seed, runs, FPS * SECONDS)
    return [
        {"path": path, "start": (a - 0.5) / FPS if a else 0.0, "end": (b - 0.5) / FPS, "label": label, "split": split}
        for a, b, label in runs
    ]


def _write(path: Path, seed: int, runs: list[tuple[int, int, str]], frames: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng((8, seed))
    corners = {label: (int(rng.integers(0, SIDE - 12)), 11 * k) for k, (_, _, label) in enumerate(runs)}
    with Encoder(path, SIDE, SIDE, Fraction(FPS)) as encoder:
        for t in range(frames):
            frame = rng.integers(20, 60, (SIDE, SIDE, 3), dtype=np.uint8)
            for begin, end, label in runs:
                if begin <= t < end:
                    y, x = corners[label]
                    frame[y : y + 10, x : x + 10] = COLOURS[label]
            encoder.write(frame, Fraction(t, FPS))
