"""How figures are taken and shown."""

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

ROUNDS = 5
EXPECTED = Path(__file__).with_name("expected.yaml")


@dataclass(frozen=True)
class Figure:
    """A measured value; ``value`` is a ratio unless ``unit`` says otherwise. What is expected of it, EXPECTED says."""

    what: str
    value: float
    unit: str = "×"
    note: str = ""


@dataclass(frozen=True)
class Expected:
    """Of one figure: what is aimed at, what nothing may fall below or rise above, or the count that it has to be."""

    goal: float | None = None
    floor: float | None = None
    ceiling: float | None = None
    exact: int | None = None

    def row(self, figure: Figure) -> str:
        """The figure as a row of the table under `HEAD`."""
        value = f"{figure.value:,.0f}" if self.exact is not None else f"{figure.value:,.2f} {figure.unit}".strip()
        bounds = {"goal ≥": self.goal, "floor": self.floor, "at most": self.ceiling, "exactly": self.exact}
        expected = ", ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)
        reached = "" if self.goal is None else ("yes" if figure.value >= self.goal else "**no**")
        held = "**broken**" if self.broken(figure.value) else reached
        return f"| {figure.what} | {value} | {expected} | {held} | {figure.note} |"

    def broken(self, value: float) -> bool:
        """Whether a value is one that must not be; one below its goal may be."""
        low = self.floor is not None and value < self.floor
        high = self.ceiling is not None and value > self.ceiling
        return low or high or (self.exact is not None and value != self.exact)


def expected() -> dict[str, dict[str, Expected]]:
    """What is expected, by benchmark and figure."""
    found = yaml.safe_load(EXPECTED.read_text())
    return {name: {what: Expected(**rule) for what, rule in rules.items()} for name, rules in found.items()}


HEAD = "| what | measured | expected | reached | beside |\n|---|---|---|---|---|"


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
