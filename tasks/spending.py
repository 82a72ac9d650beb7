"""What the stages of a run took, and what their time went into: wall seconds, measured inside the work.

A stage that many workers share is told in wall seconds too: what they did is divided by how many they were, and the
time that one had nothing to do is waiting.
"""

import functools
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from prefect.context import FlowRunContext
from prefect.runtime import flow_run

from storage import timing
from storage.timing import OTHER, Spent

RUNS = 8  # whose times are kept
BETWEEN = "between"  # stages: tables, the page, Prefect itself
Unit = TypeVar("Unit")
Function = TypeVar("Function", bound=Callable[..., Any])
_mine = threading.local()


_spent: dict[str, dict[str, Spent]] = {}  # by flow run and stage; of the newest runs of this process
_clocks: dict[str, "Clock"] = {}  # by flow run


def spent() -> dict[str, Spent]:
    """What each stage of the current flow run took so far in this process, in the order in which they began."""
    return _spent.get(str(flow_run.id), {})


def of_stage(name: str) -> Spent:
    """What a stage of the current flow run took so far, to be added to."""
    of_run = _spent.setdefault(str(flow_run.id), {})
    while len(_spent) > RUNS:
        del _spent[next(iter(_spent))]
    return of_run.setdefault(name, Spent())


@dataclass(frozen=True)
class Work:
    """A result of some worker, how many seconds it worked on it, and what these went into."""

    result: Any
    worker: str
    seconds: float
    into: Counter[str]


@dataclass(frozen=True)
class Measured(Generic[Unit]):
    """A function on a unit, measured where it runs; it can be sent to other processes as the function can."""

    function: Callable[[Unit], Any]

    @property
    def title(self) -> str:
        """What the function is called."""
        return str(getattr(getattr(self.function, "func", self.function), "__name__", "work"))

    def __call__(self, unit: Unit) -> Work:
        began = time.perf_counter()
        with timing.collected() as into:
            result = self.function(unit)
        worker = f"{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
        return Work(result, worker, time.perf_counter() - began, into)


@dataclass
class Meter:
    """Measures a stage while it runs; see `measuring`."""

    spent: Spent
    workers: set[str] = field(default_factory=set)
    busy: float = 0.0
    done: Counter[str] = field(default_factory=Counter)
    pooled: float = 0.0

    def add(self, work: Work) -> None:
        """Counts what a worker did."""
        self.workers.add(work.worker)
        self.busy += work.seconds
        self.done += work.into

    @contextmanager
    def pool(self) -> Iterator[None]:
        """The time in which workers work and this thread waits for them."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.pooled += time.perf_counter() - began

    def split(self, seconds: float, own: Counter[str]) -> Counter[str]:
        """All the seconds of the stage by kind; ``own`` is what this thread did besides."""
        count = max(len(self.workers), self.busy / max(self.pooled, 1e-9), 1.0)
        found = {kind: value / count for kind, value in self.done.items()}

        def more(kind: str, value: float) -> None:
            found[kind] = found.get(kind, 0.0) + max(0.0, value)

        more(OTHER, self.busy / count - sum(found.values()))
        more("wait", self.pooled - self.busy / count)
        for kind, value in own.items():
            more(kind, value)
        more(OTHER, seconds - sum(found.values()))
        return +Counter(found)


class Clock:
    """Deals the time of a run out to its stages: each moment to those that are on then, in equal parts."""

    def __init__(self) -> None:
        self._on: list[Spent] = []
        self._since = 0.0
        self._lock = threading.Lock()

    def turn(self, off: Spent | None, on: Spent | None) -> None:
        """One stage of a thread pauses or ends, and one begins or goes on; None: none does."""
        with self._lock:
            now = time.perf_counter()
            for one in self._on:
                one.wall += (now - self._since) / len(self._on)
            self._since = now
            if off is not None:
                # The same stage may be on in several threads; Spents of equal numbers are equal.
                del self._on[next(place for place, one in enumerate(self._on) if one is off)]
            if on is not None:
                self._on.append(on)


@contextmanager
def _dealt(stage: Spent) -> Iterator[None]:
    """Has the clock of the run count a stage while the block lasts, in place of the one that it is within."""
    clock, before = _clocks.setdefault(str(flow_run.id), Clock()), getattr(_mine, "on", None)
    around = before[1] if before and before[0] is clock else None
    while len(_clocks) > RUNS:
        del _clocks[next(iter(_clocks))]
    _mine.on = clock, stage
    clock.turn(around, stage)
    try:
        yield
    finally:
        clock.turn(stage, around)
        _mine.on = before


@contextmanager
def measuring(name: str) -> Iterator[Meter]:
    """Measures a block as a stage of the current run; a stage within it is not counted twice."""
    meter, outer = Meter(of_stage(name)), getattr(_mine, "inner", 0.0)
    _mine.inner, began = 0.0, time.perf_counter()
    try:
        with _dealt(meter.spent), timing.collected() as own:
            yield meter
    finally:
        whole = time.perf_counter() - began
        seconds = max(0.0, whole - _mine.inner)
        _mine.inner = outer + whole
        meter.spent.seconds += seconds
        meter.spent.into += meter.split(seconds, own)


def staged(name: str) -> Callable[[Function], Function]:
    """Makes a function a stage of the run: what it does beyond stages of its own is counted as that one's."""

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def run(*args: Any, **words: Any) -> Any:
            with measuring(name):
                return function(*args, **words)

        return run  # type: ignore[return-value]

    return decorate


def between(took: dict[str, Spent]) -> dict[str, Spent]:
    """The stages of the current run and, as one more, the time between them; as they are outside of a run."""
    context = FlowRunContext.get()
    if context is None or not took:
        return dict(took)
    passed = (datetime.now(UTC) - context.start_time).total_seconds()
    rest = max(0.0, passed - sum(one.part for one in took.values()))
    return {**took, BETWEEN: Spent(rest, into=Counter({OTHER: rest}))}
