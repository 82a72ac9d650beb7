"""Work in a child that is killed before one of its writes into the store, for programs without threads."""

import os
import signal
import traceback
from collections.abc import Callable
from typing import Any

from storage import files

WRITES = ("publish", "publish_bytes", "replace", "swap", "remove")


def child(act: Callable[[], Any], limit: int = 0) -> tuple[int, int]:
    """The exit code of a child that does it and is killed before write number ``limit`` (0: never), and its writes."""
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(_acted(act, limit, tell))
    os.close(tell)
    with os.fdopen(told) as pipe:
        count = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), int(count or 0)


def _acted(act: Callable[[], Any], limit: int, tell: int) -> int:
    count = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **words: Any) -> Any:
            nonlocal count
            count += 1
            if count == limit:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*given, **words)

        return call

    for name in WRITES:
        setattr(files, name, counted(getattr(files, name)))
    try:
        act()
        os.write(tell, str(count).encode())
        return 0
    except BaseException:
        traceback.print_exc()
        return 1
