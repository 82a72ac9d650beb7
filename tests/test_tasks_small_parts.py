"""Small parts cannot pile up: which sources share a part follows from the set of sources, not from when they came."""

import shutil

import numpy as np

from storage import datasets, files, plans
from storage.plans import Limits
from tests.preparing import plan, prepare


def test_a_file_a_day_for_years_leaves_parts_as_full_as_all_at_once():
    """However many additions there were: at most one part in two can be spared, and each addition touches one part."""
    paths = [f"{number}.mp4" for number in range(3000)]
    limits, places, before = Limits(units=96), np.array([], np.uint64), set()
    for path in paths:
        places = np.sort(np.append(places, np.uint64(plans.place(path) << plans.WINDOW_BITS)))
        loads = np.ones((len(places), 3)) * [1, 0, 0]
        runs = {tuple(places[first:last].tolist()) for first, last in plans.pieces(places, loads, limits)}
        assert len(before - runs) <= 1, "one part is made anew, all others stay"
        assert len(runs) <= 2 * -(-len(places) // limits.units)
        before = runs
    assert len(before) < 64 and min(map(len, before)) > 10


def test_thirty_preparations_of_one_more_file_end_as_one_of_all(archive, tmp_path):
    """By real plans, the last of them cut: no part more, each file decoded once, and nothing to do after that."""
    clips = sorted((archive / "archive" / "weak").rglob("*.mp4"))[:6]
    (tmp_path / "archive").mkdir()
    root = files.open_root(str(tmp_path / "root"))
    decoded = 0
    for number in range(30):
        source = tmp_path / "archive" / f"{number}.mp4"
        shutil.copy(clips[number % 6], source)
        with open(source, "ab") as file:
            file.write(number.to_bytes(4, "big") + b"free" + bytes(number))  # other bytes, the same video
        if number % 15 == 14:
            decoded += prepare(root, str(tmp_path / "archive"), units=12)[1].decoded
        else:
            plan(root, str(tmp_path / "archive"))
    added = datasets.load(root, "a")
    once, report = prepare(str(tmp_path / "once"), str(tmp_path / "archive"), units=12)
    assert [(p.id, p.digest) for p in added.parts] == [(p.id, p.digest) for p in once.parts]
    assert decoded == report.decoded == 30 and len(once.parts) <= 5
    assert prepare(root, str(tmp_path / "archive"), units=12)[1].decoded == 0


def test_larger_parts_take_their_clips_from_smaller_ones(archive, tmp_path):
    """What a command for compaction would do: prepare again with larger parts, where nothing is decoded."""
    (tmp_path / "archive").mkdir()
    for clip in sorted((archive / "archive" / "weak").rglob("*.mp4"))[:6]:
        shutil.copy(clip, tmp_path / "archive" / clip.name)
    root = str(tmp_path / "root")
    small, _ = prepare(root, str(tmp_path / "archive"), units=2)
    large, report = prepare(root, str(tmp_path / "archive"), units=100)
    assert report.decoded == 0 and large.clips == small.clips and len(large.parts) == 1 < len(small.parts)
