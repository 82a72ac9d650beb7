"""PDAN against a second implementation in loops, its reach, and its parameters counted by hand."""

import torch

from models import cost, pdan


def second_attention(p, name, x, count, dilation):
    """The dilated attention of a video [M, T], one number at a time."""
    M, _ = x.shape
    maps = {part: p[f"{name}.{part}.weight"][..., 0] @ x for part in ("query", "key", "value")}
    out = torch.zeros_like(x)
    for m in range(M):
        for t in range(count):
            scores, values = [], []
            for place, at in enumerate((t - dilation, t, t + dilation)):
                inside = 0 <= at < count
                scores.append(maps["query"][m, t] * maps["key"][m, at] if inside else torch.zeros(()).double())
                values.append((maps["value"][m, at] if inside else 0) + p[f"{name}.relative"][m, 0, place])
            weights = torch.stack(scores).exp()
            out[m, t] = (weights / weights.sum() * torch.stack(values)).sum()
    return out


def test_a_second_implementation_agrees():
    torch.manual_seed(0)
    head = pdan.build("TINY", 4, width=3, maps=5).double().eval()
    features, counts = torch.randn(2, 9, 3).double(), [9, 5]
    mask = torch.arange(9) < torch.tensor(counts)[:, None]
    with torch.no_grad():
        out, p = head(features, mask), head.state_dict()
    for b, count in enumerate(counts):
        x = p["enter.weight"][..., 0] @ features[b, :count].T + p["enter.bias"][:, None]
        for i, dilation in enumerate((1, 2, 4)):
            y = second_attention(p, f"blocks.{i}.attention", x, count, dilation).relu()
            x = x + p[f"blocks.{i}.project.weight"][..., 0] @ y + p[f"blocks.{i}.project.bias"][:, None]
        expected = p["classify.weight"][..., 0] @ x + p["classify.bias"][:, None]
        assert torch.allclose(out["logits"][b, :count], expected.T, atol=1e-10)
        assert torch.allclose(out["maps"][b, :count], x.T, atol=1e-10)


def test_equal_keys_give_the_mean_of_three_values():
    layer = pdan.DilatedAttention(1, 2)
    with torch.no_grad():
        layer.query.weight.zero_(), layer.value.weight.fill_(1.0)
        layer.relative.copy_(torch.tensor([[[0.0, 3.0, 6.0]]]))
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0, 5.0]]])
    expected = [(0 + 1 + 3) / 3, (0 + 2 + 4) / 3, (1 + 3 + 5) / 3, (2 + 4 + 0) / 3, (3 + 5 + 0) / 3]
    assert torch.allclose(layer(x)[0, 0], torch.tensor(expected) + 3)


def test_five_dilations_see_31_frames_either_way():
    torch.manual_seed(0)
    head = pdan.build("TINY", 4, dilations=(1, 2, 4, 8, 16)).eval()
    features = torch.randn(1, 81, 16, requires_grad=True)
    head(features)["logits"][0, 40].sum().backward()
    assert (features.grad[0].abs().amax(-1) > 0).nonzero().flatten().tolist() == list(range(9, 72))


def test_parameters_by_hand():
    block = 3 * 512 * 512 + 3 * 512 + 512 * 512 + 512
    expected = (1024 * 512 + 512) + 5 * block + (512 * 157 + 157)
    assert cost.count(lambda: pdan.build(), (1, 100, 1024)).params == expected == 5_858_461
