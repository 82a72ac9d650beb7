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
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import record

import models
from models.augment import Mode, augment, manifold
from models.losses import OBJECTIVES
from models.x3d import normalise
from storage import checkpoints
from storage.parts import Part
from tasks.loader import Batches, Clips


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
    fps: float = 8.0
    frames: int = 16
    size: int = 24
    batch: int = 16
    steps: int = 800
    optimizer: str = "adamw"  # or sgd, as the thesis trains X3D-M
    lr: float = 0.01
    weight_decay: float = 0.01
    warmup: float = 0.05  # share of the steps
    seed: int = 0
    checkpoint_every: int = 100


def rate(step: int, spec: Spec) -> float:
    """The learning rate of a step: half a cosine down to zero, under a linear warm-up."""
    rising = min(1.0, (step + 1) / max(1.0, spec.warmup * spec.steps))
    return spec.lr * rising * 0.5 * (1 + math.cos(math.pi * step / spec.steps))


def build(spec: Spec) -> nn.Module:
    """The model on the spec's seed, or with the weights of an earlier checkpoint.

    Of the last layer the rows of classes that both know by name are kept; the others start at random.
    """
    torch.manual_seed(spec.seed)
    model = models.build(spec.system, num_classes=len(spec.classes), **spec.options)
    if spec.start:
        known = checkpoints.describe(spec.start).about["classes"]
        shared = [name for name in spec.classes if name in known]
        rows, earlier_rows = ([names.index(n) for n in shared] for names in (spec.classes, known))
        earlier, weights = checkpoints.load_weights(spec.start), model.state_dict()
        for name, tensor in weights.items():
            if name.startswith("fc2."):
                tensor[rows] = earlier[name][earlier_rows]
            else:
                weights[name] = earlier[name]
        model.load_state_dict(weights)
    return model.to(memory_format=torch.channels_last_3d)


def optimiser(model: nn.Module, spec: Spec) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum 0.9."""
    if spec.optimizer == "sgd":
        decay = spec.weight_decay
        return torch.optim.SGD(model.parameters(), lr=spec.lr, momentum=0.9, nesterov=True, weight_decay=decay)
    return torch.optim.AdamW(model.parameters(), lr=spec.lr, weight_decay=spec.weight_decay)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    video: Tensor,
    labels: Tensor,
    step: int,
    spec: Spec,
    rank: int,
) -> float:
    """One step on a uint8 batch; all randomness in it follows from (seed, step, rank). Returns the loss."""
    generator = torch.Generator().manual_seed((spec.seed * 1_000_003 + step) * 1_009 + rank)
    torch.manual_seed(generator.initial_seed())  # dropout
    inner: Any = model.module if hasattr(model, "module") else model
    edit: dict[str, Any] = {}
    if spec.augmentation == "manifold":
        labels, edit["edit"] = manifold(labels, generator, getattr(inner, "depths", ()))
    else:
        video, labels = augment(video, labels, generator, mode=spec.augmentation, **spec.volumes)
    clips = normalise(video, inner.config).contiguous(memory_format=torch.channels_last_3d)
    for group in optimizer.param_groups:
        group["lr"] = rate(step, spec)
    loss = OBJECTIVES[spec.objective](model(clips, **edit)["logits"], labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.item()


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
    parts = [Part(**record) for record in spec.parts]
    clips = Clips(spec.root, parts, spec.classes, spec.fps, spec.size, spec.labels, spec.selection)
    model = build(spec)
    optimizer = optimiser(model, spec)
    found = checkpoints.find(spec.root, name)
    first = 0
    if found:
        first = found.step
        model.load_state_dict(checkpoints.load_weights(found.url))
        optimizer.load_state_dict(checkpoints.load_state(found.url)["optimizer"])
    wrapped = nn.parallel.DistributedDataParallel(model) if ranks > 1 else model
    wrapped.train()
    batches = Batches(clips, spec.batch, spec.frames, spec.seed, rank, ranks)
    began, spoke = time.monotonic(), 0.0
    report: dict[str, Any] = {"event": "start", "step": first, "steps": spec.steps, "clips": len(clips)}
    _say(rank, report)
    for step, (video, labels) in enumerate(batches.from_step(first, spec.steps), start=first):
        loss = train_step(wrapped, optimizer, video, labels, step, spec, rank)
        if not math.isfinite(loss):
            raise FloatingPointError(f"loss is {loss} at step {step}; lower the learning rate")
        done, seconds = step + 1, time.monotonic() - began
        if time.monotonic() - spoke > 0.5 or done == spec.steps or done % 50 == 0:
            spoke = time.monotonic()
            pace = (done - first) / seconds
            _say(rank, {"event": "step", "step": done, "loss": loss, "lr": rate(step, spec), "pace": pace})
        if rank == 0 and (done % spec.checkpoint_every == 0 or done == spec.steps):
            state = {"optimizer": optimizer.state_dict()}
            weights = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
            checkpoints.save(spec.root, name, done, weights, state, _about(spec), done == spec.steps)
            checkpoints.prune(spec.root, name)
    seconds = time.monotonic() - began
    _say(rank, {"event": "end", "step": spec.steps, "seconds": seconds, "wait_share": batches.waited / seconds})


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
