"""PDAN: dilated attention over three frames, in a pyramid of dilations.

Source: Dai et al., "PDAN: Pyramid Dilated Attention Network for Action Detection", WACV 2021; the rows PDAN of
thesis 001, Tables 4.1 and 4.3. Each channel of each frame weighs the frames t - d, t and t + d by itself:

    a    = softmax over the three of q_t k_i
    y_t  = sum of a_i (v_i + r_i)            r is learned, one for each channel and place
    x    + 1x1(ReLU(y))                      five times, d = 1, 2, 4, 8, 16

A frame before the first or after the last one has k = v = 0 and still takes its share, as in the authors' code.

Letters: B videos, T frames, D feature width, M maps, K classes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import preset
from models.sequences import blank, lengths


@dataclass(frozen=True, kw_only=True)
class Config:
    """The shape of the network; the defaults are the paper's, on the 1024 features of I3D and Charades."""

    num_classes: int = 157
    width: int = 1024
    maps: int = 512
    dilations: tuple[int, ...] = (1, 2, 4, 8, 16)
    dropout: float = 0.5


PAPER = Config()
TINY = Config(width=16, maps=32, dilations=(1, 2, 4), dropout=0.0)
PRESETS: dict[str, Config] = {"PAPER": PAPER, "TINY": TINY}


class DilatedAttention(nn.Module):
    """The dilated attention layer (DAL): [B, M, T], zero beyond each video's end, to [B, M, T]."""

    def __init__(self, maps: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.query, self.key, self.value = (nn.Conv1d(maps, maps, 1, bias=False) for _ in range(3))
        self.relative = nn.Parameter(torch.randn(maps, 1, 3))
        for conv in (self.query, self.key, self.value):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        key, value = self.taps(self.key(x)), self.taps(self.value(x)) + self.relative
        weight = (self.query(x)[..., None] * key).softmax(-1)
        return (weight * value).sum(-1)

    def taps(self, x: Tensor) -> Tensor:
        """Return frames t - d, t and t + d of [B, M, T] as [B, M, T, 3], zero outside."""
        d, T = self.dilation, x.shape[-1]
        wide = F.pad(x, (d, d))
        return torch.stack([wide[..., i * d : i * d + T] for i in range(3)], -1)


class Block(nn.Module):
    """A dilated attention layer, ReLU, 1x1 and dropout, beside the identity."""

    def __init__(self, maps: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.attention = DilatedAttention(maps, dilation)
        self.project = nn.Conv1d(maps, maps, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.project(self.attention(x).relu()))


class PDAN(nn.Module):
    """Score K classes in every frame from features, with attention of growing reach; on random weights."""

    def __init__(self, config: Config = PAPER) -> None:
        super().__init__()
        self.config = config
        self.enter = nn.Conv1d(config.width, config.maps, 1)
        self.blocks = nn.ModuleList(Block(config.maps, d, config.dropout) for d in config.dilations)
        self.classify = nn.Conv1d(config.maps, config.num_classes, 1)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Return `logits` [B, T, K] and `maps` [B, T, M], the last block's output.

        features are float [B, T, D], mask is bool [B, T], True where a frame is; padding has logits 0 and is
        not seen. ValueError as in `lengths`.
        """
        count = lengths(features, mask, self.config.width)
        beyond = (torch.arange(features.shape[1], device=features.device) >= count[:, None])[:, None]
        x = self.enter(blank(features, count).transpose(1, 2)).masked_fill(beyond, 0)
        for block in self.blocks:
            x = block(x).masked_fill(beyond, 0)
        logits = self.classify(x).transpose(1, 2)
        return {"logits": blank(logits, count), "maps": x.transpose(1, 2)}


def build(size: str = "PAPER", num_classes: int = 157, **overrides: Any) -> PDAN:
    """Return a network of size "PAPER" or "TINY" and other fields of its `Config`: `models.preset`."""
    return PDAN(preset("pdan", PRESETS, size, num_classes, overrides))
