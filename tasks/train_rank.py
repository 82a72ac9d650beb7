"""What one rank of a training runs: ``torchrun -m tasks.train_rank --spec FILE``. Knows neither Prefect nor MLflow.

The first rank of each node prints one JSON line per report; the launcher (tasks/training/train.py) shows and logs them.
"""

import argparse
import faulthandler
import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict
from functools import partial
from typing import Any, get_args

import torch
from torch.distributed.elastic.multiprocessing.errors import record

from models.sub_batch_norm import split_norms
from storage import checkpoints, files, timing
from storage.checkpoints import Checkpoint
from storage.errors import InputError, StoreError
from storage.media.decoder import die_with
from tasks.training import multigrid, parallel
from tasks.training.batches import Batches, Shape
from tasks.training.divergence import Diverged, diverged, exploded
from tasks.training.ema import Average
from tasks.training.samples import samples_of
from tasks.training.saving import Saver
from tasks.training.spec import Placement, Sharding, Spec
from tasks.training.starting import build, optimiser
from tasks.training.train_step import train_step

EVERY = 0.5  # seconds between reports, at least


class Training:
    """A model on its way from one step to the next."""

    def __init__(self, spec: Spec, name: str, rank: int, ranks: int, sharding: Sharding = "none") -> None:
        Placement(ranks=ranks, sharding=sharding).check(spec.batch, spec.accumulate, spec.multigrid)
        self.spec, self.rank = spec, rank
        self.losses: list[float] = []
        found = _newest(spec.root, name, rank)
        self.first = self.step = found.step if found else 0
        shape = multigrid.shapes(spec) if spec.multigrid else partial(_plain, spec)
        self.batches = Batches(samples_of(spec), shape, spec.seed, rank, ranks)
        self.coming = self.batches.from_step(self.first, spec.steps)  # which are made while the model is
        where = parallel.device(int(os.environ.get("LOCAL_RANK", "0")))
        self.model = build(spec).to(where)
        state = self._weights(found) if found else {}
        self.called = parallel.spread(self.model, spec, ranks, sharding)
        self.optimizer = optimiser(self.model, spec)
        self.scaler = _scaler(spec, where)
        self.average = Average(self.model, spec.ema, not spec.norm_group) if spec.ema else None
        if found:
            self._state(found, state)
        self.called.train()

    def _weights(self, found: Checkpoint) -> dict[str, Any]:
        """Takes the weights of a checkpoint, before they are sharded; returns the rest of it."""
        state = checkpoints.load_state(found.url)
        kept = checkpoints.load_weights(found.url, self.model.state_dict())
        weights = state.get("weights", kept)
        self.model.load_state_dict(checkpoints.fitting(weights, found.url, checkpoints.STATE, kept))
        return state | {"kept": kept}

    def _state(self, found: Checkpoint, state: dict[str, Any]) -> None:
        parallel.restore(self.model, self.optimizer, state["optimizer"])
        self.losses = state["losses"].tolist() if "losses" in state else [float("nan")] * found.step
        self.scaler.load_state_dict(state.get("scaler", {}))
        if self.average:
            self.average.load(state["kept"])

    def advance(self, batch: Any) -> float:
        """Takes a step; returns the mean loss of all ranks."""
        loss = train_step(
            self.called, self.optimizer, batch.seen, batch.labels, self.step, self.spec, self.rank, batch, self.scaler
        )
        if self.average:
            self.average.update(self.step)
        self.step += 1
        self.losses.append(parallel.mean(loss))
        return self.losses[-1]

    def save(self, saver: Saver) -> None:
        """Hands a checkpoint to be written; all ranks call this, the first one writes."""
        if self.spec.norm_group:
            split_norms(self.model, 1)  # also where nothing is saved, so that a run that goes on is the same one
        weights, optimizer = parallel.gathered(self.model, self.optimizer)
        kept = self.average.over(weights) if self.average else weights
        if self.rank:
            return
        if not all(t.isfinite().all() for t in [*weights.values(), *kept.values()] if t.is_floating_point()):
            raise diverged("weights that are not finite", self.step, saver.committed, self.batches)
        state = {"optimizer": optimizer, "losses": torch.tensor(self.losses, dtype=torch.float64)}
        if self.average:
            state["weights"] = weights
        if self.scaler.is_enabled():
            state["scaler"] = self.scaler.state_dict()
        saver.save(self.step, kept, state, self.step == self.spec.steps)


def run(spec: Spec, name: str, rank: int = 0, ranks: int = 1, sharding: Sharding = "none") -> None:
    """Trains to the end, from the newest checkpoint of the run if there is one."""
    training = Training(spec, name, rank, ranks, sharding)
    speaker = int(os.environ.get("LOCAL_RANK", rank))
    first, steps = training.first, spec.steps
    began, spoke, told = time.monotonic(), 0.0, first
    clips = len(training.batches.samples)
    _say(speaker, {"event": "start", "step": first, "steps": steps, "clips": clips, "losses": training.losses})
    with timing.collected() as into, Saver(spec.root, name, _about(spec)) as saver:
        saver.committed = first
        for batch in training.coming:
            with timing.during("model"):
                loss = training.advance(batch)
            done, now = training.step, time.monotonic()
            if exploded(training.losses):
                raise diverged(f"loss is {loss:.6g}", done, saver.committed, training.batches)
            if now - spoke > EVERY or done == steps or done % 50 == 0:
                spoke = now
                pace = (done - first) / (now - began)
                lr = training.optimizer.param_groups[0]["lr"]
                report = {"losses": training.losses[told:], "loss": loss, "lr": lr, "pace": pace}
                _say(speaker, {"event": "step", "step": done} | report)
                told = done
            if done % spec.checkpoint_every == 0 or done == steps:
                with timing.during("write"):
                    training.save(saver)
            saver.check()
    seconds = time.monotonic() - began
    report = {"event": "end", "step": steps, "seconds": seconds, "wait_share": training.batches.waited / seconds}
    report["into"] = {**into, "wait": training.batches.waited}  # the last: for data
    _say(speaker, report | ({"step_seconds": seconds / (steps - first)} if steps > first else {}))


def _newest(root: str, name: str, rank: int) -> Checkpoint | None:
    """The checkpoint to go on from: the one that the first rank has found, whatever is committed meanwhile."""
    found = checkpoints.find(root, name) if rank == 0 else None
    step = parallel.agreed(found.step if found else 0)
    return checkpoints.describe(checkpoints.place(root, name, step)) if step else None


def _about(spec: Spec) -> dict[str, Any]:
    plain = asdict(spec)
    return {"system": spec.system, "options": spec.options, "classes": spec.classes, "spec": plain}


def _plain(spec: Spec, step: int) -> Shape:
    return Shape(spec.batch, spec.frames, spec.size, step * spec.batch)


def _scaler(spec: Spec, where: torch.device) -> torch.amp.GradScaler:
    """What keeps small gradients of fp16 from becoming zero; it does nothing at another precision."""
    return torch.amp.GradScaler(where.type, enabled=spec.precision == "fp16")


def _say(rank: int, report: dict[str, Any]) -> None:
    if rank == 0:
        print(json.dumps(report), flush=True)


def _end_with(launcher: int | None) -> None:
    """Ends this process when torchrun's agent or the launcher is gone: nobody would read what it trains on."""

    def watch(launcher: int) -> None:
        while True:
            time.sleep(1)
            try:
                os.kill(launcher, 0)
            except ProcessLookupError:
                os.kill(os.getpid(), signal.SIGKILL)

    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with(os.getppid())
    if launcher:
        threading.Thread(target=watch, args=[launcher], daemon=True).start()


@record  # so that torchrun repeats the traceback at the end of the log, where people look
def main() -> None:
    """Reads the spec, joins the other ranks and trains."""
    parser = argparse.ArgumentParser(description="one rank of a training; started by torchrun")
    parser.add_argument("--spec", required=True, help="JSON file of the training's Spec, or its URL")
    parser.add_argument("--name", required=True, help="name of the run, under checkpoints/")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on from the newest checkpoint of this run, as is the default; --no-resume trains anew",
    )
    parser.add_argument("--sharding", choices=get_args(Sharding), default="none", help="fsdp: over all ranks")
    parser.add_argument("--patience", type=float, default=Placement.patience, help="seconds to wait for another rank")
    parser.add_argument("--parent", type=int, help="process to end with")
    arguments = parser.parse_args()
    faulthandler.register(signal.SIGUSR1)  # the launcher asks so where a rank hangs
    _end_with(arguments.parent)
    spec = Spec(**files.read_json(files.absolute(arguments.spec)))
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    where = parallel.device(int(os.environ.get("LOCAL_RANK", "0")))
    with parallel.joined(ranks, where, arguments.patience):
        if rank == 0 and not arguments.resume:
            checkpoints.prune(spec.root, arguments.name, keep=0)
        try:
            run(spec, arguments.name, rank, ranks, arguments.sharding)
        except (Diverged, InputError, StoreError) as error:
            _say(rank, {"event": "failed", "message": str(error), "clips": getattr(error, "clips", {})})
            raise


if __name__ == "__main__":
    sys.exit(main())
