"""Coarse-Fine Networks: a Coarse stream that picks its frames, and a Fine stream that sees them all.

Source: thesis 001, chapter 3. Both streams are X3D (Table 3.1) with weights of their own:

    Coarse   conv1, res2, Grid Pool (T to aT + 1 points), res3, res4, res5, conv5, fc1, fc2, Grid Unpool (to T)
    Fine     X3D on the whole video; its maps reach the Coarse stream through Multi-stage Fusion
             after Grid Pool, res3, res4 and res5, and at the logits

Letters: B batch, T frames of the clip, N = aT intervals, J points (N + 1 with Grid Pool, N else), F frames of the
whole video, C channels, h and w cells of a feature map, K classes. Places are in frames of the clip, from 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import preset, x3d
from models.multi_stage_fusion import LEVELS, Fusion, Places, as_column, direct, gaussians, mix_frames, on_cells
from models.sub_batch_norm import split_norms
from models.x3d import X3D, check_video, sequence

Pooling = Literal["grid", "stride", "max", "average", "none"]
Correspondence = Literal["gaussian", "direct"]


@dataclass(frozen=True, kw_only=True)
class Config(x3d.Config):
    """An X3D for both streams and what is between them; the defaults are Coarse-Fine of thesis 001, section 3.2.3.

    `alpha` is the share of frames that is kept, one over a whole number; `sigma` the width of a Gaussian as a share
    of the valid fine frames. `fusion` "none" leaves the Coarse stream alone. `cells` is the height and width that the
    Fine stream's maps are averaged to, as in a column; 0 leaves each its own. Raises ValueError for other values.
    """

    alpha: float = 1 / 4
    pooling: Pooling = "grid"
    temperature: float = 0.5
    fusion: Places | Literal["none"] = "multi_stage"
    attention: bool = True
    correspondence: Correspondence = "gaussian"
    sigma: float = 1 / 8
    cells: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = {"pooling": get_args(Pooling), "correspondence": get_args(Correspondence)}
        for name, known in (choices | {"fusion": (*get_args(Places), "none")}).items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, not {getattr(self, name)!r}")
        if not 0 < self.alpha < 1 or abs(1 / self.alpha - round(1 / self.alpha)) > 1e-6:
            raise ValueError(f"alpha is one over a whole number of at least 2, not {self.alpha}")
        if not self.sigma > 0:  # what is not a number is refused, too
            raise ValueError(f"sigma is a share of the valid fine frames above 0, not {self.sigma}")
        if self.cells < 0:
            raise ValueError(f"cells are the height and width of fine maps, 0 for their own, not {self.cells}")
        if self.correspondence == "direct" and self.attention and self.fusion != "none":
            raise ValueError("attention weighs fine frames against each other; a direct correspondence has but one")

    @property
    def ratio(self) -> int:
        """Frames to a point."""
        return 1 if self.pooling == "none" else round(1 / self.alpha)


PRESETS: dict[str, Config] = {size: Config(**vars(preset)) for size, preset in x3d.PRESETS.items()}
M, TINY = PRESETS["M"], PRESETS["TINY"]


class CoarseFine(nn.Module):
    """Score K classes in every frame of a clip, with the whole video as context; on random weights when made.

    The parameters that the thesis trains at ten times the rate are those under `fusion`. The head of the Fine
    stream has no part in `logits`; `fine_logits` are there to train that stream alone or beside.
    """

    def __init__(self, config: Config = M) -> None:
        super().__init__()
        self.config = config
        self.coarse = X3D(config)
        if config.pooling == "grid":
            self.grid = grid_head(config.widths[0], config.ratio)
        if config.fusion != "none":
            self.fine = X3D(config)
            # Not drawn by X3D's rule: with fan-out a fresh fusion would drown the coarse maps, by 4 to 16 times.
            widths = (*config.widths, config.conv5_width)
            self.fusion = Fusion(widths, config.num_classes, config.fusion, config.attention, config.dropout)
        split_norms(self, config.splits)

    def forward(
        self,
        video: Tensor,
        whole: Tensor | None = None,
        *,
        fine: Tensor | Mapping[str, Tensor] | None = None,
        start: int | Tensor = 0,
        step: float | Tensor = 1.0,
        valid: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return `logits` [B, T, K], the `places` [B, J] of the points and the coarse maps `res2` ... `conv5`.

        `video` [B, 3, T, H, W] is the clip. The Fine stream sees `whole` [B, 3, F, H, W], or the clip if there is
        none, and adds `fine_logits` [B, F, K]; or its maps come as `fine`: from `extract`, or by level. The clip
        begins at frame `start` of the video, in frames of the clip, and `step` of these make a frame of the whole:
        numbers, or one for each video [B]. `valid` [B, F] is false on frames that only pad. Grid Pool adds
        `confidence` [B, N]. Raises ValueError for what does not fit together.
        """
        check_video("video", video)
        frames = video.shape[2]
        res2 = self.coarse.res2(self.coarse.conv1(video))
        x, places, confidence = self.pool(res2)
        out: dict[str, Tensor] = {"places": places} | (
            {} if confidence is None else {"confidence": confidence, "unpooled": res2}
        )
        context = None
        if self.config.fusion != "none":
            maps, seen = self.fine_maps(video, whole, fine)
            context = self.fusion(*self.calibrate(maps, places, frames, start, step, valid))
            out |= seen
        elif whole is not None or fine is not None:
            raise ValueError("a network without fusion has no Fine stream; give it the clip alone")
        for name in LEVELS[:-1]:
            if name != "res2":
                x = getattr(self.coarse, name)(x)
            if context is not None:
                x = self.fusion.apply_to(x, name, context)
            out[name] = x
        out["conv5"] = self.coarse.conv5(x)
        logits = self.coarse.classify(out["conv5"])
        if context is not None:
            logits = self.fusion.apply_to_logits(logits, context)
        return {"logits": self.unpool(logits, places, frames), **out}

    def pool(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return J points [B, C, J, h, w] of x [B, C, T, h, w], their places [B, J] and Grid Pool's confidence."""
        config, frames, ratio = self.config, x.shape[2], self.config.ratio
        if frames % ratio:
            raise ValueError(f"alpha of 1/{ratio} does not divide {frames} frames; give a multiple of {ratio}")
        if config.pooling == "grid":
            confidence = (config.temperature * self.grid(x).mean((1, 3, 4))).sigmoid()
            return *grid_pool(x, confidence), confidence
        first = (ratio - 1) / 2 if config.pooling in ("max", "average") else 0.0
        places = (torch.arange(frames // ratio, device=x.device) * ratio + first).expand(x.shape[0], -1)
        if config.pooling == "max":
            x = F.max_pool3d(x, (ratio, 1, 1))
        elif config.pooling == "average":
            x = F.avg_pool3d(x, (ratio, 1, 1))
        return x[:, :, ::ratio] if config.pooling == "stride" else x, places, None

    def unpool(self, logits: Tensor, places: Tensor, frames: int) -> Tensor:
        """Return logits [B, T, K] from those of the points [B, J, K]."""
        if self.config.pooling == "grid":
            return grid_unpool(logits, places, frames)
        return logits if self.config.pooling == "none" else upsample(logits, frames)

    def fine_maps(
        self, video: Tensor, whole: Tensor | None, fine: Tensor | Mapping[str, Tensor] | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the maps that are fused by level and, where the Fine stream ran, its logits."""
        if fine is None:
            whole = video if whole is None else whole
            check_video("whole", whole)
            maps = self.fine.features(whole)
            return on_cells(maps, self.config.cells), {"fine_logits": self.fine.classify(maps["conv5"])}
        if whole is not None:
            raise ValueError("give the whole video or its fine features, not both")
        widths = dict(zip(LEVELS, (*self.config.widths, self.config.conv5_width), strict=True))
        if isinstance(fine, Tensor):
            total = sum(widths.values())
            if fine.ndim != 5 or fine.shape[1] != total:
                raise ValueError(f"fine features are [B, {total}, F, h, w], not {list(fine.shape)}")
            fine = dict(zip(LEVELS, fine.split(list(widths.values()), 1), strict=True))
        for name in self.fusion.levels:
            if name not in fine or fine[name].ndim != 5 or fine[name].shape[1] != widths[name]:
                raise ValueError(f"fine features need {name} as [B, {widths[name]}, F, h, w]")
        return on_cells({name: fine[name].to(video) for name in self.fusion.levels}, self.config.cells), {}

    def calibrate(
        self,
        fine: dict[str, Tensor],
        places: Tensor,
        frames: int,
        start: int | Tensor,
        step: float | Tensor,
        valid: Tensor | None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the fine maps, zero where not valid, and the weight [B, J, F] of each fine frame for each point."""
        videos, length = places.shape[0], fine["conv5"].shape[2]
        for name, part in fine.items():
            if (part.shape[0], part.shape[2]) != (videos, length) or 0 in part.shape[3:]:
                raise ValueError(f"{name} is not of {videos} videos and {length} frames: {list(part.shape)}")
        check_clip(start, step, frames, length)
        centres = (places + column(start, places)) / column(step, places)
        if self.config.correspondence == "direct":
            weights = direct(centres, length, valid)
        else:
            count = length if valid is None else valid.sum(1)
            weights = gaussians(centres, length, self.config.sigma * count, valid)
        if valid is not None:  # So that nothing of the padding is left, not even what is not a number.
            fine = {name: part.masked_fill(~valid[:, None, :, None, None], 0) for name, part in fine.items()}
        return fine, weights

    @torch.no_grad()
    def extract(self, whole: Tensor, cells: int = 7) -> Tensor:
        """Return the fine features of a video [B, 3, F, H, W] as one tensor [B, C, F, cells, cells], level by level.

        For a column: given back to `forward` as `fine`, they spare the Fine stream. Larger maps are averaged.
        """
        return as_column(self.fine.features(whole), cells)


def grid_head(width: int, ratio: int) -> nn.Sequential:
    """Return the head h of Eq. 3.1: [B, C, T, h, w] to one channel, T divided by `ratio` and h, w by 8."""
    second = max(n for n in range(1, int(ratio**0.5) + 1) if ratio % n == 0)
    strides = (ratio // second, second)  # The larger one first: fewer frames are left for the second.
    return sequence(
        conv1=nn.Conv3d(width, width, 3, (strides[0], 2, 2), 1),
        norm1=nn.BatchNorm3d(width),
        relu1=nn.ReLU(inplace=True),
        conv2=nn.Conv3d(width, width, 3, (strides[1], 2, 2), 1),
        norm2=nn.BatchNorm3d(width),
        relu2=nn.ReLU(inplace=True),
        conv3=nn.Conv3d(width, 1, (1, 3, 3), (1, 2, 2), (0, 1, 1)),
    )


def grid_pool(x: Tensor, confidence: Tensor) -> tuple[Tensor, Tensor]:
    """Return N + 1 frames [B, C, N + 1, h, w] of x [B, C, T, h, w], close together where it is confident.

    `confidence` [B, N] in 0..1 belongs to N equal intervals of the T frames. The second result are the frames'
    places [B, N + 1], (T - 1) * cdf(1 - confidence) from 0 to T - 1; frames between two are interpolated, and
    gradients flow to both arguments. Thesis 001, Eq. 3.2. Raises ValueError for shapes that do not fit.
    """
    if x.ndim != 5 or confidence.ndim != 2 or x.shape[0] != confidence.shape[0]:
        raise ValueError(f"grid_pool takes [B, C, T, h, w] and [B, N], not {list(x.shape)}, {list(confidence.shape)}")
    frames, intervals = x.shape[2], confidence.shape[1]
    if not 0 < intervals < frames or frames % intervals:
        raise ValueError(f"{frames} frames cannot be cut into {intervals} equal intervals of two or more")
    steps = (1 - confidence.to(torch.promote_types(confidence.dtype, torch.float32))).clamp_min(1e-6)
    cdf = F.pad(steps.cumsum(1), (1, 0))  # Confident throughout is an even grid, thanks to the clamp, and not 0 / 0.
    places = cdf / cdf[:, -1:] * (frames - 1)
    return mix_frames(direct(places, frames), x), places


def grid_unpool(logits: Tensor, places: Tensor, frames: int) -> Tensor:
    """Return logits [B, T, K] for every frame from those [B, N + 1, K] at the `places` of `grid_pool`.

    The map of points to places is inverted at N + 1 even places, and the logits there are interpolated to T frames,
    the first and the last on the first and last. Undoes `grid_pool` on what is affine in time. Raises ValueError
    for shapes that do not fit.
    """
    if logits.ndim != 3 or places.shape != logits.shape[:2] or not 2 <= logits.shape[1] <= frames:
        raise ValueError(
            f"grid_unpool takes [B, N + 1, K] and [B, N + 1] with N + 1 from 2 to {frames} frames, "
            f"not {list(logits.shape)}, {list(places.shape)}"
        )
    last = places.shape[1] - 1
    points = torch.arange(last + 1, dtype=places.dtype, device=places.device)
    even = (points * ((frames - 1) / last)).expand_as(places)
    lower = (torch.searchsorted(places.contiguous(), even.contiguous(), right=True) - 1).clamp(0, last - 1)
    before, after = places.gather(1, lower), places.gather(1, lower + 1)
    beyond = ((even - before) / (after - before).clamp_min(1e-6)).clamp(0, 1)
    resampled = direct(lower + beyond, last + 1).to(logits.dtype) @ logits
    return upsample(resampled, frames)


def upsample(logits: Tensor, frames: int) -> Tensor:
    """Return logits [B, T, K] interpolated linearly from [B, J, K], first and last on first and last."""
    return F.interpolate(logits.transpose(1, 2), size=frames, mode="linear", align_corners=True).transpose(1, 2)


def check_clip(start: int | Tensor, step: float | Tensor, frames: int, length: int) -> None:
    """Raise ValueError unless clips of `frames` from `start` lie inside whole videos of `length` * `step` frames."""
    if not all(holds(above_zero) for above_zero in (step > 0, start >= 0)):
        raise ValueError(f"a clip starts at 0 or later and a step is above 0, not {start} and {step}")
    if not holds(length * step >= frames):
        raise ValueError(f"the fine stream sees {length} frames of {step}, fewer than the {frames} of the clip")
    if not holds(start + frames <= length * step + 1e-3):
        raise ValueError(f"a clip of {frames} frames from {start} ends beyond the {length} of {step} of its video")


def column(value: float | Tensor, places: Tensor) -> float | Tensor:
    """Return a number as it is, and one for each video [B] as [B, 1], of the kind of `places`; ValueError else."""
    if isinstance(value, Tensor) and value.numel() not in (1, len(places)):
        raise ValueError(
            f"start and step are one number, or one for each of {len(places)} videos, not {list(value.shape)}"
        )
    return value.to(places).view(-1, 1) if isinstance(value, Tensor) else value


def holds(condition: bool | Tensor) -> bool:
    """Return whether a condition holds for every video; on the meta device it does."""
    return bool(condition.all()) if isinstance(condition, Tensor) and not condition.is_meta else condition is not False


def build(size: str = "M", num_classes: int = 157, **overrides: Any) -> CoarseFine:
    """Return a Coarse-Fine network of size "M", "L" or "TINY" and other fields of its `Config`: `models.preset`."""
    return CoarseFine(preset("coarse_fine", PRESETS, size, num_classes, overrides))
