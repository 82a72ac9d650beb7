"""A second reading of Table 3.1, in eval mode: functions of the parameters, without modules."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import x3d


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors on busy cores: two threads that wait for each other took twenty times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def conv(p: dict[str, Tensor], name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight, bias = p[f"{name}.weight"], p.get(f"{name}.bias")
    x = F.pad(x, [k // 2 for k in reversed(weight.shape[2:]) for _ in "ab"])
    return F.conv3d(x, weight, bias, (1, stride, stride), groups=x.shape[1] // weight.shape[1])


def norm(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    mean, var = p[f"{name}.running_mean"], p[f"{name}.running_var"]
    scale = p[f"{name}.weight"] / torch.sqrt(var + 1e-5)
    shift = p[f"{name}.bias"] - mean * scale
    return torch.einsum("bcthw,c->bcthw", x, scale) + shift[:, None, None, None]


def block(p: dict[str, Tensor], name: str, x: Tensor, stride: int, depthwise: bool) -> Tensor:
    inside = f"{name}.residual."
    y = F.relu(norm(p, inside + "expand_norm", conv(p, inside + "expand", x)))
    if depthwise:
        y = conv(p, inside + "middle", y, stride)
    else:
        y = conv(p, inside + "middle.temporal", conv(p, inside + "middle.spatial", y, stride))
    y = norm(p, inside + "middle_norm", y)
    if name[-1] in "02468":
        gate = conv(p, inside + "squeeze.down", y.flatten(2).mean(2)[..., None, None, None])
        y = torch.sigmoid(conv(p, inside + "squeeze.up", F.relu(gate))) * y
    y = norm(p, inside + "project_norm", conv(p, inside + "project", y * torch.sigmoid(y)))
    if f"{name}.shortcut.conv.weight" in p:
        x = norm(p, f"{name}.shortcut.norm", conv(p, f"{name}.shortcut.conv", x, stride))
    return F.relu(x + y)


def stem(p: dict[str, Tensor], video: Tensor, config: x3d.Config) -> Tensor:
    x = conv(p, "conv1.temporal", conv(p, "conv1.spatial", video, config.stem_stride))
    return F.relu(norm(p, "conv1.norm", x))


def stage(p: dict[str, Tensor], x: Tensor, s: int, config: x3d.Config) -> Tensor:
    """res2 for s = 2, and so on."""
    for i in range(config.blocks[s - 2]):
        x = block(p, f"res{s}.{i}", x, config.strides[s - 2] if i == 0 else 1, config.depthwise)
    return x


def head(p: dict[str, Tensor], res5: Tensor) -> tuple[Tensor, Tensor]:
    """conv5, and the logits of every frame."""
    conv5 = F.relu(norm(p, "conv5.norm", conv(p, "conv5.conv", res5)))
    frames = conv5.flatten(3).mean(3).transpose(1, 2)
    hidden = F.relu(frames @ p["fc1.weight"][:, :, 0, 0, 0].T)
    return conv5, hidden @ p["fc2.weight"].T + p["fc2.bias"]


def second_x3d(p: dict[str, Tensor], video: Tensor, config: x3d.Config) -> dict[str, Tensor]:
    x, maps = stem(p, video, config), {}
    for s in (2, 3, 4, 5):
        x = maps[f"res{s}"] = stage(p, x, s, config)
    maps["conv5"], logits = head(p, x)
    return {"logits": logits, **maps}


def lively(model: nn.Module) -> nn.Module:
    """Give every normalisation statistics and scales of its own, so that none is the identity."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            tensor.uniform_(0.2 if "var" in name or "weight" in name else -0.5, 1.2, generator=generator)
    return model.eval()
