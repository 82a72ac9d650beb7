"""The mean of probabilities as a logit, and several systems behind the interface of one."""

import pytest
import torch
from torch import tensor
from torch.nn import functional as F

import models
from models import cost
from models.ensemble import mean_logit

INF = float("inf")
X3D = ("x3d", {"size": "TINY"})


def pair(K=4, members=(X3D, X3D)):
    torch.manual_seed(0)
    return models.build("ensemble", num_classes=K, members=members).eval()


def test_the_mean_is_that_of_the_members_probabilities():
    logits = torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(0)).double() * 5
    torch.testing.assert_close(mean_logit(logits).sigmoid(), logits.sigmoid().mean(0), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([0.0, 0.0], 0.0),
        ([3.0, -3.0], 0.0),
        ([200.0, -300.0], 0.0),  # 1 and 0
        ([INF, -INF], 0.0),
        ([INF, INF], INF),
        ([-INF, -INF, -INF], -INF),
        ([90.0, 90.0], 90.0),  # float32 rounds its probability to 1, and the logit of that to infinity
        ([-120.0, -120.0, -120.0], -120.0),
        ([40.0, 0.0], 1.0986122886681098),  # 3 / 4: log 3
        ([-40.0, -1000.0], -40.69314718055994),  # half of e^-40
        ([1000.0, 40.0], 40.69314718055994),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_edges_by_hand(members, expected, dtype):
    got = mean_logit(tensor(members, dtype=dtype)).item()
    assert got == pytest.approx(expected, rel=1e-6 if dtype == torch.float32 else 1e-14, abs=1e-7)


def test_float32_is_as_good_as_float64_for_logits_of_any_size():
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(1)).double() * 60
    torch.testing.assert_close(mean_logit(logits.float()).double(), mean_logit(logits), rtol=1e-5, atol=1e-5)


def test_one_member_is_the_identity_and_order_does_not_matter():
    logits = torch.randn(1, 100) * 1e-3
    assert torch.equal(mean_logit(logits), logits[0])
    several = torch.randn(3, 100) * 10
    torch.testing.assert_close(mean_logit(several), mean_logit(several[[2, 0, 1]]))


def test_an_ensemble_answers_as_its_members_do():
    model, video = pair(), torch.randn(2, 3, 8, 24, 24)
    out = model(video)
    assert out["logits"].shape == (2, 8, 4) and out["member_logits"].shape == (2, 2, 8, 4)
    members = torch.stack([member(video)["logits"] for member in model.members])
    assert torch.equal(out["member_logits"], members) and not torch.allclose(members[0], members[1])
    torch.testing.assert_close(out["logits"].sigmoid(), members.sigmoid().mean(0))
    assert model.config.mean == model.members[0].config.mean


def test_systems_of_other_kinds_go_together():
    model = pair(members=[("tgm", {"size": "TINY"}), ("pdan", {"size": "TINY", "maps": 8})])
    features, mask = torch.randn(2, 6, 16), torch.arange(6) < tensor([[6], [3]])
    out = model(features, mask)
    assert out["logits"].shape == (2, 6, 4) and (out["logits"][1, 3:] == 0).all()
    assert model.config.mean is None


def test_members_are_given_what_they_take_by_name():
    model = pair(members=[("coarse_fine", {"size": "TINY"}), ("fine_fine", {"size": "TINY"})])
    video, whole = torch.randn(2, 3, 8, 24, 24), torch.randn(2, 3, 12, 24, 24)
    named = {"whole": whole, "start": tensor([3, 1]), "valid": torch.arange(12) < tensor([[12], [9]])}
    with torch.no_grad():
        out = model(video, **named)
        members = torch.stack([member(video, **named)["logits"] for member in model.members])
        assert (model(video, **(named | {"start": 0}))["logits"] - out["logits"]).abs().max() > 1e-4
    torch.testing.assert_close(out["logits"].sigmoid(), members.sigmoid().mean(0))
    heads = pair(members=[("tgm", {"size": "TINY"}), ("super_events", {"size": "TINY"})])
    features, mask = torch.randn(2, 6, 16), torch.arange(6) < tensor([[6], [3]])
    assert torch.equal(heads(features, mask=mask)["logits"], heads(features, mask)["logits"])


def test_its_weights_go_through_a_state_dict_and_its_options_through_json():
    model, video = pair(), torch.randn(1, 3, 4, 24, 24)
    torch.manual_seed(5)
    again = models.build("ensemble", num_classes=4, members=[["x3d", {"size": "TINY"}]] * 2).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(video)["logits"], model(video)["logits"])
    assert again.config == model.config


def test_it_is_exported_with_free_batch_and_length():
    model = pair(members=[("super_events", {"size": "TINY"})] * 2)
    free = {0: torch.export.Dim("B"), 1: torch.export.Dim("T", min=2)}
    program = torch.export.export(model, (torch.randn(2, 6, 16),), dynamic_shapes=((free,),))
    features = torch.randn(5, 9, 16)
    torch.testing.assert_close(program.module()(features)["logits"], model(features)["logits"])


def test_gradients_reach_every_member():
    model = pair().train()
    F.binary_cross_entropy_with_logits(model(torch.randn(2, 3, 8, 24, 24))["logits"], torch.rand(2, 8, 4)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(member.fc2.weight.grad.abs().max() > 0 for member in model.members)


def test_it_costs_what_its_members_cost():
    one = cost.count(lambda: models.build("x3d", size="M"), (1, 3, 16, 224, 224))
    three = cost.count(lambda: models.build("ensemble", members=[("x3d", {})] * 3), (1, 3, 16, 224, 224))
    assert (three.conv_macs, three.params) == (3 * one.conv_macs, 3 * one.params)


def test_what_cannot_be_joined_says_why():
    with pytest.raises(ValueError, match="an ensemble needs members"):
        models.build("ensemble")
    with pytest.raises(ValueError, match="members normalise video differently"):
        models.build("ensemble", members=[X3D, ("x3d", {"size": "TINY", "mean": (0.0, 0.0, 0.0)})])
    with pytest.raises(ValueError, match="unknown system 'x4d'"):
        models.build("ensemble", members=[("x4d", {})])

    class Short(torch.nn.Module):
        def forward(self, x):
            return {"logits": torch.zeros(1, 3, 2)}

    model = pair()
    model.members[1] = Short()
    with pytest.raises(ValueError, match=r"differ in shape: \[\[1, 4, 4\], \[1, 3, 2\]\]"):
        model(torch.randn(1, 3, 4, 24, 24))
