"""Multi-stage Fusion: what a Fine stream tells every point of a Coarse stream, as a scale and a shift.

Source: thesis 001, section 3.2.2, Figure 3.4 and Table 3.3a, c. For every level of the fine stream:

    filter      an attention mask over every (t, h, w), two point-wise convolutions and a sigmoid
    calibrate   for each coarse point a mean over fine frames, weighted by mask and a Gaussian around the point
    project     two point-wise convolutions to a shift, two to a scale

and at every place of the coarse stream, x <- x * sigmoid(scale) + shift, from the level of the same depth
("one_to_one") or from all levels together ("multi_stage"). The last level, conv5, acts on the logits alone.

Letters: B batch, C channels, T fine frames, J coarse points, h and w cells of a feature map, K classes.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.sequences import between

LEVELS = ("res2", "res3", "res4", "res5", "conv5")
Places = Literal["multi_stage", "one_to_one", "late"]


class Fusion(nn.Module):
    """Scales and shifts for the coarse stream of `widths` channels (res2 to conv5) and for its logits."""

    def __init__(
        self, widths: tuple[int, ...], num_classes: int, places: Places = "multi_stage", attention: bool = True,
        dropout: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__()
        if places not in get_args(Places):
            raise ValueError(f"fusion has the places {', '.join(get_args(Places))}, not {places!r}")
        self.places = places
        named = dict(zip(LEVELS, widths, strict=True))
        last = named.pop("conv5")
        inner = {} if places == "late" else named
        levels = {name: Level(width, width, attention) for name, width in inner.items()}
        self.levels = nn.ModuleDict(levels | {"conv5": Level(last, num_classes, attention, dropout)})
        mixed = inner if places == "multi_stage" else {}
        self.mixes = nn.ModuleDict({name: Mix(sum(named.values()), width) for name, width in mixed.items()})

    def forward(self, fine: Mapping[str, Tensor], weights: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return (shift, scale) by level, [B, C, J, h, w] each, [B, K, J, 1, 1] for conv5.

        `fine` has the maps of the levels, [B, C, T, h, w]; `weights` [B, J, T] are Gaussians or a direct
        correspondence, zero on frames that are not there.
        """
        return {name: level(fine[name], weights) for name, level in self.levels.items()}

    def apply_to(self, x: Tensor, place: str, context: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        """Return the coarse map x [B, C, J, h, w] after the fusion at res2, res3, res4 or res5, if there is one."""
        if place not in self.levels:
            return x
        if self.places == "one_to_one":
            shift, scale = (fit(part, x) for part in context[place])
        else:
            shift, scale = self.mixes[place](x, [context[name] for name in LEVELS[:-1]])
        return torch.addcmul(shift, x, scale.sigmoid())

    def apply_to_logits(self, logits: Tensor, context: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        """Return logits [B, J, K] scaled and shifted by the level conv5."""
        shift, scale = (part[..., 0, 0].transpose(1, 2) for part in context["conv5"])
        return torch.addcmul(shift, logits, scale.sigmoid())


class Level(nn.Module):
    """Filter, calibrate and project one level; with `dropout` its cells are averaged first, as the logits' are."""

    def __init__(self, c_in: int, c_out: int, attention: bool, dropout: float | None = None) -> None:
        super().__init__()
        self.pooled = dropout is not None
        self.attention = pointwise_pair(c_in, 1) if attention else None
        self.shift = pointwise_pair(c_in, c_out, dropout)
        self.scale = pointwise_pair(c_in, c_out, dropout)

    def forward(self, fine: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        mask = None if self.attention is None else self.attention(fine).sigmoid()
        x = aggregate(fine, weights, mask)
        if self.pooled:
            x = x.mean((3, 4), keepdim=True)
        return self.shift(x), self.scale(x)


class Mix(nn.Module):
    """Project the shifts of all levels, and their scales, at one place of the coarse stream."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.shift = nn.Conv3d(c_in, c_out, 1)
        self.scale = nn.Conv3d(c_in, c_out, 1)

    def forward(self, x: Tensor, levels: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        shifts, scales = (torch.cat([fit(part, x) for part in parts], 1) for parts in zip(*levels, strict=True))
        return self.shift(shifts), self.scale(scales)


def pointwise_pair(c_in: int, c_out: int, dropout: float | None = None) -> nn.Sequential:
    """Return two 1x1x1 convolutions, c_in to c_in to c_out, with a ReLU and perhaps a dropout between."""
    layers: dict[str, nn.Module] = {"inner": nn.Conv3d(c_in, c_in, 1), "relu": nn.ReLU(inplace=True)}
    if dropout is not None:
        layers["dropout"] = nn.Dropout(dropout)
    return nn.Sequential(OrderedDict(layers | {"outer": nn.Conv3d(c_in, c_out, 1)}))


def gaussians(centres: Tensor, frames: int, sigma: float | Tensor, valid: Tensor | None = None) -> Tensor:
    """Return Coarse-centric Gaussians [B, J, T] around `centres` [B, J], in fine frames, with peaks of one.

    `sigma` is in frames, a number or one for each video [B]. Where `valid` [B, T] is false the weight is zero;
    the peak is that of the valid frames, so a centre beyond them has its weight on the nearest. Raises ValueError
    where no frame is valid.
    """
    if isinstance(sigma, Tensor):
        sigma = sigma.to(centres).view(-1, 1, 1)
    t = torch.arange(frames, dtype=centres.dtype, device=centres.device)
    exponent = -0.5 * ((t - centres[..., None]) / sigma) ** 2
    if valid is not None:
        check_valid(valid, centres.shape[0], frames)
        exponent = exponent.masked_fill(~valid[:, None, :], -torch.inf)
    return (exponent - exponent.amax(2, keepdim=True)).exp()


def direct(places: Tensor, frames: int, valid: Tensor | None = None) -> Tensor:
    """Return weights [B, J, T] that interpolate linearly at `places` [B, J], in frames; differentiable in these.

    A place on a frame takes that frame alone; one beyond the ends, or beyond the first or last frame that is
    `valid` [B, T], takes that frame.
    """
    lower, upper, beyond = between(places if valid is None else within(places, valid), frames)
    weights = beyond.new_zeros(*places.shape, frames)
    return weights.scatter(2, lower, 1 - beyond).scatter_add(2, upper, beyond)


def within(places: Tensor, valid: Tensor) -> Tensor:
    """Return places [B, J] moved to the first or last valid frame where they lie beyond it."""
    check_valid(valid, *valid.shape)
    t = torch.arange(valid.shape[1], device=valid.device, dtype=places.dtype).expand_as(valid)
    first = t.masked_fill(~valid, torch.inf).amin(1, keepdim=True)
    last = t.masked_fill(~valid, -torch.inf).amax(1, keepdim=True)
    return places.clamp(first, last)


def check_valid(valid: Tensor, videos: int, frames: int) -> None:
    """Raise ValueError unless `valid` is a boolean mask [B, T] with a true frame in every video."""
    if valid.dtype != torch.bool or tuple(valid.shape) != (videos, frames):
        raise ValueError(f"valid is boolean of [{videos}, {frames}], not {valid.dtype} of {list(valid.shape)}")
    if not valid.is_meta and not bool(valid.any(1).all()):
        raise ValueError(f"no fine frame is valid in video {(~valid.any(1)).nonzero().flatten().tolist()} of the batch")


def aggregate(fine: Tensor, weights: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean [B, C, J, h, w] of fine frames [B, C, T, h, w] under weights [B, J, T] times a mask.

    `mask` is the attention [B, 1, T, h, w]; only its proportions count, as in any mean.
    """
    if mask is None:
        return mix_frames(weights / weights.sum(2, keepdim=True), fine)
    return mix_frames(weights, fine * mask) / (mix_frames(weights, mask) + 1e-6)


def mix_frames(weights: Tensor, x: Tensor) -> Tensor:
    """Return sums [B, C, J, h, w] of the frames of x [B, C, T, h, w] under weights [B, J, T], in x's memory format."""
    B, C, T, h, w = x.shape
    weights = weights.to(x.dtype)
    if x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous():
        mixed = weights @ x.permute(0, 2, 3, 4, 1).reshape(B, T, -1)
        return mixed.view(B, -1, h, w, C).permute(0, 4, 1, 2, 3)
    return (weights[:, None] @ x.reshape(B, C, T, h * w)).view(B, C, -1, h, w)


def on_cells(maps: Mapping[str, Tensor], cells: int) -> dict[str, Tensor]:
    """Return maps [B, C, T, h, w] by level, averaged to `cells` by `cells`; 0 leaves them as they are."""
    return {
        name: F.adaptive_avg_pool3d(x, (x.shape[2], cells, cells)) if cells and x.shape[3:] != (cells, cells) else x
        for name, x in maps.items()
    }


def as_column(maps: Mapping[str, Tensor], cells: int) -> Tensor:
    """Return the maps of all levels as one tensor [B, C, T, cells, cells], in the order of `LEVELS`."""
    together = on_cells(maps, cells)
    return torch.cat([together[name] for name in LEVELS], 1)


def fit(part: Tensor, x: Tensor) -> Tensor:
    """Return a map [B, C, J, h, w] max-pooled to the cells of x; a smaller one is repeated."""
    B, C, J, h, w = part.shape
    high, wide = x.shape[3:]
    if h % high == 0 and w % wide == 0:
        return part if (h, w) == (high, wide) else F.max_pool3d(part, (1, h // high, w // wide))
    if high % h == 0 and wide % w == 0:
        return F.interpolate(part, size=(J, high, wide), mode="nearest")
    # All three are adaptive pooling; the two above are several times faster at it.
    pooled = F.adaptive_max_pool2d(part.transpose(1, 2).reshape(B * J, C, h, w), (high, wide))
    return pooled.view(B, J, C, high, wide).transpose(1, 2)
