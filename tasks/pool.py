"""Where the data plane runs: the same function over many items, in this process or on a Dask cluster.

The embedded default is a thread pool: the work of a thread is done by its decoder child or inside torch, both of
which leave the interpreter free. ``DASK_SCHEDULER_ADDRESS``, or `on`, sends the same calls to a cluster instead.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from itertools import islice
from multiprocessing import get_context
from typing import Any, TypeVar
from urllib.parse import urlsplit

from storage.errors import InputError

PATIENCE = "30s"  # for a scheduler to answer
PORT = 8787  # of a scheduler's pages, unless DASK_DASHBOARD_ADDRESS says where they are
GPU = "GPU"  # the resource of a worker: dask worker --resources "GPU=1"
Item = TypeVar("Item")
Result = TypeVar("Result")


class ClusterLost(RuntimeError):
    """The cluster that work was sent to does not answer any more."""


_most: ContextVar[int | None] = ContextVar("most", default=None)


@contextmanager
def at_most(items: int | None) -> Iterator[None]:
    """While the block runs, no more items than that are worked on at a time, on a cluster neither (None: no limit)."""
    token = _most.set(items)
    try:
        yield
    finally:
        _most.reset(token)


_scheduler: ContextVar[str | None] = ContextVar("scheduler", default=None)


@contextmanager
def on(address: str | None) -> Iterator[None]:
    """While the block runs, work goes to the Dask scheduler at this address (None: as the environment says)."""
    token = _scheduler.set(address)
    try:
        yield
    finally:
        _scheduler.reset(token)


_gpus: ContextVar[bool] = ContextVar("gpus", default=False)


@contextmanager
def on_gpus() -> Iterator[None]:
    """While the block runs, work goes to those workers of a cluster that offer a `GPU`, one item each, if any does."""
    token = _gpus.set(True)
    try:
        yield
    finally:
        _gpus.reset(token)


def scheduler() -> str | None:
    """The address of the Dask scheduler that work goes to; None where it is done in this process."""
    return _scheduler.get() or os.environ.get("DASK_SCHEDULER_ADDRESS")


def dashboard(page: str) -> str:
    """A page of the Dask scheduler, ``status`` or ``metrics``; empty where there is no scheduler."""
    if not (address := scheduler()):
        return ""
    host = urlsplit(address).hostname or ""
    place = os.environ.get("DASK_DASHBOARD_ADDRESS") or f"http://{f'[{host}]' if ':' in host else host}:{PORT}"
    return f"{place.rstrip('/')}/{page}"


def workers() -> int:
    """How many cores this process may use."""
    return min(len(os.sched_getaffinity(0)), _most.get() or sys.maxsize)


def run(
    function: Callable[[Item], Result], items: list[Item], *, width: int | None = None
) -> Iterator[tuple[Item, Result | Exception]]:
    """Yields (item, result or the exception it raised) in order of completion."""
    if address := scheduler():
        yield from _on_cluster(address, function, items)
        return
    waiting = {
        _threads(min(width or workers(), _most.get() or sys.maxsize), os.getpid()).submit(function, item): item
        for item in items
    }
    try:
        for future in as_completed(waiting):
            yield waiting[future], _outcome(future)
    finally:
        for future in waiting:
            future.cancel()
        wait(waiting)


@cache
def _threads(width: int, process: int) -> ThreadPoolExecutor:
    """Threads that stay, and their decoder children with them, from one stage to the next."""
    return ThreadPoolExecutor(width, thread_name_prefix="reelmill")


def _outcome(future: Future) -> Any:
    error = future.exception()
    if error is not None and not isinstance(error, Exception):
        raise error  # KeyboardInterrupt and its like end the stage
    return error if error is not None else future.result()


def _connected(address: str) -> Any:
    from dask.distributed import Client

    try:
        return Client(address, set_as_default=False, timeout=PATIENCE)
    except OSError as error:
        raise ClusterLost(f"no Dask scheduler answers at {address} ({error})") from error


def _on_cluster(
    address: str, function: Callable[[Item], Result], items: list[Item]
) -> Iterator[tuple[Item, Result | Exception]]:
    from dask.distributed import CancelledError
    from dask.distributed import as_completed as done
    from distributed.comm import CommClosedError

    client = _connected(address)
    try:
        first, where = items[: _most.get()], {GPU: 1} if _gpus.get() and _able(client) else None
        futures, others = client.map(function, first, pure=False, resources=where), iter(items[len(first) :])
        owner = {future.key: item for future, item in zip(futures, first, strict=True)}
        running = done(futures, loop=client.loop)
        for future in running:
            raised = future.exception()
            yield owner[future.key], raised if raised is not None else future.result()
            for item in islice(others, 1):
                another = client.submit(function, item, pure=False, resources=where)
                owner[another.key] = item
                running.add(another)
    except (CancelledError, CommClosedError) as error:
        raise ClusterLost(
            f"the Dask scheduler at {address} is gone; what was committed stays, run again for the rest"
        ) from error
    finally:
        client.close(timeout=10)


def _able(client: Any) -> list[str]:
    """The workers of a cluster that offer a GPU."""
    known = client.scheduler_info(n_workers=-1)["workers"]
    return [worker for worker, facts in known.items() if facts["resources"].get(GPU)]


@contextmanager
def placed(function: Callable[[], None], count: int) -> Iterator[list[Any]]:
    """Has ``count`` workers of the cluster that offer the resource GPU run a function, one each, while the block lasts.

    Yields their futures: none where there is no cluster, or none of its workers offers a GPU. Raises `InputError`
    where some do and they are too few.
    """
    address = scheduler()
    if not address or not count:
        yield []
        return
    client = _connected(address)
    try:
        able = _able(client)
        if able and len(able) < count:
            raise InputError(f"{count} more machines are wanted; {len(able)} workers of {address} have a GPU")
        futures = [client.submit(function, workers=[w], resources={GPU: 1}, pure=False) for w in able[:count]]
        yield futures
        for future in futures:  # they end when the others do
            future.exception(timeout=PATIENCE)
    finally:
        client.close(timeout=10)


def processes(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yields results in order, from a pool of processes: for work that holds the interpreter, such as rendering."""
    with ProcessPoolExecutor(workers(), mp_context=get_context("forkserver")) as pool:
        yield from pool.map(function, items, chunksize=4)
