"""X3D with a prediction for every frame: the backbone of both streams of Coarse-Fine Networks.

Source: thesis 001, section 3.2 and Table 3.1 (architecture), Table 3.2 (cost), after Feichtenhofer, "X3D",
CVPR 2020. Nothing strides or pools time, so T frames in are T frames out at every depth:

    conv1  1x3x3 stride (1,2,2), then 5x1x1 per channel        24
    res2   bottlenecks 1x1x1, 3x3x3 per channel, 1x1x1      54, 24   x3
    res3                                                   108, 48   x5
    res4                                                   216, 96   x11
    res5                                                   432, 192  x7
    conv5  1x1x1                                               432
    pool5  mean over H and W, each frame on its own
    fc1    1x1x1                                              2048
    fc2    linear                                                K

Letters: B batch, T frames, C channels, H and W pixels, h and w cells of a feature map, K classes.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from models import preset
from models.sub_batch_norm import split_norms

Edit = Callable[[str, Tensor], Tensor]  # what becomes of the maps of a named depth, on the way to the next
CHARADES_MEAN, CHARADES_STD = (0.413, 0.368, 0.338), (0.131, 0.125, 0.132)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The shape of an X3D; the defaults are X3D-M of thesis 001, Table 3.1, on Charades.

    The tuples `blocks`, `inner`, `widths` and `strides` have one entry for each of res2, res3, res4, res5.
    `mean` and `std` are per RGB channel on the scale 0..1; `splits` is the number of parts in which a training
    batch is normalised, for multigrid training. Raises ValueError when a tuple has another length.
    """

    num_classes: int = 157
    stem_width: int = 24
    stem_size: int = 3
    stem_stride: int = 2
    stem_frames: int = 5  # The table prints 3x1; only five frames give its 37.96 GFLOPs.
    blocks: tuple[int, ...] = (3, 5, 11, 7)
    inner: tuple[int, ...] = (54, 108, 216, 432)
    widths: tuple[int, ...] = (24, 48, 96, 192)
    strides: tuple[int, ...] = (2, 2, 2, 2)
    depthwise: bool = True
    conv5_width: int = 432
    fc1_width: int = 2048
    dropout: float = 0.5
    splits: int = 1
    mean: tuple[float, ...] = CHARADES_MEAN
    std: tuple[float, ...] = CHARADES_STD

    def __post_init__(self) -> None:
        if any(len(stages) != 4 for stages in (self.blocks, self.inner, self.widths, self.strides)):
            raise ValueError("blocks, inner, widths and strides need one entry for each of res2 to res5")


M = Config()
L = replace(M, blocks=(5, 10, 25, 15))  # The 147.04 GFLOPs of Table 3.2 are at 312x312.
# For one CPU core and 16 frames of 24 to 40 pixels: an early spatial stride, narrow dense convolutions, and
# 13 frames seen by every cell (5 in conv1, 2 more a bottleneck) so that the direction of a motion shows.
TINY = Config(
    stem_width=16,
    stem_size=5,
    stem_stride=4,
    blocks=(1, 1, 1, 1),
    inner=(16, 16, 32, 32),
    widths=(16, 32, 32, 64),
    strides=(1, 2, 1, 2),
    depthwise=False,
    conv5_width=64,
    fc1_width=64,
    dropout=0.0,
)
PRESETS: dict[str, Config] = {"M": M, "L": L, "TINY": TINY}


class X3D(nn.Module):
    """Score K classes in every frame of a video (thesis 001, Table 3.1); on random weights when made."""

    depths = ("video", "res2", "res3", "res4", "res5", "conv5")  # where `edit` is called

    def __init__(self, config: Config = M) -> None:
        super().__init__()
        self.config = config
        stem, last = config.stem_width, config.widths[-1]
        self.conv1 = sequence(
            spatial=conv3d(3, stem, (1, config.stem_size, config.stem_size), config.stem_stride),
            temporal=conv3d(stem, stem, (config.stem_frames, 1, 1), groups=stem if config.depthwise else 1),
            norm=nn.BatchNorm3d(stem),
            relu=nn.ReLU(inplace=True),
        )
        inputs = (stem, *config.widths)
        self.res2, self.res3, self.res4, self.res5 = (stage(config, i, inputs[i]) for i in range(4))
        self.conv5 = sequence(
            conv=conv3d(last, config.conv5_width, (1, 1, 1)),
            norm=nn.BatchNorm3d(config.conv5_width),
            relu=nn.ReLU(inplace=True),
        )
        self.fc1 = conv3d(config.conv5_width, config.fc1_width, (1, 1, 1))
        self.dropout = nn.Dropout(config.dropout)
        self.fc2 = nn.Linear(config.fc1_width, config.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        split_norms(self, config.splits)

    def forward(self, video: Tensor, edit: Edit | None = None) -> dict[str, Tensor]:
        """Return `logits` [B, T, K] and the maps `res2` ... `res5`, `conv5`, [B, C, T, h, w] each.

        `video` is a normalised float [B, 3, T, H, W]. Through the squeeze-excites every frame of it
        weighs on the logits of every other. `edit` is given the maps of each of the `depths`, and what it
        returns goes on in their place.
        """
        maps = self.features(video, edit)
        return {"logits": self.classify(maps["conv5"]), **maps}

    def features(self, video: Tensor, edit: Edit | None = None) -> dict[str, Tensor]:
        """Return the five feature maps, [B, C, T, h, w] each, of a normalised float video [B, 3, T, H, W].

        Raises ValueError for another shape, and for pixels that are not floats yet.
        """
        check_video("video", video)
        change = edit or (lambda _, maps: maps)
        res2 = change("res2", self.res2(self.conv1(change("video", video))))
        res3 = change("res3", self.res3(res2))
        res4 = change("res4", self.res4(res3))
        res5 = change("res5", self.res5(res4))
        return {"res2": res2, "res3": res3, "res4": res4, "res5": res5, "conv5": change("conv5", self.conv5(res5))}

    def classify(self, conv5: Tensor) -> Tensor:
        """Return logits [B, T, K] from `conv5` [B, C, T, h, w]: pool5, fc1 and fc2 of Table 3.1."""
        pooled = conv5.mean((3, 4), keepdim=True)
        hidden = self.fc1(pooled).relu()[..., 0, 0].transpose(1, 2)
        return self.fc2(self.dropout(hidden))


class Bottleneck(nn.Module):
    """Map [B, c_in, T, h, w] to [B, c_out, T, h / stride, w / stride]: a bracket of Table 3.1, once."""

    def __init__(self, c_in: int, inner: int, c_out: int, stride: int, se: bool, depthwise: bool) -> None:
        super().__init__()
        self.residual = sequence(
            expand=conv3d(c_in, inner, (1, 1, 1)),
            expand_norm=nn.BatchNorm3d(inner),
            expand_relu=nn.ReLU(inplace=True),
            middle=middle(inner, stride, depthwise),
            middle_norm=nn.BatchNorm3d(inner),
            squeeze=SqueezeExcite(inner) if se else nn.Identity(),
            swish=nn.SiLU(),
            project=conv3d(inner, c_out, (1, 1, 1)),
            project_norm=nn.BatchNorm3d(c_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or c_in != c_out:
            # Normalised even where only the stride differs (res2): 48 of the 3,296,415 parameters of M.
            self.shortcut = sequence(conv=conv3d(c_in, c_out, (1, 1, 1), stride), norm=nn.BatchNorm3d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        return (self.residual(x) + self.shortcut(x)).relu_()


class SqueezeExcite(nn.Module):
    """Scale the channels of [B, C, T, h, w] by gates in (0, 1) drawn from their mean over T, h and w."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = squeeze_width(channels)
        self.down = nn.Conv3d(channels, hidden, 1)
        self.up = nn.Conv3d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3, 4), keepdim=True)
        return x * self.up(self.down(mean).relu()).sigmoid()


def squeeze_width(channels: int) -> int:
    """Return the hidden width of a squeeze-excite: channels / 16 as a multiple of 8, at least 90 % of it."""
    wanted = channels / 16
    width = max(8, int(wanted + 4) // 8 * 8)
    return width if width >= 0.9 * wanted else width + 8


def stage(config: Config, index: int, c_in: int) -> nn.Sequential:
    """Return res2 (index 0) to res5 (index 3); the first block strides, every second one squeezes."""
    inner, c_out, dw = config.inner[index], config.widths[index], config.depthwise
    first = Bottleneck(c_in, inner, c_out, config.strides[index], True, dw)
    rest = (Bottleneck(c_out, inner, c_out, 1, i % 2 == 0, dw) for i in range(1, config.blocks[index]))
    return nn.Sequential(first, *rest)


def middle(width: int, stride: int, depthwise: bool) -> nn.Module:
    """Return the 3x3x3 convolution of a bottleneck: per channel as in the paper, or dense and factorised."""
    if depthwise:
        return conv3d(width, width, (3, 3, 3), stride, groups=width)
    # On a CPU the dense pair is the faster one as long as the width is small.
    spatial = conv3d(width, width, (1, 3, 3), stride)
    return sequence(spatial=spatial, temporal=conv3d(width, width, (3, 1, 1)))


def conv3d(c_in: int, c_out: int, kernel: tuple[int, int, int], stride: int = 1, groups: int = 1) -> nn.Conv3d:
    """Return a convolution without bias that keeps T and divides H and W by `stride`."""
    t, h, w = kernel
    padding = (t // 2, h // 2, w // 2)
    return nn.Conv3d(c_in, c_out, kernel, (1, stride, stride), padding, groups=groups, bias=False)


def sequence(**layers: nn.Module) -> nn.Sequential:
    """Return the layers one after the other, under their names."""
    return nn.Sequential(OrderedDict(layers))


def check_video(name: str, video: Tensor) -> None:
    """Raise ValueError unless the tensor is float [B, 3, T, H, W], none of them zero."""
    check_shape(name, video)
    if not video.is_floating_point():
        raise ValueError(f"{name} is float, as `normalise` makes it of pixels, not {video.dtype}")


def check_shape(name: str, video: Tensor) -> None:
    """Raise ValueError unless the tensor is [B, 3, T, H, W], none of them zero."""
    if video.ndim != 5 or video.shape[1] != 3 or 0 in video.shape:
        raise ValueError(f"{name} is [B, 3, T, H, W], not {list(video.shape)}")


def normalise(video: Tensor, config: Config = M) -> Tensor:
    """Return uint8 RGB [B, 3, T, H, W] as float32, `config.mean` taken off and `config.std` divided out.

    Keeps the memory format. Raises TypeError unless `video` is uint8 (a float may have been normalised
    before) and ValueError for another shape.
    """
    if video.dtype != torch.uint8:
        raise TypeError(f"normalise takes uint8 pixels, not {video.dtype}")
    check_shape("video", video)
    mean, std = (torch.tensor(v, device=video.device).view(3, 1, 1, 1) for v in (config.mean, config.std))
    return video.float().mul_(1 / (255 * std)).sub_(mean / std)


def build(size: str = "M", num_classes: int = 157, **overrides: Any) -> X3D:
    """Return an X3D of size "M", "L" or "TINY" and other fields of its `Config`: `models.preset`."""
    return X3D(preset("x3d", PRESETS, size, num_classes, overrides))
