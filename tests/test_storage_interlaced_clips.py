"""An adopted clip that is interlaced is sampled as whole pictures: the same as when it had been cut here."""

import numpy as np
import pytest

from storage.media import interlace
from storage.media.sampling import sample
from storage.media.sandbox import Sandbox
from tests.test_storage_interlace import _combing
from tests.videos import INTERLACED, make


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make(tmp_path_factory.mktemp("clip") / "a.mp4", frames=60, **INTERLACED).read_bytes()


@pytest.mark.parametrize("fps", [None, 7.0])
def test_its_combs_are_gone_and_its_times_stay(clip, monkeypatch, fps):
    frames, kept, times = sample(clip, fps)
    monkeypatch.setattr(interlace, "FILTER", ("null", ""))
    woven, *clock = sample(clip, fps)
    assert _combing(frames) < 0.002 and _combing(woven) > 0.03
    assert frames.shape == woven.shape and len(times) == 60
    assert np.array_equal(kept, clock[0]) and np.array_equal(times, clock[1])


def test_the_sandbox_hands_over_the_same(clip):
    box = Sandbox()
    for ours, theirs in zip(box.sample(clip, 7.0), sample(clip, 7.0), strict=True):
        assert np.array_equal(ours, theirs)
    box.close()


def test_a_progressive_clip_never_meets_the_filter(tmp_path, monkeypatch):
    monkeypatch.setattr(interlace, "_Filter", None)
    assert len(sample(make(tmp_path / "a.mp4", frames=20).read_bytes())[2]) == 20
