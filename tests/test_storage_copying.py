"""Copying: sources that cannot be copied are cut exactly instead, all of them, and late windows read little."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from storage import ledger
from storage.media import copying, cutting, groups
from storage.media.copying import copy, cut_any
from storage.media.sandbox import Sandbox
from storage.media.video import Limits, Rejected
from tasks import shard
from tests.preparing import prepare
from tests.videos import INTERLACED, RATE, make, set_options

COPY = shard.recipe(2.0, 64, "span", "copy")


def _noise(t, width, height):
    return np.random.default_rng(t).integers(0, 255, (height, width, 3), dtype=np.uint8)


def _run(how, path, folder, **options):
    folder.mkdir()
    clips = how(str(path), str(folder), span=2.0, **options)
    return clips, [(folder / clip["file"]).read_bytes() for clip in clips]


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A minute of noise, about 4 MB, a key frame a second."""
    folder = tmp_path_factory.mktemp("long")
    options = {"crf": "30", "g": "20", "bf": "2", "preset": "ultrafast", "sc_threshold": "0"}
    size = {"size": (64, 48), "frames": 1200, "show": _noise, "options": options}
    made = {kind: make(folder / f"a.{kind}", **size) for kind in ("mp4", "mkv", "ts")}
    made["fragments.mp4"] = make(folder / "f.mp4", **size, movflags="frag_keyframe+empty_moov")
    return made


def _read():
    """Bytes that this process has read so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_a_late_window_reads_little(long, tmp_path, kind):
    """A tenth of a file is copied for little more than its own bytes, once its packets were checked."""
    path, beats = str(long[kind]), []
    copy(path, str(tmp_path), span=2.0, window=(0, 6))
    before = _read()
    clips = copy(path, str(tmp_path), span=2.0, window=(48, 54), beat=lambda: beats.append(1))
    spent = (_read() - before) / os.path.getsize(path)
    print(f"{kind}: {len(beats)} packets of 1200, {spent:.2f} of the bytes")
    assert sum(clip["frames"] for clip in clips) == 120
    assert len(beats) < 200 and spent < 0.3


@pytest.mark.parametrize("kind", ["mp4", "mkv", "ts", "fragments.mp4"])
def test_where_packets_are_read_from_changes_no_byte(long, tmp_path, monkeypatch, kind):
    windows = [(0, 6), (6, 7), (7, 20), (20, 51.5), (51.5, 58), (58, None)]
    sought = [_run(copy, long[kind], tmp_path / f"a{n}", window=window) for n, window in enumerate(windows)]
    monkeypatch.setattr(groups, "SEEKABLE", ())
    read = [_run(copy, long[kind], tmp_path / f"b{n}", window=window) for n, window in enumerate(windows)]
    assert sought == read
    whole = _run(copy, long[kind], tmp_path / "whole")
    assert [data for _, some in sought for data in some] == whole[1]


def test_shots_are_copied_alike_from_anywhere(long, tmp_path, monkeypatch):
    options = {"window": (31, 47), "bounds": [10.2, 31.0, 33.3, 33.9, 40.5, 47.0]}
    sought = _run(copy, long["mp4"], tmp_path / "a", **options)
    monkeypatch.setattr(groups, "SEEKABLE", ())
    assert _run(copy, long["mp4"], tmp_path / "b", **options) == sought and len(sought[0]) > 5


def test_a_seek_that_lands_late_is_noticed(long, tmp_path, monkeypatch):
    wanted = _run(copy, long["mp4"], tmp_path / "a", window=(30, 36))
    beats = []
    monkeypatch.setattr(groups, "BACK", (-8,))
    found = _run(copy, long["mp4"], tmp_path / "b", window=(30, 36), beat=lambda: beats.append(1))
    assert found == wanted and len(beats) > 600  # from the beginning


def test_what_is_checked_is_remembered_until_the_file_changes(long, tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(long["mp4"].read_bytes())
    counts = []
    for touch in (False, False, True):
        if touch:
            os.utime(path, (1, 1))
        beats = []
        groups.check(str(path), Limits(), 60.0, lambda beats=beats: beats.append(1))
        counts.append(len(beats))
    assert counts == [1201, 0, 1201]  # and the end


# What cannot be copied


def _uneven(path):
    """150 seconds at 4 frames a second: key frames every second for a minute, then none."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(
            "libx264", rate=4, options={"g": "9999", "sc_threshold": "0", "forced-idr": "1", "bf": "0"}
        )
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for t in range(600):
            frame = av.VideoFrame.from_ndarray(_noise(0, 32, 24) // 2 + t % 100, "rgb24")
            frame.pts, frame.time_base = t, Fraction(1, 4)
            frame.pict_type = 1 if t <= 240 and t % 4 == 0 else 0
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def test_a_fault_at_its_end_makes_all_windows_exact(tmp_path):
    """So that no frame is lost or doubled at a border between a window that was copied and one that was not."""
    path = _uneven(tmp_path / "a.mp4")
    with pytest.raises(Rejected, match="too far apart"):
        copying.copy(str(path), str(tmp_path), span=2.0, window=(0, 31))
    exact = _run(cutting.cut, path, tmp_path / "exact", short_side=24)
    found = [_run(cut_any, path, tmp_path / str(n), mode="copy", short_side=24, window=window)
             for n, window in enumerate([(0, 31), (31, 71), (71, None)])]  # fmt: skip
    assert [data for _, some in found for data in some] == exact[1]
    clips = [clip for some, _ in found for clip in some]
    assert sum(clip["frames"] for clip in clips) == 600
    assert {tuple(clip["notes"]) for clip in clips} == {("not copied: key frames that are too far apart",)}


def test_a_first_key_frame_that_leans_on_others_is_no_place_to_begin(tmp_path):
    """A recording that begins at a recovery point: a copy would wait for a key frame that never comes."""
    options = {"bf": 0, "g": 25, "x264-params": "intra-refresh=1"}
    path = make(tmp_path / "a.ts", frames=100, edit=set_options(**options))
    with av.open(str(path)) as container:
        at = [packet.pos for packet in container.demux(video=0) if packet.size and packet.is_keyframe][1]
    data = path.read_bytes()
    path.write_bytes(data[: 188 * 3] + data[at:])  # the tables, and what follows
    exact, copied = _run(cutting.cut, path, tmp_path / "a"), _run(cut_any, path, tmp_path / "b", mode="copy")
    assert copied[1] == exact[1] and sum(clip["frames"] for clip in copied[0]) >= 70
    assert copied[0][0]["notes"] == ["not copied: a first key frame that leans on others"]


def _ordered(path, shown, keys):
    """Pictures that are each whole, in a file that says when each is shown and which are key frames."""
    pictures = make(path.with_name("plain.avi"), codec="mpeg4", frames=len(shown), options={"g": "1"})
    with av.open(str(pictures)) as plain, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(plain.streams.video[0], opaque=True)
        unit = stream.time_base = Fraction(1, RATE)
        for n, packet in enumerate(p for p in plain.demux(video=0) if p.size):
            packet.stream, packet.time_base, packet.pts, packet.dts = stream, unit, shown[n], n - 8
            packet.is_keyframe = n in keys
            out.mux(packet)
    return str(path)


ORDERS = {
    "": ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], {0, 6}),
    "frames that lean on the group before": ([0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 5], {0, 5}),
    "a key frame that is shown before frames that precede it": ([0, 1, 2, 3, 4, 6, 5, 7, 8, 9, 10, 11], {0, 6}),
}


@pytest.mark.parametrize("why", ORDERS)
def test_groups_that_overlap_in_time_are_not_copied(tmp_path, why):
    """Else frames would be in the wrong clip, or in none."""
    path = _ordered(tmp_path / "a.mp4", *ORDERS[why])
    if not why:  # a control
        return groups.check(path, Limits(), 60.0, lambda: None)
    with pytest.raises(Rejected) as caught:
        groups.check(path, Limits(), 60.0, lambda: None)
    assert (caught.value.reason, caught.value.detail) == ("needs_reencode", why)


@pytest.mark.parametrize("kind", ["avi", "mp4"])
def test_times_in_decode_order_are_not_copied(tmp_path, kind):
    """AVI has no others, and a careless change of container keeps them."""
    options = {"bf": "3", "g": "20", "x264-params": "b-adapt=0"}
    path = make(tmp_path / "a.avi", options=options)
    if kind == "mp4":
        with av.open(str(path)) as old, av.open(str(tmp_path / "a.mp4"), "w") as out:
            stream = out.add_stream_from_template(old.streams.video[0], opaque=True)
            for packet in (packet for packet in old.demux(video=0) if packet.size):
                packet.stream, packet.pts = stream, packet.dts
                out.mux(packet)
        path = tmp_path / "a.mp4"
    for window in (None, (1, 2)):
        with pytest.raises(Rejected, match="times in decode order"):
            copy(str(path), str(tmp_path), window=window)


def test_a_decoder_that_may_reorder_but_has_no_need_to_is_copied(tmp_path):
    path = make(tmp_path / "a.mkv", options={"bf": "3", "x264-params": "b-adapt=1"}, show=_noise)
    with av.open(str(path)) as container:
        times = [packet.pts for packet in container.demux(video=0) if packet.size]
        assert container.streams.video[0].codec_context.has_b_frames and times == sorted(times)
    (clip,) = copy(str(path), str(tmp_path))
    assert clip["frames"] == 40


def test_nothing_of_a_copy_that_was_given_up_is_left(tmp_path):
    path = _uneven(tmp_path / "a.mp4")
    box = Sandbox()
    (tmp_path / "out").mkdir()
    clips = box.cut(str(path), tmp_path / "out", span=20.0, short_side=24, mode="copy")
    assert sorted(clip["file"] for clip in clips) == sorted(os.listdir(tmp_path / "out")) and len(clips) == 8
    with pytest.raises(Rejected, match="empty"):  # other reasons stay what they are
        (tmp_path / "bad.mp4").write_bytes(b"")
        box.cut(str(tmp_path / "bad.mp4"), tmp_path / "out", span=2.0, short_side=24, mode="copy")
    box.close()


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """One source that can be copied, one of a codec that MP4 does not hold, one interlaced."""
    folder = tmp_path_factory.mktemp("archive")
    make(folder / "good.mp4", frames=80)
    make(folder / "old.wmv", codec="wmv2", format="asf", frames=80)
    make(folder / "woven.mp4", frames=80, **INTERLACED)
    return folder


def test_the_ledger_says_what_was_cut_exactly(archive, tmp_path):
    found = {}
    for name in ("one", "two"):
        dataset, report = prepare(str(tmp_path / name), str(archive), recipe=COPY)
        assert report.kept == 3 and not report.quarantined
        entries = [e for part in dataset.parts for e in ledger.read(str(tmp_path / name), "shard", part.id)]
        assert {entry.item.split("/")[-1]: entry.detail for entry in entries} == {
            "good.mp4": "",
            "old.wmv": "not copied: wmv2 in MP4",
            "woven.mp4": "deinterlaced; not copied: interlaced",
        }
        found[name] = [row["sha256"] for part in dataset.parts for row in part.rows()]
        sizes = {row["path"]: row["height"] for part in dataset.parts for row in part.rows()}
    assert found["one"] == found["two"] and len(sizes) == 3


def test_the_recipe_names_the_way_of_cutting():
    """Sources that are cut in another way now are other parts now."""
    assert COPY["method"] == cutting.METHOD == 4
