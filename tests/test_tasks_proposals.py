"""Proposals by hand: averaging over time, short runs, thresholds, zero-shot shares, and the labels made of them."""

from dataclasses import replace

import numpy as np
import pytest

from storage.errors import InputError
from tasks.label import placed, replicate, version
from tasks.proposals import Proposals, likeness, long_runs, place, smoothed

HOW = Proposals(column="predictions", version="v1", smooth=0.0, shortest=0.0)


def row(frames, *labels, duration=None):
    duration = frames if duration is None else duration
    return {"key": "k", "frames": frames, "duration": duration, "labels": [{"label": name} for name in labels]}


def column(*values):
    return np.array(values, dtype=float)[:, None]


def test_an_average_over_two_seconds_by_hand():
    got = smoothed(column(0, 0, 1, 1), np.arange(4.0), 2.0)
    assert got[:, 0].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_an_average_counts_frames_by_their_time_and_not_their_number():
    times = np.array([0.0, 0.1, 0.2, 1.0, 2.0])
    assert smoothed(column(3, 0, 0, 6, 9), times, 0.2)[:, 0].tolist() == pytest.approx([1.5, 1, 0, 6, 9])
    assert smoothed(column(1, 2, 3, 4, 5), times, 0.0)[:, 0].tolist() == [1, 2, 3, 4, 5]
    assert smoothed(column(1, 2, 3, 4, 5), times, 99.0)[:, 0].tolist() == pytest.approx([3] * 5)


@pytest.mark.parametrize(
    ("shortest", "expected"),
    [
        (0.0, [1, 1, 0, 1, 0, 1, 1, 1]),
        (0.5, [1, 1, 0, 1, 0, 1, 1, 1]),
        (0.6, [1, 1, 0, 0, 0, 1, 1, 1]),
        (1.0, [1, 1, 0, 0, 0, 1, 1, 1]),
        (1.5, [0, 0, 0, 0, 0, 1, 1, 1]),
        (1.6, [0] * 8),
    ],
)
def test_short_runs_go(shortest, expected):
    on = np.array([1, 1, 0, 1, 0, 1, 1, 1], bool)
    assert long_runs(on, 0.5, shortest).astype(int).tolist() == expected


def test_scores_at_other_times_are_interpolated_and_held_at_the_ends():
    """Scored at 1 and 3 s as 0 and 1: at 2 s it is 0.5, before and after as at the nearest."""
    on, mean = place(column(0, 1), np.array([1.0, 3.0]), np.arange(5.0), 1.0, HOW)
    assert mean[:, 0].tolist() == [0, 0, 0.5, 1, 1] and on[:, 0].tolist() == [False, False, True, True, True]


def test_averaging_comes_first_then_the_threshold_then_the_shortest_run():
    """A spike of one frame is 1/3 when averaged over three; a dip of one frame is bridged."""
    scores = column(0, 1, 0, 0, 1, 1, 0, 1, 1, 0)
    how = replace(HOW, smooth=2.0, threshold=0.6, shortest=2.0)
    on, _ = place(scores, np.arange(10.0), np.arange(10.0), 1.0, how)
    assert on[:, 0].astype(int).tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 0]
    raw, _ = place(scores, np.arange(10.0), np.arange(10.0), 1.0, replace(how, smooth=0.0))
    assert raw[:, 0].astype(int).tolist() == [0, 0, 0, 0, 1, 1, 0, 1, 1, 0]


def test_the_share_of_a_label_is_the_softmax_of_a_hundred_cosines():
    frames = np.array([[1.0, 0.0], [0.0, 1.0]])
    text = np.array([[1.0, 0.0], [0.99, 0.5]])
    e = np.e
    assert likeness(frames, text) == pytest.approx(np.array([[e / (e + 1), 1 / (e + 1)], [0, 1]]), abs=1e-9)
    assert likeness(frames, text).sum(1) == pytest.approx([1, 1])


def test_a_clip_of_two_actions_is_cut_between_them():
    scores = np.array([[0.9, 0.1], [0.7, 0.2], [0.2, 0.6], [0.1, 0.5]])
    made = placed(row(4, "b", "a"), np.arange(4.0), scores, HOW)
    assert made["labels"] == ["a", "b"] and made["unplaced"] == []
    assert made["scores"] == [[1, 0], [1, 0], [0, 1], [0, 1]]
    assert made["confidence"] == pytest.approx((0.8 + 0.55) / 2)
    assert made["provenance"] == "proposals: predictions v1 at 0.5"


def test_an_action_that_nothing_proposes_stays_on_every_frame_and_is_named():
    scores = np.array([[0.9, 0.1], [0.7, 0.2], [0.2, 0.3], [0.1, 0.4]])
    made = placed(row(4, "a", "b"), np.arange(4.0), scores, HOW)
    assert made["scores"] == [[1, 1], [1, 1], [0, 1], [0, 1]] and made["unplaced"] == ["b"]
    assert made["confidence"] == pytest.approx(0.4)  # 0.8 and nothing


def test_actions_may_overlap():
    made = placed(row(3, "a", "b"), np.arange(3.0), np.array([[0.9, 0.1], [0.9, 0.9], [0.1, 0.9]]), HOW)
    assert made["scores"] == [[1, 0], [1, 1], [0, 1]]


@pytest.mark.parametrize("names", [(), ("a",)])
def test_a_clip_of_one_action_or_none_is_replicated(names):
    single = row(3, *names)
    assert placed(single, np.arange(3.0), np.zeros((3, len(names))), HOW) == replicate(single) | {"unplaced": []}


def test_everything_that_decides_the_labels_decides_the_version():
    others = [
        replace(HOW, version="v2"),
        replace(HOW, column="features"),
        replace(HOW, threshold=0.4),
        replace(HOW, smooth=0.1),
        replace(HOW, shortest=0.1),
        replace(HOW, prompt="a video of {}"),
    ]
    versions = [version(), *(version(how) for how in [HOW, *others])]
    assert len(set(versions)) == len(versions) and version(HOW) == version(replace(HOW))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 1.5}, "threshold must be in 0 to 1"),
        ({"threshold": float("nan")}, "threshold"),
        ({"smooth": -1.0}, "smooth must be seconds"),
        ({"shortest": float("inf")}, "shortest must be seconds"),
        ({"prompt": "a video"}, "needs one {}"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        replace(HOW, **change)
