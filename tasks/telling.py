"""Words to people and to Prefect: lines on the terminal, and calls of a server that may not answer.

No work waits for Prefect: what is to stay there is kept and told later where its server does not answer.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from functools import cache, partial
from typing import Any

import httpx
from prefect.context import FlowRunContext, SettingsContext, SyncClientContext, TaskRunContext, get_settings_context

from storage.secrets import redact

SILENCE = 60.0  # seconds in which a server that does not answer is not asked again
HASTE = 10.0  # seconds that a server has for an answer while the work waits


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
