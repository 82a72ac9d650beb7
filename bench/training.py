"""A training against the plainest loop on the same windows, and two ranks against two trainings that share nothing.

With the demo's configuration: X3D TINY, 16 windows of 16 frames of 24 pixels a step.
"""

import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as bce

import models
from bench.figures import Figure, against, cpu
from storage import datasets, files
from storage.datasets import Dataset
from storage.media import synthetic
from storage.parts import Part
from tasks import listing, pool, shard, train_rank
from tasks.training import frames, launch
from tasks.training.loader import place, window
from tasks.training.pretrain import classes_of, records
from tasks.training.samples import samples_of
from tasks.training.spec import Placement, Spec
from tasks.training.train_step import rate

STEPS = 100  # as many as a training takes between two checkpoints
LONGER = 150  # of trainings in processes


def run() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as folder:
        spec = _spec(folder)
        samples: Any = samples_of(spec)
        for index in range(len(samples)):
            samples.clip(index)  # both find them decoded
        silent = patch.object(train_rank, "_say", lambda rank, report: None)
        count = iter(range(1000))
        with patch.object(train_rank, "samples_of", lambda _: samples), silent:
            ours, plain = (lambda: train_rank.run(spec, f"bench-{next(count)}")), (lambda: bare(spec, samples))
            ratio, seconds = against(ours, plain, rounds=3)
        note = f"{STEPS} steps, checkpoint included; {1000 * seconds / STEPS:.0f} ms a step"
        yield Figure("training / bare loop of the same steps", ratio, note=note)
        yield from _ranks(replace(spec, steps=LONGER))
        yield from _waiting(replace(spec, steps=LONGER))


def _spec(folder: str) -> Spec:
    """A detection training on rendered weak clips."""
    home = Path(folder)
    synthetic.render_archive(home, 0, 24, 2, run=pool.processes)
    with redirect_stdout(StringIO()):
        data = _prepared(str(home / "root"), home)
    parts = data.select(split="train", labelled="video")
    return Spec(
        root=str(home / "root"), parts=records(parts), classes=classes_of(parts), objective="detection",
        options={"size": "TINY"}, steps=STEPS,
    )  # fmt: skip


def _prepared(root: str, home: Path) -> Dataset:
    recipe = shard.recipe(3.0, 64, "span", "exact")
    root = files.open_root(root)
    planned, listed = listing.plan_archive(
        root, "bench", str(home / "archive"), str(home / "labels.csv"), classes=[], held_out=0.3, recipe=recipe
    )
    found, _ = shard.shard_archive(root, "bench", planned, recipe=recipe, failure_budget=1.0, listed=listed)
    return datasets.freeze(root, "bench", found, {"recipe": recipe})


def bare(spec: Spec, samples: Any) -> float:
    """The same steps as one writes them down, on the same windows: no threads, no reports, no checkpoints."""
    torch.manual_seed(spec.seed)
    model: Any = models.build(spec.system, num_classes=len(spec.classes), **spec.options)
    model = model.to(memory_format=torch.channels_last_3d).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.lr, weight_decay=spec.weight_decay)
    mean_, std = (torch.tensor(of).view(1, 3, 1, 1, 1) for of in (model.config.mean, model.config.std))
    loss = torch.zeros(())
    for step in range(spec.steps):
        positions = range(step * spec.batch, (step + 1) * spec.batch)
        chosen = [samples.clip(place(spec.seed, len(samples), position)) for position in positions]
        rngs = [np.random.default_rng((spec.seed, 7, position)) for position in positions]
        drawn = [window(clip, spec.frames, rng) for clip, rng in zip(chosen, rngs, strict=True)]
        video, labels = (torch.stack(some) for some in zip(*drawn, strict=True))
        seen = ((video.float() / 255 - mean_) / std).contiguous(memory_format=torch.channels_last_3d)
        loss = bce(model(seen)["logits"], labels)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, spec)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return loss.item()


def _ranks(spec: Spec) -> Iterator[Figure]:
    with ThreadPoolExecutor(2) as two:
        alone = list(two.map(lambda number: _ended(spec, f"alone-{number}", 1), range(2)))
    with patch.object(launch, "SIDE_BY_SIDE", 1):  # its two ranks have all the cores
        together = _ended(replace(spec, batch=2 * spec.batch), "together", 2)
    apart = mean(said["step_seconds"] for said in alone)
    note = f"half the cores each; {1000 * together['step_seconds']:.0f} ms a step of twice the batch"
    yield Figure("two ranks / two trainings that share nothing", apart / together["step_seconds"], note=note)


def _waiting(spec: Spec) -> Iterator[Figure]:
    """What two trainings side by side wait for, as `reelmill retrain` runs them: with the column of frames."""
    parts = [Part(**record) for record in spec.parts]
    dataset = Dataset("bench", "", parts, {}, None)
    began = cpu()
    with redirect_stdout(StringIO()):
        frames.keep(spec.root, dataset, parts, spec.fps, spec.size)
    took = cpu() - began
    with ThreadPoolExecutor(2) as two:
        ended = list(two.map(lambda number: _ended(spec, f"kept-{number}", 1), range(2)))
    note = f"over {spec.steps} steps, with the column of frames, which took {took:.1f} s of CPU to write, once for all"
    share = max(said["wait_share"] for said in ended)
    yield Figure("share of a training that does not wait for data", 1 - share, note=note)


def _ended(spec: Spec, name: str, ranks: int) -> dict[str, Any]:
    """The last report of a training in processes of its own."""
    with files.scratch() as folder:
        (folder / "spec.json").write_text(json.dumps(asdict(spec)))
        placement = Placement(ranks=ranks)
        words = launch.command(str(folder / "spec.json"), name, placement)
        with launch.running(words, name, placement) as started:
            return [said for said in started.reports() if said["event"] == "end"][-1]
