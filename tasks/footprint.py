"""What a checkpoint costs to run on one clip as evaluated: latency, peak memory, multiply-accumulates, parameters."""

import statistics
import time
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.cost import count
from storage.checkpoints import Checkpoint
from tasks.scorer import load, pixels, takes, width

PASSES = 5  # whose median is the latency
MEASURES = {"latency_ms": "ms per clip", "peak_memory_mb": "peak MB", "gmacs": "GMACs", "params_m": "M parameters"}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are alive at once while the context lasts, those that operations hand out.

    What an operation needs inside, and what an allocator keeps in store, is not seen: the figure is the same on any
    machine.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.hold(tensor)
        return out

    def hold(self, tensor: Tensor) -> None:
        """Counts a tensor's storage for as long as it lives."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def clip_of(about: dict[str, Any]) -> list[Tensor]:
    """What one clip is to a checkpoint's system: a batch of one, with the whole video where it takes that."""
    spec = about["spec"]
    if takes(about) == "features":
        return [torch.zeros(1, spec["frames"], width(about))]
    counts = [spec["frames"], *([max(spec["whole"], spec["frames"])] if takes(about) == "context" else [])]
    return [torch.zeros(1, 3, T, spec["size"], spec["size"], dtype=torch.uint8) for T in counts]


def footprint(checkpoint: Checkpoint) -> dict[str, float]:
    """The `MEASURES` of a checkpoint: one forward pass on one clip, on this machine and one thread.

    Multiply-accumulates are those of convolutions, as thesis 001 counts them, and of linear layers.
    """
    model: Any = load(checkpoint.url)
    clip = clip_of(checkpoint.about)
    cost = count(model, *(tuple(part.shape) for part in clip))
    weights = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    with LiveBytes() as live:
        _pass(model, clip)
    seconds = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(PASSES):
            began = time.perf_counter()
            _pass(model, clip)
            seconds.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return {
        "latency_ms": 1e3 * statistics.median(seconds),
        "peak_memory_mb": (weights + live.peak) / 1e6,
        "gmacs": (cost.conv_macs + cost.linear_macs) / 1e9,
        "params_m": cost.params / 1e6,
    }


@torch.inference_mode()
def _pass(model: Any, clip: list[Tensor]) -> None:
    members = getattr(model, "members", None)
    config = members[0] if isinstance(members, nn.ModuleList) else model
    model(*(pixels(part, config) if part.dtype == torch.uint8 else part for part in clip))


def shown(metrics: dict[str, float]) -> str:
    """The measures among some metrics as people read them."""
    return " · ".join(f"{metrics[name]:.3g} {unit}" for name, unit in MEASURES.items() if name in metrics)
