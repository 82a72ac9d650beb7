"""A disk that is really full, of bytes or of inodes: a small tmpfs of our own, mounted in a private namespace.

Where the system forbids that (`unshare` and `mount` are tried), a file system that says so itself takes its place: what
syncs a file fails as a full disk does, with ENOSPC.
"""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.preparing import CHECKOUT, bytes_of, prepare

PROGRAM = """
import errno, os, subprocess, sys, tempfile
from pathlib import Path
from storage import files, parts
from storage.media import sandbox
from tasks import stage
from tests.preparing import bytes_of, prepare

real, folder, options, what, archive, keep = sys.argv[1:]
small = Path(folder)
limits = {name: int(value) for name, value in (word.split("=") for word in options.split(","))}
sync = os.fsync

def full():
    there = [path for path in small.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in there) > limits["size"] or len(there) > limits["nr_inodes"]

def fsync(handle):
    if full():
        raise OSError(errno.ENOSPC, "No space left on device")
    sync(handle)

if real == "yes":
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
else:
    os.fsync = fsync
root = small / "root" if what == "root" else Path(keep)
if what == "scratch":
    tempfile.tempdir = folder
stage.time = type("", (), {"sleep": staticmethod(lambda seconds: None)})
try:
    prepare(str(root), archive, units=4)
    print("ended well")
except Exception as error:
    print(type(error).__name__, error)
committed = files.names(str(root / "parts"), ".parquet")
[parts.find(str(root), name.removesuffix(".parquet")).verify() for name in committed]
print(len(committed), "committed and whole")
print("left behind:", [path.name for path in small.rglob("*") if path.name.startswith((".", "reelmill-"))])
if real == "yes":
    subprocess.run(["mount", "-o", "remount,size=64m,nr_inodes=100000", folder], check=True)
os.fsync = sync
before = {name: (root / "parts" / name).read_bytes() for name in committed}
prepare(str(root), archive, units=4)
assert all((root / "parts" / name).read_bytes() == data for name, data in before.items())
if what == "root":
    subprocess.run(["cp", "-r", str(root), keep], check=True)
"""
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


@cache
def namespace() -> list[str] | None:
    """What starts a process that may mount: nothing where we are root, a namespace of its own, or None."""
    for command in (NAMESPACE, NAMESPACE[:1] + NAMESPACE[3:]):
        tried = [*command, "sh", "-c", "mount -t tmpfs -o size=4k tmpfs /mnt"]
        try:
            if subprocess.run(tried, capture_output=True, timeout=200).returncode == 0:
                return command
        except OSError:
            break
    return None


@pytest.fixture(scope="module")
def films(archive):
    """Sixteen videos."""
    return archive / "archive" / "weak"


@pytest.fixture(scope="module")
def calm(films, tmp_path_factory):
    root = tmp_path_factory.mktemp("calm")
    prepare(str(root), str(films), units=4)
    return root


def run(what: str, options: str, archive: Path, tmp_path: Path, means: list[str] | None) -> list[str]:
    small = tmp_path / "small"
    small.mkdir()
    words = ["no" if means is None else "yes", str(small), options, what, str(archive), str(tmp_path / "end")]
    print("a mount of our own" if means is not None else "an error that stands for it")
    done = subprocess.run(
        [*(means or []), sys.executable, "-c", PROGRAM, *words], cwd=CHECKOUT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if not line.startswith("  ")]


CASES = [
    ("root", "size=200000,nr_inodes=100000", True),
    pytest.param("root", "size=64000000,nr_inodes=24", True, marks=pytest.mark.long),
    ("scratch", "size=16000,nr_inodes=100000", True),
    pytest.param("root", "size=200000,nr_inodes=100000", False, marks=pytest.mark.long),
]


@pytest.mark.parametrize(("what", "options", "mounted"), CASES)
def test_a_disk_that_is_full_stops_a_run_and_the_next_one_finishes_it(what, options, mounted, films, calm, tmp_path):
    """One clear error; what was committed is whole, no temporary file stays, nothing is lost."""
    means = namespace() if mounted else None
    if what == "scratch" and means is None:
        options, what = "size=120000,nr_inodes=100000", "root"  # nothing syncs a file of the scratch folder
    said, committed, left = run(what, options, films, tmp_path, means)
    assert "No space left on device" in said and left == "left behind: []", said
    if what == "root":
        named = f"device: '{tmp_path / 'small' / what}/"
        assert said.startswith("Incomplete shard: ") and named in said, said
        assert committed.endswith("committed and whole") and not committed.startswith("0 "), committed
    assert bytes_of(tmp_path / "end") == bytes_of(calm)
