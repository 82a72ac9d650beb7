"""Interlaced sources come out as whole pictures, and whatever is not flagged interlaced is left alone."""

import av
import numpy as np
import pytest

from storage.media import cutting, interlace
from storage.media.copying import cut_any
from storage.media.sampling import sample
from tests.videos import INTERLACED, RATE, H, W, fields, make


def _combing(frames):
    """The share of pixels that differ from both their neighbours above and below, in the same direction."""
    luma = np.asarray(frames).astype(int)[..., 1]
    above, here, below = luma[:, :-2], luma[:, 1:-1], luma[:, 2:]
    return float(((here - above) * (here - below) > 20**2).mean())


@pytest.fixture(scope="module")
def woven(tmp_path_factory):
    """Ten seconds of interlaced H.264 in three containers, key frames every 1.25 s."""
    folder = tmp_path_factory.mktemp("woven")
    return {kind: make(folder / f"a.{kind}", frames=200, **INTERLACED) for kind in ("mp4", "mkv", "ts")}


def _cut(path, folder, how=cutting.cut, **options):
    folder.mkdir()
    clips = how(str(path), str(folder), span=2.0, **options)
    return clips, [(folder / clip["file"]).read_bytes() for clip in clips]


def test_combs_are_gone_and_the_clip_says_why(woven, tmp_path, monkeypatch):
    clips, data = _cut(woven["mp4"], tmp_path / "a")
    assert [clip["notes"] for clip in clips] == [["deinterlaced"]] * 5
    assert [clip["frames"] for clip in clips] == [40] * 5
    monkeypatch.setattr(interlace, "FILTER", ("null", ""))
    plain, woven_data = _cut(woven["mp4"], tmp_path / "b")
    combs = [np.mean([_combing(sample(bytes_)[0]) for bytes_ in some]) for some in (data, woven_data)]
    print(f"combing {combs[0]:.5f}, without the filter {combs[1]:.5f}")
    assert combs[0] < 0.002 and combs[1] > 0.03
    assert [clip["notes"] for clip in plain] == [[]] * 5


def test_each_frame_shows_one_of_its_half_pictures(woven, tmp_path):
    """The same of the two all the time, at either end of a clip, and no other moment of the bar."""
    _, data = _cut(woven["mp4"], tmp_path / "a")
    found = np.concatenate([sample(bytes_)[0] for bytes_ in data]).astype(int)
    shown = [[fields(t, W, H)[parity::2].repeat(2, 0) for parity in (0, 1)] for t in range(200)]
    apart = np.array([[abs(frame - half).mean() for half in both] for frame, both in zip(found, shown, strict=True)])
    best = apart.argmin(1)
    assert len(set(best)) == 1 and apart.min(1).max() < 1 and apart.max(1).min() > 8


@pytest.mark.parametrize("kind", ["mp4", "mkv", "ts"])
def test_windows_give_the_bytes_of_a_cut_in_one_go(woven, tmp_path, kind):
    """Each window knows the frame before it, which its first one is made of; some begin at a key frame."""
    whole = _cut(woven[kind], tmp_path / "whole")[1]
    edges = [0, 2, 4, 6, 8, None]
    parts = [_cut(woven[kind], tmp_path / str(n), window=edges[n : n + 2])[1] for n in range(5)]
    assert [bytes_ for part in parts for bytes_ in part] == whole


def test_a_key_frame_at_the_start_of_a_window_needs_the_frame_before(tmp_path):
    path = make(tmp_path / "a.mkv", frames=120, **{**INTERLACED, "options": {**INTERLACED["options"], "g": "20"}})
    whole, late = _cut(path, tmp_path / "whole")[1], _cut(path, tmp_path / "late", window=(4, None))[1]
    assert late == whole[2:]


def test_progressive_sources_never_meet_the_filter(tmp_path, monkeypatch):
    monkeypatch.setattr(interlace, "_Filter", None)
    clips, _ = _cut(make(tmp_path / "a.mp4", frames=80), tmp_path / "a")
    assert [clip["notes"] for clip in clips] == [[], []]


class _Frames(list):
    before = None


def _decoded(path):
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def test_of_a_mixed_stream_only_the_flagged_frames_change(woven, tmp_path):
    """Ten progressive frames, ten interlaced, ten progressive: none is lost, doubled or out of place."""
    plain, combed = _decoded(make(tmp_path / "a.mp4", frames=30)), _decoded(woven["mp4"])
    mixed = [*plain[:10], *combed[10:20], *plain[20:30]]
    before = [frame.to_ndarray() for frame in mixed]
    found = list(interlace.progressive(_Frames(enumerate(mixed))))
    assert [now for now, _, _ in found] == list(range(30))
    assert [changed for _, _, changed in found] == [False] * 10 + [True] * 10 + [False] * 10
    same = [np.array_equal(frame.to_ndarray(), was) for (_, frame, _), was in zip(found, before, strict=True)]
    assert same == [True] * 10 + [False] * 10 + [True] * 10


@pytest.mark.parametrize("start", [1, 5, 9, 10, 11, 15, 19, 20, 21])
def test_a_frame_follows_from_its_neighbours_alone(woven, tmp_path, start):
    plain, combed = _decoded(make(tmp_path / "a.mp4", frames=30)), _decoded(woven["mp4"])
    mixed = [*plain[:10], *combed[10:20], *plain[20:30]]
    whole = [frame.to_ndarray() for _, frame, _ in interlace.progressive(_Frames(enumerate(mixed)))]
    late = _Frames(enumerate(mixed[start:]))
    late.before = mixed[start - 1]
    found = [frame.to_ndarray() for _, frame, _ in interlace.progressive(late)]
    assert len(found) == 30 - start and all(map(np.array_equal, found, whole[start:]))


def test_one_interlaced_frame_alone(woven):
    (frame,) = _decoded(woven["mp4"])[:1]
    assert len(list(interlace.progressive(_Frames([(0, frame)])))) == 1


def test_a_copy_of_an_interlaced_source_is_cut_exactly(woven, tmp_path):
    exact = _cut(woven["mp4"], tmp_path / "exact")
    clips, data = _cut(woven["mp4"], tmp_path / "copy", how=cut_any, mode="copy")
    assert data == exact[1] and clips[0]["notes"] == ["deinterlaced", "not copied: interlaced"]


def test_the_filter_runs_on_one_thread(woven):
    assert interlace._Filter(_decoded(woven["mp4"])[0]).graph.threads == 1 and RATE == 20
