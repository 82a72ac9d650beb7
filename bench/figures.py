"""How figures are taken and shown."""

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

ROUNDS = 5


@dataclass(frozen=True)
class Figure:
    """A measured value beside its goal; ``value`` is a ratio unless ``unit`` says otherwise."""

    what: str
    value: float
    goal: float | None = None
    unit: str = "×"
    note: str = ""

    def row(self) -> str:
        goal = "" if self.goal is None else f"≥ {self.goal:g}"
        verdict = "" if self.goal is None else ("yes" if self.value >= self.goal else "**no**")
        return f"| {self.what} | {self.value:,.2f} {self.unit} | {goal} | {verdict} | {self.note} |"


HEAD = "| what | measured | goal | reached | beside |\n|---|---|---|---|---|"


def against(ours: Callable[[], object], baseline: Callable[[], object], rounds: int = ROUNDS) -> tuple[float, float]:
    """(baseline's time / our time, our seconds): medians over pairs that run in turn, after one of each to warm up."""
    ours(), baseline()
    pairs = [(_seconds(ours), _seconds(baseline)) for _ in range(rounds)]
    return statistics.median(b / o for o, b in pairs), statistics.median(o for o, _ in pairs)


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def seconds(call: Callable[[], object], rounds: int = ROUNDS) -> float:
    """The median time of a call."""
    return statistics.median(_seconds(call) for _ in range(rounds))


def cpu() -> float:
    """Seconds of CPU that this process and the children it has now have used."""
    here = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in [here, *here.children(recursive=True)])


def peak() -> float:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
