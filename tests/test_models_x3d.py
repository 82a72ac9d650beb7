import math
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
from second_x3d import lively, one_thread, second_x3d  # noqa: F401
from torch import nn
from torch.nn import functional as F

import models
from models import cost, x3d

SMALL = {"blocks": (2, 3, 1, 2), "inner": (10, 20, 40, 150), "widths": (24, 16, 16, 24), "fc1_width": 40}


@pytest.mark.parametrize(
    "size, shape, giga, params",
    [
        ("M", (1, 3, 128, 224, 224), "37.95825", "3.296415"),
        ("M", (1, 3, 16, 224, 224), "4.744921", "3.296415"),
        ("L", (1, 3, 128, 312, 312), "147.0390", "5.655525"),
    ],
)
def test_cost_is_the_published_one(size: str, shape: tuple[int, ...], giga: str, params: str) -> None:
    got = cost.count(lambda: x3d.build(size), shape)
    digits = len(giga.split(".")[1])
    assert f"{got.conv_macs / 1e9:.{digits}f}" == giga
    assert f"{got.params / 1e6:.6f}" == params


def test_cost_by_part() -> None:
    got = cost.count(lambda: x3d.build("M"), (1, 3, 128, 224, 224))
    giga = {name: round(macs / 1e9, 5) for name, macs in got.parts.items()}
    assert giga == {
        "conv1": 1.23313,
        "res2": 6.66899,
        "res3": 7.30122,
        "res4": 13.69026,
        "res5": 8.43118,
        "conv5": 0.52022,
        "fc1": 0.11325,
    }
    assert got.linear_macs == 128 * 2048 * 157
    deeper = cost.count(lambda: x3d.build("M"), (1, 3, 128, 224, 224), depth=2).parts
    assert [round(deeper[f"conv1.{name}"] / 1e9, 5) for name in ("spatial", "temporal")] == [1.04045, 0.19268]
    assert sum(deeper.values()) == sum(got.parts.values()) == got.conv_macs


def test_cost_of_layers_worked_out_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(6 * 8 * 8, 5))
    got = cost.count(net, (2, 4, 10, 10))
    assert (got.conv_macs, got.linear_macs) == (2 * 6 * 64 * 2 * 9, 2 * 6 * 64 * 5)
    assert got.parts == {"0": got.conv_macs}
    assert cost.as_markdown("net", got).splitlines()[2] == "| net | 0.00001 | 0.00000 | 0.002039 |"


def test_counting_leaves_the_model_as_it_was() -> None:
    model = x3d.build("TINY", 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert cost.count(model, (1, 3, 8, 24, 24)) == cost.count(lambda: x3d.build("TINY", 8), (1, 3, 8, 24, 24))
    assert model.training and not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("size, params", [("M", 3794322), ("L", 6153432)])
def test_parameters_with_400_classes(size: str, params: int) -> None:
    assert cost.count(lambda: x3d.build(size, 400), (1, 3, 1, 32, 32)).params == params


def test_maps_of_table_3_1_on_meta() -> None:
    with torch.device("meta"):
        model = models.build("x3d", size="M", num_classes=157)
        out = model(torch.empty(2, 3, 16, 224, 224))
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers(), *out.values()))
    assert {name: list(tensor.shape) for name, tensor in out.items()} == {
        "logits": [2, 16, 157],
        "res2": [2, 24, 16, 56, 56],
        "res3": [2, 48, 16, 28, 28],
        "res4": [2, 96, 16, 14, 14],
        "res5": [2, 192, 16, 7, 7],
        "conv5": [2, 432, 16, 7, 7],
    }


@pytest.mark.parametrize("overrides", [{}, SMALL, {**SMALL, "stem_size": 5, "depthwise": False}])
def test_a_second_implementation_agrees(overrides: dict[str, tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    model = lively(x3d.build("M", 7, **overrides))
    dense = all(module.groups == 1 for module in model.modules() if isinstance(module, nn.Conv3d))
    assert dense != model.config.depthwise
    video = torch.randn(2, 3, 6, 40, 48)
    with torch.no_grad():
        ours, second = model(video), second_x3d(model.state_dict(), video, model.config)
    assert list(ours) == list(second) == ["logits", "res2", "res3", "res4", "res5", "conv5"]
    for name in ours:
        assert ours[name].std() > 1e-3
        torch.testing.assert_close(ours[name], second[name], rtol=1e-4, atol=1e-5 * float(ours[name].std()))


@pytest.mark.parametrize("pixels", [24, 32, 40])
def test_tiny_learns_with_every_parameter(pixels: int) -> None:
    torch.manual_seed(0)
    model = models.build("x3d", size="TINY", num_classes=8)
    out = model(torch.randn(2, 3, 16, pixels, pixels))
    assert out["logits"].shape == (2, 16, 8)
    F.binary_cross_entropy_with_logits(out["logits"], torch.rand(2, 16, 8)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_tiny_sees_six_frames_either_way() -> None:
    model = lively(x3d.build("TINY", 8))
    for module in model.modules():  # The gates see the whole clip; shut them to see the convolutions alone.
        if isinstance(module, x3d.SqueezeExcite):
            nn.init.zeros_(module.up.weight)
    video = torch.randn(1, 3, 17, 32, 32, requires_grad=True)
    model(video)["logits"][0, 8].sum().backward()
    seen = video.grad.abs().amax((0, 1, 3, 4)) > 0
    assert seen.nonzero().flatten().tolist() == list(range(2, 15))


def test_convolutions_start_from_kaiming_fan_out() -> None:
    torch.manual_seed(0)
    model = x3d.build("M")
    for conv in (model.fc1, model.res5[0].residual.middle, model.res5[0].shortcut.conv):
        fan_out = conv.weight.shape[0] * math.prod(conv.kernel_size)
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.03)


@pytest.mark.parametrize("channels, width", [(16, 8), (54, 8), (108, 8), (216, 16), (432, 32), (704, 48)])
def test_squeeze_width(channels: int, width: int) -> None:
    assert x3d.squeeze_width(channels) == width


def test_normalise() -> None:
    config = replace(x3d.M, mean=(0.0, 0.2, 0.4), std=(1.0, 0.5, 0.1))
    video = torch.randint(0, 256, (2, 3, 4, 5, 6), dtype=torch.uint8)
    kept = video.clone()
    out = x3d.normalise(video.to(memory_format=torch.channels_last_3d), config)
    assert out.dtype == torch.float32 and out.is_contiguous(memory_format=torch.channels_last_3d)
    for channel, (mean, std) in enumerate(zip(config.mean, config.std, strict=True)):
        torch.testing.assert_close(out[:, channel], (video[:, channel] / 255 - mean) / std, atol=1e-5, rtol=1e-5)
    assert torch.equal(video, kept)
    identity = replace(x3d.M, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    torch.testing.assert_close(x3d.normalise(video, identity), video.float())
    with pytest.raises(TypeError, match="uint8"):
        x3d.normalise(video.float())
    with pytest.raises(ValueError, match=r"\[2, 4, 3, 5, 6\]"):
        x3d.normalise(video.transpose(1, 2))


def test_what_cannot_be_built_says_why() -> None:
    with pytest.raises(ValueError, match="unknown system 'x4d'; known systems: .*x3d"):
        models.build("x4d")
    with pytest.raises(TypeError, match="x3d has no option depth; its options: size, num_classes"):
        models.build("x3d", depth=3)
    with pytest.raises(ValueError, match="sizes M, L, TINY, not 'XL'"):
        models.build("x3d", size="XL")
    with pytest.raises(ValueError, match="one entry for each of res2 to res5"):
        models.build("x3d", blocks=(1, 2, 3))


def test_overrides_reach_the_config() -> None:
    model = models.build("x3d", size="TINY", num_classes=3, dropout=0.25, stem_frames=3)
    assert model.config == replace(x3d.TINY, num_classes=3, dropout=0.25, stem_frames=3)
    assert model.dropout.p == 0.25 and model.conv1.temporal.kernel_size == (3, 1, 1)
    again = x3d.X3D(x3d.Config(**asdict(model.config)))
    again.load_state_dict(model.state_dict())


def test_importing_models_loads_no_torch() -> None:
    code = "import sys, models; assert models.SYSTEMS['x3d'] == 'models.x3d'; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=models.__path__[0] + "/..").returncode == 0
