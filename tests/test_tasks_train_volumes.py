"""What a training's spec says of volume augmentation reaches its steps."""

from dataclasses import asdict, replace

import pytest
from test_tasks_train import steps_of

from storage import files
from tasks.training import train_step
from tasks.training.spec import Spec
from tasks.training.train import run_name

SPEC = Spec(root="", parts=[], classes=["a", "b", "c"], objective="detection", options={"size": "TINY"}, lr=0.003)

FIRST = (  # the fields of the first runs, whose names stay
    "parts", "classes", "objective", "system", "options", "labels", "augmentation", "start", "fps", "frames", "size",
    "batch", "steps", "optimizer", "lr", "weight_decay", "warmup", "seed", "checkpoint_every",
)  # fmt: skip


def losses(augmentation, **volumes):
    return steps_of(replace(SPEC, augmentation=augmentation, volumes=volumes), 0, 4)


def test_manifold_mixing_trains_and_follows_from_seed_and_step():
    first, again = losses("manifold"), losses("manifold")
    assert first == again and len(set(first)) == 4
    assert first != pytest.approx(losses("none"), abs=1e-4) and first != pytest.approx(losses("mixup"), abs=1e-4)


def test_what_is_drawn_is_done_inside_the_network(monkeypatch):
    """With the labels left alone and the maps of every depth put out, the first loss is another one."""
    monkeypatch.setattr(train_step, "manifold", lambda labels, *_: (labels, lambda depth, maps: maps * 0))
    assert abs(losses("manifold")[0] - losses("none")[0]) > 1e-3
    monkeypatch.setattr(train_step, "manifold", lambda labels, *_: (labels, lambda depth, maps: maps))
    assert losses("manifold") == pytest.approx(losses("none"), abs=1e-5)


@pytest.mark.parametrize(
    ("mode", "volumes"),
    [("freeze", {"segments": 2}), ("mixup", {"seamless": False}), ("cutmix", {"window": "constant"})],
)
def test_options_of_an_augmentation_change_what_is_trained_on(mode, volumes):
    assert losses(mode, **volumes) != pytest.approx(losses(mode), abs=1e-4)


def test_a_system_without_depths_says_so():
    spec = replace(SPEC, system="ensemble", options={"members": [["x3d", {"size": "TINY"}]]}, augmentation="manifold")
    with pytest.raises(ValueError, match="names its depths"):
        steps_of(spec, 0, 1)


def test_options_are_part_of_a_runs_name_only_where_there_are_any():
    before = {key: value for key, value in asdict(SPEC).items() if key in FIRST}
    assert run_name(SPEC, "t") == f"t-{files.digest_of(before)[:12]}"
    assert run_name(replace(SPEC, volumes={"segments": 2}), "t") != run_name(SPEC, "t")
