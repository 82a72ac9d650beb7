"""Frames that are picked out of a clip are those of a decode of all of it, whoever encoded it."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from storage.media import decoder, sampling, sparse
from storage.media.encoder import Encoder
from storage.media.footage import Unsure
from storage.media.interlace import progressive
from storage.media.limits import Limits, Rejected
from storage.media.sandbox import Sandbox
from tests.corpus_video import CASES
from tests.videos import INTERLACED, RATE, make, picture

RATES = (0.2, 1.0, 3.7, 8.0, 19.0, 20.0, 50.0)


def _of(**params):
    return {"options": {"x264-params": ":".join(f"{name.replace('_', '-')}={value}" for name, value in params.items())}}


VIDEOS = {
    "a.mp4": {},
    "pyramid.mp4": _of(bframes=8, b_pyramid="strict", ref=4, keyint=33),
    "flat.mp4": _of(bframes=4, b_pyramid="none", keyint=17, weightp=2),
    "open.mp4": _of(open_gop=1, bframes=4, keyint=12, min_keyint=12),
    "refreshed.mp4": _of(intra_refresh=1, bframes=2, keyint=15),
    "recovery.mp4": _of(keyint=12, min_keyint=6, scenecut=80, rc_lookahead=10, bframes=3),
    "slices.mp4": _of(slices=4, bframes=3, keyint=20),
    "long.mkv": _of(keyint=500, bframes=3),
    "a.ts": _of(keyint=16, bframes=3),
    "a.avi": _of(keyint=16, bframes=0),
    "fields.mp4": INTERLACED,
    "varying.mp4": {
        "times": np.cumsum([0, *np.random.default_rng(1).uniform(0.002, 0.3, 99)]).round(3).tolist(),
        "options": {"bf": "3", "g": "20"},
    },
    "late.mp4": {"times": [7 + t / RATE for t in range(100)], "options": {"bf": "3", "g": "20"}},
    "turned.mp4": {"edit": lambda stream, _: stream.set_display_rotation(90)},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=20:bframes=3"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8", "g": "20"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"bf": "2", "g": "12"}, "rate": 25},
    "one.mp4": {"frames": 1},
    "two.mp4": {"frames": 2},
}


def _all_decoded(monkeypatch):
    def unsure(*_):
        raise Unsure("as if")

    monkeypatch.setattr(sampling, "sparse", unsure)


def _same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


WHOLE = ("fields.mp4", "hevc.mp4", "vp9.webm", "mpeg2.mpg")  # what is never picked from


@pytest.mark.parametrize("name", VIDEOS)
def test_picked_frames_are_those_of_a_decode_of_all(tmp_path, monkeypatch, name):
    data = make(tmp_path / name, **{"frames": 100} | VIDEOS[name]).read_bytes()
    whole = []
    monkeypatch.setattr(sampling, "progressive", lambda footage: whole.append(footage) or progressive(footage))
    found = [sampling.sample(data, fps) for fps in RATES]
    assert len(whole) == (len(RATES) if name in WHOLE else 0)
    _all_decoded(monkeypatch)
    for fps, ours in zip(RATES, found, strict=True):
        assert _same(ours, sampling.sample(data, fps)), fps


def _without(path, source, gone):
    """The packets of a video but for some, by their numbers."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0], opaque=True)
        for number, packet in enumerate(old.demux(video=0)):
            if packet.size and number not in gone:
                packet.stream = stream
                new.mux(packet)
    return path.read_bytes()


@pytest.mark.parametrize("name", ["a.flv", "a.ts"])
@pytest.mark.parametrize("keyint, gone", [(30, range(1)), (30, range(11)), (500, range(1)), (500, range(40))])
def test_a_clip_that_begins_in_the_middle_is_decoded_whole(tmp_path, monkeypatch, name, keyint, gone):
    source = make(tmp_path / f"whole-{name}", frames=100, **_of(keyint=keyint, bframes=2))
    data = _without(tmp_path / name, source, gone)
    found = [_answer(data, fps, Limits()) for fps in RATES]
    _all_decoded(monkeypatch)
    for fps, ours in zip(RATES, found, strict=True):
        assert _alike(ours, _answer(data, fps, Limits())), fps


def _ours(path, frames=100, size=(96, 72), rate=25):
    with Encoder(path, *size, Fraction(rate)) as encoder:
        for t in range(frames):
            encoder.write(picture(t, *size), Fraction(t, rate))
    return path.read_bytes()


def _decoded(monkeypatch, data, fps):
    """How many frames are decoded to pick from a clip; that of ours has a key frame every 30."""
    count = []
    real = sparse.decode

    def counted(*given):
        for frame in real(*given):
            count.append(frame.pts)
            yield frame

    monkeypatch.setattr(sparse, "decode", counted)
    sampling.sample(data, fps)
    return len(count)


@pytest.mark.parametrize("fps, least, most", [(1.0, 4, 45), (0.2, 1, 1), (8.0, 32, 85), (25.0, 100, 100)])
def test_what_nobody_needs_is_not_decoded(tmp_path, monkeypatch, fps, least, most):
    assert least <= _decoded(monkeypatch, _ours(tmp_path / "a.mp4"), fps) <= most


def _answer(data, fps, limits):
    try:
        return sampling.sample(data, fps, limits)
    except Rejected as rejected:
        return rejected.reason
    except ValueError as error:
        return str(error)


def _alike(one, other):
    if isinstance(one, str) or isinstance(other, str):
        return isinstance(one, str) and one == other
    return _same(one, other)


@pytest.mark.parametrize("limits", [Limits(), Limits(corrupt_share=0.5)], ids=["strict", "lenient"])
def test_damage_is_judged_by_a_decode_of_all_or_is_in_what_nobody_needs(tmp_path, monkeypatch, limits):
    data = _ours(tmp_path / "a.mp4", frames=64)
    with av.open(io.BytesIO(data)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    rng = np.random.default_rng(0)
    broken = []
    for pos, size in packets:
        bytes_ = bytearray(data)
        for at in rng.integers(pos + min(8, size - 1), pos + size, 6):
            bytes_[at] ^= 0xFF
        broken.append(bytes(bytes_))
    clean = sampling.sample(data, 1.0)
    found = [_answer(one, 1.0, limits) for one in broken]
    _all_decoded(monkeypatch)
    wanted = [_answer(one, 1.0, limits) for one in broken]
    kinds = [(_alike(ours, theirs), _alike(ours, clean)) for ours, theirs in zip(found, wanted, strict=True)]
    assert all(same or untouched for same, untouched in kinds)
    assert sum(untouched and not same for same, untouched in kinds) > 5, "the damage of frames that nobody needs"
    assert sum(same and not untouched for same, untouched in kinds) > 5, "the damage of others"


@pytest.mark.parametrize("case", [case for case in CASES if not case.port], ids=str)
def test_what_is_odd_or_broken_gives_the_frames_and_reasons_of_a_decode_of_all(tmp_path, monkeypatch, case):
    path = tmp_path / case.file
    case.build(path)
    if not path.is_file() or path.stat().st_size > 1 << 30:
        return  # it has no bytes to be given as a clip's
    data = path.read_bytes()
    found = _answer(data, 4.0, Limits(**case.limits))
    _all_decoded(monkeypatch)
    assert _alike(found, _answer(data, 4.0, Limits(**case.limits)))


def test_frames_that_were_handed_over_before_damage_are_handed_over_once(tmp_path, monkeypatch):
    data = bytearray(_ours(tmp_path / "a.mp4", frames=60, size=(640, 480)))
    with av.open(io.BytesIO(data)) as container:
        last = [packet for packet in container.demux(video=0) if packet.size and packet.pts][-20:]
    for packet in last:
        data[packet.pos + packet.size // 2] ^= 0xFF
    limits = Limits(corrupt_share=0.9)
    box = Sandbox(limits=limits)
    found = box.sample(bytes(data), 12.0)
    box.close()
    restarted = []
    monkeypatch.setattr(sampling, "progressive", lambda footage: restarted.append(footage) or progressive(footage))
    wanted = sampling.sample(bytes(data), 12.0, limits)
    assert restarted and wanted[0][: len(wanted[0]) // 2].nbytes > 2 * decoder.AHEAD
    assert _same(found, wanted)


def test_a_clip_of_more_packets_than_are_held_is_decoded_whole(tmp_path, monkeypatch):
    data = _ours(tmp_path / "a.mp4")
    wanted = sampling.sample(data, 1.0)
    monkeypatch.setattr(sparse, "MOST", 99)
    assert _decoded(monkeypatch, data, 1.0) == 0 and _same(sampling.sample(data, 1.0), wanted)
