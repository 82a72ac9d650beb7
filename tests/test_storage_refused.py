"""Broken and hostile video files: each is refused with its reason, and what it names is never opened."""

import gzip
import os
import zipfile

import numpy as np
import pytest

from storage.media import cutting
from storage.media.limits import REASONS, Limits, Rejected
from tests.videos import H, W, find, flipped, hole, make, sound, still


def _refused(path, tmp_path, **options):
    with pytest.raises(Rejected) as caught:
        cutting.cut(str(path), str(tmp_path), **options)
    assert caught.value.reason in REASONS
    return caught.value.reason


# Broken


@pytest.mark.parametrize("flags", [{}, {"movflags": "faststart"}, {"movflags": "frag_keyframe+empty_moov"}])
@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_truncated(tmp_path, flags, share):
    data = make(tmp_path / "a.mp4", **flags).read_bytes()
    (tmp_path / "a.mp4").write_bytes(data[: int(share * len(data)) - 1])
    if share == 1.0 and "frag" in flags.get("movflags", ""):
        share = 0.99  # the last byte of a fragmented file belongs to an index that nobody needs
        (tmp_path / "a.mp4").write_bytes(data[: int(share * len(data)) - 1])
    assert _refused(tmp_path / "a.mp4", tmp_path) == "truncated"


@pytest.mark.parametrize("kind", ["mkv", "avi"])
def test_truncated_in_other_containers(tmp_path, kind):
    path = make(tmp_path / f"a.{kind}", codec="libx264" if kind == "mkv" else "mpeg4")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert _refused(path, tmp_path) == "truncated"


def test_a_long_video_that_lacks_its_last_bytes(tmp_path):
    path = make(tmp_path / "a.mp4", frames=400, movflags="faststart")
    path.write_bytes(path.read_bytes()[:-40])
    assert _refused(path, tmp_path) == "truncated"


def test_flipped_bits(tmp_path):
    data = make(tmp_path / "a.mp4", frames=60).read_bytes()
    (tmp_path / "a.mp4").write_bytes(flipped(data, find(data, b"mdat") + 8, find(data, b"moov"), 200))
    assert _refused(tmp_path / "a.mp4", tmp_path) in ("corrupt_frames", "decode_error")


def test_a_hole_of_zeros(tmp_path):
    path = make(tmp_path / "a.mp4", frames=60)
    path.write_bytes(hole(path.read_bytes()))
    assert _refused(tmp_path / "a.mp4", tmp_path) == "corrupt_frames"


def test_frames_that_all_have_the_same_time(tmp_path):
    data = bytearray(make(tmp_path / "a.mp4", edit=lambda s, _: setattr(s, "options", {"bf": "0"})).read_bytes())
    at = find(data, b"stts") + 16
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
    path = make(tmp_path / "a.mp4", frames=frames, size=size)
    assert _refused(path, tmp_path, limits=Limits(**limits)) == reason


def test_a_size_that_changes(tmp_path):
    one, two = (make(tmp_path / f"{n}.ts", size=size) for n, size in enumerate(((W, H), (H, W))))
    (tmp_path / "both.ts").write_bytes(one.read_bytes() + two.read_bytes())
    assert _refused(tmp_path / "both.ts", tmp_path) == "size_change"


def test_a_codec_that_is_not_listed(tmp_path):
    assert _refused(make(tmp_path / "a.mkv", codec="ffv1", pix="yuv420p"), tmp_path) == "unsupported_codec"


def test_sound_alone_is_no_video(tmp_path):
    sound(tmp_path / "a.mp4")
    assert _refused(tmp_path / "a.mp4", tmp_path) == "no_video_stream"


NO_VIDEO = {
    "one byte": lambda good: b"\0",
    "random": lambda good: np.random.default_rng(0).bytes(200_000),
    "zeros": lambda good: bytes(100_000),
    "text": lambda good: b"This is not a video.\n" * 99,
    "html": lambda good: b"<!DOCTYPE html><html><body><h1>404 Not Found</h1></body></html>",
    "s3 error": lambda good: b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>',
    "git-lfs": lambda good: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "png": lambda good: still("png"),
    "gzip": lambda good: gzip.compress(good),
    "leading junk": lambda good: b"junk" * 8 + good,
}


@pytest.mark.parametrize("kind", [*NO_VIDEO, "zip"])
def test_what_is_no_video_is_refused_whatever_its_name(tmp_path, kind):
    good = make(tmp_path / "good.mp4", frames=8)
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
    make(tmp_path / "sibling.ts", frames=8)
    (tmp_path / name).write_text(REFERENCES[kind].format(port=port, folder=tmp_path))
    before = (tmp_path / "sibling.ts").stat()
    os.utime(tmp_path / "sibling.ts", (1, before.st_mtime))  # a read would move the time of access
    assert _refused(tmp_path / name, tmp_path) == "forbidden_reference"
    assert not calls and (tmp_path / "sibling.ts").stat().st_atime == 1
