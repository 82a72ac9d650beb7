"""Super-events: what happens around a frame, from soft filters over the whole video, added to what the frame shows.

Source: Piergiovanni and Ryoo, "Learning Latent Super-Events to Detect Multiple Activities in Videos", CVPR 2018;
the rows SE of thesis 001, Tables 3.2, 4.1 and 4.3. A temporal structure filter is N Cauchy densities on a video's
own length; each class chooses softly between two of them:

    context_k = w_k . (sigmoid(c_k) structure_1 + (1 - sigmoid(c_k)) structure_2)
    logits_tk = per_frame(x_t)_k + context_k

Letters: B videos, T frames, D feature width, N densities, K classes.
"""

from dataclasses import dataclass
from math import pi
from typing import Any

import torch
from torch import Tensor, nn

from models import preset
from models.sequences import blank, lengths


@dataclass(frozen=True, kw_only=True)
class Config:
    """The shape of the head; the defaults are the paper's, on the 1024 features of I3D and Charades."""

    num_classes: int = 157
    width: int = 1024
    filters: int = 3
    dropout: float = 0.7


PAPER = Config()
TINY = Config(width=16, dropout=0.0)
PRESETS: dict[str, Config] = {"PAPER": PAPER, "TINY": TINY}


def cauchy(centre: Tensor, spread: Tensor, count: Tensor, T: int) -> Tensor:
    """Return Cauchy densities [B, N, T] over the first count [B] of T frames; each sums to 1 there, 0 elsewhere.

    centre and spread [N] are unbounded: tanh maps them into the video and to a width of 0.6 to 4.5 frames.
    """
    t = torch.arange(T, device=centre.device)
    middle = (count[:, None] - 1) * (centre.tanh() + 1) / 2  # [B, N]
    gamma = torch.exp(1.5 - 2 * spread.tanh().abs())[:, None]  # [N, 1]
    density = 1 / (pi * gamma * (((t - middle[..., None]) / gamma) ** 2 + 1))
    density = density * (t < count[:, None, None])
    return density / (density.sum(-1, keepdim=True) + 1e-6)


class Structure(nn.Module):
    """A temporal structure filter: N places in a video, looked at softly."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.empty(filters).normal_(0, 0.5))
        self.spread = nn.Parameter(torch.empty(filters).normal_(0, 1e-4))

    def forward(self, count: Tensor, T: int) -> Tensor:
        return cauchy(self.centre, self.spread, count, T)


class SuperEvents(nn.Module):
    """Score K classes in every frame from features and from two structures of their video; on random weights."""

    def __init__(self, config: Config = PAPER) -> None:
        super().__init__()
        self.config = config
        self.structures = nn.ModuleList(Structure(config.filters) for _ in range(2))
        self.choice = nn.Parameter(torch.zeros(config.num_classes))
        self.context = nn.Linear(config.filters * config.width, config.num_classes, bias=False)
        self.per_frame = nn.Conv1d(config.width, config.num_classes, 1)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Return `logits` [B, T, K], the `context` [B, K] in them and the `filters` [B, 2, N, T].

        features are float [B, T, D], mask is bool [B, T], True where a frame is; padding has logits 0 and is
        not seen. ValueError as in `lengths`.
        """
        count = lengths(features, mask, self.config.width)
        x = self.dropout(blank(features, count))
        filters = torch.stack([structure(count, x.shape[1]) for structure in self.structures], 1)
        seen = self.dropout(torch.einsum("bsnt,btd->bsnd", filters, x).flatten(2))
        share = torch.stack([self.choice.sigmoid(), 1 - self.choice.sigmoid()])  # [2, K]
        context = (self.context(seen) * share).sum(1)
        logits = self.per_frame(x.transpose(1, 2)).transpose(1, 2) + context[:, None]
        return {"logits": blank(logits, count), "context": context, "filters": filters}


def build(size: str = "PAPER", num_classes: int = 157, **overrides: Any) -> SuperEvents:
    """Return a head of size "PAPER" or "TINY" and other fields of its `Config`: `models.preset`."""
    return SuperEvents(preset("super_events", PRESETS, size, num_classes, overrides))
