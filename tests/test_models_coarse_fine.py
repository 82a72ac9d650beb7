"""Coarse-Fine against a second, naive implementation, and what holds of it whatever the weights."""

from dataclasses import replace

import numpy as np
import pytest
import second_coarse_fine as naive
import torch
from second_x3d import lively, one_thread  # noqa: F401
from torch import Tensor, nn
from torch.nn import functional as F

import models
from models import coarse_fine, x3d
from models.coarse_fine import grid_pool, grid_unpool
from models.multi_stage_fusion import aggregate, direct, fit, gaussians, mix_frames

SYSTEMS = ("coarse_fine", "fine_fine", "slowfast_det")
CHANNELS_LAST = torch.channels_last_3d


def tiny(system: str = "coarse_fine", seed: int = 0, **options: object) -> nn.Module:
    torch.manual_seed(seed)
    return lively(models.build(system, size="TINY", num_classes=5, **options))


def ramp(frames: int) -> Tensor:
    """[1, 2, T, 2, 3]: every channel and cell affine in time, with slopes of its own."""
    slopes, offsets = torch.randn(2, 1, 2, 1, 2, 3, dtype=torch.float64)
    return slopes * torch.arange(frames, dtype=torch.float64).view(-1, 1, 1) + offsets


def test_grid_pool_against_loops() -> None:
    x, p = torch.randn(3, 4, 24, 2, 3, dtype=torch.float64), torch.rand(3, 6, dtype=torch.float64)
    pooled, places = grid_pool(x, p)
    wanted = naive.grid_places(p.numpy(), 24)
    np.testing.assert_allclose(places, wanted, atol=1e-12)
    np.testing.assert_allclose(pooled, naive.sample(x.numpy(), wanted), atol=1e-12)
    last, _ = grid_pool(x.contiguous(memory_format=CHANNELS_LAST), p)
    assert last.is_contiguous(memory_format=CHANNELS_LAST)
    torch.testing.assert_close(last, pooled)


def test_grid_pool_looks_where_it_is_confident() -> None:
    x = torch.arange(16.0).view(1, 1, 16, 1, 1)
    pooled, places = grid_pool(x, torch.tensor([[0.0, 0.9, 0.0, 0.0]]))
    assert pooled.shape[2] == 5  # one more than the intervals: both ends are there
    torch.testing.assert_close(places.diff()[0], torch.tensor([1.0, 0.1, 1.0, 1.0]) * 15 / 3.1)
    torch.testing.assert_close(pooled.flatten(), places[0])


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_even_confidence_is_an_even_grid(level: float) -> None:
    _, places = grid_pool(torch.zeros(2, 1, 12, 1, 1), torch.full((2, 3), level))
    torch.testing.assert_close(places, torch.tensor([0, 11 / 3, 22 / 3, 11]).expand(2, -1))


def test_unpool_against_loops_and_undoes_pool_on_ramps() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(3, 16, generator=generator, dtype=torch.float64) ** 0.1  # strongly uneven
    x = torch.cat([ramp(64) for _ in range(3)])
    pooled, places = grid_pool(x, p)
    back = grid_unpool(pooled.flatten(3).transpose(1, 2).flatten(2), places, 64)
    torch.testing.assert_close(back, x.flatten(3).transpose(1, 2).flatten(2), atol=1e-9, rtol=0)
    logits = torch.randn(3, 17, 5, generator=generator, dtype=torch.float64)
    wanted = naive.grid_unpool(logits.numpy(), places.numpy(), 64)
    np.testing.assert_allclose(grid_unpool(logits, places, 64), wanted, atol=1e-9)


def test_gradients_of_pool_and_unpool() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 2, 8, 1, 2, dtype=torch.float64, requires_grad=True)
    p = torch.rand(2, 4, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, p: grid_pool(x, p)[0], (x, p))
    assert torch.autograd.gradcheck(lambda x, p, y: grid_unpool(y, grid_pool(x, p)[1], 8), (x, p, logits))


@pytest.mark.parametrize("share", [1 / 8, 1 / 32])
def test_gaussians_against_loops(share: float) -> None:
    centres = torch.tensor([[-1.0, 0.0, 3.7], [2.0, 8.5, 14.0]], dtype=torch.float64)
    valid = torch.arange(12) < torch.tensor([[12], [7]])
    got = gaussians(centres, 12, share * valid.sum(1), valid)
    inside = centres.clamp(max=6)  # the naive densities underflow far beyond the frames, ours do not
    assert got.isfinite().all() and torch.equal(got.amax(2), torch.ones(2, 3, dtype=torch.float64))
    wanted = naive.gaussians(inside.numpy(), 12, share, valid.numpy())
    close = inside == centres
    np.testing.assert_allclose(got[close], wanted[close.numpy()], atol=1e-12)
    assert (got[1, :, 7:] == 0).all() and (got[1, 2].argmax(), got[0, 0].argmax()) == (6, 0)


def test_aggregate_against_loops() -> None:
    x, mask = torch.randn(2, 3, 6, 2, 2, dtype=torch.float64), torch.rand(2, 1, 6, 2, 2, dtype=torch.float64)
    weights = torch.rand(2, 4, 6, dtype=torch.float64)
    wanted = naive.aggregate(x.numpy(), mask.numpy(), weights.numpy())
    np.testing.assert_allclose(aggregate(x, weights, mask), wanted, rtol=1e-4)  # its 1e-6 below the line
    np.testing.assert_allclose(
        aggregate(x, weights), naive.aggregate(x.numpy(), np.ones_like(mask), weights.numpy()), atol=1e-12
    )
    still = x[:, :, :1].expand_as(x)
    torch.testing.assert_close(aggregate(still, weights, mask), still[:, :, :4], rtol=1e-4, atol=0)
    torch.testing.assert_close(aggregate(x, weights, 0.25 * mask), aggregate(x, weights, mask), rtol=1e-4, atol=1e-5)


def test_direct_takes_a_frame_as_it_is() -> None:
    x = torch.randn(2, 3, 9, 1, 1)
    weights = direct(torch.tensor([[0.0, 4.0, 8.0], [2.0, 7.25, 20.0]]), 9)
    picked = mix_frames(weights, x)
    assert torch.equal(picked[0], x[0, :, [0, 4, 8]]) and torch.equal(picked[1, :, 0], x[1, :, 2])
    torch.testing.assert_close(picked[1, :, 1], 0.75 * x[1, :, 7] + 0.25 * x[1, :, 8])
    assert torch.equal(picked[1, :, 2], x[1, :, 8])
    valid = (torch.arange(9) < 6).expand(2, -1)
    assert direct(torch.tensor([[8.0]] * 2), 9, valid)[:, 0].argmax(1).tolist() == [5, 5]


@pytest.mark.parametrize("cells, wanted", [((6, 6), (3, 2)), ((2, 3), (6, 6)), ((5, 7), (4, 3)), ((2, 3), (3, 7))])
def test_fit_is_adaptive_max_pooling(cells: tuple[int, int], wanted: tuple[int, int]) -> None:
    x = torch.randn(2, 3, 4, *cells)
    for memory in (torch.contiguous_format, CHANNELS_LAST):
        got = fit(x.contiguous(memory_format=memory), torch.empty(2, 3, 4, *wanted))
        np.testing.assert_array_equal(got, naive.fit(x.numpy(), *wanted))


OPTIONS = [
    {},
    {"alpha": 1 / 8, "sigma": 1 / 32, "temperature": 2.0},
    {"attention": False},
    {"fusion": "one_to_one"},
    {"fusion": "late", "pooling": "stride"},
    {"pooling": "none", "depthwise": True, "blocks": (1, 2, 1, 1)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_whole_network_against_a_naive_one(options: dict[str, object]) -> None:
    model = tiny(**options).double()
    generator = torch.Generator().manual_seed(2)
    video, whole = (torch.randn(2, 3, n, 24, 32, generator=generator, dtype=torch.float64) for n in (16, 20))
    start, step = torch.tensor([3, 0]), torch.tensor([1.0, 1.25], dtype=torch.float64)
    valid = torch.arange(20) < torch.tensor([[20], [13]])
    with torch.no_grad():
        ours = model(video, whole, start=start, step=step, valid=valid)
    strides = {1 / 4: (2, 2), 1 / 8: (4, 2)}[model.config.alpha]
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    arrays = (start.numpy(), step.numpy(), valid.numpy())
    second = naive.second_coarse_fine(weights, model.config, video, whole, *arrays, strides)
    for name, wanted in second.items():
        assert wanted.std() > 1e-3
        np.testing.assert_allclose(ours[name], wanted, rtol=1e-4, atol=2e-5 * wanted.std(), err_msg=name)


def test_one_stream_is_an_x3d() -> None:
    model = tiny(fusion="none", pooling="none")
    plain = x3d.build("TINY", 5)
    assert {name.removeprefix("coarse.") for name in model.state_dict()} == set(plain.state_dict())
    plain.load_state_dict({name.removeprefix("coarse."): t for name, t in model.state_dict().items()})
    video = torch.randn(1, 3, 8, 24, 24)
    ours, theirs = model(video), plain.eval()(video)
    for name, wanted in theirs.items():
        torch.testing.assert_close(ours[name], wanted)


@pytest.mark.parametrize("pooling", ["stride", "max", "average"])
def test_what_may_stand_in_for_grid_pool(pooling: str) -> None:
    model, x = tiny(pooling=pooling, fusion="none"), torch.randn(2, 4, 12, 2, 2)
    pooled, places, confidence = model.pool(x)
    groups = x.unflatten(2, (3, 4))
    wanted = {"stride": groups[:, :, :, 0], "max": groups.amax(3), "average": groups.mean(3)}[pooling]
    torch.testing.assert_close(pooled, wanted)
    assert confidence is None and places[0].tolist() == ([0, 4, 8] if pooling == "stride" else [1.5, 5.5, 9.5])
    unpooled = model.unpool(torch.tensor([0.0, 1.0, 3.0]).view(1, 3, 1), places[:1], 12)
    torch.testing.assert_close(
        unpooled.flatten(), torch.from_numpy(np.interp(np.linspace(0, 2, 12), [0, 1, 2], [0, 1, 3])).float()
    )
    assert model(torch.randn(1, 3, 16, 24, 24))["logits"].shape == (1, 16, 5)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("memory", [torch.contiguous_format, CHANNELS_LAST], ids=["rows", "channels last"])
def test_every_parameter_learns(system: str, memory: torch.memory_format) -> None:
    torch.manual_seed(0)
    model = models.build(system, size="TINY", num_classes=8).to(memory_format=memory)
    video = torch.randn(2, 3, 16, 24, 24).contiguous(memory_format=memory)
    out = model(video)
    assert out["logits"].shape == out["fine_logits"].shape == (2, 16, 8)
    labels = torch.rand(2, 16, 8)
    sum(F.binary_cross_entropy_with_logits(out[name], labels) for name in ("logits", "fine_logits")).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize("system", SYSTEMS)
def test_what_pads_the_fine_features_does_not_matter(system: str) -> None:
    model, video = tiny(system), torch.randn(2, 3, 8, 24, 24)
    fine = model.extract(torch.randn(2, 3, 20, 24, 24))
    valid = torch.arange(20) < torch.tensor([[20], [11]])
    padded = fine.clone()
    padded[1, :, 11:] = torch.nan
    wanted = model(video, fine=fine, valid=valid, start=torch.tensor([4, 1]))["logits"]
    torch.testing.assert_close(model(video, fine=padded, valid=valid, start=torch.tensor([4, 1]))["logits"], wanted)
    alone = model(video[1:], fine=fine[1:, :, :11], start=1)["logits"]
    torch.testing.assert_close(alone, wanted[1:], rtol=1e-4, atol=1e-4)
    if model.config.correspondence == "gaussian":  # a direct correspondence sees nothing beyond the clip anyway
        unmasked = model(video, fine=fine, start=torch.tensor([4, 1]))["logits"]
        assert (unmasked[1] - wanted[1]).abs().max() > 1e-3


def test_features_from_a_column_stand_for_the_fine_stream() -> None:
    model = tiny()
    video, whole = torch.randn(2, 3, 8, 24, 24), torch.randn(2, 3, 12, 24, 24)
    wanted = model(video, whole, start=2)
    column = model.extract(whole, cells=6)  # all maps of 24 pixels fit into six cells
    assert column.shape == (2, 16 + 32 + 32 + 64 + 64, 12, 6, 6) and not column.requires_grad
    given = model(video, fine=column, start=2)
    torch.testing.assert_close(given["logits"], wanted["logits"], rtol=1e-4, atol=1e-4)
    by_level = model.fine.features(whole)
    leveled = model(video, fine=by_level, start=2)["logits"]
    torch.testing.assert_close(leveled, wanted["logits"])
    assert all(grad.any() for grad in torch.autograd.grad(leveled.sum(), list(by_level.values())))
    assert "fine_logits" in wanted and "fine_logits" not in given
    half = model(video, fine=column.half(), start=2)["logits"]
    torch.testing.assert_close(half, wanted["logits"], rtol=0.05, atol=0.05)
    assert model.extract(whole).shape[3:] == (7, 7)


def test_the_clip_is_placed_in_the_whole_video() -> None:
    model, video = tiny(), torch.randn(1, 3, 8, 24, 24)
    whole = torch.randn(1, 3, 24, 24, 24)
    early, late = (model(video, whole, start=start)["logits"] for start in (0, 16))
    assert (early - late).abs().max() > 1e-3
    backwards = model.extract(whole).flip(2)  # clip and context mirrored: the distances are those of `late`
    forwards = model.extract(whole)
    mirrored = model.calibrate({"conv5": backwards}, 7 - torch.arange(8.0)[None], 8, 0, 1.0, None)[1]
    plain = model.calibrate({"conv5": forwards}, torch.arange(8.0)[None], 8, 16, 1.0, None)[1]
    torch.testing.assert_close(mirrored.flip(2), plain)
    sparse = model.calibrate({"conv5": forwards}, torch.arange(8.0)[None], 8, 16, 2.0, None)[1]
    assert sparse.argmax(2)[0].tolist() in ([8, 8, 9, 9, 10, 10, 11, 11], [8, 9, 9, 10, 10, 11, 11, 12])
    each = model(video.repeat(2, 1, 1, 1, 1), whole.repeat(2, 1, 1, 1, 1), start=torch.tensor([0, 16]))["logits"]
    torch.testing.assert_close(each, torch.cat([early, late]), rtol=1e-4, atol=1e-4)


def call(**given: object) -> Tensor:
    video = given.pop("video", torch.zeros(2, 3, 16, 24, 24))
    return tiny(**given.pop("options", {}))(video, **given)["logits"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given, says",
    [
        ({"video": torch.zeros(2, 3, 18, 24, 24)}, "1/4 does not divide 18 frames; give a multiple of 4"),
        ({"video": torch.zeros(2, 16, 3, 24, 24)}, r"video is \[B, 3, T, H, W\], not \[2, 16, 3, 24, 24\]"),
        ({"whole": torch.zeros(2, 3, 24, 24)}, r"whole is \[B, 3, T, H, W\], not \[2, 3, 24, 24\]"),
        ({"whole": torch.zeros(1, 3, 16, 24, 24)}, "res2 is not of 2 videos and 16 frames"),
        ({"whole": torch.zeros(2, 3, 12, 24, 24)}, "sees 12 frames of 1.0, fewer than the 16 of the clip"),
        ({"whole": torch.zeros(2, 3, 20, 24, 24), "start": 5}, "16 frames from 5 ends beyond the 20"),
        ({"start": torch.tensor([0, -1])}, "starts at 0 or later"),
        ({"step": 0.0}, "a step is above 0"),
        ({"valid": torch.ones(2, 16)}, r"valid is boolean of \[2, 16\], not torch.float32"),
        ({"valid": torch.ones(2, 8, dtype=torch.bool)}, r"not torch.bool of \[2, 8\]"),
        ({"valid": torch.arange(16) < torch.tensor([[3], [0]])}, r"no fine frame is valid in video \[1\]"),
        ({"fine": torch.zeros(2, 100, 16, 6, 6)}, r"\[B, 208, F, h, w\], not \[2, 100, 16, 6, 6\]"),
        ({"fine": {"res2": torch.zeros(2, 16, 16, 6, 6)}}, r"fine features need res3 as \[B, 32, F, h, w\]"),
        ({"fine": torch.zeros(2, 208, 16, 6, 6), "whole": torch.zeros(2, 3, 16, 24, 24)}, "not both"),
        ({"options": {"fusion": "none"}, "whole": torch.zeros(2, 3, 16, 24, 24)}, "has no Fine stream"),
        ({"options": {"alpha": 0.3}}, "one over a whole number"),
        ({"options": {"alpha": 1.0}}, "at least 2, not 1.0"),
        ({"options": {"pooling": "median"}}, "pooling is one of grid, stride, max, average, none, not 'median'"),
        ({"options": {"fusion": "early"}}, "fusion is one of multi_stage, one_to_one, late, none, not 'early'"),
        ({"options": {"sigma": 0}}, "sigma"),
        ({"options": {"correspondence": "direct"}}, "attention"),
    ],
)
def test_what_does_not_fit_says_why(given: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call(**given)


def test_functions_refuse_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="10 frames cannot be cut into 4"):
        grid_pool(torch.zeros(1, 2, 10, 1, 1), torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"not \[1, 2, 8, 1, 1\], \[2, 4\]"):
        grid_pool(torch.zeros(1, 2, 8, 1, 1), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"not \[1, 5, 2\], \[1, 4\]"):
        grid_unpool(torch.zeros(1, 5, 2), torch.zeros(1, 4), 16)
    with pytest.raises(ValueError, match=r"no fine frame is valid in video \[0\]"):
        gaussians(torch.zeros(1, 2), 3, 1.0, torch.zeros(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="sizes M, L, TINY, not 'XL'"):
        models.build("coarse_fine", size="XL")
    with pytest.raises(TypeError, match="coarse_fine has no option depth"):
        models.build("coarse_fine", depth=3)


def test_streams_trained_apart_are_put_together_by_name() -> None:
    apart = tiny(seed=1, fusion="none"), lively(x3d.build("TINY", 5))
    together = tiny(seed=2)
    weights = apart[0].state_dict() | {f"fine.{name}": t for name, t in apart[1].state_dict().items()}
    missing, unexpected = together.load_state_dict(weights, strict=False)
    assert not unexpected and missing and all(name.startswith("fusion.") for name in missing)
    assert models.build("coarse_fine", size="TINY").config == replace(coarse_fine.TINY, num_classes=157)
