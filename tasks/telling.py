"""Words to people and to Prefect: lines on the terminal, and calls of a server that may not answer.

No work waits for Prefect: what is to stay there is kept and told later where its server does not answer.
"""

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any

import httpx
from prefect.context import FlowRunContext, SettingsContext, SyncClientContext, TaskRunContext, get_settings_context
from prefect.runtime import flow_run

from storage.secrets import ACTED_ON, redact, shown

SILENCE = 60.0  # seconds in which a server that does not answer is not asked again
HASTE = 10.0  # seconds that a server has for an answer while the work waits


def in_run() -> bool:
    """Whether this code runs inside a Prefect flow or task run."""
    return TaskRunContext.get() is not None or FlowRunContext.get() is not None


STRUCTURED = (
    "PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER"  # `json`: lines of JSON, as Prefect's own log records then are
)
STEP = slice(2, 15)  # of a line: where the step stands that it is about


def say(text: str, **fields: Any) -> None:
    """Prints a line at once, as `shown`; as JSON with ``fields``, such as item and reason, where asked for."""
    if os.environ.get(STRUCTURED) != "json":
        print(shown(text), flush=True)
        return
    for line in filter(None, map(str.rstrip, text.split("\n"))):
        print(_structured(line, fields), flush=True)


def _structured(line: str, fields: dict[str, Any]) -> str:
    """A line as JSON: when, of which run, flow and step, what is said of which item, and for which reason."""
    aligned = line.startswith("  ") and line[2:3].strip() and not line[14:15].strip()
    step, said = (line[STEP].strip(), line[15:]) if aligned else ("", line.strip())
    known = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": "INFO",
        "run": str(flow_run.id or ""), "flow": str(flow_run.flow_name or ""), "step": step, "item": "", "reason": "",
        "message": said,
    }  # fmt: skip
    plain = {name: redact(value) if isinstance(value, str) else value for name, value in (known | fields).items()}
    made = json.dumps(plain, default=lambda value: redact(str(value)), ensure_ascii=False)
    return ACTED_ON.sub(lambda sign: f"\\u{ord(sign[0]):04x}", made)


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


def leave(function: Callable[..., Any], *args: Any, **words: Any) -> None:
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
