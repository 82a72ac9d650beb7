"""The three objectives of thesis 001 on per-frame logits. All targets are soft labels in [0, 1], background is zero.

With a mask, bool [B, T] and True where a frame is, padding counts in none of them, whatever it holds. Beside them are
the two auxiliary losses of section 3.5.2, which only look at where Grid Pool puts its points.
Letters: B batch, C channels, T frames, J points, K classes.
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from models.multi_stage_fusion import direct, mix_frames
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


def reconstruction(maps: Tensor, places: Tensor) -> Tensor:
    """How far frames [B, C, T, h, w] are from what their values at places [B, J] say of them: mean L1 (Table 3.4).

    Between places is interpolated, before the first and after the last held. The thesis does not say what learns
    from it; here the places alone do: maps that did would learn to change less, not where to look.
    """
    maps, T = maps.detach(), maps.shape[2]
    pooled = mix_frames(direct(places, T), maps)
    return (maps - mix_frames(_interpolating(places, T), pooled)).abs().mean()


def flow(video: Tensor, places: Tensor) -> Tensor:
    """Motion in the middle of the cells between places [B, J] less motion at the inner places (Table 3.4).

    In units of the clip's mean motion, of a video [B, 3, T, H, W]; small where cells hold little motion and their
    borders lie on much. The thesis takes Representation Flow, and says neither how the two terms are weighed nor
    scaled; here motion is the mean absolute difference of successive frames, and both weigh the same.
    """
    moved = (video[:, :, 1:] - video[:, :, :-1]).detach().abs().mean((1, 3, 4)).to(places.dtype)  # [B, T - 1]
    moved = moved / moved.mean(1, keepdim=True).clamp_min(1e-6)
    middles = (places[:, 1:] + places[:, :-1]) / 2
    inside, across = (  # the first difference is half a frame after the first frame
        at_places(moved[..., None], at - 0.5).mean() for at in (middles, places[:, 1:-1])
    )
    return inside - across


def _interpolating(places: Tensor, frames: int) -> Tensor:
    """Weights [B, T, J] that interpolate T frames from values at rising places [B, J]; differentiable in these."""
    last = places.shape[1] - 1
    t = torch.arange(frames, dtype=places.dtype, device=places.device).expand(len(places), -1).contiguous()
    lower = (torch.searchsorted(places.detach().contiguous(), t, right=True) - 1).clamp(0, last - 1)
    before, after = places.gather(1, lower), places.gather(1, lower + 1)
    return direct(lower + ((t - before) / (after - before).clamp_min(1e-6)).clamp(0, 1), last + 1)


def _away(logits: Tensor, mask: Tensor) -> Tensor:
    """Where padding is, `[B, T, 1]`."""
    if mask.dtype != torch.bool or mask.shape != logits.shape[:2] or not mask.any(1).all():
        wanted = f"bool {list(logits.shape[:2])} with a frame in each row"
        raise ValueError(f"mask must be {wanted}, not {mask.dtype} {list(mask.shape)}")
    return ~mask[..., None]


OBJECTIVES = {"classification": classification, "detection": detection, "dense": dense}
AUXILIARY_WEIGHT = 0.1  # beside 0.5 and 0.5 of the two halves of `dense`
