"""The auxiliary losses of Grid Pool by hand, and that a training learns from them where to look."""

import pytest
import torch
from torch import tensor

import models
from models.losses import AUXILIARY_WEIGHT, flow, reconstruction
from storage.errors import InputError
from tasks.train_rank import Spec, build, optimiser, train_step


def maps(*values):
    """Frames of one channel and cell with these values."""
    return tensor(values, dtype=torch.float32).view(1, 1, -1, 1, 1)


def test_reconstruction_by_hand():
    # At 0, 1 and 4 of (0, 4, 0, 0, 0): 0, 4, 0; between, 8/3 and 4/3 where 0 and 0 were.
    found = reconstruction(maps(0, 4, 0, 0, 0), tensor([[0.0, 1.0, 4.0]]))
    assert found.item() == pytest.approx((8 / 3 + 4 / 3) / 5)


def test_what_is_affine_between_places_is_reconstructed():
    assert reconstruction(maps(0, 1, 2, 3, 2, 1), tensor([[0.0, 3.0, 5.0]])).item() == pytest.approx(0, abs=1e-6)
    assert reconstruction(maps(0, 1, 2, 3, 2, 1), tensor([[0.0, 2.0, 5.0]])).item() > 0.1


def test_reconstruction_pulls_places_to_what_changes():
    places = tensor([[0.0, 2.0, 5.0]], requires_grad=True)
    reconstruction(maps(0, 1, 2, 3, 2, 1), places).backward()
    assert places.grad[0, 1] < 0  # later is better: the turn is at 3


def test_reconstruction_teaches_places_and_not_maps():
    x = maps(0, 1, 5, 3, 2, 1).requires_grad_()
    places = tensor([[0.0, 2.5, 5.0]], requires_grad=True)
    reconstruction(x, places).backward()
    assert x.grad is None and places.grad.abs().sum() > 0


def video(*values):
    """Frames of three channels and four cells, each of one value."""
    return tensor(values, dtype=torch.float32).view(1, 1, -1, 1, 1).expand(1, 3, -1, 2, 2)


def test_flow_by_hand():
    # Differences 0, 3, 0, 0 with mean 3/4 lie at 0.5 to 3.5: in units of it 0, 4, 0, 0. The inner place 1.5 is on the
    # motion; the middles 0.75 and 2.75 have 1/4 of it and none.
    found = flow(video(1, 1, 4, 4, 4), tensor([[0.0, 1.5, 4.0]]))
    assert found.item() == pytest.approx(1 / 2 - 4)


def test_flow_pulls_places_to_motion():
    places = tensor([[0.0, 2.0, 4.0]], requires_grad=True)
    flow(video(1, 1, 4, 4, 4), places).backward()
    assert places.grad[0, 1] > 0  # earlier is better: the motion is at 1.5


def test_a_still_clip_has_no_flow():
    assert flow(video(7, 7, 7, 7), tensor([[0.0, 1.0, 3.0]])).item() == 0


def _step(auxiliary, **options):
    spec = Spec(
        root="", parts=[], classes=["a", "b"], objective="dense", system="coarse_fine", steps=4, batch=2, frames=8,
        options={"size": "TINY", "fusion": "none", **options}, auxiliary=auxiliary,
    )  # fmt: skip
    model = build(spec).train()
    generator = torch.Generator().manual_seed(3)
    seen = torch.randint(0, 256, (2, 3, 8, 16, 16), generator=generator, dtype=torch.uint8)
    loss = train_step(model, optimiser(model, spec), seen, torch.zeros(2, 8, 2), 0, spec, 0)
    return loss, model


@pytest.mark.parametrize("name", ["reconstruction", "flow"])
def test_a_training_adds_it_and_the_grid_learns_from_it(name):
    plain, without = _step("none")
    loss, model = _step(name)
    grads = [[p.grad.clone() for p in m.grid.parameters()] for m in (without, model)]
    assert loss != pytest.approx(plain, abs=1e-5)
    assert any(not torch.allclose(a, b, atol=1e-8) for a, b in zip(*grads, strict=True))
    for own, other in zip(model.coarse.fc2.parameters(), without.coarse.fc2.parameters(), strict=True):
        assert torch.allclose(own.grad, other.grad)  # which only the other two losses reach


def test_its_weight_is_that_of_the_thesis():
    assert AUXILIARY_WEIGHT == 0.1


def test_without_grid_pool_it_is_refused():
    with pytest.raises(InputError, match="is of Grid Pool"):
        _step("flow", pooling="stride")


def test_the_input_of_grid_pool_is_handed_out():
    made = models.build("coarse_fine", size="TINY", num_classes=2, fusion="none").eval()
    out = made(torch.randn(1, 3, 8, 16, 16))
    assert out["unpooled"].shape[2] == 8 and out["res2"].shape[2] == 3
