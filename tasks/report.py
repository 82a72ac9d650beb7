"""What people see while a stage runs and after it: lines on the terminal, progress and tables in Prefect."""

import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from storage import timing
from storage.secrets import printable, redact
from tasks import naming, redaction, spending
from tasks.spending import Meter
from tasks.telling import catch_up, in_run, leave, left, say, tell

__all__ = ["catch_up", "in_run", "left", "say", "tell"]  # told with the rest: a stage imports this file alone

redaction.install()  # whoever runs a stage imports this file

EVERY = 3.0  # seconds between progress lines
NAMED = 3  # of files that were lost for one reason
TABLE_ROWS = 1000  # an artifact is a page, not an archive


def key_of(name: str) -> str:
    """A name as Prefect takes it for an artifact's key: lowercase letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def clock(seconds: float) -> str:
    """Seconds as m:ss."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


@dataclass
class Progress:
    """Counts units of a stage; says how many are done, how fast, and how long the rest takes (total 0: unknown).

    ``of`` and ``had`` are items (such as clips) of the whole stage and those that were there before it.
    """

    name: str
    total: int
    unit: str
    artifact: UUID | None = None
    done: int = 0
    items: int = 0
    of: int = 0
    had: int = 0
    meter: Meter = field(default_factory=lambda: Meter(timing.Spent()))
    began: float = field(default_factory=time.monotonic)
    spoke: float = field(default_factory=time.monotonic)

    def advance(self, by: int = 1, note: str = "") -> None:
        self.done += by
        now = time.monotonic()
        if now - self.spoke < EVERY and self.done != self.total:
            return
        self.spoke = now
        rate = self.done / max(1e-9, now - self.began)
        if not self.total:
            say(f"  {self.name:<12} {self.done} {self.unit} · {rate:.1f}/s")
            self.show(f"{self.done:,} {self.unit}, {rate:.1f}/s", 0.0)
            return
        left = (self.total - self.done) / rate if rate else 0.0
        say(
            f"  {self.name:<12} {self.done}/{self.total} {self.unit}"
            f" · {rate:.1f}/s · ETA {clock(left)}{' · ' + note if note else ''}"
        )
        slow = timing.shares(self.meter.done, 0.05) if self.meter.done else ""
        text = f"{self.done:,} of {self.total:,} {self.unit}, {rate:.1f}/s, ETA {clock(left)}"
        self.show(f"{text}{'; ' + slow if slow else ''}", 100.0 * self.done / max(1, self.total))

    def waits(self, why: str) -> None:
        """Says, on the terminal and in the artifact, what is waited for while nothing gets done."""
        done = f"{self.done:,}{f' of {self.total:,}' if self.total else ''} {self.unit}"
        say(f"  {self.name:<12} {done} · {why}")
        self.show(f"{done}; {why}", 100.0 * self.done / max(1, self.total))

    def show(self, text: str, percent: float) -> None:
        """Brings the artifact and the name of the run up to date."""
        if self.artifact is not None:
            description = redact(f"{self.name}: {text}")
            tell(update_progress_artifact, self.artifact, progress=percent, description=description)
        naming.stage(self, str(self))

    def __str__(self) -> str:
        if self.of:
            return f"{self.had + self.items:,} of {self.of:,} clips"
        if self.unit == "percent":
            return f"{self.name} {self.done} %"
        return f"{self.name} {self.done:,}{f' of {self.total:,}' if self.total else ''} {self.unit}"


@contextmanager
def progress(name: str, total: int, unit: str = "parts") -> Iterator[Progress]:
    """A progress line on the terminal and, inside a Prefect run, a progress artifact and the name of the run."""
    artifact = None
    if in_run():
        text = redact(f"{name}: {total} {unit}")
        made = tell(create_progress_artifact, 0.0, key=key_of(f"progress-{name}"), description=text)
        artifact = made if made is None or isinstance(made, UUID) else UUID(str(made))
    with spending.measuring(name) as meter:
        state, took = Progress(name, total, unit, artifact, meter=meter), meter.spent
        try:
            with naming.first(state):
                yield state
        finally:
            took.units, took.items = took.units + state.done, took.items + state.items
    if artifact is not None and state.done >= state.total:
        text = redact(f"{name}: {state.done} {unit} in {clock(time.monotonic() - state.began)}")
        tell(update_progress_artifact, artifact, progress=100.0, description=text)


class Alike(str):
    """A line about items that were lost for one reason, and what it says as fields of a structured log."""

    fields: dict[str, Any]


def alike(counts: Counter[str], items: Iterable[tuple[str, str]]) -> list[Alike]:
    """A line for each reason that items were lost for: the first few by name, then how many are like them.

    ``counts`` are all of them by reason, ``items`` some (reason, name): thousands of files with one fault are one line.
    """
    named: dict[str, list[str]] = {}
    for reason, name in items:
        if len(first := named.setdefault(reason, [])) < NAMED:
            first.append(printable(name))
    lines = []
    for reason, count in counts.most_common():
        first = named.get(reason, [])
        more = f" and {count - len(first):,} more like it, all in the ledger" if count > len(first) else ""
        line = Alike(f"{count:,} {reason}: {', '.join(first)}{more}")
        line.fields = {
            "reason": reason,
            "item": first[0] if first else "",
            "items": [*map(redact, first)],
            "count": count,
        }
        lines.append(line)
    return lines


def table(key: str, rows: list[dict[str, Any]], description: str) -> None:
    """Publishes a table artifact; a long one is cut and says so."""
    if not in_run():
        return
    more = f" (the first {TABLE_ROWS} of {len(rows)})" if len(rows) > TABLE_ROWS else ""
    plain = [{redact(k): redact(str(v)) for k, v in row.items()} for row in rows[:TABLE_ROWS]]
    leave(create_table_artifact, plain or [{"": "nothing"}], key=key_of(key), description=redact(description + more))


def markdown(key: str, text: str, description: str = "") -> None:
    """Publishes a markdown artifact."""
    if in_run():
        leave(create_markdown_artifact, redact(text), key=key_of(key), description=redact(description))


def escape(text: str) -> str:
    """Text from outside as it may stand in a markdown table: no markup, no control characters, one line."""
    plain = printable(text)
    for sign in "\\`*_{}[]()#|!":
        plain = plain.replace(sign, "\\" + sign)
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
