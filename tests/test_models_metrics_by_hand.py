"""Every mode and protocol of the mean average precision on cases that were worked out with a pencil."""

from fractions import Fraction as F

import numpy as np
import pytest

from models.metrics import MODES, breakdown, charades_frames, circumstances, collect, frame_map, labels_at

# Two videos of 5 s, a frame a second, two classes. Truth: video a has class 0 in [1, 2] and class 1 in [2, 4];
# video b has class 0 in [0, 0].
A0, A1 = [3, 10, 8, 9, 2], [9, 1, 10, 8, 6]
B0, B1 = [5, 7, 6, 1, 0], [7, 5, 4, 3, 2]
TRUTH_A = np.array([1.0, 2.0]), np.array([2.0, 4.0]), np.array([0, 1])
TRUTH_B = np.array([0.0]), np.array([0.0]), np.array([0])
VIDEOS = [
    ("a", np.array([A0, A1], float).T, np.arange(5.0), TRUTH_A, 5.0),
    ("b", np.array([B0, B1], float).T, np.arange(5.0), TRUTH_B, 5.0),
]


def modes(result):
    return [getattr(result, mode) for mode in MODES]


def normalised(ranks, positives, negatives):
    """The vu17 precision at each positive: tp k / (fp k2 + tp k)."""
    k, k2 = F(1100, positives), F(45000, negatives)
    pairs = [(tp, rank - tp) for tp, rank in enumerate(ranks, start=1)]
    return sum(tp * k / (fp * k2 + tp * k) for tp, fp in pairs) / positives


def test_every_frame_by_hand():
    """Class 0: scores in order 10+ 9 8+ 7 6 5+: ranks 1, 3, 6. Class 1: 10+ 9 8+ 7 6+: ranks 1, 3, 5."""
    result = frame_map(*collect(VIDEOS, 2).arrays()[:2])
    first, second = (F(1, 1) + F(2, 3) + F(3, 6)) / 3, (F(1, 1) + F(2, 3) + F(3, 5)) / 3
    scaled = (normalised([1, 3, 6], 3, 7) + normalised([1, 3, 5], 3, 7)) / 2
    assert modes(result) == pytest.approx(
        [float((first + second) / 2), float((3 * first + 3 * second) / 6), float(scaled)]
    )
    assert result.positives.tolist() == [3, 3] and result.frames == 10


def test_weights_by_positives_by_hand():
    """One class of 1 positive at rank 2 (AP 1/2) and one of 3 at ranks 1, 2, 3 (AP 1), of 4 frames."""
    scores = np.array([[4, 4], [3, 3], [2, 2], [1, 1]], float)
    targets = np.array([[0, 1], [1, 1], [0, 1], [0, 0]])
    result = frame_map(scores, targets)
    scaled = (normalised([2], 1, 3) + 1) / 2
    assert modes(result) == pytest.approx([float(F(3, 4)), float(F(1 * 1 + 3 * 2, 8)), float(scaled)])
    assert float(normalised([2], 1, 3)) == pytest.approx(1100 / (15000 + 1100))


def test_tied_frames_share_a_rank_by_hand():
    """Two frames at 5, one of them right, then one right: precision 1/2 for the first, 2/3 for the second."""
    result = frame_map(np.array([[5.0], [5.0], [1.0]]), np.array([[1], [0], [1]]))
    assert result.map == pytest.approx(float((F(1, 2) + F(2, 3)) / 2))


def test_the_charades_protocol_by_hand():
    """A video of 25 s: looked at in seconds 0 to 24. Class 0 is on in [3, 5]: 3 frames; class 1 in [24.5, 30]: none."""
    times = np.arange(0, 25, 0.5)
    scores = np.stack([-np.abs(times - 4.0), np.zeros(50)], 1)  # frame 4 first, then 3 and 5 together
    segments = np.array([3.0, 24.5]), np.array([5.0, 30.0]), np.array([0, 1])
    frames = collect([("v", scores, times, segments, 25.0)], 2, "charades_25")
    result = frame_map(*frames.arrays()[:2])
    assert (result.frames, result.positives.tolist(), result.excluded) == (25, [3, 0], [1])
    assert modes(result) == [1, 1, 1]
    worse = scores.copy()
    worse[16, 0] = 1.0  # second 8, which is looked at, and 8.5, which is not
    worse[17, 0] = 2.0
    result = frame_map(*collect([("v", worse, times, segments, 25.0)], 2, "charades_25").arrays()[:2])
    expected = (F(1, 2) + F(3, 4) + F(3, 4)) / 3
    scaled = normalised_with_tie()
    assert modes(result) == pytest.approx([float(expected), float(expected), float(scaled)])


def normalised_with_tie():
    """One false positive, then 1 true, then 2 more at once, of 3 and 22."""
    k, k2 = F(1100, 3), F(45000, 22)
    return (k / (k2 + k) + 2 * (3 * k / (k2 + 3 * k))) / 3


def test_the_two_protocols_look_at_different_frames_and_may_disagree():
    """Every half second, class 0 is on at 4.0 to 5.0: three frames there, two of the protocol's seconds."""
    times = np.arange(0, 25, 0.5)
    segments = np.array([4.0]), np.array([5.0]), np.array([0])
    scores = np.where(times == 4.5, 0.0, np.where(labels_at(times, segments, 1)[:, 0], 2.0, 1.0))[:, None]
    every = frame_map(*collect([("v", scores, times, segments, 25.0)], 1).arrays()[:2])
    official = frame_map(*collect([("v", scores, times, segments, 25.0)], 1, "charades_25").arrays()[:2])
    assert official.map == 1 and every.map == pytest.approx(float((F(1) + F(1) + F(3, 50)) / 3))


def test_a_video_without_actions_lowers_precision_in_every_mode():
    nothing = ("c", np.full((1, 2), 9.5), np.zeros(1), (np.zeros(0), np.zeros(0), np.zeros(0, int)), 5.0)
    result = frame_map(*collect([*VIDEOS, nothing], 2).arrays()[:2])
    first, second = (F(1, 1) + F(2, 4) + F(3, 7)) / 3, (F(1, 1) + F(2, 4) + F(3, 6)) / 3
    assert result.map == pytest.approx(float((first + second) / 2))
    without = frame_map(*collect(VIDEOS, 2).arrays()[:2])
    assert all(after < before for after, before in zip(modes(result), modes(without), strict=True))


def test_the_kinds_of_frames_by_hand():
    """Actions [1, 4] and [3, 6] on a frame a second: several in 3 and 4, boundaries at 1, 3, 4 and 6."""
    times, segments = np.arange(8.0), (np.array([1.0, 3.0]), np.array([4.0, 6.0]), np.array([0, 1]))
    labels = labels_at(times, segments, 2)
    found = {name: np.flatnonzero(kind).tolist() for name, kind in circumstances(times, segments, labels, 0.5).items()}
    assert found == {"single": [1, 2, 5, 6], "several": [3, 4], "boundary": [1, 3, 4, 6], "away": [0, 2, 5, 7]}
    wide = circumstances(times, segments, labels, 1.0)
    assert np.flatnonzero(wide["boundary"]).tolist() == list(range(8))
    none = circumstances(times, (np.zeros(0),) * 3, labels & False, 9.0)
    assert none["away"].all() and not any(none[name].any() for name in ("single", "several", "boundary"))


def test_the_breakdown_by_hand():
    """Of video a, second 1 and 3, 4 have one action, 2 has both; of b second 0 has one. Boundaries of a are 1, 2, 4."""
    result = breakdown(VIDEOS, 2, near=0.25)
    assert {name: kind.frames for name, kind in result.items()} == {"single": 4, "several": 1, "boundary": 4, "away": 6}
    # single: class 0 at 10+ (a 1), 9 (a 3), 5+ (b 0), 2 (a 4); class 1 at 8+ (a 3), 7 (b 0), 6+ (a 4), 1 (a 1)
    expected = (F(1) + F(2, 3)) / 2
    assert result["single"].map == pytest.approx(float(expected))
    assert result["several"].map == 1
    # boundary, a 1, 2, 4 and b 0: class 0 at 10+, 8+, 5+, 2; class 1 at 10+, 7, 6+, 1
    assert result["boundary"].map == pytest.approx(float((1 + (F(1) + F(2, 3)) / 2) / 2))
    # away, a 0, 3 and b 1 to 4: no class 0; class 1 at 9, 8+, 5 ...
    assert result["away"].map == 0.5 and result["away"].excluded == [0]


def test_the_breakdown_does_not_depend_on_the_order_of_the_videos():
    one, two = breakdown(VIDEOS, 2, near=0.25), breakdown(VIDEOS[::-1], 2, near=0.25)
    assert all(modes(one[name]) == modes(two[name]) for name in one)
    with pytest.raises(ValueError, match="near is -1 seconds"):
        breakdown(VIDEOS, 2, near=-1)


def test_frames_of_a_known_length_by_hand():
    assert charades_frames(12.5).tolist() == [j / 25 * 12.5 for j in range(25)]
    assert charades_frames(12.5)[-1] == 12.0
