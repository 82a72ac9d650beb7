"""A training that goes wrong stops at once, says since when and on which clips, and leaves no such weights behind."""

import math
from dataclasses import replace

import pytest
import torch

from storage import checkpoints
from tasks import train_rank
from tasks.training.divergence import Diverged, exploded
from tasks.training.loader import place
from tests.ranks import Noise, spec_on


@pytest.fixture
def spec(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(train_rank, "_say", lambda rank, report: None)
    monkeypatch.setattr(train_rank, "samples_of", lambda _: Noise())
    return spec_on(tmp_path, checkpoint_every=1, steps=6)


def test_a_clip_with_labels_that_are_no_numbers_is_named(spec, monkeypatch):
    bad = f"clip {place(spec.seed, 9, 8)}"  # the first one of the third step
    monkeypatch.setattr(train_rank, "samples_of", lambda _: Noise(bad))
    with pytest.raises(Diverged, match="loss is nan at step 3: it went wrong in steps [123] to 3") as caught:
        train_rank.run(spec, "poisoned")
    clips = caught.value.clips
    assert list(clips) == [1, 2, 3] and clips[3][0] == bad and bad not in clips[1] + clips[2]
    assert all(len(keys) == spec.batch for keys in clips.values()) and f"step 3: {bad}," in str(caught.value)
    found = checkpoints.find(spec.root, "poisoned")
    assert found.step == 2 and checkpoints.load_weights(found.url)


def test_the_range_begins_after_the_newest_checkpoint(spec, monkeypatch):
    monkeypatch.setattr(train_rank, "samples_of", lambda _: Noise(f"clip {place(spec.seed, 9, 8)}"))
    train_rank.run(replace(spec, steps=2), "on")
    with pytest.raises(Diverged, match="the checkpoint of step 2 is the last good one") as caught:
        train_rank.run(spec, "on")
    assert caught.value.steps == (3, 3)
    with pytest.raises(Diverged, match="there is no checkpoint before it") as caught:
        train_rank.run(replace(spec, checkpoint_every=100), "none")
    assert caught.value.steps == (1, 3)


def test_a_rate_that_is_too_high_is_noticed_before_numbers_end(spec):
    with pytest.raises(Diverged, match="Lower the learning rate") as caught:
        train_rank.run(replace(spec, optimizer="sgd", lr=1e7, warmup=0.0, steps=12), "hot")
    assert caught.value.steps[1] < 12
    assert checkpoints.find(spec.root, "hot") is None or checkpoints.load_weights(
        checkpoints.find(spec.root, "hot").url
    )


def test_weights_that_are_not_finite_are_never_the_newest(spec, monkeypatch):
    """The loss of a step is of the weights before it: they may be gone with a loss that is fine."""
    real = train_rank.train_step

    def breaking(*given):
        loss = real(*given)
        if given[4] == 3:
            with torch.no_grad():
                next(given[0].parameters())[0] = math.inf
        return loss

    monkeypatch.setattr(train_rank, "train_step", breaking)
    with pytest.raises(Diverged, match="weights that are not finite at step 4"):
        train_rank.run(spec, "infinite")
    found = checkpoints.find(spec.root, "infinite")
    assert found.step == 3 and checkpoints.load_weights(found.url)


@pytest.mark.parametrize(
    ("losses", "wrong"),
    [
        ([math.nan], True),
        ([0.7, math.inf], True),
        ([0.7, 0.6, 99.0], False),
        ([0.7, 0.6, 101.0], True),
        ([0.001] * 60 + [0.9], False),  # a hundred times the last ones, and still small
        ([9.0] + [0.5] * 60 + [500.0], False),
        ([9.0] + [0.5] * 60 + [901.0], True),
        ([math.nan] * 4 + [2.0], False),  # steps of a run that did not keep its losses
    ],
)
def test_a_loss_out_of_all_proportion_is_known(losses, wrong):
    assert exploded(losses) is wrong
