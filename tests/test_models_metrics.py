"""models.metrics: parity with scikit-learn, the Charades numbers by hand, the protocols, and merging."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve

from models import metrics
from models.metrics import FrameScores, average_precision, charades_frames, collect, frame_map, labels_at

INF, NAN = float("inf"), float("nan")
SEEDS = range(5)


def random_class(seed, levels=None, n=400):
    """Scores [n], distinct or on a few levels, and binary targets [n]."""
    random = np.random.default_rng(seed)
    scores = random.normal(size=n) if levels is None else random.integers(0, levels, n).astype(float)
    return scores, random.random(n) < 0.2


def video(key, T=40, K=3, step=0.5):
    """A scored video of T frames with one segment of each class."""
    random = np.random.default_rng([*key.encode()])
    start, length = random.uniform(0, T * step / 2, (2, K))
    segments = start, start + length, np.arange(K)
    return key, random.normal(size=(T, K)).astype(np.float32), np.arange(T) * step, segments, T * step


def numbers(frames):
    result = frame_map(*frames.arrays()[:2])
    return result.map, result.wap, result.map_prior_normalised


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("levels", [None, 2, 7])
@pytest.mark.parametrize("kind", [None, int, float])
def test_average_precision_is_that_of_scikit_learn_with_ties_and_weights(seed, levels, kind):
    scores, targets = random_class(seed, levels)
    weights = None if kind is None else np.random.default_rng(seed).uniform(0, 3, len(scores)).astype(kind)
    expected = average_precision_score(targets, scores, sample_weight=weights)
    assert average_precision(scores, targets, weights) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_order_of_tied_frames_never_matters(seed):
    scores, targets = random_class(seed, levels=3)
    shuffled = np.random.default_rng(seed).permutation(len(scores))
    assert average_precision(scores, targets) == average_precision(scores[shuffled], targets[shuffled])


def test_a_missing_frame_ranks_below_every_scored_one():
    scores, targets = random_class(3)
    missing = np.arange(len(scores)) % 3 == 0
    expected = average_precision_score(targets, np.where(missing, -1e9, scores))
    assert average_precision(np.where(missing, -INF, scores), targets) == pytest.approx(expected, abs=1e-9)


BAD_CALLS = [
    (metrics.frame_map, ([[0, 1], [0, NAN]], [[0, 0], [0, 1]]), "class 1: 1 of 2 scores are NaN"),
    (metrics.frame_map, ([[INF, 1], [0, 0]], [[0, 0], [0, 1]]), "class 0: 1 of 2 scores are NaN or .inf"),
    *((frame_map, ([[0], [0]], [[1], [soft]]), "class 0: targets must be 0 or 1") for soft in (0.5, 2, -1, NAN)),
    (frame_map, (np.zeros((4, 2)), np.zeros((4, 3))), r"\(4, 2\) and targets \(4, 3\)"),
    (average_precision, (np.zeros(4), np.zeros(3)), r"must both be \[N\]"),
    *((average_precision, ([1, 2], [0, 1], w), "weights") for w in ([1, -1], [1, NAN], [1])),
    *((charades_frames, (length,), "seconds long") for length in (0, -1.0, NAN, INF)),
    *((labels_at, ([0.0], ([0], [1], [k]), 2), "outside 0 … 1") for k in (-1, 2, 0.5)),
    *(
        (metrics.sample_at, (np.zeros((n, 1)), times, [0.0]), f"{n} scored frames need as many times")
        for n, times in ((0, []), (3, [0, 1]), (3, [0, 2, 1]), (3, [0, 1, 1]), (3, [0, 1, NAN]))
    ),
]


@pytest.mark.parametrize(("call", "arguments", "message"), BAD_CALLS)
def test_what_cannot_be_measured_is_an_error_that_says_what(call, arguments, message):
    with pytest.raises(ValueError, match=message):
        call(*arguments)


@pytest.mark.parametrize("levels", [None, 6])
def test_the_curve_is_that_of_scikit_learn_from_the_highest_score_on(levels):
    scores, targets = random_class(4, levels)
    precision, recall, _ = precision_recall_curve(targets, scores)
    ours = metrics.precision_recall(scores, targets)
    np.testing.assert_allclose(ours, (recall[-2::-1], precision[-2::-1]), atol=1e-12)


# Class 0: positives at ranks 1 and 4; class 1: one positive at rank 2; class 2: none.
SCORES = np.array([[4, 3, 0], [3, 4, 0], [2, 1, 0], [1, 2, 0]], dtype=float)
TARGETS = np.array([[1, 1, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]])


def test_map_is_the_plain_mean_and_wap_is_weighted_by_positives():
    first, second, result = (1 / 1 + 2 / 4) / 2, 1 / 2, frame_map(SCORES, TARGETS)
    assert result.map == pytest.approx((first + second) / 2)
    assert result.wap == pytest.approx((2 * first + 1 * second) / 3)


def test_the_prior_normalised_map_by_hand():
    # Class 0: k = 550, k2 = 22500, (tp, fp) = (1, 0), (2, 2). Class 1: k = 1100, k2 = 15000, (1, 1).
    first, second = (1 + 2 * 550 / (2 * 22500 + 2 * 550)) / 2, 1100 / (15000 + 1100)
    assert frame_map(SCORES, TARGETS).map_prior_normalised == pytest.approx((first + second) / 2)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_prior_normalised_ap_is_the_formula_of_the_challenge(seed):
    scores, targets = random_class(seed)
    hits = targets[np.argsort(-scores)]
    k, k2 = metrics.CHARADES_PRIOR[0] / hits.sum(), metrics.CHARADES_PRIOR[1] / (~hits).sum()
    tp, fp = np.cumsum(hits), np.cumsum(~hits)
    expected = (tp * k / (fp * k2 + tp * k))[hits].mean()
    ours = frame_map(scores[:, None], targets[:, None]).map_prior_normalised
    assert ours == pytest.approx(expected, abs=1e-9)


def test_a_class_without_positives_is_left_out_and_reported():
    result, without = frame_map(SCORES, TARGETS), frame_map(SCORES[:, :2], TARGETS[:, :2])
    assert result.excluded == [2] and np.isnan(result.per_class[2])
    assert result.positives.tolist() == [2, 1, 0] and result.frames == 4
    assert (result.map, result.wap) == (without.map, without.wap)
    assert result.map_prior_normalised == without.map_prior_normalised


@pytest.mark.parametrize("shape", [(5, 2), (0, 2)])
def test_all_three_are_nan_when_every_class_is_left_out(shape):
    result = frame_map(np.zeros(shape), np.zeros(shape))
    assert result.excluded == [0, 1]
    assert np.isnan([result.map, result.wap, result.map_prior_normalised, *result.per_class]).all()


def test_a_class_of_positives_only_scores_one_in_every_mode():
    result = frame_map(np.arange(3.0)[:, None], np.ones((3, 1)))
    assert (result.map, result.wap, result.map_prior_normalised) == (1, 1, 1)


def test_a_random_predictor_scores_the_prior_whatever_the_share_of_positives():
    # At a share r of the ranking tp = r·positives and fp = r·negatives, so precision is 1100 / (1100 + 45000)
    # = 0.0239 for every class; without the prior it is the share of positives.
    random, share = np.random.default_rng(0), np.array([0.01, 0.05, 0.4])
    result = frame_map(random.random((60_000, 3)), random.random((60_000, 3)) < share)
    assert result.map_prior_normalised == pytest.approx(1100 / 46100, rel=0.05)
    assert result.per_class == pytest.approx(share, rel=0.15)
    assert result.wap == pytest.approx((share**2).sum() / share.sum(), rel=0.05)


def test_the_25_frames_start_at_zero_stop_before_the_end_and_round_as_the_original():
    assert charades_frames(50.0) == pytest.approx(np.arange(0, 50, 2))
    lengths = np.arange(10, 60, 0.1)
    assert any(j / 25 * length != j * length / 25 for length in lengths for j in range(25))
    for length in lengths:
        assert charades_frames(length).tolist() == [j / 25 * length for j in range(25)]


def test_both_ends_of_a_segment_are_inside_it_and_segments_may_overlap():
    labels = labels_at([0.9, 1.0, 2.0, 3.0, 3.1], ([1.0, 2.0, 2.0], [3.0, 2.0, 9.0], [1, 0, 1]), 2)
    assert labels.astype(int).T.tolist() == [[0, 0, 1, 0, 0], [0, 1, 1, 1, 1]]
    assert not labels_at([0.9, 3.1], ([1.0], [3.0], [1]), 2).any()


def test_scores_are_interpolated_in_time_and_held_at_the_ends():
    scores = np.array([[0.0, 1.0], [10.0, 1.0], [20.0, 3.0]])
    got = metrics.sample_at(scores, [1, 2, 3], [0.5, 1.0, 1.25, 2.5, 3.0, 3.9])
    assert got.tolist() == [[0, 1], [0, 1], [2.5, 1], [15, 2], [20, 3], [20, 3]]


def test_a_hole_in_the_scores_is_missing_and_not_guessed():
    got = metrics.sample_at(np.ones((5, 1)), [0, 1, 2, 10, 11], [0.5, 3.0, 3.5, 8.5, 9.5, 12, 12.5])
    assert got[:, 0].tolist() == [1, 1, -INF, -INF, 1, 1, -INF]
    got = metrics.sample_at([[1.0], [-INF], [3.0]], [0, 1, 2], [0, 0.5, 1, 1.5, 2])
    assert got[:, 0].tolist() == [1, -INF, -INF, -INF, 3]


@pytest.mark.parametrize(("protocol", "frames"), [("every_frame", 40), ("charades_25", 25)])
def test_each_protocol_looks_at_its_own_frames(protocol, frames):
    _, raw, times, segments, duration = video("a")
    scores, targets = collect([video("a")], 3, protocol).videos["a"]
    wanted = times if protocol == "every_frame" else charades_frames(duration)
    assert scores.shape == (frames, 3) and scores.dtype == np.float32
    assert np.array_equal(targets, labels_at(wanted, segments, 3))
    assert np.array_equal(scores, metrics.sample_at(raw, times, wanted).astype(np.float32))


def test_an_unusable_video_is_named():
    key, scores, times, segments, duration = video("clip-7")
    for wrong in (scores[:, :2], scores[1:], np.where(scores == scores[3, 1], np.nan, scores)):
        with pytest.raises(ValueError, match="video clip-7: "):
            collect([(key, wrong, times, segments, duration)], 3)
    with pytest.raises(ValueError, match="video clip-7: .* seconds long"):
        collect([(key, scores, times, segments, 0)], 3, "charades_25")
    with pytest.raises(ValueError, match="protocol 'all' is none of"):
        collect([video("a")], 3, "all")


def test_parts_merge_in_any_order_to_the_same_result():
    whole = collect([video(key) for key in "edcba"], 3)
    parts = [collect([video(key) for key in keys], 3) for keys in ("ad", "b", "ce")]
    for order in itertools.permutations(parts):
        merged = sum(order, start=FrameScores(3))
        assert numbers(merged) == numbers(whole)
        assert all(np.array_equal(*pair) for pair in zip(merged.arrays(), whole.arrays(), strict=True))


def test_a_video_seen_twice_is_refused_by_name():
    with pytest.raises(ValueError, match="count twice: .'b'."):
        collect([video("a"), video("b")], 3) + collect([video("b"), video("c")], 3)
    with pytest.raises(ValueError, match="video a: it would count twice"):
        collect([video("a"), video("a")], 3)
