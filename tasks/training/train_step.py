"""One step of a training. All randomness in it follows from (seed, step, rank)."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from models.augment import augment, manifold
from models.losses import AUXILIARY_WEIGHT, OBJECTIVES, at_places, flow, reconstruction
from models.sub_batch_norm import split_norms
from storage.errors import InputError
from tasks.scorer import pixels
from tasks.training import multigrid
from tasks.training.batches import Batch
from tasks.training.spec import Spec

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def rate(step: int, spec: Spec) -> float:
    """The learning rate of a step: half a cosine down to zero, or a staircase, under a linear warm-up."""
    rising = min(1.0, (step + 1) / max(1.0, spec.warmup * spec.steps))
    if spec.milestones:
        return spec.lr * rising * 0.1 ** sum(step >= round(share * spec.steps) for share in spec.milestones)
    return spec.lr * rising * 0.5 * (1 + math.cos(math.pi * step / spec.steps))


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    seen: Tensor,
    labels: Tensor,
    step: int,
    spec: Spec,
    rank: int,
    batch: Batch | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> float:
    """One step on uint8 video or features, in as many pieces as the spec says. Returns the mean loss of this rank.

    ``batch`` has what else there is: inputs beside, and the places of labels at the source's frame rate.
    """
    generator = torch.Generator().manual_seed((spec.seed * 1_000_003 + step) * 1_009 + rank)
    _seed(generator.initial_seed())
    scaler = scaler or torch.amp.GradScaler(enabled=False)
    if spec.augmentation not in ("none", "manifold"):  # before it is taken to pieces: partners are of the whole batch
        seen, labels = augment(seen, labels, generator, mode=spec.augmentation, **spec.volumes)
    times = multigrid.times(step, spec) if spec.multigrid else 1.0
    for group in optimizer.param_groups:
        group["lr"] = rate(step, spec) * group.get("times", 1.0) * times
    optimizer.zero_grad(set_to_none=True)
    whole = replace(batch, seen=seen, labels=labels) if batch else Batch(seen, labels)
    total = 0.0
    for last, piece in pieces(whole, spec.accumulate):
        with _alone(model, last):
            loss = loss_of(model, piece, spec, generator) / spec.accumulate
            scaler.scale(loss).backward()
        total += loss.item()
    if spec.clip:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], spec.clip)
    scaler.step(optimizer)
    scaler.update()
    return total


def _seed(seed: int) -> None:
    """What dropout draws from. `torch.manual_seed` keeps a stack of calls for each kind of device that is not there."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


def pieces(batch: Batch, count: int) -> Iterator[tuple[bool, Batch]]:
    """A batch in equal pieces, in order, and whether each is the last one."""
    if len(batch.seen) % count:
        raise InputError(f"--batch: {len(batch.seen)} of a rank cannot be taken in {count} equal pieces")
    size = len(batch.seen) // count
    for i in range(count):
        yield i == count - 1, batch.rows(slice(i * size, (i + 1) * size)) if count > 1 else batch


def loss_of(model: nn.Module, batch: Batch, spec: Spec, generator: torch.Generator) -> Tensor:
    """The loss of a batch that is not augmented further, but for mixing inside the network."""
    inner: Any = model.module if hasattr(model, "module") else model
    device = next(model.parameters()).device
    given: dict[str, Any] = {}
    labels = batch.labels
    if spec.augmentation == "manifold":
        labels, given["edit"] = manifold(labels, generator, getattr(inner, "depths", ()))
    batch = replace(batch, labels=labels).to(device)
    seen, given = batch.seen, batch.inputs | given
    if seen.dtype == torch.uint8:
        seen = pixels(seen, inner)
    if "whole" in given:
        given["whole"] = pixels(given["whole"], inner)
    if spec.norm_group:
        split_norms(inner, multigrid.splits(len(seen), spec.norm_group))
    with torch.autocast(device.type, HALF.get(spec.precision), enabled=spec.precision in HALF):
        out = model(seen, **given)
    logits = out["logits"].float()
    if batch.places is None:
        loss = OBJECTIVES[spec.objective](logits, batch.labels)
    else:
        loss = OBJECTIVES[spec.objective](at_places(logits, batch.places), batch.labels, batch.mask)
    if spec.auxiliary != "none":
        loss = loss + AUXILIARY_WEIGHT * _auxiliary(spec, out, seen)
    return loss


def _alone(model: nn.Module, last: bool) -> AbstractContextManager:
    """While gradients are only summed up on each rank: they are exchanged with those of the last piece."""
    known: Any = model
    if hasattr(known, "set_requires_gradient_sync"):  # FSDP
        known.set_requires_gradient_sync(last)
    return nullcontext() if last or not hasattr(known, "no_sync") else known.no_sync()  # DDP


def _auxiliary(spec: Spec, out: dict[str, Tensor], seen: Tensor) -> Tensor:
    if "confidence" not in out:
        raise InputError(f"the auxiliary loss {spec.auxiliary} is of Grid Pool, which {spec.system} has not")
    if spec.auxiliary == "flow":
        return flow(seen, out["places"])
    return reconstruction(out["unpooled"].float(), out["places"])
