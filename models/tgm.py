"""Temporal Gaussian Mixture layers: convolutions in time whose kernels are mixtures of a few soft filters.

Source: Piergiovanni and Ryoo, "Temporal Gaussian Mixture Layer for Videos", ICML 2019; the rows TGM of thesis 001,
Tables 3.2, 4.1 and 4.3. The bank is that of super-events, on the L frames of a kernel. Every feature dimension is
convolved with the same kernels:

    layer 1     1 -> 8 channels of [D, T]
    layer 2, 3  8 -> 8: input channel i by kernel (o, i), a 1x1 combination over i, ReLU
    then        maximum over channels, beside the input, 1x1 to 512, ReLU, 1x1 to K

Letters: B videos, T frames, D feature width, L frames of a kernel, K classes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import preset
from models.sequences import blank, lengths
from models.super_events import cauchy


@dataclass(frozen=True, kw_only=True)
class Config:
    """The shape of the head; the defaults are the paper's, on the 1024 features of I3D and Charades.

    Raises ValueError for a kernel of an even number of frames: it has no middle.
    """

    num_classes: int = 157
    width: int = 1024
    filters: int = 16
    kernel: int = 5
    channels: int = 8
    layers: int = 3
    hidden: int = 512
    dropout: float = 0.5

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel has {self.kernel} frames, must be odd")


PAPER = Config()
TINY = Config(width=16, filters=4, channels=4, layers=2, hidden=32, dropout=0.0)
PRESETS: dict[str, Config] = {"PAPER": PAPER, "TINY": TINY}


class Layer(nn.Module):
    """Map [B, c_in, D, T] to [B, c_out, D, T] with kernels in time that all dimensions share."""

    def __init__(self, c_in: int, c_out: int, filters: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.centre = nn.Parameter(torch.empty(filters).normal_(0, 0.5))
        self.spread = nn.Parameter(torch.empty(filters).normal_(0, 1e-4))
        self.mixture = nn.Parameter(torch.empty(c_out, c_in, filters).normal_())
        self.combine = nn.Conv2d(c_in, c_out, 1) if c_in > 1 else None

    def kernels(self) -> Tensor:
        """Return the kernels [c_out, c_in, L], each a mixture of the densities: it sums to 1."""
        count = torch.tensor([self.kernel], device=self.centre.device)
        return self.mixture.softmax(-1) @ cauchy(self.centre, self.spread, count, self.kernel)[0]

    def forward(self, x: Tensor) -> Tensor:
        weight, padding = self.kernels()[:, :, None], (0, self.kernel // 2)
        if self.combine is None:
            return F.conv2d(x, weight, padding=padding)
        # The 1x1 combination is linear: weighing the kernels by it is the same, without c_in * c_out maps.
        return F.conv2d(x, weight * self.combine.weight, self.combine.bias, padding=padding).relu()


class TGM(nn.Module):
    """Score K classes in every frame from features and their TGM layers; on random weights when made."""

    def __init__(self, config: Config = PAPER) -> None:
        super().__init__()
        self.config = config
        inputs = [1, *[config.channels] * (config.layers - 1)]
        self.layers = nn.ModuleList(Layer(c_in, config.channels, config.filters, config.kernel) for c_in in inputs)
        self.hidden = nn.Conv1d(2 * config.width, config.hidden, 1)
        self.classify = nn.Conv1d(config.hidden, config.num_classes, 1)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Return `logits` [B, T, K] and `temporal` [B, T, D], the last layer's maximum over its channels.

        features are float [B, T, D], mask is bool [B, T], True where a frame is; padding has logits 0 and is
        not seen. ValueError as in `lengths`.
        """
        count = lengths(features, mask, self.config.width)
        clean = blank(features, count)
        x = clean.transpose(1, 2)[:, None]  # [B, 1, D, T]
        beyond = torch.arange(x.shape[3], device=x.device) >= count[:, None]
        for layer in self.layers:
            x = layer(x).masked_fill(beyond[:, None, None], 0)
        temporal = x.amax(1)
        both = torch.cat([self.dropout(temporal), self.dropout(clean.transpose(1, 2))], 1).relu()
        logits = self.classify(self.hidden(both).relu()).transpose(1, 2)
        return {"logits": blank(logits, count), "temporal": temporal.transpose(1, 2)}


def build(size: str = "PAPER", num_classes: int = 157, **overrides: Any) -> TGM:
    """Return a head of size "PAPER" or "TINY" and other fields of its `Config`: `models.preset`."""
    return TGM(preset("tgm", PRESETS, size, num_classes, overrides))
