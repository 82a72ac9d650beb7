"""Normalisation over a few clips at a time, by hand."""

import pytest
import torch
from torch import nn

import models
from models.sub_batch_norm import SubBatchNorm3d, split_norms


def made(group: int, channels: int = 3) -> SubBatchNorm3d:
    norm = split_norms(nn.BatchNorm3d(channels), group)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_each_group_is_normalised_by_its_own(layout):
    norm, x = made(2), torch.randn(6, 3, 4, 5, 5) * torch.arange(1, 7).view(6, 1, 1, 1, 1)
    found = norm(x.contiguous(memory_format=layout))
    alone = nn.BatchNorm3d(3)
    alone.load_state_dict(norm.state_dict())
    assert torch.allclose(found, torch.cat([alone.train()(part) for part in x.split(2)]), atol=1e-5)
    assert not torch.allclose(found, alone(x), atol=1e-2)


def test_running_statistics_are_those_of_the_whole_batch():
    norm, plain, x = made(2), nn.BatchNorm3d(3), torch.randn(8, 3, 2, 4, 4) + torch.arange(8.0).view(8, 1, 1, 1, 1)
    norm(x), plain(x)
    assert torch.allclose(norm.running_mean, plain.running_mean, atol=1e-6)
    assert torch.allclose(norm.running_var, plain.running_var, atol=1e-5) and norm.num_batches_tracked == 1
    assert torch.allclose(norm.eval()(x), nn.functional.batch_norm(
        x, norm.running_mean, norm.running_var, norm.weight, norm.bias), atol=1e-5)  # fmt: skip


def test_one_group_is_plain_normalisation_and_gradients_flow():
    norm, x = made(8), torch.randn(8, 3, 2, 2, 2, requires_grad=True)
    plain = nn.BatchNorm3d(3)
    plain.load_state_dict(norm.state_dict())
    assert torch.equal(norm(x), plain(x))
    norm.group = 4
    norm(x).square().sum().backward()
    assert x.grad.abs().sum() > 0 and norm.weight.grad.abs().min() > 0


def test_a_systems_weights_keep_their_names():
    system = models.build("x3d", size="TINY", num_classes=2)
    before = list(system.state_dict())
    split_norms(system, 2)
    kinds = {type(m) for m in system.modules() if isinstance(m, nn.BatchNorm3d)}
    assert kinds == {SubBatchNorm3d} and list(system.state_dict()) == before
