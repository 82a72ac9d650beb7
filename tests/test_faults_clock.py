"""This machine's clock jumps by years while a run is under way: what is on the disk looks ancient, or not yet made."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from storage import conditions, files, lease
from storage.errors import InputError
from tasks import gc
from tests.preparing import CHECKOUT, bytes_of, prepare
from tests.servers import end_with_us

YEARS = 3 * 365 * 24 * 3600.0
PREPARE = """
import sys
from tests.preparing import prepare
prepare(sys.argv[1], sys.argv[2], units=4)
prepare(sys.argv[1], sys.argv[2], units=4)
"""


def jump(root: Path, by: float) -> None:
    """Moves the times of all files, which is what a jump of the clock the other way looks like."""
    for path in root.rglob("*"):
        if path.is_file():
            then = path.stat().st_mtime + by
            os.utime(path, (then, then))


@pytest.fixture(scope="module")
def calm(archive, tmp_path_factory):
    """A root that a quiet run made of sixteen videos."""
    root = tmp_path_factory.mktemp("calm")
    prepare(str(root), str(archive / "archive" / "weak"), units=4)
    return root


@pytest.mark.parametrize("by", [-YEARS, YEARS])
def test_a_jump_in_the_middle_of_a_run_loses_nothing(archive, calm, tmp_path, by):
    """Garbage is collected while a run stands still between two parts; it goes on and ends as a quiet one."""
    root = tmp_path / "root"
    run = subprocess.Popen(
        [sys.executable, "-c", PREPARE, root, archive / "archive" / "weak"], cwd=CHECKOUT, preexec_fn=end_with_us
    )
    while len(list((root / "parts").glob("*.parquet"))) < 2:
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(signal.SIGSTOP)
    before = {path for path in (root / "parts").iterdir() if not path.name.startswith(".")}
    jump(root, by)
    gc.gc(str(root), dry_run=False, force=True)
    assert before <= set((root / "parts").iterdir())
    run.send_signal(signal.SIGCONT)
    assert run.wait() == 0 and bytes_of(root) == bytes_of(calm)


def test_garbage_is_found_again_once_the_clock_is_right(archive, tmp_path):
    """The control: the remains of a killed writer go where nothing speaks against it, and do not where they are new."""
    root = tmp_path / "root"
    prepare(str(root), str(archive / "archive" / "weak"))
    remains = root / "parts" / f"{'0' * 16}.tar"
    remains.write_bytes(b"x")
    gc.gc(str(root), dry_run=False)
    jump(root, YEARS)
    gc.gc(str(root), dry_run=False)
    assert remains.exists()
    jump(root, -2 * YEARS)
    gc.gc(str(root), dry_run=False, force=True)
    assert not remains.exists()


STRANGER = """
import sys, time
now = time.time
time.time = lambda: now() + float(sys.argv[2])
from storage import files, lease
lease.TRIES = 2
try:
    files.open_root(sys.argv[1])
    print("opened")
except Exception as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize("by", [-YEARS, YEARS])
def test_a_lease_is_neither_stolen_nor_lost_by_a_jump(place, monkeypatch, by):
    """Who waits reckons with the store's clock, who holds with one that nobody sets."""
    root = files.open_root(place("rclone"))
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + by)
    files.replace(b"x", f"{root}/mine")
    assert lease._clock() < 1e9, "a clock that begins with the machine"
    env = {name: value for name, value in os.environ.items() if name != lease.SHARED}
    command = [sys.executable, "-c", STRANGER, root, str(by)]
    said = subprocess.run(command, cwd=CHECKOUT, env=env, capture_output=True, text=True)
    assert said.stdout.strip() == InputError.__name__ or said.stdout.strip() == "RootError", said.stderr
    files.replace(b"y", f"{root}/mine")
    assert not conditions.honoured(f"{root}/mine")
    lease.release(root)
    again = subprocess.run(command, cwd=CHECKOUT, env=env, capture_output=True, text=True)
    assert again.stdout.strip() == "opened", "nor is it held for ever"
