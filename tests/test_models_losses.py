"""The objectives by hand, and with padding that must count in none of them."""

from math import log

import pytest
import torch
from torch import tensor
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from models.losses import OBJECTIVES, classification, dense, detection

INF = float("inf")
LOGITS = tensor([[[0.0], [log(3.0)]]])  # probabilities 1/2 and 3/4
LABELS = tensor([[[0.0], [1.0]]])


def test_objectives_by_hand():
    assert detection(LOGITS, LABELS).item() == pytest.approx((log(2) + log(4 / 3)) / 2)
    # The mean logit is log(sqrt 3).
    assert classification(LOGITS, LABELS).item() == pytest.approx(log(1 + 3**-0.5))
    assert dense(LOGITS, LABELS).item() == pytest.approx(((log(2) + log(4 / 3)) / 2 + log(4 / 3)) / 2)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("filling", [7.0, torch.nan])
def test_padding_counts_in_none(name, filling):
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 6, 4), torch.rand(3, 6, 4)
    counts = [6, 2, 1]
    mask = torch.arange(6) < tensor(counts)[:, None]
    padded = [x.masked_fill(~mask[..., None], filling) for x in (logits, labels)]
    got = OBJECTIVES[name](*padded, mask)
    alone = [OBJECTIVES[name](logits[b : b + 1, :n], labels[b : b + 1, :n]) for b, n in enumerate(counts)]
    if name == "classification":
        expected = sum(alone) / 3
    else:  # frames weigh the same, in whatever video they are
        frames = sum(n * bce(logits[b, :n], labels[b, :n]) for b, n in enumerate(counts)) / 9
        clips = sum(bce(logits[b, :n].amax(0), labels[b, :n].amax(0)) for b, n in enumerate(counts)) / 3
        expected = frames if name == "detection" else (frames + clips) / 2
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_mask_of_all_frames_changes_nothing(name):
    logits, labels = torch.randn(2, 5, 3), torch.rand(2, 5, 3)
    whole = torch.ones(2, 5, dtype=torch.bool)
    torch.testing.assert_close(OBJECTIVES[name](logits, labels, whole), OBJECTIVES[name](logits, labels))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_gradient_reaches_padding_and_none_is_nan(name):
    logits = torch.randn(2, 4, 3, requires_grad=True)
    mask = tensor([[True, True, True, True], [True, False, False, False]])
    OBJECTIVES[name](logits, torch.rand(2, 4, 3), mask).backward()
    assert logits.grad.isfinite().all() and (logits.grad[~mask] == 0).all()
    assert (logits.grad[0].abs().sum() > 0) and (logits.grad[1, 0].abs().sum() > 0)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(
    "mask", [torch.ones(2, 4), torch.ones(2, 5, dtype=torch.bool), tensor([[True] * 4, [False] * 4])]
)
def test_a_mask_that_does_not_fit_is_refused(name, mask):
    with pytest.raises(ValueError, match=r"mask must be bool \[2, 4\] with a frame in each row"):
        OBJECTIVES[name](torch.zeros(2, 4, 3), torch.zeros(2, 4, 3), mask)
