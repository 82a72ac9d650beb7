"""What people see while a stage runs and after it: lines on the terminal, progress and tables in Prefect."""

import os
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext, SettingsContext, SyncClientContext, TaskRunContext, get_settings_context
from prefect.runtime import flow_run

from storage.secrets import printable, redact
from tasks import redaction

redaction.install()  # whoever runs a stage imports this file

EVERY = 3.0  # seconds between progress lines
SILENCE = 60.0  # seconds in which a server that does not answer is not asked again
HASTE = 10.0  # seconds that a server has for an answer while the work waits
NAMED = 3  # of files that were lost for one reason
RUNS = 8  # whose times are kept
TABLE_ROWS = 1000  # an artifact is a page, not an archive


def in_run() -> bool:
    """Whether this code runs inside a Prefect flow or task run."""
    return TaskRunContext.get() is not None or FlowRunContext.get() is not None


def say(text: str) -> None:
    """Prints a line at once, without credentials."""
    print(redact(text), flush=True)


_silent_until = 0.0  # Prefect did not answer; until then it is not asked again
_untold: deque[tuple[Context, Callable[[], Any]]] = deque(maxlen=1000)  # what is to stay, and could not be told yet


def tell(function: Callable[..., Any], *args: Any, **words: Any) -> Any:
    """Tells Prefect something, or asks it; None where its server does not answer, which no work waits for."""
    global _silent_until
    if time.monotonic() < _silent_until:
        return None
    try:
        with _hasty():
            return function(*args, **words)
    except (httpx.TransportError, OSError) as error:
        _silent_until = time.monotonic() + SILENCE
        say(f"  prefect      does not answer ({type(error).__name__}); the work goes on")
    except httpx.HTTPStatusError as error:
        if error.response.status_code < 500:
            raise
        _silent_until = time.monotonic() + SILENCE
        say(f"  prefect      fails ({error.response.status_code}); the work goes on")
    return None


def key_of(name: str) -> str:
    """A name as Prefect takes it for an artifact's key: lowercase letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@contextmanager
def _hasty() -> Iterator[None]:
    """A client that neither tries again nor waits long, in place of the run's, which takes minutes over a lost server.

    Prefect's own way to both, new settings and a new client for every call, took a fifth of a small run's CPU time.
    """
    if (given := SyncClientContext.get()) is None:
        yield
        return
    context = get_settings_context()
    once = context.settings.client.model_copy(update={"max_retries": 0})
    token = SyncClientContext.__var__.set(_client(str(given.client.api_url), os.getpid()))
    try:
        with SettingsContext(profile=context.profile, settings=context.settings.model_copy(update={"client": once})):
            yield
    finally:
        SyncClientContext.__var__.reset(token)


@cache
def _client(url: str, process: int) -> SyncClientContext:
    """The client of a process for a server. No connection is kept: one that the server has closed would be an error."""
    limits = httpx.Limits(max_keepalive_connections=0)
    made = SyncClientContext(httpx_settings={"timeout": HASTE, "limits": limits})
    made._httpx_settings = None  # so that Prefect's own calls, which ask for no settings, take it
    made.client.__enter__()
    return made


def _leave(function: Callable[..., Any], *args: Any, **words: Any) -> None:
    """Tells Prefect what is to stay there: kept, and told later, where its server does not answer now."""
    _untold.append((copy_context(), partial(function, *args, **words)))  # the context says which run it is of
    catch_up()


def catch_up(again: bool = False) -> int:
    """Tells Prefect what it has not heard yet, oldest first; how much is left. ``again``: also after a silence."""
    global _silent_until
    if again:
        _silent_until = 0.0
    while _untold and time.monotonic() >= _silent_until:
        context, call = _untold.popleft()
        context.run(tell, call)
        if time.monotonic() < _silent_until:
            _untold.appendleft((context, call))
    return len(_untold)


def left() -> int:
    """How many artifacts Prefect has not been told of."""
    return len(_untold)


def clock(seconds: float) -> str:
    """Seconds as m:ss."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


@dataclass
class Spent:
    """What a stage of the current run took: wall seconds, units done, and items (such as clips) in them."""

    seconds: float = 0.0
    units: int = 0
    items: int = 0


_spent: dict[str, dict[str, Spent]] = {}  # by flow run and stage; of the newest runs of this process


def spent() -> dict[str, Spent]:
    """What each stage of the current flow run took so far in this process, in the order in which they began."""
    return _spent.get(str(flow_run.id), {})


def _spend(name: str) -> Spent:
    of_run = _spent.setdefault(str(flow_run.id), {})
    while len(_spent) > RUNS:
        del _spent[next(iter(_spent))]
    return of_run.setdefault(name, Spent())


@dataclass
class Progress:
    """Counts units of a stage; says how many are done, how fast, and how long the rest takes (total 0: unknown)."""

    name: str
    total: int
    unit: str
    artifact: UUID | None = None
    done: int = 0
    items: int = 0
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
            return
        left = (self.total - self.done) / rate if rate else 0.0
        say(
            f"  {self.name:<12} {self.done}/{self.total} {self.unit}"
            f" · {rate:.1f}/s · ETA {clock(left)}{' · ' + note if note else ''}"
        )
        if self.artifact is not None:
            share = 100.0 * self.done / max(1, self.total)
            text = redact(f"{self.name}: {self.done} of {self.total} {self.unit}, {rate:.1f}/s, ETA {clock(left)}")
            tell(update_progress_artifact, self.artifact, progress=share, description=text)


@contextmanager
def progress(name: str, total: int, unit: str = "parts") -> Iterator[Progress]:
    """A progress line on the terminal and, inside a Prefect run, a progress artifact of the same name."""
    artifact = None
    if in_run():
        text = redact(f"{name}: {total} {unit}")
        made = tell(create_progress_artifact, 0.0, key=key_of(f"progress-{name}"), description=text)
        artifact = made if made is None or isinstance(made, UUID) else UUID(str(made))
    state, took = Progress(name, total, unit, artifact), _spend(name)
    try:
        yield state
    finally:
        took.seconds += time.monotonic() - state.began
        took.units, took.items = took.units + state.done, took.items + state.items
    if artifact is not None and state.done >= state.total:
        text = redact(f"{name}: {state.done} {unit} in {clock(time.monotonic() - state.began)}")
        tell(update_progress_artifact, artifact, progress=100.0, description=text)


def rename(name: str) -> None:
    """Gives the current flow run a name that says what it came to; without a server nothing happens."""
    if flow_run.id:
        tell(_rename, UUID(str(flow_run.id)), redact(name))


def _rename(run: UUID, name: str) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_name(run, name)


def alike(counts: Counter[str], items: Iterable[tuple[str, str]]) -> list[str]:
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
        lines.append(f"{count:,} {reason}: {', '.join(first)}{more}")
    return lines


def table(key: str, rows: list[dict[str, Any]], description: str) -> None:
    """Publishes a table artifact; a long one is cut and says so."""
    if not in_run():
        return
    more = f" (the first {TABLE_ROWS} of {len(rows)})" if len(rows) > TABLE_ROWS else ""
    plain = [{redact(k): redact(str(v)) for k, v in row.items()} for row in rows[:TABLE_ROWS]]
    _leave(create_table_artifact, plain or [{"": "nothing"}], key=key_of(key), description=redact(description + more))


def markdown(key: str, text: str, description: str = "") -> None:
    """Publishes a markdown artifact."""
    if in_run():
        _leave(create_markdown_artifact, redact(text), key=key_of(key), description=redact(description))


def escape(text: str) -> str:
    """Text from outside as it may stand in a markdown table: no markup, no control characters, one line."""
    plain = printable(text)
    for sign in "\\`*_{}[]()#|!":
        plain = plain.replace(sign, "\\" + sign)
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
