"""Volume Freeze, MixUp and CutMix at chosen positions: identities, formulas by hand, and what is refused."""

from fractions import Fraction
from math import floor

import pytest
import torch

from models.augment import augment
from models.volume import cutmix_mask, mixup_alpha, volume_cutmix, volume_freeze, volume_mixup
from tests.volumes import batch, ints, pair, reference_alpha, same, seeded

HALF = Fraction(1, 2)


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
