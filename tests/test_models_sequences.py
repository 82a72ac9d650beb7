"""What super_events, tgm and pdan have in common: padding is invisible, every parameter learns, wrong input is said."""

import pytest
import torch
from torch.nn import functional as F

import models
from models.sequences import blank, lengths

torch.set_num_threads(1)  # tensors this small only wait for a second one
HEADS = ["super_events", "tgm", "pdan"]
T = 9


@pytest.fixture(params=HEADS)
def head(request):
    """A TINY head in float64 on 5 classes, in eval mode."""
    torch.manual_seed(0)
    return models.build(request.param, size="TINY", num_classes=5).double().eval()


def videos(*frames, longest=T, seed=0):
    """Random features [B, longest, 16] of videos of these lengths, NaN beyond, and their mask."""
    features = torch.randn(len(frames), longest, 16, generator=torch.Generator().manual_seed(seed)).double()
    mask = torch.arange(longest) < torch.tensor(frames)[:, None]
    return features.masked_fill(~mask[..., None], torch.nan), mask


def test_padding_is_invisible(head):
    """A video scores the same alone, beside longer ones and with more padding, whatever the padding holds."""
    features, mask = videos(9, 4, 1)
    together = head(features, mask)["logits"]
    for row, count in enumerate((9, 4, 1)):
        alone = head(features[row : row + 1, :count])["logits"]
        torch.testing.assert_close(together[row : row + 1, :count], alone)
        assert (together[row, count:] == 0).all()
    more = F.pad(features, (0, 0, 0, 6), value=torch.inf)
    torch.testing.assert_close(head(more, F.pad(mask, (0, 6)))["logits"][:, :T], together)


def test_a_mask_of_all_frames_is_none(head):
    features, mask = videos(T, T)
    assert torch.equal(head(features, mask)["logits"], head(features)["logits"])


def test_gradients_are_finite_and_reach_every_parameter(head):
    features, mask = videos(9, 5)
    logits = head.train()(features, mask)["logits"]
    F.binary_cross_entropy_with_logits(logits, torch.rand_like(logits)).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_no_gradient_reaches_padding(head):
    features, mask = videos(9, 5)
    features = features.nan_to_num(7.0).requires_grad_()
    head(features, mask)["logits"].square().sum().backward()
    assert (features.grad[~mask] == 0).all() and (features.grad[mask].abs().amax(-1) > 0).all()


@pytest.mark.parametrize("name", HEADS)
def test_heads_are_built_and_run_on_meta(name):
    with torch.device("meta"):
        out = models.build(name, size="PAPER", num_classes=65)(torch.empty(2, 30, 1024))
    assert out["logits"].is_meta and out["logits"].shape == (2, 30, 65)


@pytest.mark.parametrize("name", HEADS)
def test_an_unknown_size_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} has the sizes PAPER, TINY, not 'XL'"):
        models.build(name, size="XL")


@pytest.mark.parametrize("name", HEADS)
def test_a_head_learns_when_an_action_is_on(name):
    """Class k is on where feature k of the frame, smeared over time, is large: 60 steps get it nearly right."""
    torch.manual_seed(0)
    head = models.build(name, size="TINY", num_classes=4)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.03)
    features = torch.randn(16, 20, 16)
    labels = (features[..., :4] > 0).float()
    for _ in range(60):
        loss = F.binary_cross_entropy_with_logits(head(features)["logits"], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.35  # ln 2 = 0.69 without learning


BAD = [
    (torch.zeros(2, 4, 8), None, r"\[B, T, 16\], not torch.float32 \[2, 4, 8\]"),
    (torch.zeros(4, 16), None, r"\[4, 16\]"),
    (torch.zeros(2, 4, 16, dtype=torch.long), None, "torch.int64"),
    (torch.zeros(2, 0, 16), None, "no frame"),
    (torch.zeros(2, 4, 16), torch.ones(2, 5, dtype=torch.bool), r"mask must be bool \[2, 4\], not .* \[2, 5\]"),
    (torch.zeros(2, 4, 16), torch.ones(2, 4), "not torch.float32"),
    (torch.zeros(2, 4, 16), torch.tensor([[True] * 4, [False] * 4]), "row 1: the mask leaves no frame"),
    (torch.zeros(2, 4, 16), torch.tensor([[True] * 4, [True, False, True, True]]), "row 1: the mask has a gap"),
    (torch.zeros(1, 4, 16), torch.tensor([[False, True, True, True]]), "row 0: the mask has a gap"),
]


@pytest.mark.parametrize(("features", "mask", "message"), BAD)
def test_wrong_shapes_and_masks_are_refused(head, features, mask, message):
    with pytest.raises(ValueError, match=message):
        head(features, mask)


def test_lengths_and_blank_by_hand():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    count = lengths(torch.zeros(2, 3, 1), mask, 1)
    assert count.tolist() == [2, 3]
    x = torch.tensor([[1.0, 2.0, torch.nan], [4.0, 5.0, 6.0]])
    assert blank(x, count).tolist() == [[1, 2, 0], [4, 5, 6]]
