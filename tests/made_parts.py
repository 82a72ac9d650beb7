"""Parts of made-up clips, and a bit that flips."""

from pathlib import Path

import numpy as np

from storage import files, parts
from storage.parts import Part

KEYS = ("aa-000000000", "bb-000000000", "cc-000010000")


def _row(key):
    return {
        "key": key, "offset": 0, "size": 0, "sha256": "", "source": f"/archive/{key}.mp4", "path": f"{key}.mp4",
        "content_id": "c" * 64, "start": 0.0, "end": 2.0, "start_pts": 0, "end_pts": 40, "time_base": "1/20",
        "duration": 2.0, "frames": 40, "fps": 20.0, "width": 16, "height": 16, "split": "train",
        "labelled": "segments", "labels": [{"start": 0.5, "end": 1.5, "label": "left"}],
    }  # fmt: skip


def commit(root: str | Path, part: str = "p1", keys: tuple[str, ...] = KEYS, seed: int = 0) -> Part:
    """Commits a part of made-up clips (`seed` decides their bytes) under a root."""
    with files.scratch() as folder:
        media = []
        for number, _ in enumerate(keys):
            media.append(folder / f"{number}.mp4")
            media[-1].write_bytes(np.random.default_rng((seed, number)).bytes(700 + 511 * number))
        return parts.commit(str(root), part, [_row(key) for key in keys], media, folder)


def flip(path: str | Path, at: int) -> None:
    data = bytearray(Path(path).read_bytes())
    data[at] ^= 1
    Path(path).write_bytes(data)
