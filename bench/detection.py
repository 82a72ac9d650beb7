"""Coarse-Fine against the plainest composition of the same parts: grid_sample, einsum, adaptive pooling, gathers.

The composition runs in the default memory format, in which it is the faster one.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy

import torch
from torch import Tensor
from torch.nn import functional as F

import models
from bench.figures import Figure, against
from models.coarse_fine import CoarseFine
from models.multi_stage_fusion import LEVELS

SIZES = (("TINY", (8, 3, 16, 24, 24)), ("M", (1, 3, 16, 112, 112)))


def run() -> Iterator[Figure]:
    torch.manual_seed(0)
    for size, shape in SIZES:
        second, video = models.build("coarse_fine", size=size), torch.randn(shape)
        model = deepcopy(second).to(memory_format=torch.channels_last_3d)
        last = video.contiguous(memory_format=torch.channels_last_3d)
        ours, plain = (lambda m=model, v=last: m(v)["logits"]), (lambda m=second, v=video: composed(m, v))
        with torch.no_grad():
            model.eval(), second.eval()
            if not torch.allclose(ours(), plain(), rtol=1e-3, atol=1e-4):
                raise AssertionError(f"{size}: the two do not agree")
            ratio, _ = against(ours, plain)
        note = f"{list(shape)}"
        yield Figure(f"Coarse-Fine {size}, forward / plain composition", ratio, note=note)
        model.train(), second.train()
        ratio, _ = against(training(model, ours), training(second, plain))
        yield Figure(f"Coarse-Fine {size}, training step / plain composition", ratio, note=note)


def training(model: CoarseFine, logits: Callable[[], Tensor]) -> Callable[[], None]:
    def step() -> None:
        model.zero_grad()
        logits().square().mean().backward()

    return step


def composed(model: CoarseFine, video: Tensor) -> Tensor:
    """The same mathematics on the same parameters, as one writes it down from the paper."""
    frames, coarse = video.shape[2], model.coarse
    x, cdf = pool(model, coarse.res2(coarse.conv1(video)))
    fine = model.fine(video)
    t = torch.arange(frames, dtype=torch.float32)
    weights = torch.exp(-((t - cdf[..., None] * (frames - 1)) ** 2) / (2 * (frames / 8) ** 2))
    weights = weights / weights.amax(2, keepdim=True)
    seen = {name: project(model.fusion.levels[name], fine[name], weights) for name in LEVELS}
    for name in LEVELS[:-1]:
        x = x if name == "res2" else getattr(coarse, name)(x)
        size, mix = (None, *x.shape[3:]), model.fusion.mixes[name]
        shift, scale = (torch.cat([F.adaptive_max_pool3d(seen[n][i], size) for n in LEVELS[:-1]], 1) for i in (0, 1))
        x = x * torch.sigmoid(mix.scale(scale)) + mix.shift(shift)
    shift, scale = (part.flatten(2).transpose(1, 2) for part in seen["conv5"])
    return unpool(coarse.classify(coarse.conv5(x)) * torch.sigmoid(scale) + shift, cdf, frames)


def pool(model: CoarseFine, x: Tensor) -> tuple[Tensor, Tensor]:
    B, _, _, h, w = x.shape
    p = torch.sigmoid(0.5 * F.adaptive_avg_pool3d(model.grid(x), (None, 1, 1)).flatten(1))
    cdf = torch.cumsum(1 - p, 1) / torch.sum(1 - p, 1, keepdim=True)
    cdf = torch.cat([torch.zeros(B, 1), cdf], 1)
    time = (2 * cdf - 1).view(B, -1, 1, 1).expand(-1, -1, h, w)
    rows = torch.linspace(-1, 1, h).view(1, 1, h, 1).expand_as(time)
    columns = torch.linspace(-1, 1, w).view(1, 1, 1, w).expand_as(time)
    return F.grid_sample(x, torch.stack([columns, rows, time], 4), align_corners=True), cdf


def project(level: torch.nn.Module, fine: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    mask = torch.sigmoid(level.attention(fine))
    above = torch.einsum("bcthw,bjt->bcjhw", fine * mask, weights)
    x = above / (torch.einsum("bcthw,bjt->bcjhw", mask, weights) + 1e-6)
    if level.pooled:
        x = x.mean((3, 4), keepdim=True)
    return level.shift(x), level.scale(x)


def unpool(logits: Tensor, cdf: Tensor, frames: int) -> Tensor:
    last = cdf.shape[1] - 1
    even = torch.linspace(0, 1, last + 1).expand_as(cdf).contiguous()
    low = (torch.searchsorted(cdf.detach(), even, right=True) - 1).clamp(0, last - 1)
    at, after = torch.gather(cdf, 1, low), torch.gather(cdf, 1, low + 1)
    share = ((even - at) / (after - at))[..., None]
    low = low[..., None].expand_as(logits)
    even_logits = torch.gather(logits, 1, low) * (1 - share) + torch.gather(logits, 1, low + 1) * share
    return F.interpolate(even_logits.transpose(1, 2), frames, mode="linear", align_corners=True).transpose(1, 2)
