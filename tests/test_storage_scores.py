"""Scores of clips in every container that may be adopted, and of damaged ones: what sampling reads, scoring reads."""

import av
import numpy as np
import pytest

from storage.media import sampling, scores
from storage.media.video import Limits, Rejected
from tests.videos import RATE, H, W, make, streams

CODECS = {"a.webm": "libvpx", "a.avi": "mpeg4", "a.mpg": "mpeg2video", "a.flv": "flv"}


def _drifting(t, width, height):
    """A ramp that moves by a column a frame, and fine noise that stays."""
    ramp = np.roll(np.linspace(40, 215, width), t)[None, :, None].repeat(height, 0).repeat(3, 2)
    noise = np.random.default_rng(0).uniform(-15, 15, (height, width, 1))
    return (ramp + noise).astype(np.uint8)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.avi", "a.ts", "a.mpg", "a.flv", "h264.flv"])
def test_a_clip_has_its_scores_in_any_container(tmp_path, name):
    codec = CODECS.get(name, "libx264")
    data = make(tmp_path / name, codec=codec, show=_drifting, frames=50, rate=25, options={"b": "2000000"}).read_bytes()
    plain = make(tmp_path / "plain.mp4", show=_drifting, frames=50, rate=25).read_bytes()
    (found, looks, moves), (wanted, _, _) = scores.measure(data), scores.measure(plain)
    assert found.frames == 50 and len(looks) == len(moves) == 8 * scores.VIEWS
    assert found.motion == pytest.approx(wanted.motion, rel=0.1) and wanted.motion > 0.01
    assert (found.luma_mean, found.luma_std) == pytest.approx((wanted.luma_mean, wanted.luma_std), abs=1.5)


def test_the_largest_stream_is_scored_and_not_the_first(tmp_path):
    both, large, small = (tmp_path / f"{name}.mp4" for name in ("both", "large", "small"))
    for path, sizes in ((both, ((48, 32), (W, H))), (large, ((W, H),)), (small, ((48, 32),))):
        streams(path, sizes, codec="libx264", frames=20)
    found, wanted, other = (scores.measure(path.read_bytes())[0] for path in (both, large, small))
    assert found.luma_mean == pytest.approx(wanted.luma_mean, abs=0.2)
    assert abs(other.luma_mean - wanted.luma_mean) > 2  # a control: the streams can be told
    assert sampling.sample(both.read_bytes())[0].shape == (20, H, W, 3)


def test_times_that_need_repair_are_repaired(tmp_path):
    """A film whose clock begins late and whose packed B-frames come without times of their own."""
    path = make(tmp_path / "a.avi", codec="mpeg4", frames=40, options={"bf": "2"}, show=_drifting)
    assert scores.measure(path.read_bytes())[0].frames == len(sampling.sample(path.read_bytes())[2]) == 40
    late = make(tmp_path / "late.ts", times=[10 + t / RATE for t in range(40)], show=_drifting)
    assert len(scores.measure(late.read_bytes())[1]) == 8 * scores.VIEWS


def _spoiled(path, numbers):
    """The bytes of a video whose packets of these numbers are zeros."""
    with av.open(str(path)) as container:
        found = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for number in numbers:
        at, size = found[number]
        data[at : at + size] = bytes(size)
    return bytes(data)


def test_damage_is_judged_as_in_sampling(tmp_path):
    """One bad packet of 300 is passed over, thirty are not."""
    options = {"bf": "0", "g": "10", "sc_threshold": "0"}
    path = make(tmp_path / "a.mp4", frames=300, size=(64, 48), show=_drifting, options=options)
    little, much = _spoiled(path, [59]), _spoiled(path, range(9, 300, 10))
    assert scores.measure(little)[0].frames == len(sampling.sample(little)[2]) == 299
    for read in (sampling.sample, scores.measure):
        with pytest.raises(Rejected, match="corrupt_frames"):
            read(much)
        with pytest.raises(Rejected, match="corrupt_frames"):
            read(little, limits=Limits(corrupt_share=0.001))


@pytest.mark.parametrize(
    "limits, reason", [({"max_frames": 30}, "too_many_frames"), ({"max_bytes": 999}, "file_too_large")]
)
def test_limits_hold_for_bytes(tmp_path, limits, reason):
    data = make(tmp_path / "a.mp4").read_bytes()
    for read in (sampling.sample, scores.measure):
        with pytest.raises(Rejected, match=reason):
            read(data, limits=Limits(**limits))


def test_two_sizes_in_one_clip_are_refused(tmp_path):
    one, two = (make(tmp_path / f"{n}.ts", size=size).read_bytes() for n, size in enumerate(((W, H), (H, W))))
    with pytest.raises(Rejected, match="size_change"):
        scores.measure(one + two)
