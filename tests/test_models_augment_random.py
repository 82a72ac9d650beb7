"""Volume Freeze, MixUp and CutMix at random positions: promises, the samplers, and a batch at random."""

from math import floor

import pytest
import torch

from models.augment import augment, sample_cutmix, sample_freezes, sample_mixup
from models.volume import cutmix_mask, mixup_alpha, volume_cutmix, volume_freeze, volume_mixup
from tests.volumes import batch, ints, pair, reference_alpha, same, seeded


def flat(values, T=8, W=12):
    """Clips of one brightness each, [B, 1, T, 1, W], labelled with one class of their own."""
    B = len(values)
    video = torch.tensor(values, dtype=torch.float32).view(B, 1, 1, 1, 1).expand(B, 1, T, 1, W)
    return video, torch.eye(B)[:, None].expand(B, T, B)


def ones_over_zeros(mix, B, T=8, W=12, **positions):
    """The weight of clip 1 per frame and column [B, T, W] as pixels show it, and per frame as labels say."""
    video, labels = torch.ones(B, 1, T, 1, W), torch.ones(B, T, 1)
    out, soft = mix(video, labels, video * 0, labels * 0, **positions)
    return out[:, 0, :, 0], soft[..., 0]


def draws(n=40, T=8, seed=0):
    generator = seeded(seed)
    return [sample_mixup(4, T, generator) for _ in range(n)]


def reference_mask(W, w, border):
    """The printed mask of one frame, case by case."""
    row = []
    for j in range(W):
        if j < w - border:
            row.append(1.0)
        elif j >= w + border:
            row.append(0.0)
        else:
            row.append((w + border - j) / (2 * border))
    return row


# Promises over random positions


def test_alpha_is_the_printed_formula():
    for T in (2, 5, 8, 16):
        for positions in draws(T=T):
            rows = zip(*(positions[k].tolist() for k in ("shift", "length", "other_length")), strict=True)
            for alpha, (r, n1, n2) in zip(mixup_alpha(T, **positions), rows, strict=True):
                hard = [1.0] * r + [0.0] * (T - r)
                expected = hard if n1 == r else [float(a) for a in reference_alpha(T, r, n1, n2)]
                assert alpha.tolist() == pytest.approx(expected)


def test_the_transient_mask_is_the_printed_formula():
    for positions in draws():
        alpha, mask = mixup_alpha(8, **positions), cutmix_mask(8, 32, **positions, border=3)
        for a, row in zip(alpha.flatten().tolist(), mask.flatten(0, 1), strict=True):
            expected = [a] * 32 if a in (0, 1) else reference_mask(32, floor(32 * a + 0.5), 3)
            assert row.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("options", [{}, {"seamless": False}, {"ramp": "released"}])
def test_mixup_labels_are_the_weights_in_the_pixels(options):
    for positions in draws():
        shown, said = ones_over_zeros(volume_mixup, 4, **positions, **options)
        assert torch.allclose(shown.mean(-1), said) and torch.equal(said, mixup_alpha(8, **positions, **options))


@pytest.mark.parametrize("options", [{}, {"border": 0}, {"border": 2.5}, {"border": 40}, {"ramp": "released"}])
def test_cutmix_labels_are_the_mean_of_the_mask_in_the_pixels(options):
    for positions in draws():
        shown, said = ones_over_zeros(volume_cutmix, 4, **positions, **options)
        assert torch.equal(shown, cutmix_mask(8, 12, **positions, **options))
        assert torch.allclose(shown.mean(-1), said)


@pytest.mark.parametrize("view", ["thesis", "released"])
@pytest.mark.parametrize("W", [7, 16, 224])
def test_constant_window_labels_are_the_mean_of_the_mask_in_the_pixels(view, W):
    shown, said = ones_over_zeros(volume_cutmix, 2, W=W, shift=ints(0, 0), window="constant", view=view)
    assert torch.allclose(shown.mean(-1), said) and said.unique().numel() == 1


@pytest.mark.parametrize("window", ["mixup", "transient", "constant"])
def test_uint8_is_the_rounded_float(window):
    mix = volume_mixup if window == "mixup" else volume_cutmix
    kind = {} if window == "mixup" else {"window": window}
    whole, real = pair(dtype=torch.uint8), pair(dtype=torch.float64)
    for seed in range(20):
        positions = sample_cutmix(4, 8, seeded(seed), kind.get("window", "transient"))
        out, exact = mix(*whole, **positions, **kind)[0], mix(*real, **positions, **kind)[0]
        assert out.dtype == torch.uint8 and exact.dtype == torch.float64
        assert (out - exact).abs().max() <= 0.5 + 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_keeps_its_dtype(dtype):
    clips = [x.to(dtype) for x in pair()]
    out, soft = volume_mixup(*clips, ints(0, 1, 2, 3))
    assert out.dtype == soft.dtype == dtype
    assert torch.allclose(out.float(), volume_mixup(*pair(), ints(0, 1, 2, 3))[0], rtol=1e-2)


@pytest.mark.parametrize("mode", ["none", "freeze", "mixup", "cutmix", "joint_single", "joint"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_inputs_are_never_written_to_nor_shared(mode, dtype):
    clips, kept = batch(dtype=dtype), batch(dtype=dtype)
    for seed in range(5):
        for result in augment(*clips, seeded(seed), mode):
            result.zero_()
        assert same(clips, kept)


@pytest.mark.parametrize("mix", [volume_mixup, volume_cutmix])
def test_what_a_clip_does_not_cover_is_never_read(mix):
    for positions in draws():
        video, labels, other, other_labels = (x.clone() for x in pair())
        expected = mix(video, labels, other, other_labels, **positions)
        for b, (n1, n2) in enumerate(zip(positions["length"], positions["other_length"], strict=True)):
            for x, frames in ((video, n1), (other, n2)):
                x[b, :, frames:] = torch.nan
            labels[b, n1:], other_labels[b, n2:] = torch.nan, torch.nan
        assert same(mix(video, labels, other, other_labels, **positions), expected)


@pytest.mark.parametrize("mode", ["mixup", "cutmix"])
def test_one_hot_labels_keep_their_mass(mode):
    for seed in range(20):
        _, labels = augment(*batch(), seeded(seed), mode)
        assert torch.allclose(labels.sum(-1), torch.ones(4, 8)) and (labels >= 0).all()


def test_frozen_frames_have_no_mass_and_all_others_one():
    for seed in range(20):
        (places,) = sample_freezes(4, 8, seeded(seed), 1)
        _, labels = volume_freeze(*batch(), **places)
        assert (labels.sum(-1) == 0).sum(-1).tolist() == places["length"].tolist()
        assert ((labels.sum(-1) == 0) | (labels.sum(-1) == 1)).all()


def test_other_integer_types_layouts_and_positions_are_accepted():
    clips = [x.transpose(-1, -2) if x.ndim == 5 else x.transpose(0, 1) for x in pair(W=5, T=4)]
    plain = [x.contiguous() for x in clips]
    narrow = ints(0, 1, 2, 3).to(torch.uint8)
    assert same(volume_mixup(*clips, narrow), volume_mixup(*plain, narrow.long()))
    assert same(volume_freeze(*clips[:2], narrow, narrow), volume_freeze(*plain[:2], narrow.long(), narrow.long()))


def test_gradients_reach_both_clips():
    video, labels, other, other_labels = pair()
    video.requires_grad_(), other.requires_grad_()
    volume_cutmix(video, labels, other, other_labels, ints(2, 2, 2, 2))[0].sum().backward()
    assert torch.allclose(video.grad.mean((1, 3)) + other.grad.roll(2, 2).mean((1, 3)), torch.ones(4, 8, 12))


# Samplers


@pytest.mark.parametrize("T", [2, 3, 8, 16])
def test_sampled_freezes_are_the_legal_ones(T):
    (places,) = sample_freezes(4000, T, seeded(), 1)
    drawn = set(zip(places["start"].tolist(), places["length"].tolist(), strict=True))
    assert drawn == {(r - 1, m) for r in range(1, T) for m in range(2, T - r + 2)}


def legal_pairs(T):
    """All two runs of 2 frames or more with a frame between them."""
    runs = [(s, m) for s in range(T) for m in range(2, T - s + 1)]
    return {(one, two) for one in runs for two in runs if sum(one) < two[0]}


@pytest.mark.parametrize("T", [5, 6, 8])
def test_two_sampled_segments_are_the_separate_ones(T):
    first, second = sample_freezes(6000, T, seeded(), 2)
    drawn = [zip(p["start"].tolist(), p["length"].tolist(), strict=True) for p in (first, second)]
    assert set(zip(*drawn, strict=True)) == legal_pairs(T)


def test_segments_stay_apart_and_hold_their_frames():
    video, ones = torch.arange(16.0).view(1, 1, 16, 1, 1).expand(200, 1, 16, 1, 1), torch.ones(200, 16, 1)
    out, labels = video, ones
    for places in sample_freezes(200, 16, seeded(), 3):
        out, labels = volume_freeze(out, labels, **places)
    on = torch.nn.functional.pad(labels[..., 0], (1, 1), value=1.0)
    assert ((on[:, 1:] < on[:, :-1]).sum(1) == 3).all()  # three runs begin
    frames = out[:, 0, :, 0, 0]
    steps = frames.diff(dim=1)
    held = (labels[:, 1:, 0] == 0) & (labels[:, :-1, 0] == 0)
    assert (steps[held] == 0).all() and (steps[~held] == 1).all()


@pytest.mark.parametrize(("frames", "segments"), [(1, 1), (4, 2), (7, 3), (8, 0)])
def test_more_segments_than_fit_are_refused(frames, segments):
    with pytest.raises(ValueError, match="freezing needs at least"):
        sample_freezes(2, frames, seeded(), segments)


@pytest.mark.parametrize("T", [1, 2, 3, 8, 16])
def test_sampled_mixups_cover_every_frame_and_reach_both_scenarios(T):
    places = sample_mixup(2000, T, seeded())
    mixup_alpha(T, **places)  # refuses uncovered frames
    passes = places["other_length"] + places["shift"] >= places["length"]
    assert passes.any() and (T == 1 or not passes.all())
    assert (places["length"] < T).any() or T == 1


def test_sampled_mixups_do_mix():
    alpha = mixup_alpha(16, **sample_mixup(500, 16, seeded()))
    assert ((alpha < 1).any(-1)).all()


@pytest.mark.parametrize("sample", [lambda *given: sample_freezes(*given, 1)[0], sample_mixup, sample_cutmix])
def test_samplers_are_functions_of_the_generator(sample):
    one, two = seeded(3), seeded(3)
    first, again, later = sample(50, 8, one), sample(50, 8, two), sample(50, 8, two)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], later[k]) for k in first)


def test_a_sampled_constant_window_is_accepted():
    places = sample_cutmix(4, 8, seeded(), "constant")
    assert same(
        volume_cutmix(*pair(), **places, window="constant"),
        volume_cutmix(*pair(), ints(0, 0, 0, 0), "constant"),
    )


# A batch at random


@pytest.mark.parametrize("mode", ["freeze", "mixup", "cutmix", "joint_single", "joint"])
def test_augment_is_a_function_of_the_generator(mode):
    first, again, later = (augment(*batch(), g, mode) for g in (seeded(3), seeded(3), seeded(4)))
    assert same(first, again) and not same(first, later)
    assert first[0].shape == (4, 3, 8, 5, 12) and first[1].shape == (4, 8, 6)


@pytest.mark.parametrize("mode", ["mixup", "cutmix"])
def test_each_clip_meets_another_one_and_the_labels_say_which(mode):
    """Clip k has brightness 10^k: the mean of a frame is the sum of its labels times the brightness."""
    values = torch.tensor([1.0, 10, 100, 1000])
    for seed in range(30):
        video, labels = augment(*flat(values.tolist(), T=16), seeded(seed), mode)
        assert torch.allclose(video.mean((1, 3, 4)), labels @ values, rtol=1e-4)
        assert ((labels.amax(1) > 0).sum(-1) == 2).all()


def test_joint_single_gives_each_clip_one_augmentation():
    """A frozen clip has background and one class, a mixed one two classes and no background."""
    for seed in range(10):
        _, labels = augment(*flat([float(k) for k in range(20)], T=16), seeded(seed), "joint_single")
        background, classes = (labels.sum(-1) == 0).any(-1), (labels.amax(1) > 0).sum(-1)
        assert torch.equal(background, classes < 2) and (classes <= 2).all()
        assert background.any() and not background.all()


def test_joint_leaves_some_clips_alone_and_applies_several_to_others():
    clips = flat([float(k) for k in range(64)], T=16)
    video, labels = augment(*clips, seeded(), "joint", window="constant")
    alone = (labels == clips[1]).flatten(1).all(1)
    assert 2 <= alone.sum() <= 20 and torch.equal(video[alone], clips[0][alone])
    classes = (labels.amax(1) > 0).sum(-1)
    assert classes.max() == 4  # mixed with a mixed clip
    assert ((classes > 2) & (labels.sum(-1) < 0.9).any(1)).any()  # and frozen before


def test_both_windows_are_drawn():
    halves = [augment(*flat([0.0, 1], T=8), seeded(s), "cutmix")[1].unique(dim=1).shape[1] for s in range(20)]
    assert 1 in halves and max(halves) > 1  # a constant window has the same labels in all frames


def test_the_window_can_be_chosen():
    for seed in range(8):
        _, labels = augment(*flat([0.0, 1]), seeded(seed), "cutmix", window="constant")
        assert labels.unique(dim=1).shape[1] == 1


def test_two_segments_and_hard_edges_can_be_chosen():
    clips = flat([float(k) for k in range(8)], T=16)
    for seed in range(8):
        _, labels = augment(*clips, seeded(seed), "freeze", segments=2)
        on = torch.nn.functional.pad(labels.sum(-1), (1, 1), value=1.0)
        assert ((on[:, 1:] < on[:, :-1]).sum(1) == 2).all()
        _, hard = augment(*clips, seeded(seed), "mixup", seamless=False)
        _, soft = augment(*clips, seeded(seed), "mixup")
        assert set(hard.unique().tolist()) == {0.0, 1.0} and len(soft.unique()) > 2
        assert (hard[soft > 0.5] == 1).all() and (hard[soft < 0.5] == 0).all()


def test_a_lone_clip_meets_itself():
    for mode in ("mixup", "cutmix", "joint", "joint_single"):
        video, _ = augment(*flat([5.0]), seeded(), mode)
        assert (video == 5).all()
