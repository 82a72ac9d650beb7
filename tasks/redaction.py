"""Keeps credentials out of what Prefect and Python write by themselves: log records, states, tracebacks.

Loggers and handlers come and go with Prefect's set-up, and a decorator on every task would be forgotten on the next
one; so this sits where all of them pass: where a log record is made, where Prefect's engines are handed an
exception, and where an exception that nobody caught is printed.
"""

import functools
import logging
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from storage.secrets import redact, redact_error, shown

__all__ = ["install", "redact", "shown"]  # the last for `flows`, which knows `tasks` alone

_plain = logging.Formatter()
_FROM_PREFECT = ("handle_exception", "handle_crash")


def install() -> None:
    """Starts to redact log records, states and tracebacks of this process; a second call changes nothing."""
    factory = logging.getLogRecordFactory()
    if not hasattr(factory, "redacts"):
        logging.setLogRecordFactory(_redacting_factory(factory))
    if sys.excepthook is sys.__excepthook__:  # a test runner's or a debugger's stays
        sys.excepthook = _print_exception
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = lambda args: _print_exception(args.exc_type, args.exc_value, args.exc_traceback)
    _redact_states()


def _redacting_factory(factory: Callable[..., logging.LogRecord]) -> Callable[..., logging.LogRecord]:
    def make(*args: Any, **words: Any) -> logging.LogRecord:
        record = factory(*args, **words)
        try:
            text = record.getMessage()
        except Exception:  # wrong arguments: logging itself complains about them when it formats
            text = str(record.msg)
        if (safe := redact(text)) != text:
            record.msg, record.args = safe, ()
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = redact(_plain.formatException(record.exc_info))  # formatters print it if it is there
        return record

    make.redacts = True  # type: ignore[attr-defined]
    return make


def _print_exception(kind: type[BaseException], error: BaseException | None, trace: Any) -> None:
    if error is not None and not issubclass(kind, KeyboardInterrupt):
        sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))
    else:
        sys.__excepthook__(kind, error or kind(), trace)


def _redact_states() -> None:
    """A failed run's state repeats its exception, and Prefect stores the state."""
    from prefect.flow_engine import AsyncFlowRunEngine, FlowRunEngine
    from prefect.task_engine import AsyncTaskRunEngine, SyncTaskRunEngine

    for engine in (FlowRunEngine, AsyncFlowRunEngine, SyncTaskRunEngine, AsyncTaskRunEngine):
        for name in _FROM_PREFECT:
            handle = getattr(engine, name)  # AttributeError where another Prefect has renamed it
            if not hasattr(handle, "redacts"):
                setattr(engine, name, _redacting_handler(handle))


def _redacting_handler(handle: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(handle)
    def handle_redacted(self: Any, exc: BaseException, *args: Any, **words: Any) -> Any:
        redact_error(exc)
        return handle(self, exc, *args, **words)

    handle_redacted.redacts = True  # type: ignore[attr-defined]
    return handle_redacted
