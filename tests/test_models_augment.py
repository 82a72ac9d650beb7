"""Volume Freeze, MixUp and CutMix: identities, formulas by hand, then promises over random positions."""

from fractions import Fraction
from math import floor

import pytest
import torch

from models.augment import (
    augment,
    cutmix_mask,
    mixup_alpha,
    sample_cutmix,
    sample_freeze,
    sample_mixup,
    volume_cutmix,
    volume_freeze,
    volume_mixup,
)

HALF = Fraction(1, 2)


def ints(*values):
    return torch.tensor(values)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(B=4, T=8, W=12, dtype=torch.float32, seed=0):
    """A random video [B, 3, T, 5, W] and one-hot labels [B, T, 6] that change from frame to frame."""
    video = torch.randint(0, 256, (B, 3, T, 5, W), generator=seeded(seed)).to(dtype)
    labels = torch.eye(6)[torch.randint(0, 6, (B, T), generator=seeded(seed + 1))]
    return video, labels


def pair(**options):
    return *batch(**options), *batch(**options, seed=7)


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


def same(got, expected):
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(got, expected, strict=True))


def reference_alpha(T, r, n1, n2):
    """The printed formula, in exact fractions, for positions with an overlap."""
    if n2 + r >= n1:
        values = [Fraction(n1 - t, n1 - r) for t in range(T)]
    else:
        values = [Fraction(abs(n2 + 2 * r - 2 * t), n2) for t in range(T)]
    return [min(max(v, Fraction(0)), Fraction(1)) for v in values]


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


# Degenerate positions are the identity


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("length", [0, 1])
def test_a_run_of_no_frame_or_one_is_the_identity(dtype, length):
    clips = batch(dtype=dtype)
    assert same(volume_freeze(*clips, ints(0, 3, 6, 7), ints(*[length] * 4)), clips)


@pytest.mark.parametrize("mix", [volume_mixup, volume_cutmix])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("ramp", ["thesis", "released"])
@pytest.mark.parametrize("shift, other_length", [(8, 8), (11, 3), (2**63 - 1, 8), (0, 0), (5, 0), (8, 0)])
def test_a_second_clip_off_the_canvas_leaves_the_first(mix, dtype, ramp, shift, other_length):
    clips = pair(dtype=dtype)
    positions = {"shift": ints(*[shift] * 4), "other_length": ints(*[other_length] * 4)}
    assert same(mix(*clips, **positions, ramp=ramp), clips[:2])


@pytest.mark.parametrize("mix", [volume_mixup, volume_cutmix])
def test_a_first_clip_without_frames_leaves_the_second(mix):
    clips = pair()
    assert same(mix(*clips, ints(0, 0, 0, 0), length=ints(0, 0, 0, 0)), clips[2:])


def test_mixing_a_clip_with_itself_in_place_is_the_identity():
    clips = batch(dtype=torch.uint8)
    assert same(volume_mixup(*clips, *clips, ints(0, 0, 0, 0)), clips)
    assert same(volume_cutmix(*clips, *clips, ints(0, 0, 0, 0)), clips)


def test_mode_none_is_the_identity():
    clips = batch()
    assert same(augment(*clips, seeded(), "none"), clips)


# Freeze


def test_freeze_by_hand():
    video = torch.arange(6.0).view(1, 1, 6, 1, 1)
    out, labels = volume_freeze(video, torch.arange(1.0, 7).view(1, 6, 1), ints(2), ints(3))
    assert out.flatten().tolist() == [0, 1, 2, 2, 2, 3]
    assert labels.flatten().tolist() == [1, 2, 0, 0, 0, 4]


@pytest.mark.parametrize("length", [4, 9, 2**63 - 1])
def test_what_passes_the_end_is_dropped(length):
    video = torch.arange(6.0).view(1, 1, 6, 1, 1)
    out, labels = volume_freeze(video, torch.ones(1, 6, 1), ints(2), ints(length))
    assert out.flatten().tolist() == [0, 1, 2, 2, 2, 2]
    assert labels.flatten().tolist() == [1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("n", [8, 16])
def test_every_legal_freeze_takes_its_frames_from_the_printed_formula(n):
    legal = [(r, m) for r in range(1, n) for m in range(2, n - r + 2)]  # counted from 1, as printed
    v = list(range(1, n + 1))
    expected = [v[: r - 1] + [v[r - 1]] * m + v[r : n - m + 1] for r, m in legal]
    background = [[0] * (r - 1) + [1] * m + [0] * (n - m - r + 1) for r, m in legal]
    video = torch.tensor(v, dtype=torch.uint8).view(1, 1, n, 1, 1).expand(len(legal), 1, n, 1, 1)
    start, length = ints(*[r - 1 for r, _ in legal]), ints(*[m for _, m in legal])
    out, labels = volume_freeze(video, video[:, 0, :, 0].float(), start, length)
    assert out[:, 0, :, 0, 0].tolist() == expected
    assert torch.equal(labels[..., 0], torch.tensor(expected) * (1.0 - torch.tensor(background)))


def test_freezing_twice_gives_two_segments():
    video = torch.arange(8.0).view(1, 1, 8, 1, 1)
    once = volume_freeze(video, torch.ones(1, 8, 1), ints(1), ints(2))
    out, labels = volume_freeze(*once, ints(5), ints(2))
    assert out.flatten().tolist() == [0, 1, 1, 2, 3, 4, 4, 5]
    assert labels.flatten().tolist() == [1, 0, 0, 1, 1, 0, 0, 1]


# MixUp, by hand

BY_HAND = [
    # T, r, n1, n2, thesis, hard, released
    (
        8,
        4,
        8,
        8,
        [1, 1, 1, 1, 1, 0.75, 0.5, 0.25],
        [1, 1, 1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2],
    ),
    (
        8,
        2,
        6,
        6,
        [1, 1, 1, 0.75, 0.5, 0.25, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0.8, 0.6, 0.4, 0.2, 0, 0],
    ),
    (8, 2, 8, 4, [1, 1, 1, 0.5, 0, 0.5, 1, 1], [1, 1, 1, 1, 0, 1, 1, 1], [1, 1, 0.4, 0, 0.4, 0.8, 1, 1]),
    (
        8,
        4,
        8,
        4,
        [1, 1, 1, 1, 1, 0.75, 0.5, 0.25],
        [1, 1, 1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2],
    ),
    (6, 3, 3, 3, [1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0]),  # r = n1: one after the other
    (4, 1, 4, 1, [1, 1, 1, 1], [1, 1, 1, 1], [1, 0.5, 1, 1]),
]


@pytest.mark.parametrize("T, r, n1, n2, thesis, hard, released", BY_HAND)
def test_alpha_by_hand(T, r, n1, n2, thesis, hard, released):
    positions = T, ints(r), ints(n1), ints(n2)
    assert torch.equal(mixup_alpha(*positions), torch.tensor([thesis]).float())
    assert torch.equal(mixup_alpha(*positions, seamless=False), torch.tensor([hard]).float())
    assert torch.allclose(mixup_alpha(*positions, ramp="released"), torch.tensor([released]).float())


def test_mixup_adds_the_shifted_clip():
    video, other = torch.full((1, 1, 4, 1, 1), 8.0), torch.tensor([20.0, 40, 60, 80]).view(1, 1, 4, 1, 1)
    labels, other_labels = torch.eye(2).expand(4, 2, 2).unbind(1)
    out, soft = volume_mixup(video, labels[None], other, other_labels[None], ints(2))
    assert out.flatten().tolist() == [8, 8, 8, 24]  # the last frame: half of 8, half of other's frame 1
    assert soft[0].tolist() == [[1, 0], [1, 0], [1, 0], [0.5, 0.5]]


def test_a_hard_mixup_copies_whole_frames():
    clips = pair(B=1, dtype=torch.uint8)
    out, soft = volume_mixup(*clips, ints(2), other_length=ints(4), seamless=False)
    assert torch.equal(out[:, :, 4], clips[2][:, :, 2]) and torch.equal(soft[:, 4], clips[3][:, 2])
    assert torch.equal(out[:, :, [0, 1, 2, 3, 5, 6, 7]], clips[0][:, :, [0, 1, 2, 3, 5, 6, 7]])


def test_uint8_rounds_half_up():
    one, two, label = (
        torch.full((1, 1, 2, 1, 3), 4, dtype=torch.uint8),
        torch.ones(1, 1, 2, 1, 3),
        torch.ones(1, 2, 1),
    )
    out, _ = volume_mixup(one, label, two.to(torch.uint8), label, ints(0))
    assert out[0, 0, :, 0, 0].tolist() == [4, 3]  # frame 1 is half of 4 and half of 1: 2.5


# CutMix, by hand


def test_mask_by_hand():
    mask = cutmix_mask(1, 16, ints(0), window="constant", border=2)
    assert mask[0, 0].tolist() == [1] * 7 + [0.75, 0.5, 0.25] + [0] * 6
    released = cutmix_mask(1, 16, ints(0), window="constant", border=2, ramp="released")
    assert torch.allclose(released[0, 0, 5:11], torch.tensor([1, 0.8, 0.6, 0.4, 0.2, 0]))


def test_no_border_is_a_hard_edge():
    assert cutmix_mask(4, 6, ints(0), border=0)[0].sum(-1).tolist() == [6, 5, 3, 2]  # round(6, 4.5, 3, 1.5)
    assert set(cutmix_mask(4, 6, ints(0), border=0).flatten().tolist()) == {0, 1}


def test_columns_round_half_up_exactly():
    """2 W n / d is odd in many of these: a rounded alpha times W would fall on either side."""
    for T in range(2, 30):
        edge = cutmix_mask(T, 45, ints(0), border=0)[0].sum(-1).tolist()
        assert edge == [floor(45 * a + HALF) for a in reference_alpha(T, 0, T, T)]


def test_the_default_border_is_a_sixteenth_and_the_area_is_not_quite_half():
    mask = cutmix_mask(1, 224, ints(0), window="constant")
    assert ((mask > 0) & (mask < 1)).sum() == 27  # 2 * 14 - 1
    assert mask.mean().item() == pytest.approx(0.5 + 1 / 448, abs=1e-7)
    assert cutmix_mask(1, 224, ints(0), window="constant", ramp="released").mean().item() == pytest.approx(0.5)


def test_no_border_bleeds_into_frames_of_one_clip():
    mask = cutmix_mask(8, 16, ints(2), ints(6), border=3)[0]
    assert (mask[:3] == 1).all() and (mask[6:] == 0).all()
    assert ((mask[3:6] > 0) & (mask[3:6] < 1)).any(-1).all()


def test_cutmix_sets_two_clips_side_by_side():
    a, b = (torch.full((1, 1, 2, 1, 8), v, dtype=torch.uint8) for v in (10, 50))
    first, second = torch.eye(2).expand(2, 2, 2).unbind(1)
    out, mixed = volume_cutmix(a, first[None], b, second[None], ints(0), border=2)
    assert out[0, 0, 1, 0].tolist() == [10, 10, 10, 20, 30, 40, 50, 50]
    assert mixed[0, 1].tolist() == [0.5625, 0.4375]  # 4 / 8 + 1 / 16


def test_a_constant_window_moves_both_contents_from_side_to_side():
    """T = 5, W = 8, hard edge: four columns are shown and four hidden, one column a frame."""
    columns = torch.arange(8.0).expand(1, 1, 5, 1, 8)
    label = torch.ones(1, 5, 1)
    out, _ = volume_cutmix(columns, label, columns + 10, label, ints(0), "constant", border=0)
    assert out[0, 0, :, 0, 0].tolist() == [4, 3, 2, 1, 0]  # what the left edge shows: content moves right
    assert out[0, 0, :, 0, 7].tolist() == [17, 16, 15, 14, 13]
    out, _ = volume_cutmix(columns, label, columns + 10, label, ints(0), "constant", border=0, view="released")
    assert out[0, 0, :, 0, 0].tolist() == [0, 0, 1, 2, 3]  # floor(4 t / 5), to the left
    assert out[0, 0, :, 0, 7].tolist() == [17, 17, 16, 15, 14]


def test_a_constant_window_blends_the_rolled_contents_in_its_border():
    video, labels, other, other_labels = pair(B=1, T=7, W=16)
    out, _ = volume_cutmix(video, labels, other, other_labels, ints(0), "constant", border=2)
    mask = cutmix_mask(7, 16, ints(0), window="constant", border=2)[0]  # 7 columns at 1, 6 at 0
    for t in range(7):
        one, two = video[:, :, t].roll(t - 6, -1), other[:, :, t].roll(floor(t * 7 / 6 + 0.5), -1)
        assert torch.allclose(out[:, :, t], mask[t] * one + (1 - mask[t]) * two)


@pytest.mark.parametrize("W, border", [(32, None), (33, None), (20, 1.5), (16, 0), (9, 2)])
def test_a_constant_window_shows_its_whole_clip_and_never_wraps(W, border):
    T = 2 * W
    columns, label = torch.arange(float(W)).expand(1, 1, T, 1, W), torch.ones(1, T, 1)
    out, _ = volume_cutmix(columns, label, columns, label, ints(0), "constant", border=border)
    mask = cutmix_mask(T, W, ints(0), window="constant", border=border)[0, 0]
    left, right = out[0, 0, :, 0, 0].tolist(), out[0, 0, :, 0, -1].tolist()
    assert (left[0], left[-1]) == (
        (mask == 0).sum(),
        0,
    )  # the window is flush with the right end, then the left
    assert (right[0], right[-1]) == (W - 1, W - 1 - (mask == 1).sum())
    for clip in (out[0, 0, :, 0, mask == 1], out[0, 0, :, 0, mask == 0]):
        assert (clip.diff(dim=1) == 1).all() and ((clip.diff(dim=0) == 0) | (clip.diff(dim=0) == -1)).all()


# Promises over random positions


def draws(n=40, T=8, seed=0):
    generator = seeded(seed)
    return [sample_mixup(4, T, generator) for _ in range(n)]


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
        places = sample_freeze(4, 8, seeded(seed))
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
    places = sample_freeze(4000, T, seeded())
    drawn = set(zip(places["start"].tolist(), places["length"].tolist(), strict=True))
    assert drawn == {(r - 1, m) for r in range(1, T) for m in range(2, T - r + 2)}


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


@pytest.mark.parametrize("sample", [sample_freeze, sample_mixup, sample_cutmix])
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


def test_a_lone_clip_meets_itself():
    for mode in ("mixup", "cutmix", "joint", "joint_single"):
        video, _ = augment(*flat([5.0]), seeded(), mode)
        assert (video == 5).all()


# Errors


@pytest.mark.parametrize(
    "start, length",
    [
        (ints(0, 0, 0, 8), ints(2, 2, 2, 2)),
        (ints(-1, 0, 0, 0), ints(2, 2, 2, 2)),
        (ints(0, 0, 0, 0), ints(2, 2, -1, 2)),
        (ints(0), ints(2)),
        (torch.zeros(4), ints(2, 2, 2, 2)),
        (torch.zeros(4, dtype=torch.bool), ints(2, 2, 2, 2)),
    ],
)
def test_freeze_refuses(start, length):
    with pytest.raises(ValueError, match="start|length"):
        volume_freeze(*batch(), start, length)


@pytest.mark.parametrize(
    "shift, length, other_length",
    [
        (6, 5, 8),  # a gap between the clips
        (2, 6, 5),  # both end early
        (1, 6, 2),  # clip 1 comes back, and ends early
        (0, 6, 0),
        (9, 7, 8),
    ],
)
@pytest.mark.parametrize("mix", [volume_mixup, volume_cutmix])
def test_an_uncovered_frame_is_refused_with_its_row(mix, shift, length, other_length):
    positions = (ints(0, 0, value, 0) for value in (shift, length, other_length))
    whole = ints(0, 0, 0, 0), ints(8, 8, 0, 8), ints(8, 8, 0, 8)
    shift, length, other_length = (p + w for p, w in zip(positions, whole, strict=True))
    with pytest.raises(ValueError, match="row 2"):
        mix(*pair(), shift, length=length, other_length=other_length)


@pytest.mark.parametrize(
    "options",
    [
        {"shift": ints(0, -1, 0, 0)},
        {"shift": ints(0, 0, 0)},
        {"shift": torch.zeros(4)},
        {"shift": torch.tensor(0)},
        {"shift": ints(0, 0, 0, 0), "length": ints(8, 8, 8, 9)},
        {"shift": ints(0, 0, 0, 0), "other_length": ints(8, -1, 8, 8)},
        {"shift": ints(0, 0, 0, 0), "ramp": "linear"},
    ],
)
@pytest.mark.parametrize("mix", [volume_mixup, volume_cutmix])
def test_mixing_refuses_bad_positions(mix, options):
    with pytest.raises(ValueError, match="shift|length|ramp"):
        mix(*pair(), **options)


@pytest.mark.parametrize(
    "options",
    [
        {"window": "moving"},
        {"view": "sideways"},
        {"border": -1},
        {"border": float("nan")},
        {"border": float("inf")},
        {"window": "constant", "shift": ints(0, 1, 0, 0)},
        {"window": "constant", "length": ints(8, 8, 8, 7)},
        {"window": "constant", "other_length": ints(8, 8, 8, 7)},
    ],
)
def test_cutmix_refuses(options):
    with pytest.raises(ValueError, match="window|view|border"):
        volume_cutmix(*pair(), **{"shift": ints(0, 0, 0, 0), **options})


@pytest.mark.parametrize(
    "change",
    [
        lambda v, a, o, b: (v[..., None], a, o[..., None], b),
        lambda v, a, o, b: (v, a[:, :7], o, b[:, :7]),
        lambda v, a, o, b: (v, a[..., 0], o, b[..., 0]),
        lambda v, a, o, b: (v.int(), a, o.int(), b),
        lambda v, a, o, b: (v, a.long(), o, b.long()),
        lambda v, a, o, b: (v, a, o.to(torch.uint8), b),
        lambda v, a, o, b: (v, a, o[..., 1:], b),
        lambda v, a, o, b: (v, a, o, b[..., 1:]),
        lambda v, a, o, b: (v, a, o, b.double()),
    ],
)
def test_clips_must_match(change):
    with pytest.raises(ValueError):
        volume_mixup(*change(*pair()), ints(0, 0, 0, 0))


def test_augment_refuses_unknown_modes_and_windows():
    with pytest.raises(ValueError, match="joint_single"):
        augment(*batch(), seeded(), "all")
    with pytest.raises(ValueError, match="transient"):
        augment(*batch(), seeded(), "cutmix", window="moving")
    with pytest.raises(ValueError, match="2 frames"):
        augment(*batch(T=1), seeded(), "freeze")
