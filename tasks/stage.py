"""How every stage of the data plane runs: only what is missing, in waves, and reconciled with the store at the end."""

import time
from collections.abc import Callable
from typing import TypeVar

from storage import files
from storage.errors import Damaged, Incomplete, InputError
from storage.ledger import Report
from storage.timing import during
from tasks import pool
from tasks.report import progress, say
from tasks.spending import Measured, Work, measuring

Unit = TypeVar("Unit")
WAVES = 3  # a unit that failed for the store's sake is tried this often
FATAL = (Damaged, InputError)  # a second try cannot help


class Left(Exception):
    """A unit that this run does not do, and why: another run has it, or its time is over. It fails nothing."""


def cover(
    name: str,
    units: list[Unit],
    work: Callable[[Unit], Report],
    committed: Callable[[Unit], bool],
    *,
    unit: str = "parts",
    width: int | None = None,
    patient: bool = False,
    left: dict[Unit, Exception] | None = None,
) -> Report:
    """Does the units that are not committed yet and returns the sum of their reports.

    The store decides what is done, before and after: whatever the pool or a scheduler says, the stage fails with
    `Incomplete`, naming what is missing, unless every unit is committed at the end or was `Left`; those are added to
    ``left``. What is damaged ends the stage at once, or after all other units where it is ``patient``.
    """
    with measuring(name), during("list"):
        todo = _missing(units, committed)
    say(f"  {name:<12} {len(todo)} {unit} to do, {len(units) - len(todo)} already there")
    total = Report()
    failures: dict[Unit, Exception] = {}
    hopeless: dict[Unit, Exception] = {}  # no second try
    with progress(name, len(todo), unit) as state, state.meter.pool():
        state.of = sum(getattr(unit, "samples", 0) for unit in units)
        state.had = state.of - sum(getattr(unit, "samples", 0) for unit in todo)
        for wave in range(WAVES):
            if wave:
                time.sleep(2.0**wave)
            failures = {}
            for done, answer in pool.run(Measured(work), todo, width=width, waits=state.waits):
                if isinstance(answer, Work):
                    state.meter.add(answer)
                result = answer.result if isinstance(answer, Work) else answer
                if isinstance(result, FATAL) and not patient:
                    raise result
                if isinstance(result, (*FATAL, Left)):
                    hopeless[done] = result
                elif isinstance(result, Exception):
                    failures[done] = result
                else:
                    total += result
                    state.items = total.items
                    state.advance()
            todo = [unit for unit in _missing(todo, committed) if unit not in hopeless]
            if not todo:
                break
    broken = [error for error in hopeless.values() if isinstance(error, FATAL)]
    if left is not None:
        left.update((unit, error) for unit, error in hopeless.items() if isinstance(error, Left))
    if todo:
        causes = "; ".join(sorted({f"{type(e).__name__}: {e}" for e in failures.values()})[:3])
        shown = ", ".join(getattr(u, "id", str(u)) for u in todo[:5])
        raise Incomplete(f"{name}: {len(todo)} of {len(units)} {unit} are not committed ({shown}): {causes}")
    if broken:
        raise type(broken[0])(f"{name}: {len(broken)} of {len(units)} {unit}: {'; '.join(map(str, broken[:3]))}")
    return total


def _missing(units: list[Unit], committed: Callable[[Unit], bool]) -> list[Unit]:
    return [unit for unit, there in zip(units, files.at_once(committed, units), strict=True) if not there]
