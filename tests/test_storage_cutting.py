"""Cutting in windows, at shot boundaries and by copying: the same bytes, the same frames, nothing lost."""

import shutil
from fractions import Fraction

import av
import numpy as np
import pytest

from storage.media import copying, cutting
from storage.media.footage import Footage, Unsure
from storage.media.sampling import sample
from storage.media.video import Limits, Rejected
from tests.videos import RATE, RED, H, W, make, set_options

GROUPS = {"bf": 3, "g": 25, "x264-params": "scenecut=0"}
OPEN = {"bf": 3, "g": 25, "x264-params": "open-gop=1:scenecut=0"}
VARYING = np.cumsum([0, *np.random.default_rng(0).uniform(0.01, 0.12, 299)]).round(3).tolist()
LATE = [10 + t / RATE for t in range(300)]


def turned(stream, _):
    stream.options = {"g": "25"}
    stream.set_display_rotation(90)


def wide(stream, _):
    stream.options = {"g": "25"}
    stream.codec_context.sample_aspect_ratio = Fraction(2)


FILES = {
    "b_frames.mp4": {"edit": set_options(**GROUPS)},
    "open.mp4": {"edit": set_options(**OPEN)},
    "open.mkv": {"edit": set_options(**OPEN)},
    "refresh.mp4": {"edit": set_options(**{"g": 25, "x264-params": "intra-refresh=1"})},
    "varying.mp4": {"times": VARYING, "edit": set_options(**GROUPS)},
    "varying.mkv": {"times": VARYING, "edit": set_options(**GROUPS)},
    "late.mp4": {"times": LATE, "edit": set_options(**GROUPS)},
    "fragments.mp4": {"movflags": "frag_keyframe+empty_moov", "edit": set_options(**GROUPS)},
    "transport.ts": {"edit": set_options(**GROUPS)},
    "packed.avi": {"codec": "mpeg4", "edit": set_options(bf=2)},
    "mpeg4.mp4": {"codec": "mpeg4", "edit": set_options(bf=2)},
    "vp9.webm": {"codec": "libvpx-vp9", "edit": set_options(g=25, deadline="realtime", **{"cpu-used": 8})},
    "turned.mp4": {"edit": turned},
    "wide.mp4": {"edit": wide},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Videos of 300 frames: 15 seconds, unless their rate varies."""
    folder = tmp_path_factory.mktemp("files")
    made = {name: make(folder / name, frames=300, size=SIZE, **how) for name, how in FILES.items()}
    made["edits.mp4"] = folder / "edits.mp4"
    data = made["b_frames.mp4"].read_bytes()
    at = data.index(b"elst") + 12  # begins 1.5 s later than its media
    shown, begin = (int.from_bytes(data[at + n : at + n + 4], "big") for n in (0, 4))
    scale = int.from_bytes(data[data.index(b"mdhd") + 16 :][:4], "big")
    new = (shown - 1500).to_bytes(4, "big") + (begin + scale * 3 // 2).to_bytes(4, "big")
    made["edits.mp4"].write_bytes(data[:at] + new + data[at + 8 :])
    return made


SIZE = (48, 36)
NAMES = [*FILES, "edits.mp4"]


def _clips(how, path, folder, **options):
    """Cuts or copies; returns records and bytes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    clips = how(str(path), str(folder), **options)
    return clips, [(folder / clip["file"]).read_bytes() for clip in clips]


def _times(clips):
    return [{name: value for name, value in clip.items() if name != "file"} for clip in clips]


def _in_windows(how, path, folder, edges, **options):
    clips, data = [], []
    for window in zip(edges, [*edges[1:], None], strict=True):
        more, bytes_ = _clips(how, path, folder, window=window, **options)
        clips, data = clips + more, data + bytes_
    return clips, data


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", [cutting.cut, copying.copy])
def test_windows_give_the_bytes_of_a_cut_in_one_go(files, tmp_path, how, name):
    """B-frames, open groups, edit lists, varying rates, late starts and files without an index."""
    if how is copying.copy and name == "edits.mp4":
        name = "wide.mp4"  # a copy would show what the edit list hides; see below
    options = {"span": 2.0} | ({"short_side": 24} if how is cutting.cut else {})
    whole = _clips(how, files[name], tmp_path / "a", **options)
    parts = _in_windows(how, files[name], tmp_path / "b", [0, 2, 6, 8, 14, 20, 40], **options)
    assert _times(whole[0]) == _times(parts[0]) and whole[1] == parts[1]
    assert how is copying.copy or len(whole[0]) >= 6


@pytest.mark.parametrize("tail", [0.3, 1.0, 2.0])
def test_the_tail_is_the_same_in_windows(files, tmp_path, tail):
    path = make(tmp_path / "a.mp4", frames=2 * 40 + 13, size=(32, 24), options={"g": "20"})
    whole = _clips(cutting.cut, path, tmp_path / "a", span=2.0, tail=tail)
    parts = _in_windows(cutting.cut, path, tmp_path / "b", [0, 2, 4, 6], span=2.0, tail=tail)
    assert whole[1] == parts[1]
    assert [clip["frames"] for clip in whole[0]] == ([40, 40, 13] if tail < 0.65 else [40, 53])


def test_a_window_is_bounded_work(files):
    """Of a file with an index, what comes before the window's key frame is not decoded."""
    for name in ("b_frames.mp4", "open.mkv", "late.mp4", "vp9.webm"):
        beats = []
        with Footage(str(files[name]), Limits(), start=14.0, beat=lambda beats=beats: beats.append(1)) as footage:
            frames = list(footage)
        assert len(frames) == 20 and len(beats) <= 20 + 25 + 10


def test_a_seek_that_lands_late_is_noticed(files, tmp_path, monkeypatch):
    """Then the window is decoded from the beginning, and comes out the same."""
    whole = _clips(cutting.cut, files["b_frames.mp4"], tmp_path / "a", span=2.0, window=(4, None))
    landed = []

    def late(footage, pts):
        landed.append(pts)
        footage.container.seek(pts + round(8 / footage.clock.base), stream=footage.stream)

    monkeypatch.setattr(Footage, "_seek", late)
    assert _clips(cutting.cut, files["b_frames.mp4"], tmp_path / "b", span=2.0, window=(4, None)) == whole
    with Footage(str(files["b_frames.mp4"]), Limits(), start=4.0) as footage, pytest.raises(Unsure):
        list(footage)
    assert landed


def test_clips_end_at_the_bounds(files, tmp_path):
    """Shots: 0-0.4 (short), 0.4-5.9 (of three pieces, the rest joined), 5.9-6.2 (short), to the end at 15."""
    bounds = [0.4, 5.9, 6.2]
    clips, data = _clips(cutting.cut, files["b_frames.mp4"], tmp_path / "a", span=2.0, bounds=bounds, short_side=24)
    assert [clip["start"] for clip in clips] == pytest.approx([0, 0.4, 2.4, 4.4, 5.9, 6.2, 8.2, 10.2, 12.2])
    assert [clip["shot"] for clip in clips] == [0, 1, 1, 1, 2, 3, 3, 3, 3]
    assert [clip["short"] for clip in clips] == [True, False, False, False, True, False, False, False, False]
    assert sum(clip["frames"] for clip in clips) == 300 and clips[-1]["end"] == pytest.approx(15)
    for before, after in zip(clips, clips[1:], strict=False):
        assert before["end_pts"] == after["start_pts"]
    options = {"span": 2.0, "bounds": bounds, "short_side": 24}
    parts = _in_windows(cutting.cut, files["b_frames.mp4"], tmp_path / "b", [0, 2, 5, 6, 9, 14], **options)
    assert _times(parts[0]) == _times(clips) and parts[1] == data


def test_a_last_piece_of_a_shot_that_is_short_joins_the_one_before(files, tmp_path):
    clips, _ = _clips(cutting.cut, files["b_frames.mp4"], tmp_path / "a", span=2.0, bounds=[2.7, 9.0], short_side=24)
    assert [clip["start"] for clip in clips] == pytest.approx([0, 2.7, 4.7, 6.7, 9, 11, 13])
    assert [clip["frames"] for clip in clips] == [54, 40, 40, 46, 40, 40, 40]
    assert not any(clip["short"] for clip in clips)


def test_bounds_that_were_rounded_still_hit_their_frame(files, tmp_path):
    """A varying rate: each bound is a frame's own time to the millisecond, as a list of shots would have it."""
    bounds = [VARYING[70], VARYING[150]]
    clips, _ = _clips(cutting.cut, files["varying.mkv"], tmp_path / "a", span=60.0, bounds=bounds, short_side=24)
    assert [clip["frames"] for clip in clips] == [70, 80, 150]


# Copies


def _frames(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_has_the_frames_of_its_source(files, tmp_path, name):
    """Every frame, exactly, from a first one that can be decoded, at the source's own times."""
    if name == "edits.mp4":
        with pytest.raises(Rejected) as caught:
            copying.copy(str(files[name]), str(tmp_path))
        assert caught.value.reason == "needs_reencode" and "edit list" in caught.value.detail
        return
    clips, _ = _clips(copying.copy, files[name], tmp_path / "a", span=2.0)
    source, found = _frames(files[name]), []
    for clip in clips:
        frames = _frames(tmp_path / "a" / clip["file"])
        assert len(frames) == clip["frames"]
        found += frames
    assert len(found) == len(source) == 300 and all(map(np.array_equal, found, source))
    if name not in ("packed.avi", "mpeg4.mp4", "refresh.mp4", "open.mp4", "open.mkv"):  # that have one place to begin
        assert len(clips) > 1


@pytest.mark.parametrize("name", ["b_frames.mp4", "varying.mp4", "varying.mkv", "late.mp4", "transport.ts"])
def test_a_copy_keeps_its_place_on_the_source_clock(files, tmp_path, name):
    times = np.asarray({"vary": VARYING, "late": LATE}.get(name[:4], np.arange(300) / RATE))
    clips, data = _clips(copying.copy, files[name], tmp_path / "a", span=2.0)
    found = []
    for clip, bytes_ in zip(clips, data, strict=True):
        inside = sample(bytes_)[2]
        assert inside[0] == 0 and len(inside) == clip["frames"]
        start = clip["start_pts"] * float(Fraction(clip["time_base"]))
        assert name == "transport.ts" or start == pytest.approx(clip["start"] + times[0], abs=1e-3)
        found += list(clip["start"] + inside)
    np.testing.assert_allclose(found, times - times[0], atol=1e-3)


@pytest.mark.parametrize("how", [cutting.cut, copying.copy])
@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_a_clip_ends_before_the_next_one_begins_where_the_rate_varies(tmp_path, how, kind):
    """Bursts of frames and waits between them: frames come much sooner than on average after some ends."""
    times = [float(start + step) for start in (0.0, 3.0, 7.5) for step in np.arange(0, 2.0, 0.02).round(2)]
    path = make(tmp_path / f"a.{kind}", frames=len(times), times=times, size=(32, 24), options={"g": "25"})
    options = {"span": 1.0} | ({"short_side": 24} if how is cutting.cut else {})
    clips, _ = _clips(how, path, tmp_path / "a", **options)
    assert sum(clip["frames"] for clip in clips) == len(times) and len(clips) == 6
    for clip, after in zip(clips, clips[1:], strict=False):
        assert clip["end"] <= after["start"] and clip["end_pts"] <= after["start_pts"]
    assert clips[-1]["end"] > times[-1]
    in_windows, _ = _in_windows(how, path, tmp_path / "b", [0, 3, 8], **options)
    assert _times(in_windows) == _times(clips)


def test_copies_begin_at_the_first_key_frame_after_each_span(files, tmp_path):
    clips, _ = _clips(copying.copy, files["b_frames.mp4"], tmp_path / "a", span=2.0)
    assert [clip["start"] for clip in clips] == pytest.approx([0, 2.5, 5.0, 6.25, 8.75, 10.0, 12.5])


def test_a_copy_of_a_turned_or_wide_video_is_shown_as_it_should(files, tmp_path):
    for name, size in (("turned.mp4", (36, 48)), ("wide.mp4", (96, 36))):
        clips, data = _clips(copying.copy, files[name], tmp_path / "a", span=2.0)
        exact, exact_data = _clips(cutting.cut, files[name], tmp_path / "b", span=60.0)
        assert {(c["width"], c["height"]) for c in clips} == {size} == {(exact[0]["width"], exact[0]["height"])}
        shown, wanted = sample(data[0])[0], sample(exact_data[0])[0]
        assert shown.shape[1:] == (*size[::-1], 3) == wanted.shape[1:]
        assert abs(shown[10].astype(int) - wanted[10]).mean() < 6


def test_key_frames_too_far_apart_need_an_encoder(tmp_path):
    path = make(tmp_path / "a.mp4", frames=90 * 4, rate=4, size=(32, 24), options={"g": "9999", "sc_threshold": "0"})
    with pytest.raises(Rejected, match="needs_reencode"):
        copying.copy(str(path), str(tmp_path), span=2.0)
    assert len(cutting.cut(str(path), str(tmp_path), span=20.0)) == 5


def test_what_mp4_cannot_hold_needs_an_encoder(tmp_path):
    path = make(tmp_path / "a.avi", codec="wmv2")
    with pytest.raises(Rejected, match="needs_reencode"):
        copying.copy(str(path), str(tmp_path), span=2.0)


# Colour


def _bars(t, width, height):
    """Eight colours side by side."""
    colours = np.array([[r, g, b] for r in (30, 220) for g in (30, 220) for b in (30, 220)], np.uint8)
    return np.broadcast_to(colours.repeat(width // 8, 0), (height, width // 8 * 8, 3)).copy()


def _paint(path, matrix, full, tagged=True, pix="yuv420p"):
    """Bars whose luma and chroma are computed here, by the definition of the matrix."""
    red, blue = {601: (0.299, 0.114), 709: (0.2126, 0.0722), 2020: (0.2627, 0.0593)}[matrix]
    rgb = _bars(0, W, H).astype(float) / 255
    y = rgb @ [red, 1 - red - blue, blue]
    u, v = (rgb[..., 2] - y) / (2 - 2 * blue), (rgb[..., 0] - y) / (2 - 2 * red)
    planes = [255 * y, 255 * u + 128, 255 * v + 128] if full else [16 + 219 * y, 224 * u + 128, 224 * v + 128]
    u, v = (plane.reshape(H // 2, 2, W // 2, 2).mean((1, 3)) for plane in planes[1:])
    stacked = np.concatenate([planes[0].ravel(), u.ravel(), v.ravel()]).round().clip(0, 255).astype(np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=RATE, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = W, H, pix
        context = stream.codec_context
        if tagged:
            context.colorspace = {601: 6, 709: 1, 2020: 9}[matrix]
        context.color_range = 2 if full else 1
        for t in range(8):
            frame = av.VideoFrame.from_ndarray(stacked.reshape(H * 3 // 2, W), "yuv420p")
            frame.pts, frame.color_range = t, context.color_range
            if tagged:
                frame.colorspace = context.colorspace
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [601, 709, 2020])
@pytest.mark.parametrize("turn", [0, 90])
def test_colours_are_those_of_the_definition(tmp_path, matrix, full, turn):
    """Whatever the tags of the source, and for readers that look at no tags."""
    path = _paint(tmp_path / "a.mp4", matrix, full)
    wanted = np.rot90(_bars(0, W, H), turn // 90).astype(int)
    if turn:
        data = path.read_bytes()
        at = data.index(b"tkhd") + 4 + 40
        one, matrix_ = 0x10000, bytearray(36)
        for place, value in ((1, -one), (3, one), (8, 0x40000000)):
            matrix_[4 * place : 4 * place + 4] = value.to_bytes(4, "big", signed=True)
        path.write_bytes(data[:at] + bytes(matrix_) + data[at + 36 :])
    clips, data = _clips(cutting.cut, path, tmp_path / "a")
    for frames in (sample(data[0])[0], np.stack(_frames(tmp_path / "a" / clips[0]["file"]))):
        inner = abs(frames[4].astype(int) - wanted).reshape(*wanted.shape)
        assert np.median(inner) <= 4 and np.quantile(inner, 0.75) <= 8
    if not turn:
        source = sample(path.read_bytes())[0][4]
        assert np.quantile(abs(source.astype(int) - wanted), 0.75) <= 6


def test_red_is_red(files, tmp_path):
    """A control of the above with the picture that the other tests use."""
    _, data = _clips(cutting.cut, files["b_frames.mp4"], tmp_path / "a")
    assert abs(sample(data[0])[0][0][4:14, 4:18].reshape(-1, 3).mean(0) - RED).max() < 8
