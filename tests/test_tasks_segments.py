"""Segments: two thresholds, chosen on held-out videos; no seam between clips; overlapping ones decay."""

from contextlib import closing
from datetime import date

import numpy as np
import pyarrow as pa
import pytest

from storage.errors import Damaged
from tasks import calibration, segment_tables, segments
from tasks.calibration import Calibration, Pair
from tasks.gathering import Gathering

TWO = Calibration({"a": Pair(0.8, 0.4)}, Pair(0.6, 0.3))
STEP = 0.1


def smooth(rng, T, K):
    """Scores `[T, K]` float16 that rise and fall slowly, as those of a model do."""
    walk = np.cumsum(rng.normal(size=(T + 20, K)), 0)
    walk = np.stack([np.convolve(walk[:, k], np.ones(7) / 7, "same") for k in range(K)], 1)[:T]
    return (1 / (1 + np.exp(-(walk - walk.mean(0))))).astype(np.float16).astype(np.float32)


def pieces(scores, times, cuts, path="v"):
    found = []
    for number, (first, last) in enumerate(zip([0, *cuts], [*cuts, len(times)], strict=True)):
        about = {"key": f"{path}-{number:03d}", "path": path, "source": f"file:///{path}"}
        found += [about | piece for piece in segments.find(scores[first:last], times[first:last], ["a", "b"], TWO)]
    return pa.Table.from_pylist(found, schema=segments.SCHEMA)


def plain(table):
    rows = table.select(["class", "start", "end", "score", "peak", "frames"]).to_pylist()
    return sorted(
        ((r["class"], r["frames"]), *(round(r[n], 4) for n in ("start", "end", "score", "peak"))) for r in rows
    )


@pytest.mark.parametrize("seed", range(8))
def test_a_video_in_clips_has_the_segments_of_the_whole_one(seed):
    """Also where a segment is cut several times, and where only one of its clips is high enough."""
    rng = np.random.default_rng(seed)
    scores, times = smooth(rng, 400, 2), np.arange(400) * STEP
    cuts = sorted(rng.choice(np.arange(1, 399), 12, replace=False).tolist())
    whole = segment_tables.joined(pieces(scores, times, []), TWO)
    assert whole.num_rows and plain(segment_tables.joined(pieces(scores, times, cuts), TWO)) == plain(whole)


def test_a_segment_begins_high_and_goes_on_low():
    scores = np.array([0.1, 0.5, 0.9, 0.5, 0.1, 0.5, 0.7, 0.5, 0.1, 0.1])[:, None]
    (found,) = segments.find(scores, np.arange(10) * 0.2, ["a"], TWO)
    assert (found["start"], found["end"]) == pytest.approx((0.2, 0.8)) and found["peak"] == 0.9


def test_what_no_clip_goes_on_with_or_another_source_is_not_joined():
    scores, times = np.full((20, 2), 0.9, np.float32), np.arange(20) * STEP
    gap = pa.concat_tables([pieces(scores[:10], times[:10], []), pieces(scores[10:], times[10:] + 1, [], "w")])
    assert segment_tables.joined(gap, TWO).num_rows == 4
    short = pieces(np.full((2, 2), 0.9, np.float32), times[:2], [])
    assert short.num_rows == 2 and segment_tables.joined(short, TWO).num_rows == 0


def test_the_worse_of_two_that_overlap_decays_by_the_paper():
    start, end, score = np.array([0.0, 1.0, 10.0]), np.array([4.0, 5.0, 12.0]), np.array([0.9, 0.8, 0.7])
    found = segment_tables.soft_nms(start, end, score)
    assert found == pytest.approx([0.9, 0.8 * np.exp(-((3 / 5) ** 2) / 0.5), 0.7])
    rows = [
        {
            "key": "k",
            "path": "v",
            "source": "s",
            "class": "a",
            "start": a,
            "end": b,
            "score": c,
            "peak": 0.9,
            "frames": 9,
        }
        for a, b, c in zip(start, end, score, strict=True)
    ]
    kept = segment_tables.decayed(pa.Table.from_pylist(rows, schema=segments.SCHEMA), TWO)
    assert kept["start"].to_pylist() == [0.0, 10.0]  # 0.39 is below the low threshold


def video(rng, truth, level):
    """A video whose scores reach ``level`` in true segments, with noise."""
    times, scores = np.arange(300) * STEP, rng.uniform(0, 0.1, (300, 3))
    for start, end, k in truth:
        scores[(times >= start) & (times < end), k] += level
    columns = np.array(truth, float).reshape(-1, 3)
    return "v", scores, times, (columns[:, 0], columns[:, 1], columns[:, 2].astype(int)), 30.0


def test_thresholds_are_those_that_find_held_out_segments():
    rng = np.random.default_rng(0)
    videos = [video(rng, [(2.0, 6.0, 0), (10.0, 13.0, 1)], 0.3) for _ in range(4)]
    found = calibration.calibrate(videos, ["faint", "too", "never"])
    assert found.of("faint").high <= 0.4 and found.of("faint").low >= 0.1
    assert "never" not in found.pairs and found.of("never") == found.others != Pair()
    assert calibration.calibrate([video(rng, [], 0.3)], ["a", "b", "c"]) == Calibration()


def test_f1_counts_each_true_segment_once():
    truth = [(0, 0.0, 2.0), (0, 5.0, 7.0)]
    found = [(0, 0.0, 2.0, 0.9), (0, 0.1, 2.1, 0.8), (1, 5.0, 7.0, 0.7)]
    assert calibration.f1(found, truth) == pytest.approx(2 / 5)


def test_a_calibration_lies_beside_its_checkpoint_and_an_altered_one_is_refused(tmp_path):
    digest = calibration.save(str(tmp_path), TWO)
    assert calibration.save(str(tmp_path), TWO) == digest and calibration.load(str(tmp_path), digest) == TWO
    assert calibration.load(str(tmp_path), "") == Calibration()
    path = tmp_path / f"calibration-{digest}.json"
    path.write_text(path.read_text().replace("0.8", "0.7"))
    with pytest.raises(Damaged, match="not as it was written"):
        calibration.load(str(tmp_path), digest)


def test_other_thresholds_are_other_segments_of_the_same_predictions():
    assert segments.version("p", TWO) != segments.version("p", Calibration()) and segments.version("p", TWO)[:2] == "p-"


def row(path, kind, start, end, score, frames=10, key=None):
    about = {"key": key or path, "path": path, "source": f"file:///{path}", "class": kind, "start": start, "end": end}
    return about | {"score": score, "peak": 0.9, "frames": frames}


@pytest.fixture
def gathering(tmp_path):
    with closing(Gathering(tmp_path)) as made:
        yield made


def test_the_summary_counts_by_class_and_day(gathering):
    rows = [row("x", "a", 0.0, 2.0, 0.5), row("x", "a", 3.0, 4.0, 0.7), row("y", "b", 0.0, 3.0, 0.9)]
    gathering.take("whole", pa.Table.from_pylist(rows, schema=segments.SCHEMA))
    gathering.date([("x", date(2026, 1, 1)), ("x", date(2026, 1, 1)), ("z", date(2026, 1, 2))])
    found = gathering.summary().to_pylist()
    assert [(r["class"], r["day"], r["segments"], r["seconds"], round(r["score"], 2)) for r in found] == [
        ("a", date(2026, 1, 1), 2, 3.0, 0.6), ("b", None, 1, 3.0, 0.9),
    ]  # fmt: skip


@pytest.mark.parametrize("batch", [1, 3, 7, 1000])
def test_pieces_come_out_source_by_source_whatever_is_read_at_once(gathering, monkeypatch, batch):
    """Also where the clips of a source lie in several parts."""
    from tasks import gathering as module

    monkeypatch.setattr(module, "BATCH", batch)
    rng, sizes = np.random.default_rng(0), [1, 9, 2, 30, 1, 1, 5]
    rows = [
        row(f"v{v}", "a", float(n), n + 1.0, 0.5, key=f"{v}-{n}") for v, size in enumerate(sizes) for n in range(size)
    ]
    order = rng.permutation(len(rows))
    for some in np.array_split(order, 4):
        gathering.take("pieces", pa.Table.from_pylist([rows[i] for i in some], schema=segments.SCHEMA))
    seen = [sorted(set(table["path"].to_pylist())) for table in gathering.of_sources()]
    assert sum(seen, []) == [f"v{v}" for v in range(len(sizes))]
    assert sum(len(table) for table in gathering.of_sources()) == len(rows)
    assert batch > 9 or len(seen) > 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (40, 1), (300, 12), (7, 0)])
def test_runs_of_all_classes_are_those_of_each(shape):
    for share in (0.0, 0.2, 0.5, 0.9, 1.0):
        on = np.random.default_rng(shape[0]).random(shape) < share
        each = [(k, int(first), int(after)) for k in range(shape[1]) for first, after in calibration.runs(on[:, k])]
        assert segments.spans(on) == each
