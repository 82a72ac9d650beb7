"""The lease of a root's one writer, on a store that ignores conditions on a put: taken, refused, renewed, given up."""

import os
import subprocess
import sys
import threading
import time
import uuid

import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from storage import conditions, files, lease
from storage.errors import InputError, StoreError


def test_a_store_that_ignores_conditions_is_found_out_and_said(place, capfd):
    root = files.open_root(place("rclone"))
    files.open_root(root)
    assert not conditions.honoured(f"{root}/object")
    said = capfd.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "ignores conditions on a put" in said[0] and root in said[0]
    assert len(files.names(f"{root}/writers")) == 1
    assert not [name for name in files.locate(root)[0].ls(root, refresh=True) if ".write-" in str(name)]
    lease.release(root)
    assert files.names(f"{root}/writers") == []


def test_a_store_that_ignores_only_uploads_in_parts_is_found_out(place, monkeypatch):
    root = place("moto")
    refused = conditions._refused
    monkeypatch.setattr(conditions, "_honoured", {})
    monkeypatch.setattr(
        conditions, "_refused", lambda fs, method, **r: method == "put_object" and refused(fs, method, **r)
    )
    files.open_root(root)
    assert not conditions.honoured(root)
    lease.release(root)


WRITE = """
import sys
from storage import files, lease
lease.TRIES, lease.EXPIRY, lease.BEAT = int(sys.argv[3]), float(sys.argv[4]), 0.2
try:
    if sys.argv[2] == "open":
        files.open_root(sys.argv[1])
    files.replace(b"x", f"{sys.argv[1]}/by/{sys.argv[2]}")
    print("wrote", flush=True)
    sys.stdin.read()
except Exception as error:
    print(type(error).__name__, error, flush=True)
"""


@pytest.fixture
def stranger():
    """Starts a process that does not know of our lease, writes, and stays until its input ends."""
    started = []

    def start(root, how="open", tries=2, expiry=60.0):
        env = {name: value for name, value in os.environ.items() if name != lease.SHARED}
        command = [sys.executable, "-c", WRITE, root, how, str(tries), str(expiry)]
        child = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("how", ["open", "worker"])
def test_a_second_process_is_refused_by_name(place, stranger, how):
    """A Dask worker, which opens no root, as well as a second command: reading goes on, writing does not."""
    root = files.open_root(place("rclone"))
    said = stranger(root, how).communicate("")[0]
    assert said.startswith("InputError") and f"process {os.getpid()} on " in said and "s ago" in said
    assert not files.exists(f"{root}/by/{how}") and len(files.names(f"{root}/writers")) == 1
    files.replace(b"x", f"{root}/still")
    lease.release(root)
    assert stranger(root, how).communicate("")[0] == "wrote\n"


def test_of_two_that_come_at_once_never_both_write(place, stranger):
    root = place("rclone")
    two = [stranger(root, tries=4), stranger(root, tries=4)]
    lines = [child.stdout.readline() for child in two]
    said = [line.split()[0] for line in lines]
    assert said.count("wrote") <= 1 and set(said) <= {"wrote", "InputError"}, lines
    assert len(files.names(f"{root}/writers")) == said.count("wrote"), lines


def test_an_object_that_is_put_again_and_again_is_always_listed_and_counts_once(place):
    """What the lease hangs on: whoever lists while a holder renews sees it. rclone may list it twice then."""
    root = files.open_root(place("rclone"))
    url, ended = f"{root}/writers/busy", threading.Event()
    lease.put(url, {})

    def renew():
        while not ended.is_set():
            lease.put(url, {})

    renewing = threading.Thread(target=renew)
    renewing.start()
    try:
        for _ in range(60):
            assert "busy" in (names := files.names(f"{root}/writers")) and len(names) == 2
            assert lease._modified(url)
    finally:
        ended.set()
        renewing.join()
        lease.release(root)


def test_a_listing_that_names_an_object_twice_counts_it_once(monkeypatch):
    root = f"memory://{uuid.uuid4()}"
    files.replace(b"{}", f"{root}/one.json")
    listed = MemoryFileSystem.ls
    monkeypatch.setattr(MemoryFileSystem, "ls", lambda *given, **words: 2 * listed(*given, **words))
    assert files.names(root, ".json") == ["one.json"]


def test_a_killed_writer_of_this_machine_is_known_to_be_gone(place, stranger):
    root = place("rclone")
    first = stranger(root)
    assert first.stdout.readline() == "wrote\n" and len(files.names(f"{root}/writers")) == 1
    first.kill()
    first.wait()
    assert files.open_root(root) and len(files.names(f"{root}/writers")) == 1
    lease.release(root)


def test_a_writer_elsewhere_is_dead_when_its_time_is_over_on_the_stores_clock(place, monkeypatch):
    """This machine's clock is a year ahead, and says nothing about the other's age."""
    monkeypatch.setattr(lease, "TRIES", 1)
    root, now = place("rclone"), time.time()
    other = f"{root}/writers/other.json"
    lease.put(other, {"host": "elsewhere", "pid": 1, "machine": "another"})
    monkeypatch.setattr(time, "time", lambda: now + 3e7)
    with pytest.raises(InputError, match="process 1 on elsewhere"):
        files.open_root(root)
    monkeypatch.setattr(lease, "EXPIRY", 4.0)  # also a starved machine renews in half of that
    time.sleep(5.1)  # the store tells whole seconds
    assert files.open_root(root) and not files.exists(other)
    lease.release(root)


def test_a_writer_that_could_not_renew_stops_by_itself(place, monkeypatch):
    root = files.open_root(place("rclone"))
    files.replace(b"x", f"{root}/object")
    monkeypatch.setattr(lease, "_clock", lambda clock=lease._clock: clock() + lease.EXPIRY / 2)
    for write in (files.replace, lambda data, url: files.publish_bytes(data, url, same=False)):
        with pytest.raises(StoreError, match="was not renewed"):
            write(b"y", f"{root}/object2")
    assert files.read(f"{root}/object") == b"x" and not files.exists(f"{root}/object2")
    lease.release(root)


@pytest.mark.seconds
def test_a_lease_is_renewed_while_its_holder_lives(place, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.1)
    root = files.open_root(place("rclone"))
    [mine] = files.names(f"{root}/writers")
    fs, path = files.locate(f"{root}/writers/{mine}")
    before, state = fs.modified(path), lease._state_of(root).read_bytes()
    time.sleep(1.3)
    assert fs.modified(path) > before and lease._state_of(root).read_bytes() != state
    lease.release(root)


def test_an_object_below_no_root_is_refused_where_conditions_are_ignored(place):
    with pytest.raises(StoreError, match="below no Reelmill root"):
        files.publish_bytes(b"x", f"{place('rclone')}/object")


def test_a_store_that_tells_no_times_cannot_hold_a_lease(monkeypatch):
    """fsspec's own answer of file systems that have none."""
    monkeypatch.setattr(MemoryFileSystem, "modified", AbstractFileSystem.modified)
    root = f"memory://timeless-{uuid.uuid4()}"
    own = f"{root}/writers/one.json"
    files.replace(b"{}", own)
    with pytest.raises(StoreError, match=r"one\.json: this store tells no times, so writers cannot take turns"):
        lease.living(f"{root}/writers", own)
