"""How a checkpoint scores the frames of a video: in overlapping windows, with the whole video beside them or without.

Letters: T frames at the rate that the system sees, F of the whole video, K classes.
"""

import math
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from cachetools import LRUCache, cached
from torch import Tensor, nn
from torch.nn.functional import pad

import models
from models.ensemble import mean_logit
from models.multi_stage_fusion import as_column
from models.x3d import normalise
from storage import checkpoints
from storage.checkpoints import Checkpoint
from storage.timing import during
from tasks.training.videos import Whole

BATCH = 8  # windows


def alone() -> None:
    """Has torch use one core in the calling thread, as the pool's threads share them: each has to say so itself."""
    torch.set_num_threads(1)


def device() -> torch.device:
    """Where this process predicts: on the first GPU that CUDA shows it, on the CPU where it shows none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def placed(model: Any) -> torch.device:
    """Where a model is: what goes into it has to be there too. One without weights is on the CPU."""
    return next((weights.device for weights in model.parameters()), torch.device("cpu"))


@cached(LRUCache(4), lambda url, on="cpu": (url, str(on)), condition=threading.Condition(), info=True)
@during("start")
def load(url: str, on: torch.device | str = "cpu") -> nn.Module:
    """The model of a checkpoint, ready to predict; kept, so that a process loads it once, whatever its threads."""
    alone()
    about = checkpoints.describe(url).about
    model = models.build(about["system"], num_classes=len(about["classes"]), **about["options"])
    model.load_state_dict(checkpoints.load_weights(url, model.state_dict()))
    model = model.eval().to(on)
    return model if takes(about) == "features" else model.to(memory_format=torch.channels_last_3d)


def takes(about: dict[str, Any]) -> models.Inputs:
    """What the system of a checkpoint is given."""
    return models.inputs(about["system"], about["options"])


def windows(T: int, length: int) -> list[int]:
    """Where windows of ``length`` frames begin so that half-overlapping ones cover T frames."""
    if length >= T:
        return [0]
    return [*range(0, T - length, max(1, length // 2)), T - length]


@dataclass
class Context:
    """A whole video for two-stream systems; the Fine stream of each sees it once, or none where these are its maps."""

    whole: Whole
    _maps: dict[int, dict[str, Tensor] | Tensor] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def inputs(self, model: Any, starts: list[int], length: int) -> dict[str, Any]:
        """What goes with windows of ``length`` frames that begin at these frames of the video, where the model is."""
        with self._lock:
            if id(model) not in self._maps:
                self._maps[id(model)] = self._seen(model)
        maps, step = self._maps[id(model)], self.whole.step
        F = len(self.whole.frames)
        more = max(0, math.ceil((max(starts) + length) / step) - F)  # a window longer than what there is

        def padded(x: Tensor) -> Tensor:
            return pad(x, (0, 0, 0, 0, 0, more)).expand(len(starts), -1, -1, -1, -1)

        fine = padded(maps) if isinstance(maps, Tensor) else {name: padded(x) for name, x in maps.items()}
        valid = (torch.arange(F + more, device=placed(model)) < F).expand(len(starts), -1)
        return {"fine": fine, "start": torch.tensor(starts, device=placed(model)), "step": float(step), "valid": valid}

    def _seen(self, model: Any) -> dict[str, Tensor] | Tensor:
        """The maps of the video by level, or all as a column has them where the model was trained on one."""
        if self.whole.frames.dtype.is_floating_point:
            return self.whole.frames.to(placed(model)).transpose(0, 1)[None].float().contiguous()
        if model.config.cells:
            maps = fine_maps(self.whole, model.fine, model.config.cells).to(placed(model))
            return maps.transpose(0, 1)[None].float().contiguous()
        return model.fine.features(pixels(self.whole.frames.to(placed(model)).transpose(0, 1)[None], model))


@torch.inference_mode()
def fine_maps(whole: Whole, fine: Any, cells: int) -> Tensor:
    """What a Fine stream makes of a whole video: `[F, C, cells, cells]` float16 on the CPU, as a column has it."""
    maps = fine.features(pixels(whole.frames.to(placed(fine)).transpose(0, 1)[None], fine))
    return as_column(maps, cells)[0].transpose(0, 1).half().contiguous().cpu()


def pixels(video: Tensor, model: Any) -> Tensor:
    """uint8 video `[B, 3, T, S, S]` as a model takes it."""
    return normalise(video, model.config).contiguous(memory_format=torch.channels_last_3d)


@during("model")
def answer(model: Any, clips: Tensor, starts: list[int], context: Context | None) -> Tensor:
    """Logits `[B, T, K]` of windows `[B, 3, T, S, S]` that begin at these frames of the video, or of features.

    They go to where the model is, as bytes, and the logits come back to the CPU.
    """
    if isinstance(members := getattr(model, "members", None), nn.ModuleList):
        return mean_logit(torch.stack([answer(member, clips, starts, context) for member in members]))
    clips = clips.to(placed(model))
    if clips.dtype != torch.uint8:
        return model(clips)["logits"].cpu()
    more = {} if context is None else context.inputs(model, starts, clips.shape[2])
    return model(pixels(clips, model), **more)["logits"].cpu()


@torch.inference_mode()
def frame_logits(model: Any, video: Tensor, length: int, context: Context | None = None, start: int = 0) -> Tensor:
    """Logits `[T, K]` of a uint8 video `[T, 3, S, S]`: windows overlap by half and are averaged where they do.

    A clip that begins at frame ``start`` of the whole video of a ``context`` is seen in it.
    """
    T = len(video)
    if length > T:
        video = torch.cat([video, video[-1:].expand(length - T, -1, -1, -1)])
    begins = windows(len(video), length)

    def pieces() -> Iterator[tuple[int, Tensor]]:
        for first in range(0, len(begins), BATCH):
            chosen = begins[first : first + BATCH]
            clips = torch.stack([video[b : b + length].transpose(0, 1) for b in chosen])
            yield from zip(chosen, answer(model, clips, [start + b for b in chosen], context), strict=True)

    return averaged(pieces(), len(video))[:T]


@torch.inference_mode()
def sequence_logits(model: Any, features: Tensor, length: int) -> Tensor:
    """Logits `[T, K]` of features `[T, D]`: whole, or of a longer video in windows as `frame_logits` has them."""
    begins = windows(len(features), length)
    return averaged(((b, answer(model, features[None, b : b + length], [b], None)[0]) for b in begins), len(features))


def averaged(pieces: Iterable[tuple[int, Tensor]], T: int) -> Tensor:
    """The mean `[T, K]` of pieces `[n, K]` that begin at these frames and leave none of the T out."""
    total, seen = torch.zeros(T, 0), torch.zeros(T, 1)
    for begin, scores in pieces:
        if not total.shape[1]:
            total = torch.zeros(T, scores.shape[1])
        total[begin : begin + len(scores)] += scores
        seen[begin : begin + len(scores)] += 1
    return total / seen


def at_source_rate(logits: np.ndarray, sampled: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Scores `[N, K]` in 0..1 at all frame times from logits `[T, K]` at sampled times, interpolated linearly."""
    dense = np.stack([np.interp(times, sampled, logits[:, k]) for k in range(logits.shape[1])], axis=1)
    return 1.0 / (1.0 + np.exp(-dense))


class Scorer(nn.Module):
    """A detector as others use it: a uint8 video `[B, 3, T, S, S]`, or features `[B, T, D]`, to scores `[B, T, K]`.

    A two-stream system takes the video for the clip and for the whole of it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, seen: Tensor) -> Tensor:
        if seen.dtype == torch.uint8:
            seen = normalise(seen, self.model.config)  # type: ignore[arg-type]
        return self.model(seen)["logits"].sigmoid()


def example(checkpoint: Checkpoint) -> Tensor:
    """Two clips, or videos as features, as a checkpoint's system takes them: zeros."""
    about = checkpoint.about
    spec = about["spec"]
    if takes(about) == "features":
        return torch.zeros(2, spec["frames"], width(about), dtype=torch.float32)
    return torch.zeros(2, 3, spec["frames"], spec["size"], spec["size"], dtype=torch.uint8)


def width(about: dict[str, Any]) -> int:
    """The width of the features that a checkpoint's system takes."""
    members = about["options"].get("members")
    return int((members[0][1] if members else about["options"])["width"])
