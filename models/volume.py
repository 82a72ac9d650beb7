"""Volume Freeze, MixUp and CutMix at given positions (thesis 001, section 4.2.2).

They give a clip of one action several: Freeze holds a frame as background, MixUp fades between two clips in
time, CutMix moves a vertical edge between them. Video is ``[B, C, T, H, W]`` uint8 or float, labels are soft
``[B, T, K]`` floats with background as the zero vector, positions are integers ``[B]`` in frames from 0.
Results keep shape and dtype, inputs are never written to, labels are weighted by the mask that was applied to
the pixels, and all rounding is half up: floor(x + 0.5).
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

Clips = tuple[Tensor, Tensor]  # video, labels
Rolls = list[tuple[int, int]]  # columns per frame, clip 1 to the left and clip 2 to the right
Source = Literal["thesis", "released"]  # as the thesis says, or as its authors' code does where that differs
Window = Literal["transient", "constant"]


def volume_freeze(video: Tensor, labels: Tensor, start: Tensor, length: Tensor) -> Clips:
    """Hold frame ``start`` for ``length`` frames as background; what followed it follows the run.

    video ``[B, C, T, H, W]``, labels ``[B, T, K]``, start and length ``[B]`` in frames. concat(v[:start],
    {v[start]}^length, v[start+1:]) is cut to T frames, even inside the run; the run has zero labels, others
    travel with their frames. Lengths 0 and 1 are the identity: one frame holds no motion back (the thesis has
    2 or more). ValueError: shapes, dtypes, start not in [0, T), length < 0. Section 4.2.2, VF(v) and VF(l).
    """
    check(video, labels)
    B, _, T, _, _ = video.shape
    start = _positions("start", start, B, T - 1)[:, None]
    extra = (_positions("length", length, B)[:, None] - 1).clamp(0, T).to(start.device)
    t = torch.arange(T, device=start.device)
    source = torch.where(t > start + extra, t - extra, t.minimum(start))
    background = (t >= start) & (t <= start + extra) & (extra > 0)
    out = torch.empty_like(video)  # a second tensor: moving frames right in place would copy copies
    for b, row in enumerate(source.tolist()):
        for to, t_in in enumerate(row):
            out[b, :, to] = video[b, :, t_in]
    moved = labels.take_along_dim(source[..., None].to(labels.device), 1)
    return out, moved.masked_fill(background[..., None].to(labels.device), 0)


def mixup_alpha(
    T: int, shift: Tensor, length: Tensor | None = None, other_length: Tensor | None = None, *,
    seamless: bool = True, ramp: Source = "thesis",
) -> Tensor:  # fmt: skip
    """The weight of clip 1 in each of T frames, ``[B, T]`` float32 in [0, 1].

    Clip 1 has n1 = ``length`` frames from 0, clip 2 n2 = ``other_length`` from r = ``shift``; None is T. If
    n2 + r >= n1, clip 1 -> 2: T01((n1 - t) / (n1 - r)), else 1 -> 2 -> 1: T01(|n2 + 2r - 2t| / n2). With t
    from 0, frame r weighs 1, n1 - 1 weighs 1 / (n1 - r), n1 weighs 0. r = n1 is a hard cut; if n1 = T, n2 = 0
    or r >= T leave clip 1. ``seamless=False`` rounds: clip 1 where the ramp is >= 0.5. ``ramp="released"``:
    1 - k / (L + 1) in L common frames k = 1..L, or |2k - L| / (L + 1) where clip 2 lies inside clip 1.
    ValueError: positions out of range, a frame no clip covers (none is padded). Section 4.2.2, alpha[t].
    """
    part, whole = _alpha_fraction(T, shift, length, other_length, ramp)
    alpha = part / whole
    return alpha if seamless else (alpha >= 0.5).to(alpha.dtype)


def _alpha_fraction(
    T: int, shift: Tensor, length: Tensor | None, other_length: Tensor | None, ramp: Source
) -> tuple[Tensor, Tensor]:
    """alpha as integers, part ``[B, T]`` of whole ``[B, 1]``, so that CutMix can round W alpha exactly."""
    choice("ramp", ramp, Source)
    r = _positions("shift", shift, shift.numel())
    full = torch.full_like(r, T)
    n1 = full if length is None else _positions("length", length, len(r), T).to(r.device)
    n2 = full if other_length is None else _positions("other_length", other_length, len(r), T).to(r.device)
    for b in ((n1 < T) & ((r > n1) | (n2 + r < T))).nonzero()[:, 0].tolist():
        spans = f"clip 1 in [0, {int(n1[b])}) and clip 2 in [{int(r[b])}, {int(r[b] + n2[b])})"
        raise ValueError(f"row {b}: {spans} do not cover all frames [0, {T})")
    r, n1, n2, t = r[:, None], n1[:, None], n2[:, None], torch.arange(T, device=r.device)
    one = int(ramp == "released")
    once, twice = (n1 - r + one).clamp(min=1), (n2 + one).clamp(min=1)  # never 0 / 0 at r = n1 or n2 = 0
    leave = (n1 - t).clamp(min=0).minimum(once)
    visit = torch.where((t >= r) & (t < r + n2), (n2 + 2 * (r - t - one)).abs(), twice).minimum(twice)
    passes = n2 + r >= n1
    return torch.where(passes, leave, visit), torch.where(passes, once, twice)


def volume_mixup(
    video: Tensor, labels: Tensor, other: Tensor, other_labels: Tensor, shift: Tensor, *,
    length: Tensor | None = None, other_length: Tensor | None = None,
    seamless: bool = True, ramp: Source = "thesis",
) -> Clips:  # fmt: skip
    """Fade between two clips: alpha[t] v1[t] + (1 - alpha[t]) v2[t - shift], and the same for their labels.

    video and other ``[B, C, T, H, W]``, labels and other_labels ``[B, T, K]``; positions ``[B]`` in frames,
    options and ValueErrors as in :func:`mixup_alpha`, and for shapes and dtypes. Section 4.2.2, VM.
    """
    check(video, labels, other, other_labels)
    alpha = mixup_alpha(video.shape[2], shift, length, other_length, seamless=seamless, ramp=ramp)
    out = _compose(video, other, alpha[..., None].expand(*alpha.shape, video.shape[4]), shift)
    return out, _mix_labels(labels, other_labels, alpha, shift)


def cutmix_mask(
    T: int, W: int, shift: Tensor, length: Tensor | None = None, other_length: Tensor | None = None, *,
    window: Window = "transient", border: float | None = None, ramp: Source = "thesis",
) -> Tensor:  # fmt: skip
    """The weight of clip 1 in each column of each frame, ``[B, T, W]`` float32 in [0, 1].

    M[j] = T01((w + border - j) / (2 border)), w = round(W alpha[t]) with alpha of :func:`mixup_alpha`; in a
    ``"constant"`` window (shift 0, both lengths T) w = round(W / 2). ``border`` in columns is W / 16 if None,
    0 is a hard edge. Frames of alpha 0 or 1 are one clip throughout: no border bleeds into them.
    ``ramp="released"`` also divides by 2 border + 1, which makes the mean of a constant window 1/2.
    ValueError: as mixup_alpha, bad border, a constant window with other positions. Section 4.5.3, M and w_t.
    """
    choice("window", window, Window)
    part, whole = _alpha_fraction(T, shift, length, other_length, ramp)
    border = W / 16 if border is None else border
    if not 0 <= border < float("inf"):
        raise ValueError(f"border is {border} columns, must be finite and at least 0")
    if window == "constant":
        given = ((shift, 0), (length, T), (other_length, T))
        if any(p is not None and bool((p != n).any()) for p, n in given):
            raise ValueError(f"a constant window needs shift 0 and both lengths {T}")
        part, whole = torch.ones_like(part), torch.full_like(whole, 2)
    w, j = ((2 * W * part + whole) // (2 * whole))[..., None], torch.arange(W, device=part.device)
    mask = (w + border - j) / (2 * border + int(ramp == "released")) if border else w - j
    return mask.clamp(0, 1).where((part > 0)[..., None], 0).where((part < whole)[..., None], 1).float()


def volume_cutmix(
    video: Tensor, labels: Tensor, other: Tensor, other_labels: Tensor, shift: Tensor,
    window: Window = "transient", *, length: Tensor | None = None, other_length: Tensor | None = None,
    border: float | None = None, ramp: Source = "thesis", view: Source = "thesis",
) -> Clips:  # fmt: skip
    """Split frames between two clips: M[t] v1[t] + (1 - M[t]) v2[t - shift], labels by the mean of M[t].

    video and other ``[B, C, T, H, W]``, labels and other_labels ``[B, T, K]``; positions ``[B]`` in frames,
    options and ValueErrors as in :func:`cutmix_mask`, and for shapes, dtypes. In a ``"constant"`` window both
    contents move left to right, from one side of the clip to the other by the columns the window hides, so no
    roll wraps into view; ``view="released"`` moves clip 1 to the left, a step less. Section 4.2.2, VC.
    """
    check(video, labels, other, other_labels)
    choice("view", view, Source)
    size = video.shape[2], video.shape[4]
    mask = cutmix_mask(*size, shift, length, other_length, window=window, border=border, ramp=ramp)
    rolls = _rolls(mask, view) if window == "constant" else None
    return _compose(video, other, mask, shift, rolls), _mix_labels(labels, other_labels, mask.mean(-1), shift)


def _rolls(mask: Tensor, view: Source) -> Rolls:
    """The roll of both contents in each frame of a constant window."""
    T, hidden, other_hidden = mask.shape[1], int((mask[0, 0] == 0).sum()), int((mask[0, 0] == 1).sum())
    if view == "released":
        return [(t * hidden // T, t * hidden // T) for t in range(T)]
    n = max(T - 1, 1)
    return [((2 * (n - t) * hidden + n) // (2 * n), (2 * t * other_hidden + n) // (2 * n)) for t in range(T)]


def _compose(video: Tensor, other: Tensor, mask: Tensor, shift: Tensor, rolls: Rolls | None = None) -> Tensor:
    """mask[t] * video[t] + (1 - mask[t]) * other[t - shift], with arithmetic only where 0 < mask < 1.

    A mask falls from left to right: columns [0, low) are clip 1, [high, W) clip 2. They are copied, which is
    faster than weighting and never reads what a weight of 0 hides (frames outside a clip, NaN).
    """
    out, W, weight = torch.empty_like(video), video.shape[4], mask.to(video.device)
    lows, highs = (mask == 1).sum(-1).tolist(), (mask > 0).sum(-1).tolist()
    for b, r in enumerate(_positions("shift", shift, len(video)).tolist()):
        for t, (low, high) in enumerate(zip(lows[b], highs[b], strict=True)):
            to, one, two = out[b, :, t], video[b, :, t], other[b, :, max(t - r, 0)]
            left, right = rolls[t] if rolls else (0, 0)
            if low > 0:
                to[..., :low] = one[..., left : low + left]
            if high < W:
                to[..., high:] = two[..., high - right : W - right]
            if low < high:
                one, two = one[..., low + left : high + left], two[..., low - right : high - right]
                to[..., low:high] = _blend(one, two, weight[b, t, low:high])
    return out


def _blend(one: Tensor, two: Tensor, weight: Tensor) -> Tensor:
    """weight * one + (1 - weight) * two in float32 or wider; of uint8, rounded."""
    work = torch.promote_types(one.dtype, torch.float32)
    if one.dtype == torch.uint8:  # int16 on the way: torch turns float into uint8 several times slower
        return two.to(work).lerp_(one.to(work), weight.to(work)).add_(0.5).to(torch.int16)
    return torch.lerp(two.to(work), one.to(work), weight.to(work))


def _mix_labels(labels: Tensor, other_labels: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    """weight[t] * labels[t] + (1 - weight[t]) * other_labels[t - shift]; a weight of 0 hides even NaN."""
    source = (torch.arange(labels.shape[1], device=shift.device) - shift[:, None]).clamp(min=0)
    two = other_labels.take_along_dim(source[..., None].to(labels.device), 1)
    weight = weight[..., None].to(labels.device)
    mixed = torch.where(weight == 0, two, _blend(labels, two, weight).to(labels.dtype))
    return torch.where(weight == 1, labels, mixed)


def check(video: Tensor, labels: Tensor, *partner: Tensor) -> None:
    """Raise ValueError unless video, labels and a partner's have shapes and types that fit."""
    if video.ndim != 5 or labels.ndim != 3 or (video.shape[0], video.shape[2]) != labels.shape[:2]:
        raise ValueError(f"{list(video.shape)} and {list(labels.shape)} are not [B,C,T,H,W] and [B,T,K]")
    if not (video.dtype == torch.uint8 or video.is_floating_point()) or not labels.is_floating_point():
        raise ValueError(f"video must be uint8 or float, labels float, got {video.dtype} and {labels.dtype}")
    for a, b in zip((video, labels), partner, strict=False):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            raise ValueError(f"the clips differ: {a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}")


def _positions(name: str, value: Tensor, B: int, most: int | None = None) -> Tensor:
    if value.shape != (B,) or value.dtype == torch.bool or value.is_floating_point() or value.is_complex():
        raise ValueError(f"{name} must be an integer tensor [{B}], got {value.dtype} {list(value.shape)}")
    for b in ((value < 0) | (value > (value if most is None else most))).nonzero()[:, 0].tolist():
        raise ValueError(f"row {b}: {name} is {int(value[b])}, not in [0, {'...' if most is None else most}]")
    return value.long()


def choice(name: str, value: str, choices: Any) -> None:
    """Raise ValueError unless a value is one of a Literal's."""
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {get_args(choices)}, got {value!r}")
