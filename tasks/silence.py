"""A Prefect server that does not answer: nothing begins without it, and no work that is done waits for it.

What a run leaves in the store does not hang on Prefect, but Prefect's client tries each call again for minutes, at the
end of a run and again while Python exits. So a command line runs its flow under a watch, which ends the process when
the work is done and the server stays silent.
"""

import functools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from storage.errors import InputError
from storage.secrets import redact
from tasks import report

ANSWER = 5.0  # seconds for a sign of life
BEFORE = 30.0  # seconds for a server to answer before the work begins
AFTER = 20.0  # seconds for a server to answer after it
LONGEST = 300.0  # seconds after the work that a server may take which answers
LOST = (httpx.HTTPError, OSError, ObjectNotFound)  # the last: its database is another one


@dataclass
class Work:
    """What a flow's function does, seen from outside: whether it has begun, whether it is done, what came of it."""

    function: Callable[..., Any]
    url: str = ""
    stage: str = "before"
    since: float = field(default_factory=time.monotonic)
    result: Any = None
    error: BaseException | None = None

    def __call__(self, *args: Any, **words: Any) -> Any:
        self.url = str(get_client(sync_client=True).api_url)
        self.stage = "during"
        try:
            self.result = self.function(*args, **words)
            return self.result
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.stage, self.since = "after", time.monotonic()
            if report.in_run():
                report.catch_up(again=True)

    def waited(self) -> float:
        return time.monotonic() - self.since


def answers(url: str) -> bool:
    """Whether a Prefect server gives a sign of life; one that refuses us does."""
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        try:
            error = SyncPrefectClient(url, httpx_settings={"timeout": ANSWER}).api_healthcheck()
        except Exception as wrong:  # no URL at all, a certificate that cannot be read
            error = wrong
    return error is None or (isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500)


def run(flow: Any, options: dict[str, Any], say: Callable[[BaseException | None], int]) -> Any:
    """Runs a flow for a command line; what its function returned or raised counts, also where Prefect is lost.

    ``say`` prints what a person needs to know of an error and returns the exit code; the watch calls it when it ends
    the process, so this is for a process that runs one flow. Raises `InputError` where a named server does not answer.
    """
    url = PREFECT_API_URL.value() or ""
    work = Work(flow.fn, url)
    _await(url)
    work.since = time.monotonic()
    logging.raiseExceptions = False  # Prefect asks this before it prints that a lost server got no log records
    flow.fn = functools.wraps(flow.fn)(work)
    threading.Thread(target=_watch, args=(work, say), daemon=True, name="reelmill-silence").start()
    try:
        return flow(**options)
    except Exception as error:
        if work.stage == "before" and isinstance(error, LOST):
            raise InputError(_absent(work.url)) from error
        if work.stage != "after" or error is work.error or not isinstance(error, LOST):
            raise
        _leave(work, say)


def _await(url: str) -> None:
    deadline = time.monotonic() + BEFORE
    while url and not answers(url):
        if time.monotonic() > deadline:
            raise InputError(_absent(url))
        time.sleep(0.5)


def _absent(url: str) -> str:
    return (
        f"Prefect's server at {url} does not answer, so nothing was begun; start it, or unset PREFECT_API_URL to run "
        "with one of this run's own"
    )


def _watch(work: Work, say: Callable[[BaseException | None], int]) -> None:
    """Ends the process where the server is silent for too long before or after the work."""
    heard = 0.0
    while True:
        time.sleep(1)
        if work.stage == "during" or not work.url or work.waited() < AFTER / 2:
            continue
        if answers(work.url):
            heard = time.monotonic()
        limit = AFTER if work.stage == "after" else BEFORE
        if work.waited() < limit or (time.monotonic() - heard < limit / 2 and work.waited() < LONGEST):
            continue
        if work.stage == "before":
            _exit(say(InputError(_absent(work.url))))
        if work.stage == "after":
            _leave(work, say)


def _leave(work: Work, say: Callable[[BaseException | None], int]) -> None:
    """Ends the process without a further word to Prefect: leaving in the usual way waits for what is not there."""
    code = say(work.error) if work.error else 0
    done = "the work is done and committed" if not work.error else "what was committed stays"
    facts = work.result if isinstance(work.result, dict) else {}
    named = ", ".join(f"{k} {v}" for k, v in facts.items() if k in ("dataset", "version", "clips", "segments_path"))
    left = f" and {report.left()} artifacts" if report.left() else ""
    print(
        redact(
            f"reelmill: {done}{' (' + named + ')' if named else ''}; Prefect's server at {work.url} does not answer: "
            f"it was not told the end of this run{left}, and may show it as running"
        ),
        file=sys.stderr,
    )
    _exit(code)


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
