"""Claims on a piece of work: held by one process at a time, waited for, taken over from the dead."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from storage import claims, files, lease

HOLD = """
import sys
from storage import claims, lease
lease.EXPIRY, claims.AGAIN = float(sys.argv[3]), 0.1
with claims.in_turn(sys.argv[1], sys.argv[2], lambda who: print("waits", who, flush=True)):
    print("holds", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def other():
    """Starts a process that holds a claim until it is given a line."""
    started = []

    def start(root, name="work", expiry=60.0):
        command = [sys.executable, "-c", HOLD, root, name, str(expiry)]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.wait()
        child.stdout.close()


@pytest.mark.parametrize("kind", ["local", "rclone"])
def test_who_comes_second_is_told_who_has_it_and_waits_for_its_end(place, other, kind):
    root = files.absolute(place(kind))
    with claims.claimed(root, "work") as taken:
        assert taken == ""
        child = other(root)
        said = child.stdout.readline()
        assert said.startswith(f"waits claimed by process {os.getpid()} on ") and " since 20" in said
        with claims.claimed(root, "another") as free:
            assert free == ""
    assert child.stdout.readline() == "holds\n"
    with claims.claimed(root, "work") as taken:
        assert f"process {child.pid} on " in taken
    child.communicate("\n")
    assert files.names(f"{root}/claims/work") == []


@pytest.mark.seconds
def test_of_three_that_come_at_once_one_holds_at_a_time_and_each_has_its_turn(place, other):
    root = place("local")
    waiting = [other(root) for _ in range(3)]
    for child in waiting:
        os.set_blocking(child.stdout.fileno(), False)
    said = {child: "" for child in waiting}
    for _ in range(3):
        deadline = time.monotonic() + 60
        while not (held := [child for child in waiting if "holds" in said[child]]):
            assert time.monotonic() < deadline, said
            time.sleep(0.5)  # in which another one could have taken it too
            for child in waiting:
                with suppress(BlockingIOError):
                    said[child] += os.read(child.stdout.fileno(), 9999).decode()
        assert len(held) == 1, said
        waiting.remove(held[0])
        held[0].stdin.close()
        held[0].wait()


def test_a_claim_of_a_killed_process_of_this_machine_is_free_at_once(place, other):
    root = place("local")
    child = other(root)
    assert child.stdout.readline() == "holds\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    with claims.claimed(root, "work") as taken:
        assert taken == ""


def test_a_claim_from_another_machine_is_free_when_its_lease_is_over(place, monkeypatch):
    root, name = files.absolute(place("local")), "work"
    url = f"{root}/claims/{name}/other.json"
    claims._put(url, {"host": "elsewhere", "pid": 1, "machine": "another", "since": "2026-01-01"})
    with claims.claimed(root, name) as taken:
        assert "claimed by process 1 on elsewhere since 2026-01-01" in taken
    monkeypatch.setattr(lease, "EXPIRY", 0.5)
    time.sleep(0.6)
    with claims.claimed(root, name) as taken:
        assert taken == "" and files.names(f"{root}/claims/{name}") != ["other.json"]


@pytest.mark.seconds
def test_a_claim_is_renewed_while_its_holder_lives(place, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.1)
    monkeypatch.setattr(lease, "EXPIRY", 1.0)
    root = files.absolute(place("local"))
    with claims.claimed(root, "work"):
        time.sleep(1.5)
        with claims.claimed(root, "work") as second:
            assert f"process {os.getpid()} on " in second


def test_what_raises_gives_its_claim_back(place):
    root = files.absolute(place("local"))
    with pytest.raises(ZeroDivisionError), claims.claimed(root, "work"):
        raise ZeroDivisionError
    assert files.names(f"{root}/claims/work") == []
