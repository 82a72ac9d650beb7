"""What a step costs and how fast it learns: schedules, multigrid, precision, and which clips a step takes."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_tasks_train import steps_of

from models.losses import at_places
from storage.errors import InputError
from tasks import train_rank
from tasks.train_rank import Spec
from tasks.training import batches, multigrid, parallel, train_step, two_stages
from tasks.training.loader import Sample
from tasks.training.recipe import Recipe, candidates_of, recipe

SPEC = Spec(root="", parts=[], classes=["a", "b", "c"], objective="detection", options={"size": "TINY"}, lr=0.003)


def test_the_short_schedule_is_the_default():
    assert recipe() == Recipe() and recipe("short", batch=None) == Recipe()
    assert recipe(batch=4).optimisation("pretrain")["batch"] == 4


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"size": "PAPER"}, "--system x3d --size PAPER"),
        ({"system": "tgm", "size": "M"}, "--system tgm --size M"),
        ({"multigrid": True, "segments": 2}, "--frames 16: too few"),
        ({"multigrid": True, "frames": 4}, "--frames 4: too few"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is(given, told):
    with pytest.raises(InputError, match=told):
        recipe(**given)


@pytest.mark.parametrize("modes", [["freeze"], ["freeze", "freeze"]])
def test_an_ensemble_of_one_is_refused_before_anything_is_trained(modes):
    with pytest.raises(InputError, match="two augmentations or more"):
        candidates_of(recipe(), ["detection"], modes)
    assert candidates_of(recipe(), ["detection"], ["freeze", "mixup"]) == ["detection"]


def test_the_thesis_schedule_falls_by_ten_at_its_milestones():
    chosen = recipe("thesis")
    first, then = chosen.optimisation("pretrain"), chosen.optimisation("finetune")
    assert (first["steps"], first["batch"], first["lr"], first["optimizer"]) == (100_000, 64, 0.05, "sgd")
    assert (then["batch"], then["lr"], then["weight_decay"], then["momentum"]) == (16, 0.02, 1e-5, 0.9)
    spec = replace(SPEC, **first)
    rates = [train_step.rate(step, spec) for step in (0, 79_999, 80_000, 99_999)]
    assert rates == pytest.approx([0.05, 0.05, 0.005, 0.005])
    spec = replace(SPEC, **(then | {"steps": 100}))
    assert [train_step.rate(s, spec) for s in (0, 59, 60, 79, 80, 99)] == pytest.approx(
        [0.02, 0.02, 0.002, 0.002, 0.0002, 0.0002]
    )
    assert recipe("thesis", finetune_lr=0.5, finetune_steps=7).optimisation("finetune")["lr"] == 0.5


def test_the_second_stage_of_two_streams_learns_slower_and_its_fusion_faster_than_the_rest():
    """At the rate of a stream alone what the streams know is lost in steps as few as those of the short schedule."""
    stage = {name: SimpleNamespace(url=f"/{name}") for name in ("coarse", "fine")}
    for schedule, share in (("short", 0.2), ("thesis", 1.0)):
        chosen = recipe(schedule, system="coarse_fine", frames=64)
        apart = replace(SPEC, **chosen.optimisation("finetune"))
        spec = two_stages.together(apart, stage, chosen)
        assert spec.lr == pytest.approx(share * apart.lr) and spec.faster == {"fusion": 10.0}
        assert spec.starts == {"coarse": "/coarse", "fine": "/fine"} and spec.start is None


def test_the_thesis_schedule_steps_by_hand():
    """v <- 0.9 v + g + 1e-5 w, then w <- w - lr v, and ten times that for the fusion."""
    model = torch.nn.ModuleDict({name: torch.nn.Linear(1, 1, bias=False) for name in ("coarse", "fusion")}).double()
    for layer in model.values():
        layer.weight.data.fill_(3.0)
    then = recipe("thesis").optimisation("finetune")
    optimizer = train_rank.optimiser(model, replace(SPEC, **then, faster={"fusion": 10.0}))
    wanted, speed = {"coarse": 3.0, "fusion": 3.0}, {"coarse": 0.0, "fusion": 0.0}
    for gradient in (2.0, -1.0, 0.5):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * group["times"]
        for name, rate in (("coarse", 0.02), ("fusion", 0.2)):
            model[name].weight.grad = torch.full((1, 1), gradient, dtype=torch.float64)
            speed[name] = 0.9 * speed[name] + gradient + 1e-5 * wanted[name]
            wanted[name] -= rate * speed[name]
        optimizer.step()
    assert {name: model[name].weight.item() for name in model} == pytest.approx(wanted, rel=1e-12)


def test_the_head_learns_faster_in_the_thesis_pretraining():
    model, spec = train_rank.build(SPEC), replace(SPEC, faster={"fc2": 10.0}, steps=100)
    optimizer = train_rank.optimiser(model, spec)
    video, labels = torch.zeros(2, 3, 8, 24, 24, dtype=torch.uint8), torch.zeros(2, 8, 3)
    train_rank.train_step(model, optimizer, video, labels, 50, spec, 0)
    assert len(optimizer.param_groups[1]["params"]) == 2
    slow, fast = (group["lr"] for group in optimizer.param_groups)
    assert slow == train_step.rate(50, spec) and fast == pytest.approx(10 * slow)
    with pytest.raises(ValueError, match="no parameters nothing"):
        train_rank.optimiser(model, replace(SPEC, faster={"nothing": 2.0}))


def test_augmentation_options_reach_the_spec():
    assert recipe().volumes == {}
    assert recipe(segments=2, seamless=False, cutmix="constant").volumes == {
        "segments": 2, "seamless": False, "window": "constant"}  # fmt: skip


def test_temporal_heads_have_one_candidate():
    assert candidates_of(recipe(system="pdan"), ["classification", "detection"], []) == ["none"]
    assert candidates_of(recipe(), ["detection"], []) == ["detection"]
    with pytest.raises(InputError, match="choose from x3d"):
        recipe(system="ensemble")


GRID = replace(SPEC, batch=8, frames=16, size=32, steps=240, milestones=[0.5], multigrid=True)


def test_multigrid_keeps_the_work_of_a_step():
    for step in range(GRID.steps):
        clips, frames, size = multigrid.shape(step, GRID)
        pixels = min(multigrid.grid(step, GRID)[1], multigrid.SHORT[step % 3])
        work = clips * frames * pixels**2
        assert work == pytest.approx(8 * 16) and abs(size - 32 * pixels) <= 2 and size % 4 == 0


def test_multigrid_goes_from_coarse_to_fine_in_each_stretch():
    for first in (0, 120):
        largest = [max(multigrid.shape(first + 30 * k + i, GRID)[0] for i in range(3)) for k in range(4)]
        frames = [multigrid.shape(first + 30 * k, GRID)[1] for k in range(4)]
        assert largest == [128, 64, 64, 32] and frames == [4, 8, 8, 16]
        assert [multigrid.times(first + 30 * k, GRID) for k in range(4)] == [8, 4, 2, 1]
    assert {multigrid.shape(step, GRID) for step in range(90, 93)} == {(32, 16, 16), (16, 16, 24), (8, 16, 32)}


def test_multigrid_takes_up_every_place_of_the_stream_once():
    shapes = multigrid.shapes(GRID)
    taken = [
        place for step in range(12) for place in range(shapes(step).first, shapes(step).first + shapes(step).batch)
    ]
    assert taken == list(range(len(taken)))


class Counting:
    """Samples that know their place."""

    def __len__(self):
        return 10_000

    def draw(self, index, length, rng):
        return Sample(torch.full((3, length, 32, 32), index % 256, dtype=torch.uint8), torch.ones(length, 3))


def test_multigrid_batches_have_the_shape_of_their_step_and_train():
    spec = replace(GRID, steps=8, milestones=[], norm_group=8)
    model = train_rank.build(spec)
    optimizer = train_rank.optimiser(model, spec)
    made = list(batches.Batches(Counting(), multigrid.shapes(spec), 0).from_step(0, 8))
    for step, batch in enumerate(made):
        clips, frames, size = multigrid.shape(step, spec)
        assert batch.seen.shape == (clips, 3, frames, size, size) and batch.labels.shape == (clips, frames, 3)
    for step in (0, 7):
        assert train_rank.train_step(model, optimizer, made[step].seen, made[step].labels, step, spec, 0) > 0
        assert optimizer.param_groups[0]["lr"] == train_step.rate(step, spec) * multigrid.times(step, spec)
    later = list(batches.Batches(Counting(), multigrid.shapes(spec), 0).from_step(5, 7))
    assert all(torch.equal(a.seen, b.seen) for a, b in zip(later, made[5:7], strict=True))


def test_bfloat16_trains_close_to_float32():
    one, other = (steps_of(replace(SPEC, precision=kind, steps=4), 0, 4) for kind in ("fp32", "bf16"))
    assert one != other and one == pytest.approx(other, rel=0.05)


def test_a_compiled_model_is_asked_for_by_name(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda model: asked.append(model) or model)
    model = train_rank.build(SPEC)
    assert parallel.spread(model, SPEC, 1) is model and asked == []
    assert parallel.spread(model, replace(SPEC, compile=True), 1) is model and asked == [model]


@pytest.mark.long
@pytest.mark.parametrize("mode", ["joint", "manifold"])
def test_a_compiled_model_trains_as_one_that_is_not(monkeypatch, mode):
    """Traced for real, with operators as they are: what a compiler of kernels would add is not of this project."""
    real, build, spec = torch.compile, train_rank.build, replace(SPEC, augmentation=mode, steps=3)
    plain = steps_of(spec, 0, 3)
    monkeypatch.setattr(torch, "compile", lambda model: real(model, backend="eager"))
    monkeypatch.setattr(train_rank, "build", lambda spec: parallel.spread(build(spec), replace(spec, compile=True), 1))
    assert steps_of(spec, 0, 3) == pytest.approx(plain, rel=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def test_logits_are_read_between_frames():
    logits = torch.randn(2, 5, 3)
    even = torch.linspace(0, 4, 9).expand(2, 9)
    wanted = torch.nn.functional.interpolate(logits.transpose(1, 2), 9, mode="linear", align_corners=True)
    assert torch.allclose(at_places(logits, even), wanted.transpose(1, 2), atol=1e-6)
    assert torch.equal(at_places(logits, torch.tensor([[-1.0, 9.0]] * 2)), logits[:, [0, 4]])
    assert torch.equal(at_places(logits[:, :1], torch.tensor([[0.0, 1.0]] * 2)), logits[:, [0, 0]])


def test_shorter_samples_are_padded_and_masked():
    long, short = (Sample(torch.zeros(n, 4), torch.ones(m, 3), torch.zeros(m)) for n, m in ((5, 9), (2, 3)))
    batch = batches.collate([long, short])
    assert batch.seen.shape == (2, 5, 4) and batch.inputs["mask"].sum(1).tolist() == [5, 2]
    assert batch.labels.shape == (2, 9, 3) and batch.mask.sum(1).tolist() == [9, 3]


def test_a_short_video_is_played_again_beside_a_clip():
    def sample(F, start, step):
        whole = torch.arange(F, dtype=torch.uint8).view(1, F, 1, 1).expand(3, F, 2, 2)
        seen = torch.zeros(3, 8, 2, 2, dtype=torch.uint8)
        return Sample(seen, torch.ones(8, 1), torch.zeros(8), whole, start, step)

    inputs = batches.collate([sample(4, 2, 1), sample(6, 4, 2)]).inputs
    assert inputs["whole"].shape[2] == 10 and inputs["valid"].sum(1).tolist() == [4, 6]
    assert inputs["whole"][0, 0, :, 0, 0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert inputs["start"].tolist() == [2, 4] and inputs["step"].tolist() == [1.0, 2.0]
