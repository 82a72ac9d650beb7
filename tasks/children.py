"""Processes that end together, with a log each.

A guard waits at the end of a pipe and kills what is left when the parent is gone, however it went; what belongs to it
is known by a mark in the environment, whoever its parent is by then.
"""

import itertools
import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import psutil
from click import echo

MARK = "REELMILL_CHILD_OF"
PATIENCE = 20  # seconds for a process to end
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
DIRECT = build_opener(ProxyHandler({}))  # a proxy does not know what is on this machine


class Children:
    """Children of this process and all that they start."""

    def __init__(self, folder: Path, logs: Path) -> None:
        self.folder, self.logs = folder, logs
        self.env = os.environ | {MARK: uuid.uuid4().hex}
        self.running: dict[str, subprocess.Popen] = {}
        self.guard = self.start("guard", "tasks.children", stdin=subprocess.PIPE)

    def start(self, name: str, *words: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen:
        """Starts ``python -m WORDS`` in a session of its own: Ctrl-C is for this process, which ends them in order."""
        command = [sys.executable, "-m", *words]
        with open(self.logs / f"{name}.log", "ab") as log:
            self.running[name] = subprocess.Popen(
                command, env=self.env, cwd=self.folder, stdin=stdin, stdout=log, stderr=log, start_new_session=True
            )
        return self.running[name]

    def finish(self, name: str, *words: str) -> None:
        """Runs a command to its end; where it fails, leaves with the end of its log."""
        if self.start(name, *words).wait():
            self._check()
        del self.running[name]

    def wait(self, name: str, url: str) -> None:
        """Waits until a child answers at a URL, and says how long that takes."""
        for second in itertools.count(1):
            with suppress(OSError), DIRECT.open(url, timeout=5):
                return
            self._check()
            if second % 5 == 0:
                echo(f"  {name:<12} starting, {second} s")
            time.sleep(1)

    def watch(self) -> None:
        """Waits for ever; where a child ends by itself, leaves with the end of its log."""
        while True:
            self._check()
            time.sleep(0.5)

    def _check(self) -> None:
        for name, process in self.running.items():
            if process.poll() is not None:
                log = self.logs / f"{name}.log"
                said = f"reelmill: {name} ended with code {process.returncode}; the end of {log}:"
                raise SystemExit("\n  ".join([said, *log.read_text(errors="replace").splitlines()[-15:]]))

    def stop(self, first: str) -> None:
        """Ends what one child has started, then that child, then the others; the guard kills who stays."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        del self.running["guard"]
        alive = {name: psutil.Process(child.pid) for name, child in self.running.items() if child.poll() is None}
        last = [process for name, process in alive.items() if name != first]
        head = [alive[first]] if first in alive else []
        for group in ([below for process in head for below in process.children(recursive=True)], head, last):
            for process in group:
                with suppress(psutil.NoSuchProcess):
                    process.terminate()
            psutil.wait_procs(group, timeout=PATIENCE)
        self.guard.communicate()


def marked() -> list[psutil.Process]:
    """Every other process that carries this one's mark."""
    others = (process for process in psutil.process_iter(["environ"]) if process.pid != os.getpid())
    return [process for process in others if (process.info["environ"] or {}).get(MARK) == os.environ[MARK]]


def guard() -> None:
    """Waits for the end of the process that started this one, then kills all that carry the same mark."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()
    while found := marked():
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()


if __name__ == "__main__":
    guard()
