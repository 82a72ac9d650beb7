"""A training that is killed goes on where it was: the same losses, and each sample once an epoch for any ranks.

DDP and FSDP around the same model have the same losses, and checkpoints that any number of ranks can read.
"""

import random
from dataclasses import replace

import pytest
import torch
from threadpoolctl import threadpool_info

from storage import checkpoints
from storage.errors import InputError
from tasks import train_rank
from tasks.training import batches, train
from tasks.training.batches import Batches, Shape
from tasks.training.loader import Sample, place
from tasks.training.recipe import recipe
from tasks.training.saving import Saver
from tasks.training.spec import Placement
from tests.ranks import Noise, spec_on
from tests.ranks import ranks as ranks_of

STEPS, EVERY = 12, 3


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """Of a training on nine clips, so that epochs end within steps."""
    torch.set_num_threads(1)
    return spec_on(tmp_path_factory.mktemp("resume"), augmentation="mixup")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    with ranks_of(tmp_path_factory.mktemp("ranks")) as made:
        yield made


def trained(ranks, spec, name, count, *words):
    run = ranks.start(spec, name, count, *words)
    said = run.communicate()
    assert run.returncode == 0, said
    return final(spec, name)


def final(spec, name):
    found = checkpoints.find(spec.root, name)
    assert found.final
    return train.losses(found)


@pytest.fixture(scope="module")
def whole(spec, ranks):
    """The losses and the samples of uninterrupted trainings, by their number of ranks."""
    found = {}
    for count in (1, 2):
        losses = trained(ranks, spec, f"whole-{count}", count)
        assert len(losses) == STEPS and len(set(losses)) == STEPS
        found[count] = losses, ranks.steps()
    return found


def in_order(step):
    """The samples of a step as one rank has them: ranks take every so many-th."""
    shares = [rows for _, rows in sorted(step.items())]
    return [row for rows in zip(*shares, strict=True) for row in rows]


@pytest.mark.parametrize(("before", "after"), [(1, 1), pytest.param(2, 2, marks=pytest.mark.long), (2, 1), (1, 2)])
def test_a_rank_that_is_killed_at_any_step_costs_nothing(spec, ranks, whole, before, after):
    """The loss of every step, and the samples, at the same number of ranks or another."""
    step, rank = random.randrange(EVERY + 1, STEPS), random.randrange(before)
    name = f"killed-{before}-{after}"
    run = ranks.start(spec, name, before, dies={rank: step})
    said = run.communicate()
    assert run.returncode != 0, said
    newest = checkpoints.find(spec.root, name)
    assert newest is not None and newest.step in range(EVERY, step + 1, EVERY)
    taken = {s: rows for s, rows in ranks.steps().items() if s < newest.step}
    losses = trained(ranks, spec, name, after)
    taken |= (later := ranks.steps())
    assert sorted(later) == list(range(newest.step, STEPS)), f"rank {rank} was killed before step {step}"
    assert [in_order(taken[s]) for s in range(STEPS)] == [in_order(whole[1][1][s]) for s in range(STEPS)]
    same = STEPS if before == after else newest.step
    assert losses[:same] == pytest.approx(whole[before][0][:same], abs=1e-6), f"rank {rank}, step {step}"
    assert len(losses) == STEPS and (same == STEPS or losses[same:] != whole[before][0][same:])


def test_two_ranks_take_the_steps_of_one_that_takes_their_shares_in_turn(spec, ranks, whole):
    """Losses are those of all ranks, and gradients their mean: those of one rank that adds up the two halves."""
    plain = replace(spec, augmentation="none", options={"size": "TINY"}, steps=3, checkpoint_every=3)
    losses = trained(ranks, plain, "mean", 2)
    ranks.steps()
    model, halves = train_rank.build(plain).train(), replace(plain, accumulate=2)
    optimizer, alone = train_rank.optimiser(model, plain), []
    for step, batch in enumerate(Batches(Noise(), lambda step: Shape(4, 4, 16, 4 * step), 0).from_step(0, 3)):
        shared = batch._each(lambda rows: rows[[0, 2, 1, 3]])
        given = shared.seen, shared.labels, step, halves, 0, shared
        alone.append(train_rank.train_step(model, optimizer, *given))
    assert losses == pytest.approx(alone, abs=1e-5) and len(set(losses)) == 3


class Numbers:
    """Samples that are their own number."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def draw(self, index, length, rng):
        return Sample(torch.full((1, 1), float(index)), torch.zeros(1, 1), torch.zeros(1))

    def key(self, index):
        return f"clip {index}"


@pytest.mark.parametrize("count", [1, 7, 31])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (3, 4), (4, 1), (6, 2), (12, 12)])
def test_another_number_of_ranks_repeats_and_skips_nothing(count, before, after):
    """Whatever the number of clips: of 4 ranks there may be more than clips, and epochs end within steps."""
    shape = lambda step: Shape(12, 1, 1, 12 * step)  # noqa: E731
    for change in (3, 8):
        drawn = []
        for first, last, ranks in ((0, change, before), (change, 9, after)):
            shares = [
                list(Batches(Numbers(count), shape, 5, rank, ranks).from_step(first, last)) for rank in range(ranks)
            ]
            assert {len(share) for share in shares} == {last - first}, "every rank takes as many steps"
            for step in zip(*shares, strict=True):
                rows = [batch.seen[:, 0, 0].int().tolist() for batch in step]
                drawn += [number for some in zip(*rows, strict=True) for number in some]
        assert drawn == [place(5, count, position) for position in range(9 * 12)]
        for epoch in range(len(drawn) // count):
            assert sorted(drawn[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_a_batch_that_ranks_cannot_share_is_refused():
    with pytest.raises(InputError, match="--batch 16: 3 ranks cannot share it evenly; give a multiple of 3"):
        Batches(Numbers(9), lambda step: Shape(16, 1, 1, 16 * step), 0, 0, 3)


def test_the_clips_of_a_step_are_known_without_drawing_them():
    made = Batches(Numbers(7), lambda step: Shape(4, 1, 1, 4 * step), 3, 1, 2)
    (batch,) = made.from_step(2, 3)
    assert made.keys(2)[1::2] == [f"clip {int(number)}" for number in batch.seen.flatten()]


@pytest.fixture(scope="module")
def careful(tmp_path_factory):
    """With all that a step may do: pieces, clipping, an average."""
    torch.set_num_threads(1)
    return spec_on(tmp_path_factory.mktemp("sharding"), steps=6, checkpoint_every=3, accumulate=2, clip=0.5, ema=0.9)


@pytest.fixture(scope="module")
def both(ranks, careful):
    trained(ranks, careful, "ddp", 2)
    trained(ranks, careful, "fsdp", 2, "--sharding", "fsdp")
    return [checkpoints.find(careful.root, name) for name in ("ddp", "fsdp")]


@pytest.mark.long
def test_a_sharded_training_has_the_losses_of_copies(both):
    copies, shards = both
    assert train.losses(shards) == pytest.approx(train.losses(copies), abs=1e-5)
    assert len(set(train.losses(copies))) == 6


@pytest.mark.long
def test_both_keep_the_same_tensors(both):
    """By the names of the bare model, whole."""
    copies, shards = (checkpoints.load_weights(one.url) for one in both)
    assert copies.keys() == shards.keys() and all(copies[n].shape == shards[n].shape for n in copies)
    assert all(torch.allclose(copies[n].float(), shards[n].float(), atol=1e-4) for n in copies)
    copies, shards = (checkpoints.load_state(one.url)["optimizer"]["state"] for one in both)
    assert copies.keys() == shards.keys() and "conv1.spatial.weight" in copies
    moments = "conv1.spatial.weight", "exp_avg"
    assert copies[moments[0]][moments[1]].shape == shards[moments[0]][moments[1]].shape


@pytest.mark.long
def test_a_sharded_checkpoint_goes_on_in_one_rank_and_the_other_way_round(ranks, careful, monkeypatch):
    """Half of a training on one side, the rest on the other."""
    monkeypatch.setattr(train_rank, "samples_of", lambda _: Noise())
    monkeypatch.setattr(train_rank, "_say", lambda rank, report: None)
    half = replace(careful, steps=3)
    train_rank.run(half, "there")
    trained(ranks, half, "back", 2, "--sharding", "fsdp")
    kept = checkpoints.load_state(checkpoints.find(careful.root, "back").url)
    train_rank.run(careful, "back")
    trained(ranks, careful, "there", 2, "--sharding", "fsdp")
    for one in (checkpoints.find(careful.root, name) for name in ("there", "back")):
        state = checkpoints.load_state(one.url)
        assert one.step == 6 and len(state["losses"]) == 6 and state["losses"].isfinite().all()
        assert {float(of["step"]) for of in state["optimizer"]["state"].values()} == {6.0}, "none began anew"
    assert kept["losses"].tolist() == train.losses(one)[:3]


@pytest.mark.parametrize(("given", "told"), [({"multigrid": True, "ranks": 2}, "multigrid"), ({}, "--ranks 2 or more")])
def test_sharding_that_cannot_be_is_refused_before_anything_is_read(given, told, tmp_path, monkeypatch):
    """By whoever is asked first: the command line, a training of an ablation, or a rank that was started by hand."""
    monkeypatch.setattr(train_rank, "samples_of", lambda _: pytest.fail("read"))
    monkeypatch.setattr(train.launch, "command", lambda *_: pytest.fail("started"))
    spec, ranks = spec_on(tmp_path, multigrid="multigrid" in given), given.get("ranks", 1)
    with pytest.raises(InputError, match=told):
        recipe(sharding="fsdp", **given)
    with pytest.raises(InputError, match=told):
        train.fit(spec, "sharded", placement=Placement(ranks=ranks, sharding="fsdp"))
    with pytest.raises(InputError, match=told):
        train_rank.run(spec, "sharded", 0, ranks, "fsdp")
    assert recipe(sharding="fsdp", ranks=2).placement == Placement(ranks=2, sharding="fsdp")


def test_what_computes_beside_a_training_uses_one_core_and_leaves_it_its_own(monkeypatch, tmp_path):
    """More of OpenMP's threads than cores, and those of the training sleep at every layer."""
    seen: dict[str, set[int]] = {}

    def watched(name, function):
        def call(*given):
            mine = [one["num_threads"] for one in threadpool_info() if one["user_api"] == "openmp"]
            seen.setdefault(name, set()).update(mine)
            return function(*given)

        return call

    monkeypatch.setattr(Numbers, "draw", watched("draw", Numbers.draw))
    monkeypatch.setattr(batches, "collate", watched("collate", batches.collate))
    monkeypatch.setattr(checkpoints, "save", watched("save", lambda *given: None))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert len(list(Batches(Numbers(7), lambda step: Shape(4, 1, 1, 4 * step), 5).from_step(0, 3))) == 3
        with Saver(str(tmp_path), "run", {}) as saver:
            saver.save(1, {}, {}, True)
        assert seen == {"draw": {1}, "collate": {1}, "save": {1}} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
