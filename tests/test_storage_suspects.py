"""Files that were in work when an earlier worker died: the process between takes what they do to it."""

from pathlib import Path

import pytest

from storage.errors import StoreError
from storage.media.sandbox import cut_alone
from storage.media.video import Rejected
from tests.decoders import checkout, good
from tests.servers import until


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return good(tmp_path_factory.mktemp("sandbox"))


KILLER = """
import os, signal, sys
sys.stdin.buffer.read(12)
os.kill(os.getppid(), signal.SIGKILL)
import time
time.sleep(60)
"""


@pytest.fixture
def killer(tmp_path, monkeypatch):
    """A decoder that kills the process above it."""
    main = "def main() -> None:"
    checkout(tmp_path, monkeypatch, "decoder.py", main, main + "\n    exec(" + repr(KILLER) + ")\n")


def _decoders(word):
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes()
        except OSError:
            continue
        ours = b"storage.media.decoder" in line
        if ours and f"PYTHONPATH={word}".encode() in (entry.parent / "environ").read_bytes():
            found.append(entry.parent.name)
    return found


def test_a_suspect_is_cut_as_any_other(clip, tmp_path):
    (tmp_path / "a").mkdir()
    clips = cut_alone(str(clip), tmp_path / "a", span=1.0, short_side=32)
    assert [c["frames"] for c in clips] == [20, 20] and (tmp_path / "a" / clips[1]["file"]).stat().st_size
    assert cut_alone(str(clip), tmp_path / "a", span=1.0, short_side=32, window=(1.0, None)) == [
        {**clips[1], "file": "000000.mp4"}
    ]


def test_a_file_that_kills_its_worker_takes_down_only_the_process_between(clip, tmp_path, killer):
    """We live on, the file has a reason, and nothing it started is left."""
    with pytest.raises(Rejected) as caught:
        cut_alone(str(clip), tmp_path, span=1.0, short_side=32)
    assert (caught.value.reason, caught.value.detail) == ("worker_killed", "signal 9")
    until("nothing is left", lambda: not _decoders(tmp_path / "checkout"))


def test_a_suspect_that_is_only_broken_keeps_its_own_reason(tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"")
    with pytest.raises(Rejected) as caught:
        cut_alone(str(tmp_path / "bad.mp4"), tmp_path, span=1.0, short_side=32)
    assert caught.value.reason == "empty"


def test_a_full_disk_is_not_the_suspects_fault(clip, tmp_path):
    (tmp_path / "000000.mp4").symlink_to("/dev/full")
    with pytest.raises(StoreError, match="(?i)space"):
        cut_alone(str(clip), tmp_path, span=1.0, short_side=32)
