"""Claims: who makes a piece of work now, so that two processes on any machines do not make it both.

A claim is an object under ``claims/{name}/`` that its holder puts again every `lease.BEAT` seconds, as the one writer
of a root does (`storage.lease`), on any store. It saves work and keeps no bytes safe: commits do that themselves. One
whose holder died is taken over, at once on the same machine, else when it was not renewed for `lease.EXPIRY` seconds.
"""

import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from storage import lease
from storage.errors import StoreError
from storage.local import beside
from storage.stores import ask, is_local, join, locate
from storage.timing import during

FOLDER = "claims"
AGAIN = 5.0  # seconds, about, between two looks at a claim that another process holds
TRIES = 8  # times to come back where somebody else came at the same moment: of some that come, one has to get it
SETTLED = 3.0  # seconds after which who has a claim is not one who came at the same moment
SAID = 60.0  # seconds between two words about waiting


@contextmanager
def claimed(root: str, name: str) -> Iterator[str]:
    """Holds the claim while the block runs: yields nothing, or who has it, as words for people."""
    url, other = _take(root, name)
    try:
        yield other
    finally:
        if url:
            _give_back(url)


@contextmanager
def in_turn(root: str, name: str, say: Callable[[str], Any]) -> Iterator[bool]:
    """Waits until nobody else holds the claim, then holds it; yields whether it had to wait, and ``say``s for whom."""
    url, other = _take(root, name)
    waited, spoke = bool(other), -SAID
    while not url:
        if time.monotonic() - spoke >= SAID:
            say(other)
            spoke = time.monotonic()
        with during("wait"):
            time.sleep(random.uniform(0.5, 1.5) * AGAIN)
        url, other = _take(root, name)
    try:
        yield waited
    finally:
        _give_back(url)


_held: dict[str, threading.Event] = {}


def _take(root: str, name: str) -> tuple[str, str]:
    """The URL of our object, or who has the claim."""
    me = lease.identity() | {"since": datetime.now(UTC).isoformat(timespec="seconds")}
    folder = join(root, FOLDER, name)
    url = join(folder, f"{me['uuid']}.json")
    for attempt in range(TRIES):
        _put(url, me)
        others = lease.living(folder, url)
        if not others:
            break
        lease.remove(url)
        if attempt == TRIES - 1 or any(age > SETTLED for _, age in others):
            return "", who(*min(others, key=lambda found: str(found[0].get("since"))))
        time.sleep(random.uniform(0.1, 0.6) * (attempt + 1))
    _held[url] = threading.Event()
    threading.Thread(target=_beat, args=(url, me, _held[url]), name="reelmill-claim", daemon=True).start()
    return url, ""


def who(holder: dict[str, Any], age: float) -> str:
    """The holder of a claim in words; ``age`` is that of its last sign of life, in seconds."""
    return (
        f"claimed by process {holder.get('pid', '?')} on {holder.get('host', '?')} since {holder.get('since', '?')} "
        f"(last sign of life {max(0, age):.0f} s ago; a killed one counts for {lease.EXPIRY:.0f} s)"
    )


def _put(url: str, me: dict[str, Any]) -> None:
    fs, path = locate(url)
    if not is_local(fs):
        lease.put(url, me)
        return
    with beside(json.dumps(me).encode(), path) as whole:  # so that nobody reads the half of it
        os.replace(whole, path)


def _beat(url: str, me: dict[str, Any], ended: threading.Event) -> None:
    """Renews a claim until it is given back, or somebody took its holder for dead."""
    while not ended.wait(lease.BEAT):
        with suppress(OSError, StoreError):  # nothing hangs on it but work that is done twice
            fs, path = locate(url)
            if not ask(fs, "exists", path):
                return
            _put(url, me)
            if ended.is_set():
                lease.remove(url)


def _give_back(url: str) -> None:
    _held.pop(url).set()
    with suppress(Exception):  # it expires by itself
        lease.remove(url)
