"""Where the data plane runs: the same function over many items, in this process or on a Dask cluster.

The embedded default is a thread pool: the work of a thread is done by its decoder child or inside torch, both of
which leave the interpreter free. ``DASK_SCHEDULER_ADDRESS``, or `on`, sends the same calls to a cluster instead.
"""

import os
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, lru_cache
from itertools import islice
from multiprocessing import get_context
from queue import Empty, SimpleQueue
from typing import Any, TypeVar
from urllib.parse import urlsplit

from storage.errors import InputError

PATIENCE = "30s"  # for a scheduler to answer
LOST = 600.0  # seconds without a worker that can do the work, unless Dask's NO_WORKERS says how many
NO_WORKERS = "distributed.scheduler.no-workers-timeout"
LOOK = 10.0  # seconds without a result before the workers are looked at, and between two looks
SAID = 60.0  # seconds between two words about waiting
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
    function: Callable[[Item], Result],
    items: list[Item],
    *,
    width: int | None = None,
    waits: Callable[[str], None] = print,
) -> Iterator[tuple[Item, Result | Exception]]:
    """Yields (item, result or the exception it raised) in order of completion.

    ``waits`` is told now and then what a cluster that finishes nothing is waited for. Raises `ClusterLost` where it has
    had no worker that can do the work for as long as `patience` says.
    """
    if address := scheduler():
        yield from _on_cluster(address, function, items, waits)
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


def patience() -> float:
    """Seconds that work waits while a cluster has no worker for it: such as until an adaptive one has started some."""
    from dask import config
    from dask.utils import parse_timedelta

    said = config.get(NO_WORKERS, None)
    return LOST if said is None else float(parse_timedelta(said))


def _on_cluster(
    address: str, function: Callable[[Item], Result], items: list[Item], waits: Callable[[str], None]
) -> Iterator[tuple[Item, Result | Exception]]:
    from cloudpickle import dumps
    from dask.distributed import CancelledError
    from distributed.comm import CommClosedError

    client = _connected(address)
    finished: SimpleQueue[Any] = SimpleQueue()
    owner: dict[str, Item] = {}
    try:
        where, packed = {GPU: 1} if _gpus.get() and _able(client) else None, dumps(function)
        title = getattr(function, "title", getattr(function, "__name__", "work"))  # in Dask's pages

        def send(some: list[Item]) -> None:
            keys = [f"{title}-{uuid.uuid4().hex}" for _ in some]
            owner.update(zip(keys, some, strict=True))
            given = [dumps(item) for item in some]
            for future in client.map(_called, [packed] * len(some), given, key=keys, pure=False, resources=where):
                future.add_done_callback(finished.put)

        first = items[: _most.get()]
        others = iter(items[len(first) :])
        send(first)
        while owner:
            future = _awaited(client, finished, bool(where), len(owner), waits)
            raised = future.exception()
            yield owner.pop(future.key), raised if raised is not None else future.result()
            send(list(islice(others, 1)))
    except (CancelledError, CommClosedError) as error:
        raise ClusterLost(
            f"the Dask scheduler at {address} is gone; what was committed stays, run again for the rest"
        ) from error
    finally:
        client.close(timeout=10)


def _called(function: bytes, item: bytes) -> Any:
    """Calls a function on an item. Both come as bytes: a scheduler passes these on, and would else import torch."""
    from distributed.protocol.pickle import loads

    return _unpacked(function)(loads(item))


@lru_cache(maxsize=4)
def _unpacked(function: bytes) -> Callable[[Any], Any]:
    from distributed.protocol.pickle import loads  # as Dask itself would

    made: Callable[[Any], Any] = loads(function)
    return made


def _awaited(client: Any, finished: SimpleQueue, bound: bool, left: int, waits: Callable[[str], None]) -> Any:
    """The next future that is done; meanwhile says what is waited for. ``bound``: only workers with a GPU may work."""
    able_at, spoke = time.monotonic(), -SAID
    while True:
        try:
            return finished.get(timeout=LOOK)
        except Empty:
            now, (can, said) = time.monotonic(), _standing(client, bound)
        able_at, without = (now, 0.0) if can else (able_at, now - able_at)
        if without >= patience():
            raise ClusterLost(
                f"{left} items wait, and for {without:.0f} s the cluster has had no worker for them: {said}; "
                f"what was committed stays, run again for the rest ({NO_WORKERS} says how long to wait)"
            )
        if now - spoke >= SAID:
            waits(f"{left} wait for the cluster: {said}")
            spoke = now


def _standing(client: Any, bound: bool) -> tuple[bool, str]:
    """Whether some worker of a cluster can do the work, and what there is of workers, in words."""
    known = client.scheduler_info(n_workers=-1)["workers"].values()
    fit = [facts for facts in known if not bound or facts["resources"].get(GPU)]
    busy = [facts for facts in fit if facts["metrics"].get("task_counts", {}).get("executing")]
    ready = [facts for facts in fit if facts["status"] == "running" or facts in busy]
    said = f"{len(known)} workers{f', {len(fit)} of them with a {GPU}' if bound else ''}"
    paused = f", {len(fit) - len(ready)} paused or closing" if len(ready) < len(fit) else ""
    return bool(ready), f"{said}{paused}, {len(busy)} at work"


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
