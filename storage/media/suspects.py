"""A process between us and the decoder, for files that were in work when an earlier worker died.

`python -m storage.media.suspects` reads one JSON object from stdin, runs `Sandbox.cut`, and prints one.
Whatever the file does to it, or to the decoder below it, ends there: it has a process group of its own.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from storage.errors import StoreError
from storage.media.decoder import die_with, environment
from storage.media.limits import REASONS, Rejected


def run(path: str, folder: Path, options: dict[str, Any], checkout: str) -> list[dict[str, Any]]:
    """Starts the process and hands back what it found; see `storage.media.sandbox.cut_alone`."""
    command = [sys.executable, "-m", "storage.media.suspects", str(os.getpid())]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    child = subprocess.Popen(command, **pipes, env=environment(checkout), cwd="/", start_new_session=True)
    try:
        text, _ = child.communicate(json.dumps({"path": path, "folder": str(folder), "options": options}).encode())
    finally:
        _end(child)
    if child.returncode < 0:
        raise Rejected("worker_killed", f"signal {-child.returncode}")
    try:
        answer = json.loads(text)
        if "error" in answer:
            raise StoreError(str(answer["error"]))
        if "reason" not in answer:
            return list(answer["result"])
        reason, detail, kind = (str(answer.get(name, "")) for name in ("reason", "detail", "kind"))
    except (ValueError, TypeError, KeyError) as error:
        raise Rejected("worker_killed", f"exit code {child.returncode}, no answer") from error
    raise Rejected(reason if reason in REASONS else "worker_killed", detail, kind)


def _end(child: subprocess.Popen) -> None:
    """Ends the process and all that it started."""
    with contextlib.suppress(ProcessLookupError):  # all gone already
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def main() -> None:
    die_with(int(sys.argv[1]))
    from storage.media.sandbox import Sandbox

    message = json.load(sys.stdin)
    answer: dict[str, Any]
    try:
        answer = {"result": Sandbox().cut(message["path"], Path(message["folder"]), **message["options"])}
    except Rejected as error:
        answer = {"reason": error.reason, "detail": error.detail, "kind": error.kind}
    except StoreError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
