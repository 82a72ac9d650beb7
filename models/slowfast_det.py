"""SlowFast_det: two X3D streams at two frame rates, the baseline of Coarse-Fine without its two ideas.

Source: thesis 001, section 3.3.2 and Table 3.3f, after Feichtenhofer et al., "SlowFast", ICCV 2019. The Slow stream
keeps every fourth frame after res2; a frame that is kept is told what the Fast stream saw in that very frame.

The thesis does not describe the lateral connections. Here they are those of the one-to-one fusion without its
mask and Gaussians: at res2 to res5 a shift and a scale from two point-wise convolutions each on the same level of
the Fast stream, and one such pair at the logits. They cost 0.941 GMACs and 0.707 M parameters on 128 frames,
54.3155 GMACs and 7.3002 M in all; the thesis prints 54.31 and 7.41. Table 3.3f's other rows are options: `pooling`
"grid", or `fusion` "multi_stage" with `correspondence` "gaussian" and `attention`.
"""

from dataclasses import dataclass
from typing import Any, Literal

from models import coarse_fine, preset, x3d
from models.coarse_fine import CoarseFine, Correspondence, Pooling
from models.multi_stage_fusion import Places


@dataclass(frozen=True, kw_only=True)
class Config(coarse_fine.Config):
    """That of Coarse-Fine with striding, one-to-one laterals and a direct correspondence."""

    pooling: Pooling = "stride"
    fusion: Places | Literal["none"] = "one_to_one"
    attention: bool = False
    correspondence: Correspondence = "direct"


PRESETS: dict[str, Config] = {size: Config(**vars(preset)) for size, preset in x3d.PRESETS.items()}
M, TINY = PRESETS["M"], PRESETS["TINY"]


def build(size: str = "M", num_classes: int = 157, **overrides: Any) -> CoarseFine:
    """Return a SlowFast_det of size "M", "L" or "TINY" and other fields of its `Config`: `models.preset`."""
    return CoarseFine(preset("slowfast_det", PRESETS, size, num_classes, overrides))
