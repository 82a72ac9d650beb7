"""What a training may be asked for beside its steps: pieces of a batch, clipping, half precision, averaged weights."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from storage import checkpoints
from storage.errors import InputError
from tasks import train_rank
from tasks.training import ema, parallel, starting, train, train_step
from tasks.training.recipe import recipe
from tasks.training.spec import Placement
from tests.ranks import Noise, spec_on

PLAIN = {"size": "TINY"}


class Plain(nn.Module):
    """A detector without batch norm: what pieces of a batch see does not change."""

    depths = ()

    def __init__(self):
        super().__init__()
        self.layer, self.config = nn.Linear(3, 3), starting.models.build("x3d", num_classes=1, size="TINY").config

    def forward(self, video):
        return {"logits": self.layer(video.mean((3, 4)).transpose(1, 2))}


def stepped(spec, steps=3, model=None):
    """Losses of a plain model's steps, and its weights after them."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = model or Plain()
    optimizer = starting.optimiser(model, spec)
    scaler = train_rank._scaler(spec, torch.device("cpu"))
    losses = []
    for step in range(steps):
        video, labels = video_of(step)
        losses.append(train_step.train_step(model, optimizer, video, labels, step, spec, 0, None, scaler))
    return losses, model.state_dict(), scaler


def video_of(step):
    made = torch.Generator().manual_seed(step)
    return torch.randint(0, 256, (8, 3, 4, 16, 16), generator=made, dtype=torch.uint8), torch.eye(3)[
        torch.randint(0, 3, (8, 4), generator=made)
    ]


@pytest.fixture
def spec(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(train_rank, "samples_of", lambda _: Noise())
    monkeypatch.setattr(train_rank, "_say", lambda rank, report: None)
    return spec_on(tmp_path, options=PLAIN, lr=0.1, steps=6, checkpoint_every=2)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("mode", ["none", "mixup"])
def test_pieces_of_a_batch_are_the_batch(spec, count, mode, monkeypatch):
    """Losses and weights are those of the whole batch, also where clips are mixed with others of it."""
    seen = []
    forward = Plain.forward
    monkeypatch.setattr(Plain, "forward", lambda self, video: seen.append(len(video)) or forward(self, video))
    one, kept, _ = stepped(replace(spec, augmentation=mode))
    assert seen == [8] * 3
    other, weights, _ = stepped(replace(spec, augmentation=mode, accumulate=count))
    assert seen[3:] == [8 // count] * count * 3
    assert other == pytest.approx(one, abs=1e-6) and one[0] != one[2]
    assert all(torch.allclose(kept[name], weights[name], atol=1e-6) for name in kept)


def test_pieces_that_are_not_equal_are_refused(spec):
    with pytest.raises(InputError, match="8 of a rank cannot be taken in 3 equal pieces"):
        stepped(replace(spec, accumulate=3))
    with pytest.raises(InputError, match="--batch 16: 2 ranks cannot share it evenly in 3 pieces each; .* 6"):
        recipe(accumulate=3, ranks=2)
    with pytest.raises(InputError, match="--batch 16: 3 ranks cannot share it evenly; give a multiple of 3"):
        recipe(ranks=3)
    with pytest.raises(InputError, match="--batch 15"):
        train.fit(replace(spec, batch=15), "uneven", placement=Placement(ranks=2))


def test_a_clipped_gradient_is_no_longer_than_it_may_be(spec):
    """The first step of SGD is the rate times the gradient."""
    plain = replace(spec, optimizer="sgd", momentum=0.9, weight_decay=0.0, warmup=0.0)

    def moved(clip):
        torch.manual_seed(0)
        before = {name: tensor.clone() for name, tensor in Plain().state_dict().items()}
        _, after, _ = stepped(replace(plain, clip=clip), 1)
        return torch.cat([(after[name] - before[name]).flatten() for name in before]).norm().item()

    free = moved(0.0)
    limit = free / spec.lr / 4
    assert moved(limit) == pytest.approx(free / 4, rel=1e-3) and moved(100.0) == pytest.approx(free)


def test_fp16_trains_close_to_fp32_and_leaves_out_steps_that_overflow(spec):
    full, _, off = stepped(spec)
    half, kept, scaler = stepped(replace(spec, precision="fp16"))
    assert half != full and half == pytest.approx(full, rel=0.01)
    assert not off.is_enabled() and scaler.get_scale() == 2.0**16
    torch.manual_seed(0)
    before = {name: tensor.clone() for name, tensor in Plain().state_dict().items()}
    huge = replace(spec, precision="fp16")
    optimizer = starting.optimiser(model := Plain(), huge)
    model.load_state_dict(before)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    train_step.train_step(model, optimizer, *video_of(0), 0, huge, 0, None, scaler)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert scaler.get_scale() == 2.0**39


def test_an_average_is_that_of_all_weights_so_far():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = ema.Average(model, 0.9)
    wanted = model[0].weight.detach().clone()
    for step in range(20):
        with torch.no_grad():
            model[0].weight += step
            model[1].running_mean += 1
        average.update(step)
        decay = min(0.9, (2 + step) / (11 + step))
        wanted = decay * wanted + (1 - decay) * model[0].weight.detach()
    kept = average.over(model.state_dict())
    assert torch.allclose(kept["0.weight"], wanted, rtol=1e-5) and kept.keys() == model.state_dict().keys()
    assert 0 < kept["1.running_mean"][0] < 20 and kept["1.num_batches_tracked"] == 0


def dies_at(monkeypatch, step):
    real = train_step.train_step

    def dying(*given):
        if given[4] == step:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(train_rank, "train_step", dying)


@pytest.mark.parametrize("more", [{"ema": 0.8}, {"precision": "fp16", "clip": 1.0, "accumulate": 2}])
def test_an_interrupted_training_has_all_that_an_uninterrupted_one_has(spec, monkeypatch, more):
    """Averages, the scale of losses and moments go on: every number of the last checkpoint is the same."""
    asked = replace(spec, **more)
    train_rank.run(asked, "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        dies_at(patch, 5)
        train_rank.run(asked, "broken")
    assert checkpoints.find(spec.root, "broken").step == 4
    train_rank.run(asked, "broken")
    one, other = (checkpoints.find(spec.root, name) for name in ("whole", "broken"))
    assert one.final and one.digest == other.digest
    assert same(checkpoints.load_state(one.url), checkpoints.load_state(other.url))


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return all(same(a, b) for a, b in zip(one, other, strict=True))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_what_is_kept_and_evaluated_is_the_average(spec):
    asked = replace(spec, ema=0.9)
    train_rank.run(asked, "averaged")
    train_rank.run(spec, "plain")
    averaged, plain = (checkpoints.find(spec.root, name) for name in ("averaged", "plain"))
    kept, last = checkpoints.load_weights(averaged.url), checkpoints.load_state(averaged.url)["weights"]
    raw = checkpoints.load_weights(plain.url)
    assert train.losses(averaged) == train.losses(plain), "it changes nothing of the training"
    assert all(torch.equal(last[name], raw[name]) for name in raw)
    assert not torch.allclose(kept["fc1.weight"], last["fc1.weight"], atol=1e-3)
    again = starting.build(replace(spec, start=averaged.url)).state_dict()
    assert torch.equal(again["fc1.weight"], kept["fc1.weight"])


def test_options_are_part_of_a_runs_name_only_where_they_are_asked_for(spec):
    names = {
        train.run_name(replace(spec, **more), "t") for more in ({}, {"accumulate": 2}, {"clip": 1.0}, {"ema": 0.9})
    }
    assert len(names) == 4
    chosen = recipe(accumulate=2, clip=1.0, ema=0.9, precision="fp16").optimisation("finetune")
    assert (chosen["accumulate"], chosen["clip"], chosen["ema"], chosen["precision"]) == (2, 1.0, 0.9, "fp16")


def test_a_state_of_before_tensors_had_names_is_read(spec):
    model, other = Plain(), Plain()
    first, second = (torch.optim.AdamW(m.parameters(), lr=0.1) for m in (model, other))
    model.layer.weight.grad, model.layer.bias.grad = torch.ones(3, 3), torch.ones(3)
    first.step()
    parallel.restore(other, second, first.state_dict())
    assert torch.equal(second.state[other.layer.bias]["exp_avg"], first.state[model.layer.bias]["exp_avg"])
