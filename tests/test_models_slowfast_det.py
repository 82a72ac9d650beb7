"""SlowFast_det: a quarter of the frames, each told what the Fast stream saw in it."""

import pytest
import torch
from second_coarse_fine import second_coarse_fine
from second_x3d import lively, one_thread  # noqa: F401
from torch import nn

import models


def tiny(**options: object) -> nn.Module:
    torch.manual_seed(0)
    return lively(models.build("slowfast_det", size="TINY", num_classes=3, **options))


ROWS = [{}, {"pooling": "grid"}, {"fusion": "multi_stage", "attention": True, "correspondence": "gaussian"}]


@pytest.mark.parametrize("options", ROWS, ids=str)
def test_the_rows_of_table_3_3f_against_a_naive_network(options: dict[str, object]) -> None:
    model = tiny(**options).double()
    video, whole = (torch.randn(2, 3, n, 24, 24, dtype=torch.float64) for n in (8, 14))
    start, step = torch.tensor([0, 3]), torch.ones(2)
    with torch.no_grad():
        ours = model(video, whole, start=start)
    valid = torch.ones(2, 14, dtype=torch.bool)
    arrays = (start.numpy(), step.numpy(), valid.numpy())
    second = second_coarse_fine(model.state_dict(), model.config, video, whole, *arrays)
    for name, wanted in second.items():
        wanted = torch.from_numpy(wanted)
        torch.testing.assert_close(ours[name].double(), wanted, rtol=1e-4, atol=2e-5 * wanted.std().item())


def test_a_slow_frame_hears_of_its_own_fast_frame_alone() -> None:
    model = tiny()
    video, fine = torch.randn(1, 3, 16, 24, 24), model.extract(torch.randn(1, 3, 16, 24, 24), cells=6)
    wanted, changed = model(video, fine=fine), fine.clone()
    changed[:, :, [1, 2, 3, 5, 15]] += 1  # frames between those that the Slow stream keeps
    assert wanted["places"].tolist() == [[0, 4, 8, 12]]
    torch.testing.assert_close(model(video, fine=changed)["logits"], wanted["logits"])
    changed[:, :, 8] += 1
    res2 = model(video, fine=changed)["res2"] - wanted["res2"]
    assert (res2.abs().amax((0, 1, 3, 4)) > 1e-4).tolist() == [False, False, True, False]


def test_four_frames_to_one_whatever_is_fused() -> None:
    model = tiny()
    assert model.config.ratio == 4 and not any("attention" in name or "mixes" in name for name in model.state_dict())
    with pytest.raises(ValueError, match="1/4 does not divide 6 frames"):
        model(torch.zeros(1, 3, 6, 24, 24))
    with pytest.raises(ValueError, match="a direct correspondence has but one"):
        tiny(attention=True)
    with pytest.raises(ValueError, match="sizes M, L, TINY, not 'S'"):
        models.build("slowfast_det", size="S")
