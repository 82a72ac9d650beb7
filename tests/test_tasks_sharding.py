"""FSDP and DDP around the same model: the same losses, and checkpoints that any number of ranks can read."""

from dataclasses import replace

import pytest
import torch

from storage import checkpoints
from storage.errors import InputError
from tasks import train, train_rank
from tasks.recipe import recipe
from tasks.spec import Placement
from tests.ranks import Noise, spec_on
from tests.ranks import ranks as ranks_of


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    with ranks_of(tmp_path_factory.mktemp("ranks")) as made:
        yield made


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """With all that a step may do: pieces, clipping, an average."""
    torch.set_num_threads(1)
    return spec_on(tmp_path_factory.mktemp("sharding"), steps=6, checkpoint_every=3, accumulate=2, clip=0.5, ema=0.9)


def trained(ranks, spec, name, *words):
    run = ranks.start(spec, name, 2, *words)
    said = run.communicate()
    assert run.returncode == 0, said
    return checkpoints.find(spec.root, name)


@pytest.fixture(scope="module")
def both(ranks, spec):
    return trained(ranks, spec, "ddp"), trained(ranks, spec, "fsdp", "--sharding", "fsdp")


def test_a_sharded_training_has_the_losses_of_copies(both):
    copies, shards = both
    assert train.losses(shards) == pytest.approx(train.losses(copies), abs=1e-5)
    assert len(set(train.losses(copies))) == 6


def test_both_keep_the_same_tensors(both):
    """By the names of the bare model, whole."""
    copies, shards = (checkpoints.load_weights(one.url) for one in both)
    assert copies.keys() == shards.keys() and all(copies[n].shape == shards[n].shape for n in copies)
    assert all(torch.allclose(copies[n].float(), shards[n].float(), atol=1e-4) for n in copies)
    copies, shards = (checkpoints.load_state(one.url)["optimizer"]["state"] for one in both)
    assert copies.keys() == shards.keys() and "conv1.spatial.weight" in copies
    moments = "conv1.spatial.weight", "exp_avg"
    assert copies[moments[0]][moments[1]].shape == shards[moments[0]][moments[1]].shape


def test_a_sharded_checkpoint_goes_on_in_one_rank_and_the_other_way_round(ranks, spec, monkeypatch):
    """Half of a training on one side, the rest on the other."""
    monkeypatch.setattr(train_rank, "samples_of", lambda _: Noise())
    monkeypatch.setattr(train_rank, "_say", lambda rank, report: None)
    half = replace(spec, steps=3)
    train_rank.run(half, "there")
    trained(ranks, half, "back", "--sharding", "fsdp")
    kept = checkpoints.load_state(checkpoints.find(spec.root, "back").url)
    train_rank.run(spec, "back")
    for one in (trained(ranks, spec, "there", "--sharding", "fsdp"), checkpoints.find(spec.root, "back")):
        state = checkpoints.load_state(one.url)
        assert one.step == 6 and len(state["losses"]) == 6 and state["losses"].isfinite().all()
        assert {float(of["step"]) for of in state["optimizer"]["state"].values()} == {6.0}, "none began anew"
    assert kept["losses"].tolist() == train.losses(one)[:3]


@pytest.mark.parametrize(("given", "told"), [({"multigrid": True, "ranks": 2}, "multigrid"), ({}, "--ranks 2 or more")])
def test_sharding_that_cannot_be_is_refused_before_anything_is_trained(given, told):
    with pytest.raises(InputError, match=told):
        recipe(sharding="fsdp", **given)
    assert recipe(sharding="fsdp", ranks=2).placement == Placement(ranks=2, sharding="fsdp")
