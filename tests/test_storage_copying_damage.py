"""Copying sees packets whose units do not fill them, and leaves such a source to the cut that decodes it."""

import pytest

from storage.media import cutting
from storage.media.copying import copy, cut_any
from storage.media.groups import _filled
from storage.media.limits import Rejected
from tests.videos import find, hole, make


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    options = {"crf": "30", "g": "20", "bf": "2", "preset": "ultrafast"}
    return make(tmp_path_factory.mktemp("good") / "a.mp4", frames=80, options=options).read_bytes()


def _outcome(how, path, folder, **options):
    folder.mkdir()
    try:
        clips = how(str(path), str(folder), span=2.0, **options)
    except Rejected as error:
        return error.reason
    return [(folder / clip["file"]).read_bytes() for clip in clips]


def test_a_hole_is_not_copied(good, tmp_path):
    path = tmp_path / "hole.mp4"
    path.write_bytes(hole(good))
    assert _outcome(copy, path, tmp_path / "a") == "needs_reencode"
    exact = _outcome(cutting.cut, path, tmp_path / "b")
    assert exact == "corrupt_frames" == _outcome(cut_any, path, tmp_path / "c", mode="copy")


def test_one_length_that_is_wrong_is_not_copied(good, tmp_path):
    """One packet of 80: the exact cut bears that, and its clips say why they were not copied."""
    data = bytearray(good)
    at = find(good, b"mdat") + (find(good, b"moov") - find(good, b"mdat")) // 2
    at = good.index(b"\0\0", at)  # the length before a unit
    data[at + 2] ^= 0x55
    path = tmp_path / "length.mp4"
    path.write_bytes(data)
    assert _outcome(copy, path, tmp_path / "a") == "needs_reencode"
    assert _outcome(cut_any, path, tmp_path / "b", mode="copy") == _outcome(cutting.cut, path, tmp_path / "c")


@pytest.mark.parametrize("kind", ["mp4", "mkv", "ts"])
def test_a_sound_source_is_copied(tmp_path, kind):
    path = make(tmp_path / f"a.{kind}", frames=60)
    assert isinstance(_outcome(copy, path, tmp_path / "out"), list)


@pytest.mark.parametrize(
    "data, whole",
    [
        (b"\0\0\0\2ab", True), (b"\0\0\0\2ab\0\0\0\1c", True), (b"\0\0\0\3ab", False), (b"\0\0\0\1ab", False),
        (b"\0\0\0\2ab\0\0\0", False), (bytes(40), False), (b"\0\0\0\2ab" + bytes(8), False), (b"\xff" * 9, False),
    ],
)  # fmt: skip
def test_units_fill_a_packet_to_its_last_byte(data, whole):
    assert _filled(data, 4) is whole
