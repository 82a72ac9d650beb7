"""Fine-Fine: every frame is a point, and the rows of Tables 3.3a and c are options."""

import pytest
import torch
from second_coarse_fine import second_coarse_fine
from second_x3d import lively, one_thread  # noqa: F401

import models
from models import fine_fine

ROWS = [(fusion, attention) for fusion in ("late", "one_to_one", "multi_stage") for attention in (True, False)]


@pytest.mark.parametrize("fusion, attention", ROWS)
def test_each_row_against_a_naive_network(fusion: str, attention: bool) -> None:
    torch.manual_seed(0)
    model = lively(models.build("fine_fine", size="TINY", num_classes=3, fusion=fusion, attention=attention)).double()
    video = torch.randn(1, 3, 6, 24, 24, dtype=torch.float64)
    with torch.no_grad():
        ours = model(video)
    assert ours["places"][0].tolist() == list(range(6)) and "confidence" not in ours
    once, all_valid = torch.zeros(1).numpy(), torch.ones(1, 6, dtype=torch.bool).numpy()
    second = second_coarse_fine(model.state_dict(), model.config, video, video, once, once + 1, all_valid)
    for name, wanted in second.items():
        wanted = torch.from_numpy(wanted)
        torch.testing.assert_close(ours[name].double(), wanted, rtol=1e-4, atol=2e-5 * wanted.std().item())


def test_what_a_row_leaves_out_is_not_built() -> None:
    names = {
        row: set(models.build("fine_fine", size="TINY", fusion=row[0], attention=row[1]).state_dict()) for row in ROWS
    }
    assert all(not any(".attention." in name for name in names[fusion, False]) for fusion, _ in ROWS)
    late = {name.split(".")[2] for name in names["late", True] if name.startswith("fusion.")}
    assert late == {"conv5"} and not any(".mixes." in name for name in names["one_to_one", True])
    assert names["late", True] < names["one_to_one", True] < names["multi_stage", True]


def test_late_fusion_needs_the_last_level_alone() -> None:
    torch.manual_seed(0)
    model, video = (
        lively(models.build("fine_fine", size="TINY", num_classes=3, fusion="late")),
        torch.randn(1, 3, 8, 24, 24),
    )
    conv5 = {"conv5": model.fine.features(video)["conv5"]}
    torch.testing.assert_close(model(video, fine=conv5)["logits"], model(video)["logits"])


def test_any_number_of_frames_and_no_pooling() -> None:
    model = models.build("fine_fine", size="TINY", num_classes=3)
    assert model.config == fine_fine.Config(**{**vars(fine_fine.TINY), "num_classes": 3}) and model.config.ratio == 1
    assert model.eval()(torch.randn(1, 3, 7, 24, 24))["logits"].shape == (1, 7, 3)
    for options in ({"pooling": "grid"}, {"fusion": "none"}):
        with pytest.raises(ValueError, match="fine_fine pools nothing and fuses two streams"):
            models.build("fine_fine", size="TINY", **options)
    with pytest.raises(ValueError, match="sizes M, L, TINY, not 'S'"):
        models.build("fine_fine", size="S")
