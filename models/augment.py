"""Volume augmentations of a batch at random, for detection pretraining (thesis 001, sections 4.2.2 to 4.3).

The operations are in models/volume.py; here are the samplers, which draw their positions from a generator, and the
ways of section 4.2.3 to combine them. `manifold` mixes inside a network. Letters: B batch, T frames, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Generator, Tensor

from models.volume import Clips, Window, check, choice, mixup_alpha, volume_cutmix, volume_freeze, volume_mixup

Positions = dict[str, Any]  # integer tensors [B] by argument name, to be passed on as **positions
Mode = Literal["none", "freeze", "mixup", "cutmix", "joint_single", "joint", "manifold"]


def sample_freezes(batch: int, frames: int, generator: Generator, segments: int) -> list[Positions]:
    """Draw separate frozen segments from left to right, for :func:`volume_freeze` one after the other.

    Each is 2 frames or longer and ends by the last frame (section 4.2.2: r in [1, n - 1], m in [2, n - r + 1], counted
    from 1), and a frame of motion lies between two; what an earlier one leaves decides where the next may begin.
    ValueError: no segment, or more than the frames hold (3 each, less 1). Table 4.4a.
    """
    if segments < 1:
        raise ValueError(f"freezing needs at least 1 segment, got {segments}")
    if frames < 3 * segments - 1:
        raise ValueError(f"freezing needs at least {3 * segments - 1} frames, got {frames}")
    found: list[Positions] = []
    first: int | Tensor = 0
    for left in reversed(range(segments)):
        start = _uniform(first, frames - 2 - 3 * left, batch, generator)
        length = _uniform(2, frames - start - 3 * left, batch, generator)
        found.append({"start": start, "length": length})
        first = start + length + 1
    return found


def sample_mixup(batch: int, frames: int, generator: Generator) -> Positions:
    """Draw shift, length and other_length, ``[batch]``, that cover every frame, for :func:`volume_mixup`.

    Both clips last at least half the canvas, as in the released code, and both scenarios of section 4.2.2
    occur; clip 1 ends before the canvas only where clip 2 reaches its end.
    """
    shift = _uniform(0, frames // 2, batch, generator)
    length, other_length = (_uniform((frames + 1) // 2, frames, batch, generator) for _ in range(2))
    length = length.where(other_length + shift >= frames, frames)
    return {"shift": shift, "length": length, "other_length": other_length}


def sample_cutmix(batch: int, frames: int, generator: Generator, window: Window = "transient") -> Positions:
    """Draw shift, length and other_length, ``[batch]``, for :func:`volume_cutmix`: of MixUp, or of no motion.

    A ``"constant"`` window has no shift and whole clips. ValueError: unknown window. Section 4.2.2.
    """
    choice("window", window, Window)
    if window == "transient":
        return sample_mixup(batch, frames, generator)
    full = torch.full((batch,), frames, device=generator.device)
    return {"shift": full * 0, "length": full, "other_length": full}


def augment(
    video: Tensor, labels: Tensor, generator: Generator, mode: Mode = "joint_single", *,
    segments: int = 1, seamless: bool = True, window: Window | None = None,
) -> Clips:  # fmt: skip
    """Augment a batch at random, mixing each clip with another one of the batch (a lone clip with itself).

    video ``[B, C, T, H, W]``, labels ``[B, T, K]``. A named augmentation is applied to all clips,
    ``"joint_single"`` applies one of the three per clip, ``"joint"`` each with probability 1/2, in the order
    freeze, mixup, cutmix. Freeze holds ``segments`` frames, MixUp fades or, not ``seamless``, switches; ``window``
    None draws that of CutMix once a call. Clips not chosen stay unchanged. ValueError: shapes, dtypes, unknown
    names, too few frames to freeze, and ``"manifold"``, which is no matter of pixels. Section 4.2.3.
    """
    check(video, labels)
    choice("mode", mode, Mode)
    if mode == "manifold":
        raise ValueError("manifold mixes inside a network: draw it with manifold(), which takes the system's depths")
    B, T, steps = video.shape[0], video.shape[2], ("freeze", "mixup", "cutmix")
    named = (*steps, mode).index(mode)
    single = _uniform(0, 2, B, generator) if mode == "joint_single" else torch.full((B,), named)
    clips = given = list(zip(video, labels, strict=True))
    for i, step in enumerate(steps):
        rows = (_uniform(0, 1, B, generator) if mode == "joint" else single == i).nonzero()[:, 0].tolist()
        if not rows:
            continue
        one, draw = _batch(clips, rows), (len(rows), T, generator)
        partner = _partners(B, generator)[rows].tolist()
        met = clips if mode == "joint" else given  # only joint training mixes with what is augmented already
        if step == "freeze":
            new = one
            for places in sample_freezes(*draw, segments):
                new = volume_freeze(*new, **places)
        elif step == "mixup":
            new = volume_mixup(*one, *_batch(met, partner), **sample_mixup(*draw), seamless=seamless)
        else:
            kind = window or get_args(Window)[int(_uniform(0, 1, 1, generator))]
            new = volume_cutmix(*one, *_batch(met, partner), window=kind, **sample_cutmix(*draw, kind))
        changed = dict(zip(rows, zip(*new, strict=True), strict=True))
        clips = [changed.get(row, clip) for row, clip in enumerate(clips)]
    return _batch(clips, list(range(B)))


@dataclass(frozen=True, eq=False)
class Manifold:
    """A Volume MixUp at one depth of a network: what a system calls, with its name, at each of its depths.

    Clip b meets clip ``partner[b]``, ``shift[b]`` frames later, and weighs ``alpha[b]`` ``[T]``; all have B rows.
    """

    depth: str
    partner: Tensor
    shift: Tensor
    alpha: Tensor

    def __call__(self, depth: str, x: Tensor) -> Tensor:
        """The maps ``[B, C, T, h, w]`` of a depth: mixed where it is the drawn one, else as they are."""
        return self.mix(x, 2) if depth == self.depth else x

    def mix(self, x: Tensor, time: int) -> Tensor:
        """alpha[t] x[b, t] + (1 - alpha[t]) x[partner[b], t - shift]; T is dimension ``time``, 1 or 2.

        ValueError: another number of clips or frames.
        """
        B, T = self.alpha.shape
        if (x.shape[0], x.shape[time]) != (B, T):
            raise ValueError(f"depth {self.depth}: mixing was drawn for {B} clips of {T} frames, got {list(x.shape)}")
        source = (torch.arange(T, device=self.shift.device) - self.shift[:, None]).clamp(min=0)
        one = x.movedim(time, 1)
        two = one[self.partner.to(x.device)[:, None], source.to(x.device)]
        weight = self.alpha.to(x).view(B, T, *[1] * (x.ndim - 2))
        return torch.lerp(two, one, weight).movedim(1, time)


def manifold(labels: Tensor, generator: Generator, depths: Sequence[str]) -> tuple[Tensor, Manifold]:
    """Draw a depth, and a seamless MixUp of each clip with another one there, as Manifold MixUp does.

    Return the mixed labels ``[B, T, K]`` and what to give to the system as ``edit``. ``depths`` are the names that
    the system calls it with, e.g. ``models.x3d.X3D.depths``; its maps have all T frames there. ValueError: no
    depths. Section 4.3 and Table 4.4b, after Verma et al., ICML 2019.
    """
    if not depths:
        raise ValueError("manifold mixing needs a system that names its depths")
    B, T, _ = labels.shape
    places = sample_mixup(B, T, generator)
    depth = depths[int(_uniform(0, len(depths) - 1, 1, generator))]
    drawn = Manifold(depth, _partners(B, generator), places["shift"], mixup_alpha(T, **places))
    return drawn.mix(labels, 1), drawn


def _batch(clips: list[Clips], rows: list[int]) -> Clips:
    """The clips of these rows as a batch; copying whole clips is much faster than indexing by a tensor."""
    video, labels = zip(*(clips[row] for row in rows), strict=True)
    return torch.stack(video), torch.stack(labels)


def _partners(batch: int, generator: Generator) -> Tensor:
    """Another clip of the batch for each, ``[batch]``: one cycle, so that no clip meets itself."""
    order = torch.randperm(batch, generator=generator, device=generator.device)
    return order.roll(1)[order.argsort()]


def _uniform(low: int | Tensor, high: int | Tensor, batch: int, generator: Generator) -> Tensor:
    """Integers ``[batch]`` from low to high, both included."""
    share = torch.rand(batch, generator=generator, device=generator.device, dtype=torch.float64)
    return low + (share * (high - low + 1)).long()
