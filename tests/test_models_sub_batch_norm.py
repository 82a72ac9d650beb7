"""Normalising in parts against normalising each part by itself."""

import copy

import pytest
import torch
from second_x3d import one_thread  # noqa: F401
from torch import Tensor, nn

import models
from models.sub_batch_norm import SubBatchNorm3d, split_norms


def norm(channels: int = 3, momentum: float = 0.1) -> nn.BatchNorm3d:
    made = nn.BatchNorm3d(channels, momentum=momentum)
    for tensor in (made.weight.data, made.bias.data, made.running_mean, made.running_var):
        tensor.uniform_(0.5, 1.5)
    return made


def batch(videos: int = 6) -> Tensor:
    return 2 * torch.randn(videos, 3, 4, 2, 2) + torch.arange(videos).view(-1, 1, 1, 1, 1)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last_3d])
def test_each_part_is_normalised_by_itself(memory: torch.memory_format) -> None:
    torch.manual_seed(0)
    plain = norm()
    alone = [copy.deepcopy(plain) for _ in range(3)]
    ours, x = SubBatchNorm3d(plain, 3), batch().contiguous(memory_format=memory)
    for _ in range(4):
        wanted = torch.cat([part(x[2 * k : 2 * k + 2]) for k, part in enumerate(alone)])
        torch.testing.assert_close(ours(x), wanted)
        x = x.flip(0) * 1.1
    for k, part in enumerate(alone):
        torch.testing.assert_close(ours.split_mean[k], part.running_mean)
        torch.testing.assert_close(ours.split_var[k], part.running_var)
    ours(x).square().sum().backward()
    assert ours.weight is plain.weight and plain.weight.grad.abs().min() > 0 and plain.bias.grad.abs().min() > 0


def test_the_parts_together_are_the_whole_batch() -> None:
    torch.manual_seed(0)
    ours, x = SubBatchNorm3d(norm(momentum=1.0), 3), batch()
    ours(x)
    mean, var = ours.aggregate()
    n = x.numel() // 3 // 3  # numbers to a part and channel; their variance was taken with n - 1
    torch.testing.assert_close(mean, x.mean((0, 2, 3, 4)))
    between = torch.stack([part.mean((0, 2, 3, 4)) for part in x.chunk(3)]).var(0, correction=0)
    torch.testing.assert_close((var - between) * (n - 1) / n + between, x.var((0, 2, 3, 4), correction=0))
    torch.testing.assert_close(ours.eval()(x), ours.whole()(x))
    torch.testing.assert_close(
        ours(x)[0, 1], (x[0, 1] - mean[1]) / (var[1] + ours.eps).sqrt() * ours.weight[1] + ours.bias[1]
    )


def test_an_x3d_goes_through_a_schedule_and_back() -> None:
    torch.manual_seed(0)
    model = models.build("x3d", size="TINY", num_classes=4, splits=4)
    plain = models.build("x3d", size="TINY", num_classes=4)
    assert not any(isinstance(module, nn.BatchNorm3d) for module in model.modules())
    parameters, video = [*model.parameters()], torch.randn(8, 3, 4, 24, 24)
    model(video)
    wanted = model.eval()(video)["logits"]
    for splits in (2, 8, 1):
        assert split_norms(model, splits) is model and not any(module.training for module in model.modules())
        torch.testing.assert_close(model(video)["logits"], wanted, rtol=1e-4, atol=1e-4)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain.eval()(video)["logits"], wanted, rtol=1e-4, atol=1e-4)
    both = models.build("coarse_fine", size="TINY", num_classes=4, splits=2)
    assert both(video[:2])["logits"].shape == (2, 4, 4) and isinstance(both.grid.norm1, SubBatchNorm3d)


def test_batches_that_cannot_be_split() -> None:
    ours = SubBatchNorm3d(norm(), 4)
    with pytest.raises(ValueError, match="a batch of 6 cannot be normalised in 4 equal parts"):
        ours(batch())
    assert ours.eval()(batch()).shape == (6, 3, 4, 2, 2)
    with pytest.raises(ValueError, match="1 part or more, not 0"):
        models.build("x3d", size="TINY", splits=0)
