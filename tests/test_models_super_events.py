"""Super-events against a second implementation in loops, the filters by hand, and the published parameter count."""

from math import exp, pi, tanh

import pytest
import torch

from models import cost, super_events
from models.super_events import cauchy


def second_filter(centre, spread, length, T):
    """One density over a video of `length` of T frames, number by number."""
    middle, gamma = (length - 1) * (tanh(centre) + 1) / 2, exp(1.5 - 2 * abs(tanh(spread)))
    values = [1 / (pi * gamma * (((t - middle) / gamma) ** 2 + 1)) if t < length else 0.0 for t in range(T)]
    return [value / (sum(values) + 1e-6) for value in values]


def second_head(p, features, counts):
    """Logits as nested lists [B][T][K] from the parameters, without tensors' help."""
    B, T, D = features.shape
    K, N = p["per_frame.weight"].shape[0], len(p["structures.0.centre"])
    found = []
    for b in range(B):
        structures = []
        for s in range(2):
            places = zip(p[f"structures.{s}.centre"], p[f"structures.{s}.spread"], strict=True)
            filters = [second_filter(c.item(), g.item(), counts[b], T) for c, g in places]
            structures.append(
                [sum(f[t] * features[b, t, d].item() for t in range(counts[b])) for f in filters for d in range(D)]
            )
        rows = []
        for t in range(counts[b]):
            row = []
            for k in range(K):
                share = 1 / (1 + exp(-p["choice"][k].item()))
                weights = p["context.weight"][k].tolist()
                mixed = [share * structures[0][e] + (1 - share) * structures[1][e] for e in range(N * D)]
                frame = zip(p["per_frame.weight"][k, :, 0].tolist(), features[b, t].tolist(), strict=True)
                value = sum(w * x for w, x in frame) + p["per_frame.bias"][k].item()
                row.append(value + sum(w * m for w, m in zip(weights, mixed, strict=True)))
            rows.append(row)
        found.append(rows)
    return found


def test_a_second_implementation_agrees():
    torch.manual_seed(0)
    head = super_events.build("TINY", 4, width=3).double().eval()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    features, counts = torch.randn(3, 7, 3).double(), [7, 4, 1]
    mask = torch.arange(7) < torch.tensor(counts)[:, None]
    with torch.no_grad():
        out = head(features, mask)
    for b, rows in enumerate(second_head(head.state_dict(), features, counts)):
        assert torch.allclose(out["logits"][b, : counts[b]], torch.tensor(rows).double(), atol=1e-10)


def test_filters_by_hand():
    """In the middle of 5 frames with gamma = e^1.5 / e^2 = 0.607: symmetric, highest at frame 2."""
    wide = torch.tensor([50.0])  # tanh is 1
    (found,) = cauchy(torch.zeros(1), wide, torch.tensor([5]), 5)[0]
    gamma = exp(-0.5)
    values = [1 / (1 + ((t - 2) / gamma) ** 2) for t in range(5)]
    assert found.tolist() == pytest.approx([v / sum(values) for v in values], abs=1e-5)


@pytest.mark.parametrize(("centre", "place"), [(-50.0, 0), (50.0, 5), (0.0, 2)])
def test_centres_reach_from_the_first_frame_to_the_last(centre, place):
    density = cauchy(torch.tensor([centre]), torch.tensor([50.0]), torch.tensor([6]), 9)[0, 0]
    assert density.argmax() == place and (density[6:] == 0).all()
    assert density.sum().item() == pytest.approx(1, abs=1e-4)


def test_half_the_context_comes_from_each_structure_at_first():
    head = super_events.build("TINY", 4).eval()
    features = torch.randn(2, 6, 16)
    both = head(features)["context"]
    with torch.no_grad():
        sides = [head.choice.fill_(value) * 0 + head(features)["context"] for value in (50.0, -50.0)]
    torch.testing.assert_close(both, (sides[0] + sides[1]) / 2)


def test_parameters_are_those_of_table_3_2():
    """Two-stream I3D with super-events has 26.18 M parameters there, I3D alone 24.90: a head for each stream."""
    got = cost.count(lambda: super_events.build(), (1, 160, 1024))
    assert got.params == 157 * 1024 + 157 + 157 * 3 * 1024 + 157 + 2 * 2 * 3 == 643_398
    assert int((24.90 + 2 * got.params / 1e6) * 100) / 100 == 26.18
    assert f"{2 * got.conv_macs / 1e9:.2f}" == "0.05"  # 4446.15 - 4446.10 GFLOPs, on 1280 / 8 steps
