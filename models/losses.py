"""The three objectives of thesis 001 on per-frame logits. All targets are soft labels in [0, 1], background is zero.

With a mask, bool [B, T] and True where a frame is, padding counts in none of them, whatever it holds.
Letters: B batch, T frames, K classes.
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from models.sequences import between


def classification(logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Clip-level BCE of logits `[B, T, K]` averaged over time, as a clip classifier pools: the baseline of 4.3.1.

    The target is the maximum of the labels `[B, T, K]` over time. ValueError: a mask of another shape or type.
    """
    if mask is None:
        return bce(logits.mean(1), labels.amax(1))
    away = _away(logits, mask)
    mean = logits.masked_fill(away, 0).sum(1) / mask.sum(1, keepdim=True)
    return bce(mean, labels.masked_fill(away, 0).amax(1))


def detection(logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Frame-level BCE of logits against labels, both `[B, T, K]` (section 4.2): the mean over frames and classes.

    ValueError: a mask of another shape or type.
    """
    if mask is None:
        return bce(logits, labels)
    _away(logits, mask)
    return bce(logits[mask], labels[mask])


def dense(logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """What detectors are fine-tuned with (section 3.2.5): the mean of localisation and classification BCE.

    Localisation is `detection`; classification compares the maxima over time of both. ValueError as there.
    """
    frames = detection(logits, labels, mask)
    if mask is not None:
        away = _away(logits, mask)
        logits, labels = logits.masked_fill(away, -float("inf")), labels.masked_fill(away, 0)
    return (frames + bce(logits.amax(1), labels.amax(1))) / 2


def at_places(logits: Tensor, places: Tensor) -> Tensor:
    """Logits `[B, N, K]` at places `[B, N]`, in frames from 0, of logits `[B, T, K]`: linear, held at both ends.

    At N even places from 0 to T - 1 it is what `interpolate` with `align_corners=True` gives.
    """
    lower, upper, beyond = between(places, logits.shape[1])
    before, after = (logits.gather(1, near.expand(-1, -1, logits.shape[2])) for near in (lower, upper))
    return torch.lerp(before, after, beyond.to(logits.dtype))


def _away(logits: Tensor, mask: Tensor) -> Tensor:
    """Where padding is, `[B, T, 1]`."""
    if mask.dtype != torch.bool or mask.shape != logits.shape[:2] or not mask.any(1).all():
        wanted = f"bool {list(logits.shape[:2])} with a frame in each row"
        raise ValueError(f"mask must be {wanted}, not {mask.dtype} {list(mask.shape)}")
    return ~mask[..., None]


OBJECTIVES = {"classification": classification, "detection": detection, "dense": dense}
