"""A Dask worker or the scheduler dies in the middle of a stage: nothing is lost, and nobody waits for ever."""

import signal
import threading
import time
from collections import Counter

import pytest

from storage import files, parts
from tasks import pool
from tests.preparing import bytes_of, prepare
from tests.servers import dask_cluster, free_ports


@pytest.fixture(scope="module")
def films(archive):
    """Sixteen videos."""
    return str(archive / "archive" / "weak")


@pytest.fixture(scope="module")
def calm(films, tmp_path_factory):
    """A root that was made in one process without a cluster, its dataset and its report."""
    root = tmp_path_factory.mktemp("calm")
    return root, *prepare(str(root), films, units=4)


@pytest.fixture(scope="module")
def processes():
    """The address of a scheduler, and the processes: it and two workers of one thread each."""
    with dask_cluster(2) as found:
        yield found


@pytest.fixture
def cluster(processes, calm, monkeypatch):
    address, *found = processes
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", address)
    return found


def when(moment, act) -> threading.Thread:
    def wait() -> None:
        deadline = time.monotonic() + 200
        while not moment() and time.monotonic() < deadline:
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_worker_that_dies_costs_its_part_in_hand_at_most(cluster, films, calm, tmp_path):
    """The other worker goes on, no part that is committed is made again, and all bytes are those of one process."""
    _, workers = cluster
    root = tmp_path / "root"
    made: Counter = Counter()

    def kill() -> None:
        made.update(path.name for path in (root / "parts").glob("*.parquet"))
        workers[0].send_signal(signal.SIGKILL)

    killer = when(lambda: len(list((root / "parts").glob("*.parquet"))) >= 2, kill)
    data, _ = prepare(str(root), films, units=4)
    killer.join()
    assert len(made) >= 2 and data.version == calm[1].version
    assert bytes_of(root) == bytes_of(calm[0])


@pytest.mark.seconds
def test_a_scheduler_that_dies_ends_the_stage_and_a_second_run_finishes_it(cluster, films, calm, tmp_path, monkeypatch):
    """Within a minute, with a clear error; what was committed stays. One worker is left of the cluster."""
    scheduler, _ = cluster
    root = tmp_path / "root"
    killer = when(lambda: any((root / "parts").glob("*.parquet")), scheduler.kill)
    began = time.monotonic()
    with pytest.raises(pool.ClusterLost, match="run again for the rest"):
        prepare(str(root), films, units=4)
    killer.join()
    assert time.monotonic() - began < 60
    there = files.names(str(root / "parts"), ".parquet")
    for name in there:
        parts.find(str(root), name.removesuffix(".parquet")).verify()
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS")
    again, report = prepare(str(root), films, units=4)
    assert 0 < report.decoded < calm[2].decoded and again.version == calm[1].version


def test_a_scheduler_that_is_not_there_is_named(films, tmp_path, monkeypatch):
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", f"tcp://127.0.0.1:{free_ports(1)}")
    monkeypatch.setattr(pool, "PATIENCE", "2s")
    with pytest.raises(pool.ClusterLost, match="no Dask scheduler answers at tcp://127.0.0.1"):
        prepare(str(tmp_path), films)
