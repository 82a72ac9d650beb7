"""Fine-Fine Networks: Coarse-Fine without Grid Pool, to see what Multi-stage Fusion gives by itself.

Source: thesis 001, Tables 3.2 and 3.3a, c. Every frame of the clip is a point of the first stream. The rows of the
tables are options: `fusion` "late", "one_to_one" or "multi_stage", `attention` with or without the mask.
"""

from dataclasses import dataclass
from typing import Any

from models import coarse_fine, preset, x3d
from models.coarse_fine import CoarseFine, Pooling


@dataclass(frozen=True, kw_only=True)
class Config(coarse_fine.Config):
    """That of Coarse-Fine without pooling; raises ValueError where one is asked for."""

    pooling: Pooling = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooling != "none" or self.fusion == "none":
            raise ValueError("fine_fine pools nothing and fuses two streams; coarse_fine has the other networks")


PRESETS: dict[str, Config] = {size: Config(**vars(preset)) for size, preset in x3d.PRESETS.items()}
M, TINY = PRESETS["M"], PRESETS["TINY"]


def build(size: str = "M", num_classes: int = 157, **overrides: Any) -> CoarseFine:
    """Return a Fine-Fine network of size "M", "L" or "TINY" and other fields of its `Config`: `models.preset`."""
    return CoarseFine(preset("fine_fine", PRESETS, size, num_classes, overrides))
