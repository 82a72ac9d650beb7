"""Padded sequences of frame features: which frames count, the zeros that all else becomes, and what lies between two.

Letters: B videos, T frames of the longest one, D feature width.
"""

import torch
from torch import Tensor


def lengths(features: Tensor, mask: Tensor | None, width: int) -> Tensor:
    """Return how many frames each video has, integers [B]: features [B, T, D], mask [B, T] True where one is.

    Without a mask all T. ValueError for another width or rank, a mask of another shape or type, a video without
    a frame, and a gap: padding comes last.
    """
    if features.ndim != 3 or features.shape[2] != width or not features.is_floating_point():
        raise ValueError(f"features must be float [B, T, {width}], not {features.dtype} {list(features.shape)}")
    B, T, _ = features.shape
    if T < 1:
        raise ValueError("features have no frame")
    if mask is None:
        return torch.full((B,), T, device=features.device)
    if mask.shape != (B, T) or mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool [{B}, {T}], not {mask.dtype} {list(mask.shape)}")
    count = mask.sum(1)
    for b in (count == 0).nonzero()[:, 0].tolist():
        raise ValueError(f"row {b}: the mask leaves no frame")
    for b in (mask[:, 1:] & ~mask[:, :-1]).any(1).nonzero()[:, 0].tolist():
        raise ValueError(f"row {b}: the mask has a gap; padding comes after the last frame")
    return count


def blank(x: Tensor, count: Tensor) -> Tensor:
    """Return x [B, T, ...] with zeros after the first count [B] frames; what was there, even NaN, is not read."""
    beyond = torch.arange(x.shape[1], device=x.device) >= count[:, None]
    return x.masked_fill(beyond.view(*beyond.shape, *[1] * (x.ndim - 2)), 0)


def between(places: Tensor, frames: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the frames before and after places [B, N] and the share of the one after, [B, N, 1] each.

    Places are in frames from 0 to `frames` - 1; one beyond the ends is moved there. Differentiable in the share.
    """
    places = places.clamp(0, frames - 1)
    lower = places.floor().clamp(max=max(frames - 2, 0))
    before = lower.long()[..., None]
    return before, (before + 1).clamp(max=frames - 1), (places - lower)[..., None]
