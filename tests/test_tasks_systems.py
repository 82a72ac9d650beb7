"""Every system from committed parts to a measured checkpoint: it learns, it resumes, it says what it lacks."""

import statistics
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import models
from models.ensemble import mean_logit
from storage import checkpoints, columns, files, parts
from storage.errors import InputError
from tasks import (
    backbone, checks, ensemble, evaluate, finetune, footprint, label, loader, predict, pretrain, samples, scorer,
    train_rank, two_stages, videos,
)  # fmt: skip
from tasks.recipe import recipe
from tasks.train import run_name
from tests import lamps
from tests.preparing import prepare

CHEAP = {"pretrain_steps": 10, "whole": 48, "batch": 6, "pretrain_batch": 6, "pixels": 16}
STEPS = {"x3d": 20, "coarse_fine": 8, "fine_fine": 8, "slowfast_det": 12, "super_events": 25, "tgm": 25, "pdan": 25}


@pytest.fixture(scope="module")
def lit(tmp_path_factory):
    """A prepared root of coloured lamps, and the trainings so far by name: finished ones are found again."""
    folder = tmp_path_factory.mktemp("lamps")
    lamps.render(folder)
    root = str(folder / "root")
    dataset, _ = prepare(root, str(folder / "archive"), str(folder / "labels.csv"))
    label.label_dataset(root, dataset)
    torch.set_num_threads(1)  # more of them wait for each other on a busy machine
    return SimpleNamespace(root=root, dataset=dataset)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Trains in this process, and follows no run; returns the losses by the run's title."""
    losses: dict[str, list[float]] = {}
    train_step = train_rank.train_step
    monkeypatch.setattr(train_rank, "_say", lambda rank, report: None)

    def fit(spec, title):
        name, losses[title] = run_name(spec, title), []

        def step(*given):
            losses[title].append(train_step(*given))
            return losses[title][-1]

        monkeypatch.setattr(train_rank, "train_step", step)
        found = checkpoints.find(spec.root, name)
        if not (found and found.final):
            train_rank.run(spec, name)
        return checkpoints.find(spec.root, name)

    def tracked(root, spec, title, dataset, recipe, parent, **tags):
        return {"checkpoint": fit(spec, title), "run": "", "curve": [], "seconds": 0.0, "tags": tags}

    monkeypatch.setattr(pretrain, "tracked_fit", tracked)
    monkeypatch.setattr(finetune, "tracked_fit", tracked)
    monkeypatch.setattr(two_stages, "tracked_fit", tracked)
    return losses


def tuned(lit, system, **given):
    """The fine-tuned checkpoint of a system, pretrained where it can be."""
    chosen = recipe(system=system, finetune_steps=STEPS[system], **{**CHEAP, **given})
    first = None
    if chosen.inputs != "features":
        first = pretrain.pretrain.fn(lit.root, lit.dataset, "detection", chosen, "")
    return finetune.finetune.fn(lit.root, lit.dataset, first, "detection", chosen, "")["checkpoint"]


def untrained(lit, checkpoint):
    spec = replace(train_rank.Spec(**checkpoint.about["spec"]), start=None, starts={}, seed=7)
    weights = train_rank.build(spec).state_dict()
    return checkpoints.save(lit.root, f"untrained-{spec.system}", 1, weights, {}, train_rank._about(spec), True)


def held_out_map(lit, checkpoint):
    return evaluate.evaluate_checkpoint(lit.root, lit.dataset, checkpoint, "held out").metrics["every_frame_map"]


@pytest.fixture(scope="module")
def column(lit):
    """The features of the X3D that the first test trains."""
    return {}


def features_of(lit, column):
    if not column:
        column["version"] = backbone.extract_dataset(lit.root, lit.dataset, tuned(lit, "x3d"))
    return column["version"]


@pytest.mark.parametrize("system", list(STEPS))
def test_a_system_learns(lit, here, column, system):
    more = {"features": features_of(lit, column)} if models.inputs(system) == "features" else {}
    checkpoint = tuned(lit, system, **more)
    losses = here["finetune-detection"]
    if losses:  # none where the features' own training was this one
        first = here.get("coarse-detection", losses)[0]
        assert statistics.mean(losses[-3:]) < 0.75 * first
    assert held_out_map(lit, checkpoint) > held_out_map(lit, untrained(lit, checkpoint)) + 0.2
