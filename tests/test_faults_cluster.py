"""A Dask worker or the scheduler dies in the middle of a stage: nothing is lost, and nobody waits for ever."""

import signal
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import cloudpickle
import pytest
from dask import config

from storage import files, parts
from tasks import pool
from tests.preparing import bytes_of, prepare
from tests.servers import dask_cluster, dask_worker, free_ports


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


def stands(place: str) -> str:
    """Says that it has begun, and ends as soon as it may."""
    Path(place, "begun").touch()
    while not Path(place, "may end").exists():
        time.sleep(0.02)
    return "done"


@pytest.fixture
def hasty(monkeypatch):
    """A pool that looks at the workers at once and often, and has this file's functions sent whole."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(pool, "LOOK", 0.2)
    monkeypatch.setattr(pool, "SAID", 0.0)
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def test_work_bound_to_a_gpu_does_not_wait_for_ever_for_the_worker_that_had_it(hasty, tmp_path):
    """It dies with the work in hand; another one without a GPU stays, and is not given it."""
    with ExitStack() as stack:
        address, _, _ = stack.enter_context(dask_cluster(1))
        able = stack.enter_context(dask_worker(address, "--resources", "GPU=1"))
        with pool._connected(address) as client:
            client.wait_for_workers(2, timeout=100)
        killer = when((tmp_path / "begun").exists, able.kill)
        said: list[str] = []
        lost = pytest.raises(pool.ClusterLost, match="1 workers, 0 of them with a GPU.*run again for the rest")
        with pool.on(address), pool.on_gpus(), config.set({pool.NO_WORKERS: "2s"}), lost:
            list(pool.run(stands, [str(tmp_path)], waits=said.append))
        killer.join()
    assert said and "1 wait for the cluster: 1 workers, 0 of them with a GPU" in said[-1]


def test_work_waits_for_the_first_worker_of_a_cluster_that_has_none_yet(hasty, tmp_path):
    """As an adaptive one. A worker that is at work for longer than the patience ends nothing."""
    said: list[str] = []
    with ExitStack() as stack:
        address, _, _ = stack.enter_context(dask_cluster(0))

        def waits(why: str) -> None:
            said.append(why)
            if len(said) == 1:
                assert "0 workers" in why
                stack.enter_context(dask_worker(address))
            if (tmp_path / "begun").exists():
                config.set({pool.NO_WORKERS: "1s"})
            if sum("1 at work" in word for word in said) > 10:
                (tmp_path / "may end").touch()

        with pool.on(address), config.set({pool.NO_WORKERS: "100s"}):
            assert pool.patience() == 100
            assert list(pool.run(stands, [str(tmp_path)], waits=waits)) == [(str(tmp_path), "done")]
            assert pool.patience() == 1
    config.set({pool.NO_WORKERS: None})
    assert pool.patience() == pool.LOST >= 300, "an adaptive cluster takes minutes to start a machine"
