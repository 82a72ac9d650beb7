"""models.gate: the resampling against a slow one, the decision, its error rates, and what it refuses."""

import dataclasses
import time

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from models.gate import Rules, objections, paired_bootstrap, resampled
from models.metrics import MODES, FrameScores, class_mean, frame_map


@pytest.fixture(autouse=True)
def one_thread():
    """Products this small lose more to a second thread than they gain, most of all on a busy machine."""
    with threadpool_limits(1):
        yield


def two_models(seed, videos=20, T=30, K=3, gain=(1.0, 1.0), levels=None):
    """Champion and challenger: noisy scores, of the given gain in one span of each class in each video."""
    random = np.random.default_rng(seed)
    held = {}, {}
    for v in range(videos):
        start, t = random.integers(0, T, K), np.arange(T)[:, None]
        targets = (t >= start) & (t < start + random.integers(1, T // 2, K))
        for model, g in zip(held, gain, strict=True):
            # One noise for the whole video beside that of the frame: frames of a video are not independent.
            scores = g * targets + random.normal(size=(T, K)) + 0.7 * random.normal(size=(1, K))
            model[f"v{v:02d}"] = (scores if levels is None else np.round(scores * levels)), targets
    return FrameScores(K, held[0]), FrameScores(K, held[1])


def relabelled(frames, key, change):
    """The same frames with the truth of one video changed."""
    scores, targets = frames.videos[key]
    return FrameScores(frames.num_classes, {**frames.videos, key: (scores, change(targets))})


def repeated(frames, counts):
    """Scores and targets [N, K] of videos that are really there counts [V] times."""
    scores, targets, video = frames.arrays()
    index = np.repeat(np.arange(len(video)), counts[video])
    return scores[index], targets[index]


@pytest.mark.parametrize("metric", MODES)
@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize("cells", [1, 250, 1 << 18])
def test_weighting_the_videos_of_a_sorted_class_equals_repeating_them(metric, levels, cells, monkeypatch):
    monkeypatch.setattr("models.gate.CELLS", cells)
    frames, _ = two_models(1, videos=5, levels=levels)
    counts = np.random.default_rng(0).multinomial(5, np.full(5, 0.2), size=30).T
    slow = [getattr(frame_map(*repeated(frames, draw)), metric) for draw in counts.T]
    assert class_mean(*resampled(frames, counts.astype(float), metric), metric) == pytest.approx(slow, abs=1e-12)


def test_a_class_that_loses_its_positives_leaves_the_mean_of_that_draw():
    frames, _ = two_models(2, videos=3)
    for key in ("v01", "v02"):
        frames = relabelled(frames, key, lambda targets: targets & [True, True, False])
    drawn = class_mean(*resampled(frames, np.array([[0.0], [2.0], [1.0]])), "map")
    result = frame_map(*repeated(frames, np.array([0, 2, 1])))
    assert result.excluded == [2] and drawn == pytest.approx([result.map])


@pytest.mark.parametrize("metric", MODES)
def test_the_point_estimate_is_the_difference_on_all_videos(metric):
    champion, challenger = two_models(3, gain=(1, 1.5))
    before, after = (getattr(frame_map(*model.arrays()[:2]), metric) for model in (champion, challenger))
    comparison = paired_bootstrap(champion, challenger, metric=metric, samples=200)
    assert (comparison.champion, comparison.challenger) == (before, after)
    assert comparison.delta == after - before
    assert comparison.ci_low < comparison.delta < comparison.ci_high
    assert (comparison.metric, comparison.samples, comparison.videos) == (metric, 200, 20)


@pytest.mark.parametrize("metric", MODES)
def test_the_bounds_are_the_outer_ones_of_paired_draws_and_of_student(metric):
    """Each is the outer one somewhere; 1.4149 is Student's 90th percentile of seven degrees of freedom."""
    outer = set()
    for seed in range(4, 12):
        champion, challenger = two_models(seed, videos=8)
        comparison = paired_bootstrap(champion, challenger, metric=metric, samples=400, confidence=0.8, seed=5)
        counts = np.random.default_rng(5).multinomial(8, np.full(8, 1 / 8), size=400).T.astype(float)
        differences = np.subtract(*(class_mean(*resampled(m, counts, metric), metric) for m in (challenger, champion)))
        assert comparison.p_worse == (differences <= 0).mean()
        low, high = np.quantile(differences, [0.1, 0.9])
        left = []
        for counted in 1 - np.eye(8, dtype=int):
            after, before = (getattr(frame_map(*repeated(m, counted)), metric) for m in (challenger, champion))
            left.append(after - before)
        reach = 1.4149 * np.std(left) * np.sqrt(7)
        assert comparison.ci_low == pytest.approx(min(low, comparison.delta - reach), abs=1e-5)
        assert comparison.ci_high == pytest.approx(max(high, comparison.delta + reach), abs=1e-5)
        outer |= {low < comparison.delta - reach, high > comparison.delta + reach}
    assert outer == {True, False}


def test_equal_models_differ_by_nothing_and_are_refused():
    champion, _ = two_models(6)
    comparison = paired_bootstrap(champion, champion)
    assert (comparison.delta, comparison.ci_low, comparison.ci_high, comparison.p_worse) == (0, 0, 0, 1)
    assert objections(comparison, Rules())


def test_the_same_seed_gives_the_same_comparison_in_any_order_of_videos():
    models = two_models(7)
    reversed_models = [FrameScores(3, dict(reversed(model.videos.items()))) for model in models]
    assert paired_bootstrap(*models, samples=200) == paired_bootstrap(*reversed_models, samples=200)
    assert paired_bootstrap(*models, samples=200) != paired_bootstrap(*models, samples=200, seed=1)


def test_promotion_needs_the_whole_interval_above_the_margin_and_enough_videos():
    comparison = dataclasses.replace(paired_bootstrap(*two_models(8), samples=100), ci_low=0.02)
    assert not objections(comparison, Rules()) and not objections(comparison, Rules(margin=0.01))
    assert objections(comparison, Rules(margin=0.02)) and objections(comparison, Rules(margin=0.03))
    assert objections(dataclasses.replace(comparison, ci_low=0.0), Rules())
    (few,) = objections(dataclasses.replace(comparison, videos=4), Rules())
    assert "4 videos are too few" in few


def test_a_class_that_falls_for_sure_is_refused_by_name_though_the_mean_rises():
    champion, challenger = two_models(8, videos=30, gain=(1, np.array([6.0, 6.0, 0.1])))
    comparison = paired_bootstrap(champion, challenger, samples=200)
    assert comparison.ci_low > 0 and [change.index for change in comparison.lost] == [2]
    assert objections(comparison, Rules(), ["run", "jump", "sit"]) == [
        f"surely worse on sit ({comparison.classes[2].delta:+.3f} AP)"
    ]
    allowed = paired_bootstrap(champion, challenger, samples=200, class_drop=0.9)
    assert not allowed.lost and not objections(allowed, Rules())


def test_what_it_costs_may_be_limited():
    comparison = dataclasses.replace(paired_bootstrap(*two_models(8), samples=100), ci_low=0.02, classes=[])
    cheap, dear = {"latency_ms": 10.0, "gmacs": 1.0}, {"latency_ms": 25.0, "gmacs": 3.0}
    assert not objections(comparison, Rules(), costs=(cheap, dear))
    assert objections(comparison, Rules(slower=2.5, costlier=3), costs=(cheap, dear)) == []
    assert objections(comparison, Rules(slower=2.4, costlier=2), costs=(cheap, dear)) == [
        "2.50 times the champion's latency of 10 ms, more than the 2.4 that are allowed",
        "3.00 times the champion's multiply-accumulates of 1 G, more than the 2 that are allowed",
    ]


def promoted_share(gain, simulations=60):
    """Share of independent challengers that pass the gate."""
    compared = (paired_bootstrap(*two_models(s, gain=gain), samples=200, seed=s) for s in range(simulations))
    return np.mean([not objections(comparison, Rules()) for comparison in compared])


def test_challengers_no_better_than_the_champion_rarely_pass():
    # 2.5 % are expected of a two-sided 95 % interval.
    assert promoted_share(gain=(1, 1)) <= 0.10


def test_a_clearly_worse_challenger_never_passes_and_a_clearly_better_one_nearly_always():
    assert promoted_share(gain=(1, 0.6), simulations=30) == 0
    assert promoted_share(gain=(1, 2), simulations=30) >= 0.9


def test_draws_without_any_positive_are_counted_and_left_out():
    champion, challenger = two_models(9, videos=6)
    for key in sorted(champion.videos)[1:]:
        champion, challenger = (relabelled(m, key, np.zeros_like) for m in (champion, challenger))
    comparison = paired_bootstrap(champion, challenger)
    assert comparison.undefined == pytest.approx(1000 * (5 / 6) ** 6, rel=0.2)
    assert np.isfinite([comparison.ci_low, comparison.ci_high]).all()


def test_a_class_without_positives_is_reported():
    champion, challenger = two_models(10)
    for key in champion.videos:
        champion, challenger = (relabelled(m, key, lambda t: t & [True, False, True]) for m in (champion, challenger))
    assert paired_bootstrap(champion, challenger, samples=100).excluded == [1]


def test_models_that_were_not_measured_on_the_same_are_refused_by_name():
    champion, challenger = two_models(11)
    fewer = FrameScores(3, {key: value for key, value in champion.videos.items() if key != "v07"})
    with pytest.raises(ValueError, match="only the challenger has scored 1 videos, the first is v07"):
        paired_bootstrap(fewer, challenger)
    with pytest.raises(ValueError, match="only the champion has scored 1 videos, the first is v07"):
        paired_bootstrap(challenger, fewer)
    for change in (np.logical_not, lambda targets: targets[1:]):
        with pytest.raises(ValueError, match="video v03: .* different frames or labels"):
            paired_bootstrap(champion, relabelled(challenger, "v03", change))
    with pytest.raises(ValueError, match="champion has 3 classes, challenger 4"):
        paired_bootstrap(champion, two_models(11, K=4)[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "auc"}, "metric 'auc'"),
        ({"confidence": 95}, "confidence 95"),
        ({"samples": 10}, "samples 10"),
    ],
)
def test_options_without_a_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(*two_models(12), **options)


def test_too_few_videos_and_no_positives_are_refused():
    with pytest.raises(ValueError, match="1 videos cannot be resampled"):
        paired_bootstrap(*two_models(13, videos=1))
    empty = FrameScores(1, {key: (np.zeros((2, 1)), np.zeros((2, 1))) for key in "ab"})
    with pytest.raises(ValueError, match="no class has a positive frame"):
        paired_bootstrap(empty, empty)


def test_forty_videos_a_thousand_draws_and_two_models_take_seconds():
    models = two_models(14, videos=40, T=300, K=8)
    start = time.process_time()
    paired_bootstrap(*models)
    assert time.process_time() - start < 10
