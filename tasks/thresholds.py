"""What a clip has to be to be used: thresholds on its scores, the options that set them, and which one it breaks."""

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from storage.errors import InputError

RULES = (  # reason, score, threshold, whether a clip has to be at least at it; the first that a clip breaks is named
    ("too_short", "duration", "min_duration", True),
    ("black", "black", "max_black", False),
    ("static", "motion", "min_motion", True),
    ("repeated_frames", "static", "max_static", False),
    ("blurred", "sharpness", "min_sharpness", True),
)
REASONS = (*(rule[0] for rule in RULES), "near_duplicate")
JUDGED = tuple(rule[1] for rule in RULES)  # scores that thresholds are about

# Said once for `prepare`, `select` and `what-if`, on the command line and in Prefect's forms.
MIN_MOTION = Field(
    description="Least change of luma in a quarter of a second, as a share of its range; 0.002 finds stills.", ge=0
)
MIN_SHARPNESS = Field(description="Least variance of the Laplacian over the variance of luma.", ge=0)
MAX_BLACK = Field(description="Largest share of black frames.", ge=0, le=1)
MAX_STATIC = Field(description="Largest share of frames that repeat the one before.", ge=0, le=1)
MIN_DURATION = Field(description="Least seconds of a clip.", ge=0)
NEAR_DUPLICATES = Field(description="Whether to keep or drop clips that show what another one shows.")


@dataclass(frozen=True)
class Thresholds:
    """What a clip has to be; the defaults drop nothing. Scores are those of `storage.media.scores.Scores`."""

    min_motion: float = 0.0  # share of the luma range, in a quarter of a second
    min_sharpness: float = 0.0
    max_black: float = 1.0  # share of frames
    max_static: float = 1.0  # share of frames
    min_duration: float = 0.0  # seconds
    near_duplicates: Literal["keep", "drop"] = "keep"

    @property
    def off(self) -> bool:
        return self == Thresholds()

    @property
    def numbers(self) -> dict[str, float]:
        """The thresholds as the ledger has them."""
        values = asdict(self)
        return values | {"near_duplicates": float(self.near_duplicates == "keep")}


def check(thresholds: Thresholds) -> None:
    """Raises `InputError` for a threshold that is none; those from a form or a file passed no command line."""
    for name, value in asdict(thresholds).items():
        flag = "--" + name.replace("_", "-")
        if name == "near_duplicates":
            if value not in ("keep", "drop"):
                raise InputError(f"{flag} {value}: choose keep or drop")
        elif not 0 <= value < float("inf"):
            raise InputError(f"{flag} {value}: must be a number from 0 on")
        elif name.startswith("max_") and value > 1:
            raise InputError(f"{flag} {value}: is a share of frames, from 0 to 1")


def broken(table: pa.Table, thresholds: Thresholds) -> list[str]:
    """For each clip of a table of scores the reason why it is dropped, or nothing."""
    reasons = np.full(table.num_rows, "", object)
    for reason, score, threshold, least in reversed(RULES):
        values, limit = table[score].to_numpy(), getattr(thresholds, threshold)
        reasons[values < limit if least else values > limit] = reason
    return list(reasons)
