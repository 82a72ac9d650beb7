"""A model for one device among other ranks: what they exchange, and what is kept of it for any number of them.

Models know nothing of this. DDP and FSDP are put around them here, and a checkpoint always holds whole tensors by the
names that the bare model gives them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

import models
from tasks.training.spec import Sharding, Spec


def device(local_rank: int) -> torch.device:
    """The GPU of a rank, or the CPU."""
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


@contextmanager
def joined(ranks: int, where: torch.device, patience: float) -> Iterator[None]:
    """While this process is one of several ranks; whoever waits longer than ``patience`` seconds for another fails."""
    if ranks == 1:
        yield
        return
    backend = "gloo"
    if where.type == "cuda":
        torch.cuda.set_device(where)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=timedelta(seconds=patience))
    try:
        yield
    finally:
        dist.destroy_process_group()


def spread(model: nn.Module, spec: Spec, ranks: int, sharding: Sharding = "none") -> nn.Module:
    """The model as it is called, compiled or not: a copy on each rank (DDP), or a shard of every tensor (FSDP)."""
    if sharding == "fsdp":
        model = _sharded(model)
    elif ranks > 1:
        # The head of a Fine stream has no part in the logits, so some parameters have no gradient.
        unused = spec.system in models.TWO_STREAMS
        model = nn.parallel.DistributedDataParallel(model, find_unused_parameters=unused)
    return torch.compile(model) if spec.compile else model  # type: ignore[return-value]


def _sharded(model: nn.Module) -> nn.Module:
    """The model in place, its stages gathered one after the other where it has any."""
    model = model.to(memory_format=torch.contiguous_format)  # the only one that can be sharded
    for stage in [child for child in model.children() if isinstance(child, nn.Sequential)]:
        fully_shard(stage)
    fully_shard(model)
    return model


def mean(value: float) -> float:
    """The mean over all ranks, the same number on each."""
    if not dist.is_initialized():
        return value
    total = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(total)
    return total.item() / dist.get_world_size()


def agreed(value: int) -> int:
    """What the first rank says."""
    if not dist.is_initialized():
        return value
    said = torch.tensor(value)
    dist.broadcast(said, 0)
    return int(said)


def gathered(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and optimiser state by name, whole tensors of their own; all ranks call this, rank 0 is given them."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(model, options=options)
    state = get_optimizer_state_dict(model, optimizer, options=options)
    return _copied(weights), _copied(state)


def _copied(value: Any) -> Any:
    """A copy that training does not change."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return value.detach().clone() if isinstance(value, Tensor) else value


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Gives an optimiser what `gathered` returned, at whatever number of ranks."""
    if all(isinstance(name, int) for name in state["state"]):  # as it was written before tensors had names here
        optimizer.load_state_dict(state)
        return
    # Not strict: a parameter that has never had a gradient has no state.
    options = StateDictOptions(full_state_dict=True, strict=False)
    set_optimizer_state_dict(model, optimizer, state, options=options)


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each rank may have a shard, whole; all ranks call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, in shards where the other one is."""
    return distribute_tensor(tensor, other.device_mesh, other.placements) if isinstance(other, DTensor) else tensor
