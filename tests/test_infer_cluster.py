"""Inference on a cluster that loses a worker, grows and shrinks, or has GPUs: the bytes of a quiet run in the end."""

import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tasks import pool, predict
from tests.preparing import CHECKOUT
from tests.servers import dask_cluster, end_with_us

FOLDERS = ("columns/predictions", "segments", "tables")


@pytest.fixture
def root(traced, tmp_path):
    """A prepared root whose champion has predicted nothing yet."""
    shutil.copytree(traced / "root", tmp_path / "root")
    for name in FOLDERS:
        shutil.rmtree(tmp_path / "root" / name)
    return tmp_path / "root"


def outcome(root: Path) -> dict[str, bytes]:
    """All that inference writes; temporary files of the killed are not seen by anybody."""
    found = (path for folder in FOLDERS for path in (root / folder).rglob("*.parquet"))
    return {str(path.relative_to(root)): path.read_bytes() for path in found if not path.name.startswith(".")}


def parts(root: Path) -> int:
    return len([p for p in (root / "columns/predictions").glob("*/*.parquet") if not p.name.startswith(".")])


def until(moment) -> None:
    deadline = time.monotonic() + 600
    while not moment():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def cluster():
    """The address of a scheduler, and its two workers of one thread each."""
    with dask_cluster(2) as (address, _, workers):
        yield address, workers


def loads() -> int:
    from tasks import scorer

    return scorer.load.cache_info().misses


@pytest.mark.long
def test_a_cluster_that_loses_a_worker_ends_with_one_row_set_per_clip(root, traced, cluster):
    """And the other worker has loaded the model once, for all of its parts."""
    import cloudpickle
    from distributed import Client

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers do not have this file
    address, workers = cluster
    with Client(address, timeout="300s") as client:
        client.wait_for_workers(2)

    def kill() -> None:
        until(lambda: parts(root) >= 1)
        workers[0].send_signal(signal.SIGKILL)
        workers[0].wait()

    killer = threading.Thread(target=kill)
    killer.start()
    with pool.on(address):
        found = predict.predict.fn(str(root), "a", "detector", [])
    killer.join()
    assert found["left"] == 0 and outcome(root) == outcome(traced / "root")
    with Client(address) as client:
        assert list(client.run(loads).values()) == [1]


def test_a_cluster_that_grows_and_shrinks_ends_with_the_bytes_of_a_quiet_run(root, traced):
    """As docs/architecture.md has it: between one and two workers, as there is work."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address=None) as cluster:
        scaling = cluster.adapt(minimum=1, maximum=2, interval="200ms", wait_count=2, target_duration="100ms")
        with pool.on(cluster.scheduler_address):
            found = predict.predict.fn(str(root), "a", "detector", [])
        until(lambda: len(cluster.scheduler_info["workers"]) == 1)
    assert {said["status"] for _, said in scaling.log} == {"up", "down"}
    assert found["left"] == 0 and outcome(root) == outcome(traced / "root")


def test_work_goes_to_the_workers_that_offer_a_gpu(root, traced):
    """One of two does; the other has nothing to do, and has loaded no model."""
    import cloudpickle
    from distributed import Client

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers do not have this file
    command = [sys.executable, "-m", "distributed.cli.dask_worker", "--nthreads", "1", "--no-dashboard", "--no-nanny"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": CHECKOUT, "preexec_fn": end_with_us}
    with ExitStack() as stack:
        address, _, _ = stack.enter_context(dask_cluster(1))
        able = stack.enter_context(subprocess.Popen([*command, address, "--resources", "GPU=1"], **quiet))
        stack.callback(able.kill)
        client = stack.enter_context(Client(address, timeout="300s"))
        client.wait_for_workers(2)
        with pool.on(address):
            found = predict.predict.fn(str(root), "a", "detector", [])
        known, made = client.scheduler_info()["workers"], client.run(loads)
    assert {bool(known[worker]["resources"]): count for worker, count in made.items()} == {True: 1, False: 0}
    assert found["left"] == 0 and outcome(root) == outcome(traced / "root")
