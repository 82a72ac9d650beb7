"""A good video for decoder children, and children with other code."""

import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from storage.media import sandbox
from storage.media.encoder import Encoder
from storage.media.sandbox import CHECKOUT


def good(folder: Path) -> Path:
    """A good video of 40 frames, 20 a second."""
    with Encoder(folder / "good.mp4", 64, 48, Fraction(20)) as encoder:
        for t in range(40):
            encoder.write(np.full((48, 64, 3), 6 * t, np.uint8), Fraction(t, 20))
    return folder / "good.mp4"


def checkout(folder: Path, monkeypatch: Any, name: str, old: str, new: str) -> None:
    """A copy of the code with one line of a file in storage/media/ replaced; decoders that start from now on use it."""
    copy = folder / "checkout"
    shutil.copytree(Path(CHECKOUT) / "storage", copy / "storage", ignore=shutil.ignore_patterns("__pycache__"))
    text = (copy / "storage" / "media" / name).read_text()
    assert old in text
    (copy / "storage" / "media" / name).write_text(text.replace(old, new))
    monkeypatch.setattr(sandbox, "CHECKOUT", str(copy))
