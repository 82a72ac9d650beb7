"""TGM against a second implementation in loops, its kernels, and the published parameter count and cost."""

import pytest
import torch
from test_models_super_events import second_filter
from torch.utils.flop_counter import FlopCounterMode

from models import cost, tgm


def second_layer(p, name, x, count):
    """A layer as the paper has it: every kernel on every channel, then a 1x1 combination; x is [c_in][D][T]."""
    mixture = p[f"{name}.mixture"]
    c_out, c_in, _ = mixture.shape
    bank = [second_filter(c.item(), g.item(), 5, 5) for c, g in zip(p[f"{name}.centre"], p[f"{name}.spread"], strict=True)]  # fmt: skip # noqa: E501
    kernels = mixture.softmax(-1) @ torch.tensor(bank).double()
    D, T = x.shape[1:]
    out = torch.zeros(c_out, D, T).double()
    for o in range(c_out):
        for i in range(c_in):
            for d in range(D):
                for t in range(count):
                    taps = [(j, t + j - 2) for j in range(5) if 0 <= t + j - 2 < count]
                    value = sum(kernels[o, i, j] * x[i, d, at] for j, at in taps)
                    weight = p[f"{name}.combine.weight"][o, i, 0, 0] if c_in > 1 else 1
                    out[o, d, t] += weight * value
        if c_in > 1:
            out[o, :, :count] += p[f"{name}.combine.bias"][o]
    return out.relu() if c_in > 1 else out


def test_a_second_implementation_agrees():
    torch.manual_seed(0)
    head = tgm.build("TINY", 4, width=3, hidden=6).double().eval()
    features, counts = torch.randn(2, 8, 3).double(), [8, 5]
    mask = torch.arange(8) < torch.tensor(counts)[:, None]
    with torch.no_grad():
        out, p = head(features, mask), head.state_dict()
    for b, count in enumerate(counts):
        x = features[b].T[None].clone()
        x[..., count:] = 0
        both = torch.cat([second_layer(p, "layers.1", second_layer(p, "layers.0", x, count), count).amax(0), x[0]])
        for t in range(count):
            hidden = (p["hidden.weight"][..., 0] @ both[:, t].relu() + p["hidden.bias"]).relu()
            expected = p["classify.weight"][..., 0] @ hidden + p["classify.bias"]
            assert torch.allclose(out["logits"][b, t], expected, atol=1e-10)
            assert torch.allclose(out["temporal"][b, t], both[:3, t], atol=1e-10)


def test_kernels_are_densities_and_a_still_feature_stays():
    torch.manual_seed(0)
    layer = tgm.Layer(1, 8, 16, 5)
    kernels = layer.kernels()
    assert kernels.shape == (8, 1, 5) and (kernels > 0).all()
    assert torch.allclose(kernels.sum(-1), torch.ones(8, 1), atol=1e-5)
    still = torch.full((1, 1, 2, 9), 3.0)
    assert torch.allclose(layer(still)[..., 2:-2], torch.full((1, 8, 2, 5), 3.0), atol=1e-4)


def test_a_frame_is_seen_two_frames_away_in_each_layer():
    torch.manual_seed(0)
    head = tgm.build("TINY", 4).eval()
    features = torch.randn(1, 15, 16, requires_grad=True)
    head(features)["logits"][0, 7].sum().backward()
    assert (features.grad[0].abs().amax(-1) > 0).nonzero().flatten().tolist() == list(range(3, 12))


def test_parameters_and_cost_are_those_of_table_3_2():
    """Two-stream I3D with TGM: 27.00 M and 4446.66 G beside 24.90 and 4446.10; both leave the classifier out."""
    head = tgm.build()
    classifier = 512 * 157 + 157
    layers = 3 * (16 + 16) + (8 + 64 + 64) * 16 + 2 * (64 + 8)
    params = cost.count(head, (1, 160, 1024)).params
    assert params == layers + (2048 * 512 + 512) + classifier == 1_132_045
    assert f"{24.90 + 2 * (params - classifier) / 1e6:.2f}" == "27.00"
    with torch.device("meta"):
        model = tgm.build()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 160, 1024))
    flops = counter.get_flop_counts()["Global"]
    macs = sum(n for op, n in flops.items() if "convolution" in str(op)) / 2 - 160 * 512 * 157
    assert f"{2 * macs / 1e9:.2f}" == "0.56"


def test_an_even_kernel_is_refused():
    with pytest.raises(ValueError, match="kernel has 4 frames, must be odd"):
        tgm.build(kernel=4)
