"""What every system of two streams, and the one they are made of, refuses; and how a fusion starts."""

import pytest
import torch
from second_x3d import one_thread  # noqa: F401

import models

SHAPES = [
    (2, 3, 24, 24),
    (2, 4, 16, 24, 24),
    (2, 16, 3, 24, 24),
    (3, 16, 24, 24),
    (2, 3, 0, 24, 24),
    (0, 3, 16, 24, 24),
    (2, 3, 16, 24, 0),
]
TWO = ("coarse_fine", "fine_fine", "slowfast_det")


def tiny(system, **options):
    torch.manual_seed(0)
    return models.build(system, size="TINY", num_classes=5, **options)


@pytest.mark.parametrize("system", ["x3d", *TWO])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_video_of_another_shape(system, shape):
    with pytest.raises(ValueError, match=r"video is \[B, 3, T, H, W\], not \["):
        tiny(system)(torch.zeros(shape))


@pytest.mark.parametrize("system", ["x3d", *TWO])
def test_pixels_that_were_not_normalised(system):
    with pytest.raises(ValueError, match="video is float, as `normalise` makes it of pixels, not torch.uint8"):
        tiny(system)(torch.zeros(1, 3, 16, 24, 24, dtype=torch.uint8))


@pytest.mark.parametrize("system", ["x3d", *TWO, "super_events", "tgm", "pdan", "ensemble"])
def test_no_class_to_score(system):
    with pytest.raises(ValueError, match="needs a class or more, not 0"):
        models.build(system, num_classes=0, **({"members": [("tgm", {})]} if system == "ensemble" else {}))


@pytest.mark.parametrize(
    "options, says", [({"sigma": float("nan")}, "sigma .* above 0, not nan"), ({"cells": -1}, "cells .* not -1")]
)
def test_numbers_that_mean_nothing(options, says):
    with pytest.raises(ValueError, match=says):
        tiny("coarse_fine", **options)


def test_an_ensemble_refuses_what_its_members_do():
    joined = models.build("ensemble", num_classes=5, members=[("x3d", {"size": "TINY"}), ("x3d", {"size": "TINY"})])
    with pytest.raises(ValueError, match=r"not \[2, 16, 3, 24, 24\]"):
        joined(torch.zeros(2, 16, 3, 24, 24))


@pytest.mark.parametrize("system", ["coarse_fine", "slowfast_det"])
def test_frames_that_alpha_does_not_divide(system):
    with pytest.raises(ValueError, match="1/4 does not divide 18 frames; give a multiple of 4"):
        tiny(system)(torch.zeros(1, 3, 18, 24, 24))


@pytest.mark.parametrize("system", TWO)
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"whole": torch.zeros(2, 3, 8, 24, 24)}, "sees 8 frames of 1.0, fewer than the 16 of the clip"),
        ({"valid": torch.arange(16) < torch.tensor([[16], [0]])}, r"no fine frame is valid in video \[1\]"),
        ({"valid": torch.ones(2, 16)}, r"valid is boolean of \[2, 16\]"),
        ({"fine": torch.zeros(2, 7, 16, 6, 6)}, r"fine features are \[B, 208, F, h, w\]"),
        ({"fine": torch.zeros(2, 208, 16, 6, 0)}, r"res2 is not of 2 videos and 16 frames: \[2, 16, 16, 6, 0\]"),
        ({"start": torch.zeros(3)}, r"one for each of 2 videos, not \[3\]"),
        ({"step": torch.ones(3)}, r"one for each of 2 videos, not \[3\]"),
    ],
)
def test_context_that_does_not_fit(system, given, says):
    with pytest.raises(ValueError, match=says):
        tiny(system)(torch.zeros(2, 3, 16, 24, 24), **given)


@pytest.mark.parametrize("system", TWO)
def test_a_fresh_fusion_leaves_the_coarse_maps_their_size(system):
    """It may halve them, by a sigmoid of about zero, but what it adds is smaller than what is there."""
    model, scales = tiny(system), []
    real = model.fusion.apply_to

    def watched(x, place, context):
        out = real(x, place, context)
        scales.append((out.std() / x.std()).item())
        return out

    model.fusion.apply_to = watched
    with torch.no_grad():
        out = model(torch.randn(2, 3, 16, 24, 24))
    assert len(scales) == 4 and all(0.3 < scale < 1.2 for scale in scales)
    if system == "coarse_fine":  # and its grid is nearly even
        assert out["places"].diff(dim=1).min() > 3 and out["places"].diff(dim=1).max() < 4.5
