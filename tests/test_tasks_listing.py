"""Incremental listing: moved and touched files are not done again, replaced ones are; long videos."""

import os
from dataclasses import replace

import numpy as np
import pytest

from storage import datasets, files, ledger, lists, plans, sources
from storage.media import synthetic
from tasks import status
from tasks.audits import contents
from tasks.pages import archive as page_archive
from tests.preparing import RECIPE, again, bytes_of, prepare, two_folders


@pytest.fixture(scope="module")
def clips(archive):
    """Eight small real videos."""
    return sorted((archive / "archive" / "weak").rglob("*.mp4"))[:8]


@pytest.fixture
def home(clips, tmp_path):
    return two_folders(clips, tmp_path)


def clips_of(data):
    return sorted(row["content_id"] for part in data.parts for row in part.rows())


def test_an_unchanged_archive_has_the_same_plan_and_nothing_to_decode(home):
    before, plan_before = bytes_of(home / "root"), plans.latest(str(home / "root"), "a")
    data, report = again(home)
    assert report.decoded == 0 and bytes_of(home / "root") == before
    assert plans.latest(str(home / "root"), "a") == plan_before and data.clips == 8


def test_moved_and_renamed_files_are_not_decoded_again(home):
    before = clips_of(datasets.load(str(home / "root"), "a"))
    for number, path in enumerate(sorted((home / "archive").rglob("*.mp4"))):
        (home / "archive" / "three" / str(number)).mkdir(parents=True)
        path.rename(home / "archive" / "three" / str(number) / f"new name {number}.mp4")
    data, report = again(home)
    assert report.decoded == 0 and clips_of(data) == before
    for part in data.parts:
        part.verify()
        assert all(row["path"].startswith("three/") for row in part.rows())
        for entry in ledger.read(str(home / "root"), "shard", part.id):
            assert entry.verdict == "kept" and entry.detail.startswith("clips taken from part ")


def test_a_root_that_was_added_to_equals_one_made_at_once(home, tmp_path):
    for path in sorted((home / "archive").rglob("*.mp4")):
        path.rename(home / "archive" / f"x{path.name}")
    data, _ = again(home)
    fresh, report = prepare(str(tmp_path / "fresh"), str(home / "archive"), units=3)
    assert report.decoded == 8 and fresh.version == data.version
    assert [p.digest for p in fresh.parts] == [p.digest for p in data.parts]


def test_a_larger_part_size_joins_parts_without_decoding(home):
    data, report = again(home, units=100)
    assert report.decoded == 0 and len(data.parts) == 1 and data.clips == 8
    data.parts[0].verify()


def test_a_clip_that_cannot_be_taken_from_the_old_part_is_cut_again(home):
    old = datasets.load(str(home / "root"), "a")
    for part in old.parts:
        os.unlink(part.media)
    data, report = again(home, units=100)
    assert report.decoded == 8 and clips_of(data) == clips_of(old)


def test_another_recipe_takes_nothing_over(home):
    data, report = again(home, recipe={**RECIPE, "short_side": 48})
    assert report.decoded == 8
    assert max(min(row["height"], row["width"]) for part in data.parts for row in part.rows()) <= 48


def test_a_touched_file_is_not_decoded_again(home):
    for path in (home / "archive").rglob("*.mp4"):
        os.utime(path, (1, 1))
    _, report = again(home)
    assert report.decoded == 0


def _large(path, clip, seed=0, marks=()):
    """A real video with a free box of noise behind it; ``marks`` are bytes that no fingerprint looks at."""
    noise = bytearray(np.random.default_rng(seed).bytes(600_000))
    for mark in marks:
        noise[mark] ^= 1
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(clip.read_bytes() + (len(noise) + 8).to_bytes(4, "big") + b"free" + bytes(noise))
    return path


@pytest.fixture
def large(clips, tmp_path):
    _large(tmp_path / "archive" / "a.mp4", clips[0])
    _large(tmp_path / "archive" / "b.mp4", clips[1], seed=1)
    data, report = again(tmp_path)
    assert report.decoded == 2
    return tmp_path


def test_bytes_that_no_fingerprint_looks_at_still_tell_a_replaced_file(large, clips):
    one, two = large / "archive" / "a.mp4", _large(large / "other.mp4", clips[0], marks=[150_000])
    assert sources.fingerprint_file(str(one)) == sources.fingerprint_file(str(two))
    before = clips_of(datasets.load(str(large / "root"), "a"))
    two.rename(one)
    data, report = again(large)
    assert report.decoded == 1 and len(set(clips_of(data)) - set(before)) == 1
    assert files.digest_file(one) in clips_of(data)
    _, report = again(large)
    assert report.decoded == 0


def test_files_that_swap_their_names_are_seen_whatever_their_times_say(clips, tmp_path):
    """Two of one size and time, and one that was written over."""
    one, two = (_large(tmp_path / f"{name}.mp4", clips[0], marks=[n]) for n, name in enumerate("ab", 150_000))
    (tmp_path / "list.jsonl").write_text('{"path": "a.mp4"}\n{"path": "b.mp4"}\n')
    for path in (one, two):
        os.utime(path, ns=(10**18, 10**18))

    def stamps():
        found = {source.path: source.stamp for source in lists.listing(str(tmp_path / "list.jsonl"))}
        return found | {f"in its folder: {s.path}": s.stamp for s in sources.listing(str(tmp_path))}

    before = stamps()
    assert stamps() == before
    one.rename(tmp_path / "c")
    two.rename(one)
    (tmp_path / "c").rename(two)
    after = stamps()
    assert all(after[name] != before[name] for name in before if name.endswith(".mp4"))
    one.write_bytes(one.read_bytes())  # the same file, size and time
    os.utime(one, ns=(10**18, 10**18))
    assert stamps()["a.mp4"] != after["a.mp4"]


def test_a_large_file_that_moved_or_was_touched_is_not_decoded_again(large):
    (large / "archive" / "a.mp4").rename(large / "archive" / "moved.mp4")
    os.utime(large / "archive" / "b.mp4", (1, 1))
    (large / "archive" / "b.mp4").chmod(0o600)
    _, report = again(large)
    assert report.decoded == 0


def test_two_large_files_of_one_fingerprint_are_told_apart(clips, tmp_path):
    _large(tmp_path / "archive" / "a.mp4", clips[0])
    _large(tmp_path / "archive" / "b.mp4", clips[0], marks=[150_000])
    _large(tmp_path / "archive" / "c.mp4", clips[0])
    data, report = again(tmp_path)
    entries = {e.item: e for e in ledger.read(str(tmp_path / "root"), "list", "a")}
    assert (entries["c.mp4"].verdict, entries["c.mp4"].reason) == ("dropped", "duplicate")
    assert "same bytes as a.mp4" in entries["c.mp4"].detail and len(set(clips_of(data))) == report.decoded == 2


def test_a_newcomer_with_a_known_fingerprint_is_told_apart(large, clips):
    _large(large / "archive" / "c.mp4", clips[0], marks=[150_000])
    data, report = again(large)
    assert report.decoded == 1 and len(set(clips_of(data))) == 3


def test_the_ledger_has_the_class_of_the_exception_behind_a_quarantine(home):
    (home / "archive" / "text.mp4").write_bytes(b"not a video " * 99)
    data, _ = prepare(str(home / "listed"), str(home / "archive"))
    entries = [entry for part in data.parts for entry in ledger.read(str(home / "listed"), "shard", part.id)]
    assert {(e.reason, e.error) for e in entries} == {("", ""), ("not_video", "InvalidDataError")}


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    dense = synthetic.scripts(0, 1, 1, 0.0)[-1]
    synthetic.render(dense, folder / "archive")
    return folder / "archive"


def test_a_long_video_is_many_units_with_the_clips_of_one(long, tmp_path):
    whole, _ = prepare(str(tmp_path / "whole"), str(long), recipe={**RECIPE, "span": 1.0})
    data, report = prepare(str(tmp_path / "root"), str(long), recipe={**RECIPE, "span": 1.0}, unit=2.0, units=2)
    assert report.items > 2 and len(data.parts) > 1

    def of(data):
        return {row["key"]: row["sha256"] for part in data.parts for row in part.rows()}

    assert of(data) == of(whole) and len(of(data)) > 4
    entries = [e for part in data.parts for e in ledger.read(str(tmp_path / "root"), "shard", part.id)]
    assert any("#t=2,4" in e.item for e in entries)
    assert {e.content_id for e in entries} == {files.digest_file(next(long.rglob("*.mp4")))}


def test_a_long_video_is_counted_as_a_file_and_as_the_pieces_that_may_be_lost(long, tmp_path):
    root = str(tmp_path / "root")
    data, _ = prepare(root, str(long), recipe={**RECIPE, "span": 1.0}, unit=2.0, units=2)
    names = [part.id for part in data.parts]
    pieces = sum(len(ledger.read(root, "shard", name)) for name in names)
    first, *rest = ledger.read(root, "shard", names[0])
    ledger.write(root, "shard", names[0], [replace(first, verdict="quarantined", reason="timeout"), *rest])
    found = contents.funnel(root, data)
    assert (found["listed"], found["pieces"]) == (1, pieces) and pieces > 2
    assert found["kept"] == pieces - 1 and found["by_reason"] == {"quarantined: timeout": 1}
    assert f"1 file in {pieces} pieces: {pieces - 1} kept" in status.status(root)
    listed, kept, *_ = page_archive.funnel(root, data, page_archive.counted(root, data, None), "")
    assert (listed.count, listed.note) == (1, f"read in {pieces} pieces")
    assert (kept.count, kept.unit, kept.lost) == (pieces - 1, "pieces", [("quarantined", "timeout", 1)])
