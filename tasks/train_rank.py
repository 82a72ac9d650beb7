"""What one rank of a training runs: ``torchrun -m tasks.train_rank --spec FILE``. Knows neither Prefect nor MLflow.

Rank 0 prints one JSON line per report; the launcher (tasks/train.py) shows and logs them.
"""

import argparse
import json
import math
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import record

import models
from models.augment import Mode, augment, manifold
from models.losses import AUXILIARY_WEIGHT, OBJECTIVES, at_places, flow, reconstruction
from models.sub_batch_norm import split_norms
from storage import checkpoints
from storage.errors import InputError
from tasks import multigrid
from tasks.batches import Batch, Batches, Shape
from tasks.samples import samples_of
from tasks.scorer import pixels

Rate = Literal["sampled", "source"]  # frames that labels are compared on: those the system sees, or the video's own
Precision = Literal["fp32", "bf16"]
Auxiliary = Literal["none", "reconstruction", "flow"]  # losses of Grid Pool's points


@dataclass(frozen=True, kw_only=True)
class Spec:
    """All that decides the outcome of a training; the digest of it is the run's name."""

    root: str
    parts: list[dict[str, Any]]
    classes: list[str]
    objective: str  # a key of models.losses.OBJECTIVES
    system: str = "x3d"
    options: dict[str, Any] = field(default_factory=dict)
    labels: str | None = None  # version of the pseudo-label column; None: the segments of the index
    selection: str | None = None  # version of the selection column; None: every clip
    augmentation: Mode = "none"
    volumes: dict[str, Any] = field(default_factory=dict)  # other options of models.augment.augment, by name
    start: str | None = None  # checkpoint whose backbone to start from
    starts: dict[str, str] = field(default_factory=dict)  # checkpoints to start parts from, e.g. {"fine": URL}
    fps: float = 8.0
    frames: int = 16
    size: int = 24
    whole: int = 0  # frames of the whole video that go with a clip, at most; 0: none
    features: str | None = None  # version of the feature column that is trained on in place of video
    fine: str | None = None  # version of the column that has the maps of the Fine stream, which is frozen then
    rate: Rate = "sampled"
    batch: int = 16
    steps: int = 800
    optimizer: str = "adamw"  # or sgd, as the thesis trains X3D-M
    momentum: float = 0.9
    lr: float = 0.01
    faster: dict[str, float] = field(default_factory=dict)  # times the rate, for parameters of these first names
    weight_decay: float = 0.01
    warmup: float = 0.05  # share of the steps
    milestones: list[float] = field(default_factory=list)  # shares of the steps: a tenth of the rate from each on
    multigrid: bool = False
    norm_group: int = 0  # clips that are normalised together; 0: the batch
    precision: Precision = "fp32"
    compile: bool = False
    auxiliary: Auxiliary = "none"
    seed: int = 0
    checkpoint_every: int = 100


def rate(step: int, spec: Spec) -> float:
    """The learning rate of a step: half a cosine down to zero, or a staircase, under a linear warm-up."""
    rising = min(1.0, (step + 1) / max(1.0, spec.warmup * spec.steps))
    if spec.milestones:
        return spec.lr * rising * 0.1 ** sum(step >= round(share * spec.steps) for share in spec.milestones)
    return spec.lr * rising * 0.5 * (1 + math.cos(math.pi * step / spec.steps))


def build(spec: Spec) -> nn.Module:
    """The model on the spec's seed, or with the weights of earlier checkpoints.

    Of the last layer the rows of classes that both know by name are kept; the others start at random. A Fine stream
    whose maps come from a column is frozen.
    """
    torch.manual_seed(spec.seed)
    model = models.build(spec.system, num_classes=len(spec.classes), **spec.options)
    weights = model.state_dict()
    if spec.start:
        checkpoints.load_weights(spec.start, weights, free="fc2.")  # says what does not fit
        _adopt(weights, list(weights), "", spec.start, spec.classes)
    for prefix, url in sorted(spec.starts.items()):
        known = checkpoints.load_weights(url)
        own = [name for name in weights if name in known or name.removeprefix(f"{prefix}.") in known]
        if not own:
            raise InputError(f"checkpoint {url} has no weights for {prefix!r} of {spec.system}")
        _adopt(weights, own, f"{prefix}.", url, spec.classes)
    model.load_state_dict(weights)
    if spec.fine:
        model.get_submodule("fine").requires_grad_(False)
    return model if spec.features else model.to(memory_format=torch.channels_last_3d)


def _adopt(weights: dict[str, Tensor], names: list[str], prefix: str, url: str, classes: list[str]) -> None:
    """Takes weights of these names from a checkpoint, which may lack their prefix."""
    known = checkpoints.describe(url).about["classes"]
    shared = [name for name in classes if name in known]
    rows, earlier_rows = ([names_.index(n) for n in shared] for names_ in (classes, known))
    earlier = checkpoints.load_weights(url)
    for name in names:
        found = earlier[name if name in earlier else name.removeprefix(prefix)]
        if "fc2." in name:
            weights[name][rows] = found[earlier_rows]
        else:
            weights[name] = found


def optimiser(model: nn.Module, spec: Spec) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum; a group's ``times`` multiplies its rate."""
    groups: list[dict[str, Any]] = [{"params": [], "times": 1.0}]
    groups += [{"params": [], "times": times} for times in spec.faster.values()]
    for name, parameter in ((n, p) for n, p in model.named_parameters() if p.requires_grad):
        place = [i for i, first in enumerate(spec.faster, 1) if name == first or name.startswith(f"{first}.")]
        groups[place[0] if place else 0]["params"].append(parameter)
    if empty := [first for first, group in zip(spec.faster, groups[1:], strict=True) if not group["params"]]:
        raise ValueError(f"{spec.system} has no parameters {', '.join(empty)} to train faster")
    if spec.optimizer == "sgd":
        decay = spec.weight_decay
        return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, nesterov=True, weight_decay=decay)
    return torch.optim.AdamW(groups, lr=spec.lr, weight_decay=spec.weight_decay)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    seen: Tensor,
    labels: Tensor,
    step: int,
    spec: Spec,
    rank: int,
    batch: Batch | None = None,
) -> float:
    """One step on uint8 video or features; all randomness in it follows from (seed, step, rank). Returns the loss.

    ``batch`` has what else there is: inputs beside, and the places of labels at the source's frame rate.
    """
    generator = torch.Generator().manual_seed((spec.seed * 1_000_003 + step) * 1_009 + rank)
    torch.manual_seed(generator.initial_seed())  # dropout
    inner: Any = model.module if hasattr(model, "module") else model
    given: dict[str, Any] = dict(batch.inputs) if batch else {}
    if spec.augmentation == "manifold":
        labels, given["edit"] = manifold(labels, generator, getattr(inner, "depths", ()))
    elif spec.augmentation != "none":
        seen, labels = augment(seen, labels, generator, mode=spec.augmentation, **spec.volumes)
    if seen.dtype == torch.uint8:
        seen = pixels(seen, inner)
    if "whole" in given:
        given["whole"] = pixels(given["whole"], inner)
    if spec.norm_group:
        split_norms(inner, multigrid.splits(len(seen), spec.norm_group))
    times = multigrid.times(step, spec) if spec.multigrid else 1.0
    for group in optimizer.param_groups:
        group["lr"] = rate(step, spec) * group.get("times", 1.0) * times
    with torch.autocast(seen.device.type, torch.bfloat16, enabled=spec.precision == "bf16"):
        out = model(seen, **given)
    logits = out["logits"].float()
    if batch is None or batch.places is None:
        loss = OBJECTIVES[spec.objective](logits, labels)
    else:
        loss = OBJECTIVES[spec.objective](at_places(logits, batch.places), labels, batch.mask)
    if spec.auxiliary != "none":
        loss = loss + AUXILIARY_WEIGHT * _auxiliary(spec, out, seen)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.item()


def _auxiliary(spec: Spec, out: dict[str, Tensor], seen: Tensor) -> Tensor:
    if "confidence" not in out:
        raise InputError(f"the auxiliary loss {spec.auxiliary} is of Grid Pool, which {spec.system} has not")
    if spec.auxiliary == "flow":
        return flow(seen, out["places"])
    return reconstruction(out["unpooled"].float(), out["places"])


def _die_with(parent: int) -> None:
    """Ends this process when the launcher is gone: nobody would read what it trains on."""

    def watch() -> None:
        while True:
            time.sleep(1)
            try:
                os.kill(parent, 0)
            except ProcessLookupError:
                os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _about(spec: Spec) -> dict[str, Any]:
    plain = asdict(spec)
    return {"system": spec.system, "options": spec.options, "classes": spec.classes, "spec": plain}


def run(spec: Spec, name: str, rank: int = 0, ranks: int = 1) -> None:
    """Trains to the end, from the newest checkpoint of the run if there is one."""
    samples = samples_of(spec)
    model = build(spec)
    optimizer = optimiser(model, spec)
    found = checkpoints.find(spec.root, name)
    first = 0
    if found:
        first = found.step
        model.load_state_dict(checkpoints.load_weights(found.url, model.state_dict()))
        optimizer.load_state_dict(checkpoints.load_state(found.url)["optimizer"])
    wrapped = _wrapped(model, spec, ranks)
    wrapped.train()
    shape = multigrid.shapes(spec) if spec.multigrid else partial(_plain, spec)
    batches = Batches(samples, shape, spec.seed, rank, ranks)
    began, spoke = time.monotonic(), 0.0
    report: dict[str, Any] = {"event": "start", "step": first, "steps": spec.steps, "clips": len(samples)}
    _say(rank, report)
    for step, batch in enumerate(batches.from_step(first, spec.steps), start=first):
        loss = train_step(wrapped, optimizer, batch.seen, batch.labels, step, spec, rank, batch)
        if not math.isfinite(loss):
            raise FloatingPointError(f"loss is {loss} at step {step}; lower the learning rate")
        done, seconds = step + 1, time.monotonic() - began
        if time.monotonic() - spoke > 0.5 or done == spec.steps or done % 50 == 0:
            spoke = time.monotonic()
            pace = (done - first) / seconds
            lr = optimizer.param_groups[0]["lr"]
            _say(rank, {"event": "step", "step": done, "loss": loss, "lr": lr, "pace": pace})
        if spec.norm_group and (done % spec.checkpoint_every == 0 or done == spec.steps):
            split_norms(model, 1)  # also where nothing is saved, so that a run that goes on is the same one
        if rank == 0 and (done % spec.checkpoint_every == 0 or done == spec.steps):
            state = {"optimizer": optimizer.state_dict()}
            weights = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
            checkpoints.save(spec.root, name, done, weights, state, _about(spec), done == spec.steps)
            checkpoints.prune(spec.root, name)
    seconds = time.monotonic() - began
    report = {"event": "end", "step": spec.steps, "seconds": seconds, "wait_share": batches.waited / seconds}
    _say(rank, report | ({"step_seconds": seconds / (spec.steps - first)} if spec.steps > first else {}))


def _plain(spec: Spec, step: int) -> Shape:
    return Shape(spec.batch, spec.frames, spec.size, step * spec.batch)


def _wrapped(model: nn.Module, spec: Spec, ranks: int) -> nn.Module:
    """The model as it is called: among other ranks, compiled."""
    if ranks > 1:
        # The head of a Fine stream has no part in the logits, so some parameters have no gradient.
        unused = spec.system in models.TWO_STREAMS
        model = nn.parallel.DistributedDataParallel(model, find_unused_parameters=unused)
    return torch.compile(model) if spec.compile else model  # type: ignore[return-value]


def _say(rank: int, report: dict[str, Any]) -> None:
    if rank == 0:
        print(json.dumps(report), flush=True)


@record  # so that torchrun repeats the traceback at the end of the log, where people look
def main() -> None:
    """Reads the spec, joins the other ranks and trains."""
    parser = argparse.ArgumentParser(description="one rank of a training; started by torchrun")
    parser.add_argument("--spec", required=True, help="JSON file of the training's Spec")
    parser.add_argument("--name", required=True, help="name of the run, under checkpoints/")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on from the newest checkpoint of this run, as is the default; --no-resume trains anew",
    )
    parser.add_argument("--parent", type=int, help="process to end with")
    arguments = parser.parse_args()
    if arguments.parent:
        _die_with(arguments.parent)
    spec = Spec(**json.loads(Path(arguments.spec).read_text()))
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if rank == 0 and not arguments.resume:
        checkpoints.prune(spec.root, arguments.name, keep=0)
    if ranks > 1:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        run(spec, arguments.name, rank, ranks)
    finally:
        if ranks > 1:
            dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
