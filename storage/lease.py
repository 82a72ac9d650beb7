"""One writer at a time below a root, on a store that can only put, list and delete.

A writer puts an object of its own under ``writers/`` and then lists: of two that come at once, at least one sees the
other. Who sees a living one takes its own away and tries again, then gives up. The object is put again every `BEAT`
seconds; one that was not for `EXPIRY` seconds, by the store's own clock, is of a dead writer. The holder itself stops
writing after half that time without a renewal, on a clock that also runs while the machine sleeps.

Processes that the holder has started share its lease: they know it by a file whose folder the environment names. The
file says when the lease was renewed last, and a lock on it puts all their writes into one order.
"""

import atexit
import fcntl
import hashlib
import json
import os
import random
import shutil
import socket
import struct
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.errors import InputError, StoreError
from storage.stores import ask, join, locate

FOLDER = "writers"
EXPIRY = 60.0  # seconds without a renewal after which others take a writer for dead
BEAT = 10.0  # seconds between renewals
TRIES = 5  # times to come back before giving up
SHARED = "REELMILL_LEASES"  # names a local folder: what this process and those it starts hold


@dataclass
class _Lease:
    root: str
    url: str  # of our object; empty where an ancestor holds it
    state: Path  # the local file that the processes of one holder share
    ended: threading.Event


_taking = threading.RLock()
_leases: dict[tuple[int, str], _Lease] = {}


def take(root: str) -> bool:
    """Takes the lease of a root unless this process has it already; whether it is new to this process.

    Raises `InputError` that names the living writer, `StoreError` where the lease was lost.
    """
    with _taking:
        known = _leases.get((os.getpid(), root))
        if known is not None:
            _check(known)
            return False
        state = _state_of(root)
        if state is not None and _fresh(state):
            _leases[os.getpid(), root] = _Lease(root, "", state, threading.Event())
            return True
        _leases[os.getpid(), root] = _acquire(root)
        return True


@contextmanager
def held(root: str) -> Iterator[None]:
    """The one place where something is written at a time; raises `StoreError` where the lease was lost meanwhile."""
    lease = _leases[os.getpid(), root]
    with open(lease.state, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _check(lease)
        yield
        _check(lease)


def release(root: str) -> None:
    """Gives a lease back."""
    with _taking:
        lease = _leases.pop((os.getpid(), root), None)
    if lease is None or not lease.url:
        return
    lease.ended.set()
    with suppress(FileNotFoundError):
        _renewed(lease.state, 0.0)
    with suppress(Exception):  # it expires by itself
        remove(lease.url)


def _release_all() -> None:
    for process, root in list(_leases):
        if process == os.getpid():
            release(root)


def _acquire(root: str) -> _Lease:
    me = identity()
    url = join(root, FOLDER, f"{me['uuid']}.json")
    for attempt in range(TRIES):
        began = _clock()
        put(url, me)
        others = living(join(root, FOLDER), url)
        if not others:
            break
        remove(url)
        if attempt == TRIES - 1:
            raise InputError(_refusal(root, *others[0]))
        time.sleep(random.uniform(0.1, 0.6) * (attempt + 1))
    lease = _Lease(root, url, _new_state(root), threading.Event())
    _renewed(lease.state, began)
    atexit.register(_release_all)
    threading.Thread(target=_beat, args=(lease, me), name="reelmill-lease", daemon=True).start()
    return lease


def _beat(lease: _Lease, me: dict[str, Any]) -> None:
    """Renews a lease until it is given back or lost."""
    while not lease.ended.wait(BEAT):
        if not _fresh(lease.state):
            return
        with suppress(OSError, StoreError):  # `_check` says so to the next writer if it goes on
            began = _clock()
            fs, path = locate(lease.url)
            if not ask(fs, "exists", path):  # somebody took us for dead
                _renewed(lease.state, 0.0)
                return
            put(lease.url, me)
            if not lease.ended.is_set():
                _renewed(lease.state, began)


def identity() -> dict[str, Any]:
    """This process, as others on any machine can know it and see whether it still lives."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "uuid": uuid.uuid4().hex,
        "machine": _machine(),
        "started": _started(os.getpid()),
    }


def living(folder: str, own: str) -> list[tuple[dict[str, Any], float]]:
    """The other holders in a folder and the ages of their last signs of life; those of the dead are removed."""
    fs, path = locate(folder)
    now = _modified(own)
    found = []
    for entry in ask(fs, "ls", path, detail=False, refresh=True):
        url = join(folder, str(entry).rstrip("/").rsplit("/", 1)[-1])
        if url == own or url.rpartition("/")[2].startswith("."):  # a file that is being written
            continue
        try:
            age = now - _modified(url)
            other = json.loads(ask(fs, "cat_file", locate(url)[1]))
        except FileNotFoundError:
            continue  # it went just now
        except ValueError:
            other = {}  # half written by something else; it counts until it expires
        if age > EXPIRY or _gone(other):
            remove(url)
        else:
            found.append((other, age))
    return found


def _refusal(root: str, other: dict[str, Any], age: float) -> str:
    return (
        f"{root}: process {other.get('pid', '?')} on {other.get('host', '?')} is writing here (last sign of life "
        f"{max(0, age):.0f} s ago) and this store ignores conditions on a put, so one process may write at a time; "
        f"wait for it to end (a killed one counts for {EXPIRY:.0f} s) or use a store with conditional puts"
    )


def _gone(other: dict[str, Any]) -> bool:
    """Whether a writer was a process of this very machine that is no more."""
    return other.get("machine") == _machine() and _started(int(other.get("pid", 0))) != other.get("started")


def _machine() -> str:
    """This boot of this machine, and this container on it."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"


def _started(pid: int) -> str:
    """When a process began, in ticks of the machine; nothing where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def put(url: str, value: dict[str, Any]) -> None:
    fs, path = locate(url)
    ask(fs, "pipe_file", path, json.dumps(value).encode())


def remove(url: str) -> None:
    fs, path = locate(url)
    with suppress(FileNotFoundError):
        ask(fs, "rm_file", path)


def _modified(url: str) -> float:
    """When an object was put, in seconds on the store's clock."""
    fs, path = locate(url)
    try:
        return ask(fs, "modified", path).timestamp()
    except NotImplementedError as error:
        raise StoreError(f"{url}: this store tells no times, so writers cannot take turns; use another") from error


def _clock() -> float:
    """Seconds since the machine was started, those that it slept included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _state_of(root: str) -> Path | None:
    folder = os.environ.get(SHARED)
    path = Path(folder or "") / hashlib.sha256(root.encode()).hexdigest()
    return path if folder and path.exists() else None


def _new_state(root: str) -> Path:
    folder = os.environ.get(SHARED)
    if not folder or not os.path.isdir(folder):
        folder = os.environ[SHARED] = tempfile.mkdtemp(prefix="reelmill-leases-")
        atexit.register(_clear, folder, os.getpid())
    path = Path(folder) / hashlib.sha256(root.encode()).hexdigest()
    path.touch()
    return path


def _clear(folder: str, maker: int) -> None:
    if os.getpid() == maker:  # not a child that was forked
        shutil.rmtree(folder, ignore_errors=True)


def _renewed(state: Path, when: float) -> None:
    with open(state, "r+b") as file:
        file.write(struct.pack("d", when))


def _fresh(state: Path) -> bool:
    """Whether a lease was renewed so lately that nobody else can have taken the holder for dead."""
    try:
        when = struct.unpack("d", state.read_bytes())[0]
    except (FileNotFoundError, struct.error):
        return False
    return _clock() - when < EXPIRY / 2


def _check(lease: _Lease) -> None:
    if not _fresh(lease.state):
        raise StoreError(
            f"{lease.root}: the lease on writing was not renewed for {EXPIRY / 2:.0f} s, so another process may be "
            "writing; nothing more is written, run again"
        )
