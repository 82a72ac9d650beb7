"""What a file is told to be, its small pictures, and clips that other people made."""

import struct
import time
from fractions import Fraction

import av
import numpy as np
import pytest

from storage.media import probing, sampling
from storage.media.footage import Footage, Unsure
from storage.media.sandbox import Sandbox
from storage.media.video import Limits, Rejected
from tests.videos import HDR10, RATE, RED, H, W, elsewhere, jpegs, make, set_options, sound, wide


@pytest.fixture(scope="module")
def box():
    box = Sandbox()
    yield box
    box.close()


# Probe


def test_probe_tells_what_a_file_is(tmp_path, box):
    told = box.probe(str(make(tmp_path / "a.mp4")))
    wanted = {
        "codec": "h264", "width": W, "height": H, "shown_width": W, "shown_height": H, "rotation": 0,
        "sample_aspect_ratio": 1.0, "pixel_format": "yuv420p", "bit_depth": 8, "fps": 20.0, "constant_rate": True,
        "frames": 40, "duration": 2.0, "header_duration": 2.0, "audio": False, "interlaced": False, "start": 0.0,
        "hdr": "", "complete": True, "container": "mov,mp4,m4a,3gp,3g2,mj2",
    }  # fmt: skip
    assert {name: told[name] for name in wanted} == wanted


STEPS = np.cumsum([0, *np.random.default_rng(0).uniform(0.01, 0.2, 39)]).round(3).tolist()


@pytest.mark.parametrize(
    "how, wanted",
    [
        ({"edit": lambda s, _: s.set_display_rotation(90)}, {"rotation": 90, "shown_width": H, "shown_height": W}),
        ({"edit": wide}, {"sample_aspect_ratio": 2.0, "shown_width": 2 * W}),
        ({"pix": "yuv420p10le"}, {"bit_depth": 10, "pixel_format": "yuv420p10le", "hdr": ""}),
        ({"pix": "yuv420p10le", "edit": set_options(**{"x264-params": HDR10})}, {"hdr": "pq"}),
        ({"edit": set_options(**{"x264-params": "transfer=arib-std-b67"})}, {"hdr": "hlg"}),
        ({"pix": "yuv444p", "size": (321, 241)}, {"pixel_format": "yuv444p", "width": 321}),
        ({"edit": set_options(**{"x264-params": "tff=1"})}, {"interlaced": True}),
        ({"times": STEPS}, {"constant_rate": False, "frames": 40}),
        ({"times": [10 + t / RATE for t in range(40)]}, {"start": 10.0, "duration": 2.0, "constant_rate": True}),
    ],
)
def test_probe_tells_what_is_odd(tmp_path, how, wanted):
    told = probing.probe(str(make(tmp_path / "a.mp4", **how)))
    assert {name: told[name] for name in wanted} == wanted


@pytest.mark.parametrize("name", ["a.mkv", "a.ts", "a.avi", "a.flv", "a.webm"])
def test_probe_counts_frames_in_every_container(tmp_path, name):
    codec = {"a.avi": "mpeg4", "a.webm": "libvpx"}.get(name, "libx264")
    told = probing.probe(str(make(tmp_path / name, codec=codec)))
    assert (told["frames"], told["constant_rate"]) == (40, True)
    assert told["fps"] == pytest.approx(RATE, 0.02) and told["duration"] == pytest.approx(2, abs=0.01)


def test_packets_are_believed_where_the_header_lies(tmp_path):
    """A header that says 30 seconds; there are two."""
    data = make(tmp_path / "a.mkv").read_bytes()
    at = data.index(b"\x44\x89\x88") + 3
    (tmp_path / "a.mkv").write_bytes(data[:at] + struct.pack(">d", 30_000) + data[at + 8 :])
    told = probing.probe(str(tmp_path / "a.mkv"))
    assert (told["frames"], told["header_duration"]) == (40, 30.0)
    assert (told["duration"], told["fps"]) == pytest.approx((2.0, 20.0))


def test_a_table_that_is_too_long_is_read_in_part_and_said_so(tmp_path, box):
    path = make(tmp_path / "a.mp4", frames=100)
    told = box.probe(str(path), max_packets=50)
    assert not told["complete"] and (told["frames"], told["duration"]) == (100, 5.0)
    assert box.probe(str(path), max_packets=100)["complete"]
    assert not box.probe(str(path), max_bytes=2000)["complete"]


def test_probe_sees_sound(tmp_path, box):
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        stream, audio = out.add_stream("libx264", rate=RATE), out.add_stream("aac", rate=16_000, layout="mono")
        stream.width, stream.height = W, H
        for _ in range(8):
            out.mux(stream.encode(av.VideoFrame(W, H, "yuv420p")))
        out.mux(stream.encode(None))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.int16), "s16", "mono")
        frame.sample_rate = 16_000
        out.mux(audio.encode(frame))
        out.mux(audio.encode(None))
    assert box.probe(str(tmp_path / "a.mp4"))["audio"]
    sound(tmp_path / "b.mp4")
    with pytest.raises(Rejected, match="no_video_stream"):
        box.probe(str(tmp_path / "b.mp4"))


@pytest.mark.seconds
def test_probe_is_quick(tmp_path, box):
    path = str(make(tmp_path / "a.mp4", size=(64, 48)))
    box.probe(path)
    began = time.monotonic()
    for _ in range(50):
        box.probe(path)
    assert (time.monotonic() - began) / 50 < 0.05


@pytest.mark.parametrize("limits, reason", [({"max_frames": 30}, "too_many_frames"), ({"max_seconds": 1}, "too_long")])
def test_probe_knows_the_limits(tmp_path, limits, reason):
    with pytest.raises(Rejected, match=reason):
        probing.probe(str(make(tmp_path / "a.mp4")), Limits(**limits))


# Thumbnails


def _gray(t, width, height):
    return np.full((height, width, 3), 2 * t, np.uint8)


@pytest.fixture(scope="module")
def grays(tmp_path_factory):
    """100 frames, each of a gray that says its number."""
    folder = tmp_path_factory.mktemp("grays")
    return make(folder / "a.mp4", frames=100, show=_gray, options={"g": "20", "bf": "2"})


def _numbers(frames):
    return (frames.mean((1, 2, 3)) / 2).round().astype(int).tolist()


def test_every_frame_has_a_thumbnail(grays, box):
    frames, times = box.thumbnails(str(grays))
    assert frames.shape == (100, 27, 48, 3) and frames.dtype == np.uint8
    np.testing.assert_allclose(times, np.arange(100) / RATE, atol=1e-6)
    assert abs(np.asarray(_numbers(frames)) - np.arange(100)).max() <= 1


@pytest.mark.parametrize("window", [(0, 1), (1.5, 3.25), (2, None), (4.9, None), (7, None)])
def test_a_window_has_its_own_thumbnails(grays, box, window):
    whole, all_times = box.thumbnails(str(grays))
    frames, times = box.thumbnails(str(grays), window=window)
    inside = (all_times >= window[0]) & (all_times < (window[1] or 99))
    assert np.array_equal(frames, whole[inside]) and np.array_equal(times, all_times[inside])


def test_thumbnails_can_be_thinned_out_and_sized(grays, box):
    frames, times = box.thumbnails(str(grays), fps=4.0, size=(10, 12))
    assert frames.shape == (20, 10, 12, 3)
    np.testing.assert_allclose(times, np.arange(20) / 4, atol=1e-6)


def test_thumbnails_come_in_bounded_chunks_and_none_twice(grays, monkeypatch):
    """Even where a seek proves wrong in the middle, and the rest is decoded from the beginning."""
    monkeypatch.setattr(sampling, "CHUNK", 10 * 27 * 48 * 3)
    chunks = list(sampling.thumbnails(str(grays)))
    assert max(len(frames) for frames, _ in chunks) == 10 and sum(len(frames) for frames, _ in chunks) == 100
    real = Footage.__iter__

    def breaks(footage):
        for count, item in enumerate(real(footage)):
            if footage.sought and count == 25:
                raise Unsure
            yield item

    monkeypatch.setattr(Footage, "__iter__", breaks)
    times = np.concatenate([times for _, times in sampling.thumbnails(str(grays), window=(2, None))])
    np.testing.assert_allclose(times, np.arange(40, 100) / RATE, atol=1e-6)


def test_thumbnails_are_averages_and_in_colour(tmp_path, box):
    frames, _ = box.thumbnails(str(make(tmp_path / "a.mp4", size=(480, 270), frames=8)))
    assert abs(frames[4][2:11, 2:22].reshape(-1, 3).mean(0) - RED).max() < 10


def test_a_turned_video_has_upright_thumbnails(tmp_path, box):
    path = make(tmp_path / "a.mp4", edit=lambda s, _: s.set_display_rotation(90))
    frame = box.thumbnails(str(path))[0][10]
    assert frame.shape == (27, 48, 3)
    assert abs(frame[16:25, 3:20].reshape(-1, 3).mean(0) - RED).max() < 14  # left, below


# Clips of other people


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.webm", "a.mkv", "a.avi", "a.ts", "a.mpg"])
def test_clips_of_any_container_are_sampled_by_their_own_time(tmp_path, box, name):
    codec = {"a.webm": "libvpx", "a.avi": "mpeg4", "a.mpg": "mpeg2video"}.get(name, "libx264")
    data = make(tmp_path / name, codec=codec, frames=50, show=_gray, rate=25).read_bytes()
    frames, kept, times = box.sample(data, 4.0)
    assert len(times) == 50 and times[0] == 0 and times[-1] == pytest.approx(49 / 25, abs=0.06)
    assert abs(np.asarray(_numbers(frames)) - kept * 25).max() <= 2


def test_a_late_start_is_a_clips_time_zero(tmp_path, box):
    data = make(tmp_path / "a.mp4", times=[10 + t / RATE for t in range(40)]).read_bytes()
    _, kept, times = box.sample(data, 4.0)
    assert times[0] == 0 and len(kept) == 8


def test_turned_and_wide_clips_are_shown_as_they_should(tmp_path, box):
    def both(stream, _):
        stream.set_display_rotation(90)
        stream.codec_context.sample_aspect_ratio = Fraction(2)

    frames, _, _ = box.sample(make(tmp_path / "a.mp4", edit=both).read_bytes(), 4.0)
    assert frames.shape[1:] == (2 * W, H, 3)
    assert abs(frames[2][W + 8 :, 4 : H // 2 - 4].reshape(-1, 3).mean(0) - RED).max() < 14


@pytest.mark.parametrize("data, reason", [
    (b"#EXTM3U\n#EXTINF:2,\nfile:/etc/passwd\n", "forbidden_reference"),
    (b"ffconcat version 1.0\nfile /etc/passwd\n", "forbidden_reference"),
    (b"\x89PNG\r\n\x1a\n" + bytes(99), "unsupported_container"),
    (b"text", "not_video"),
    (b"", "not_video"),
    (b"\x1aE\xdf\xa3" + bytes(99), "truncated"),
])  # fmt: skip
def test_bytes_that_are_no_clip_are_refused(box, data, reason):
    with pytest.raises(Rejected) as caught:
        box.sample(data)
    assert caught.value.reason == reason


@pytest.mark.parametrize("kind", [b"url ", b"urn "])
def test_bytes_whose_media_are_elsewhere_are_refused(box, tmp_path, listener, kind):
    port, calls = listener
    data = elsewhere(make(tmp_path / "a.mp4").read_bytes(), kind, b"http://127.0.0.1:%d/x.mp4\0" % port)
    with pytest.raises(Rejected) as caught:
        box.sample(data)
    assert caught.value.reason == "forbidden_reference" and not calls


def test_a_long_gap_is_refused(tmp_path):
    jpegs(tmp_path / "a.mov", [0, 1, 2, 3, 3600], Fraction(1))
    with pytest.raises(Rejected, match="bad_timestamps"):
        sampling.sample((tmp_path / "a.mov").read_bytes(), 4.0)
