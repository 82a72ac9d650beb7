"""Checkpoints joined into one: the mean of their probabilities, all the way through evaluation, gate and inference."""

from dataclasses import replace

import pytest
import torch
from test_tasks_prepare import prepare

from models.gate import Rules
from storage import checkpoints, columns
from storage.errors import InputError
from tasks import ensemble, evaluate, gate, predict, scorer, tracking, train_rank
from tasks.train_rank import Spec
from tasks.training import finetune
from tasks.training.pretrain import classes_of


@pytest.fixture(scope="module")
def ready(archive, tmp_path_factory):
    """A prepared root, and three checkpoints on random weights."""
    root = str(tmp_path_factory.mktemp("joined"))
    dataset, _ = prepare(root, str(archive / "archive"), str(archive / "labels.csv"))
    classes = classes_of(dataset.select(split="train", labelled="segments"))
    spec = Spec(root=root, parts=[], classes=classes, objective="dense", options={"size": "TINY"}, size=24)
    return root, dataset, [save(root, replace(spec, seed=seed)) for seed in range(3)]


def save(root, spec, name=""):
    weights = train_rank.build(spec).state_dict()
    return checkpoints.save(root, f"r{spec.seed}{name}", 1, weights, {}, train_rank._about(spec), True)


def test_an_ensemble_is_the_mean_of_its_members(ready):
    root, _, members = ready
    joined = ensemble.join(root, members)
    video = torch.randn(1, 3, 8, 24, 24)
    with torch.no_grad():
        single = torch.stack([scorer.load(member.url)(video)["logits"].sigmoid() for member in members])
        together = scorer.load(joined.url)(video)["logits"].sigmoid()
    torch.testing.assert_close(together, single.mean(0))
    assert joined.about["classes"] == members[0].about["classes"] and joined.final


def test_the_order_of_the_members_does_not_matter_and_it_is_written_once(ready):
    root, _, members = ready
    joined = ensemble.join(root, members)
    assert ensemble.join(root, members[::-1] + members[:1]) == joined
    assert ensemble.join(root, members[:2]).url != joined.url


def test_it_is_evaluated_judged_and_infers_as_any_other(ready):
    root, dataset, members = ready
    parent = tracking.start(root, "retrain", {}, {})
    tuned = ensemble.ensemble.fn(root, dataset, [{"checkpoint": member} for member in members], "three", parent)
    tracking.tag(root, tuned["run"], {"model_uri": "runs:/logged/model"})  # exporting has a test of its own
    candidate = finetune.evaluate.fn(root, dataset, tuned, "three")
    assert 0 <= candidate["evaluation"].metrics["every_frame_map"] <= 1
    decision = gate.gate.fn(root, dataset, "detector", candidate, "three", Rules(), 0)
    assert decision["decision"] == "promoted"
    done = predict.predict.fn(root, dataset.name, "detector", [])
    assert done["version"] == predict.version(tuned["checkpoint"]) and done["clips"] == dataset.clips
    assert all(columns.has(root, "predictions", done["version"], part.id) for part in dataset.parts)
    alone = evaluate.evaluate_checkpoint(root, dataset, members[0], "alone")
    assert gate.judge(root, dataset, "detector", alone, "alone", Rules(), seed=0)["champion_version"] == 1


def test_what_cannot_be_joined_is_refused(ready):
    root, _, members = ready
    spec = Spec(**members[0].about["spec"])
    with pytest.raises(InputError, match="two models or more, got 1"):
        ensemble.join(root, [members[0], members[0]])
    with pytest.raises(InputError, match="know other classes"):
        ensemble.join(root, [members[0], save(root, replace(spec, classes=["a"]), "k")])
    with pytest.raises(InputError, match="'frames': 16.*'frames': 8.*train them alike"):
        ensemble.join(root, [members[0], save(root, replace(spec, frames=8, seed=9), "f")])
