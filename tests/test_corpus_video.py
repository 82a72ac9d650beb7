"""Every case of the corpus, through the sandbox: kept, or refused for the right reason."""

import ctypes
import os
import time

import pytest

from storage.media import sniff
from storage.media.limits import LIMIT_BYTES, REASONS, Limits, Rejected, check_size
from storage.media.sandbox import Sandbox
from tests.corpus_video import CASES, OK
from tests.videos import make

FRAMES = {15: 60, 18: 60, 19: 60, 23: 60, 26: 60, 45: 40, 47: 40, 48: 40, 49: 60, 60: 60, 61: 12, 63: 40, 66: 8, 86: 60}
IN_ACCESS, IN_OPEN = 0x1, 0x20
PRIORITY = os.sched_getscheduler(0)


@pytest.fixture(scope="module")
def box():
    box = Sandbox(stall=20.0)
    yield box
    box.close()


class Watch:
    """Tells whether any process opened or read a file, through the kernel's own notices."""

    def __init__(self, path):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self.libc.inotify_init1(os.O_NONBLOCK)
        assert self.fd >= 0 and self.libc.inotify_add_watch(self.fd, os.fsencode(path), IN_ACCESS | IN_OPEN) >= 0

    def seen(self):
        try:
            return bool(os.read(self.fd, 4096))
        except BlockingIOError:
            return False

    def close(self):
        os.close(self.fd)


@pytest.fixture(scope="module")
def sibling(tmp_path_factory):
    return make(tmp_path_factory.mktemp("sibling") / "sibling.ts", frames=8).read_bytes()


@pytest.mark.seconds
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_case_has_its_verdict(case, tmp_path, box, listener, sibling):
    """Kept or refused in time, nothing else opened, the child alive."""
    port, calls = listener
    place, folder = tmp_path / "in", tmp_path / "out"
    place.mkdir()
    folder.mkdir()
    (place / "sibling.ts").write_bytes(sibling)
    path = place / case.file
    case.build(path, *[port] * case.port)
    assert os.sched_getscheduler(0) == PRIORITY, "all that this process starts would starve the machine"
    watch, began = Watch(place / "sibling.ts"), time.monotonic()
    box.limits = Limits(**case.limits)
    try:
        clips = box.cut(str(path), folder, span=10.0, short_side=64)
        found = OK
        assert sum(clip["frames"] for clip in clips) == FRAMES.get(case.number, clips and clips[0]["frames"])
        assert abs(box.probe(str(path))["frames"] - sum(clip["frames"] for clip in clips)) <= 1
        assert clips and all((folder / clip["file"]).stat().st_size for clip in clips)
        copied = box.cut(str(path), folder, span=10.0, short_side=64, mode="copy")
        assert sum(clip["frames"] for clip in copied) == sum(clip["frames"] for clip in clips)
    except Rejected as rejected:
        found = rejected.reason
        assert found in REASONS
    spent = time.monotonic() - began
    assert found in case.verdicts
    assert not watch.seen() and not calls and spent < 15
    watch.close()


def test_the_watch_sees_a_read(tmp_path):
    """A control: the proof that no sibling was read can fail."""
    (tmp_path / "a").write_bytes(b"a")
    watch = Watch(tmp_path / "a")
    assert not watch.seen()
    (tmp_path / "a").read_bytes()
    assert watch.seen()
    watch.close()


def test_the_rows_are_all_there():
    """The one that is left out has a test of its own below."""
    assert {case.number for case in CASES} == set(range(1, 102)) - {84}
    assert all(case.verdicts <= {OK, *REASONS} for case in CASES)


def test_a_file_that_may_not_be_read_is_named_so(tmp_path):
    path = make(tmp_path / "a.mp4", frames=8)
    path.chmod(0)
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(65534)  # root may read anything
    try:
        with pytest.raises(Rejected) as caught:
            sniff.check_file(str(path), Limits())
    finally:
        os.seteuid(mine)
    assert caught.value.reason == "permission"


def test_the_size_is_asked_before_a_byte_is_read():
    check_size(LIMIT_BYTES)
    with pytest.raises(Rejected, match="file_too_large"):
        check_size(LIMIT_BYTES + 1)
    with pytest.raises(Rejected, match="file_too_large"):
        check_size(11, limit=10)
