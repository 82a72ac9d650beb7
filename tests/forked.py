"""Runs of programs in forks of one process that has everything imported: the seconds of imports are paid once.

A fork is a process of its own, with a pid, an exit code and a usual end of Python, and it can be killed as any other.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from tests.preparing import CHECKOUT
from tests.servers import end_with_us

SOURCE = """
import json, os, signal, sys, threading
from flows.__main__ import quiet
quiet()
{imports}
from tests.servers import end_with_us
assert threading.active_count() == 1, "threads do not live on in a fork"
for line in sys.stdin:
    words, program, pipe = json.loads(line)
    if not (child := os.fork()):
        break
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
end_with_us()
out = os.open(pipe, os.O_WRONLY)
for number in (1, 2):
    os.dup2(out, number)
os.close(out)
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
sys.argv = ["-c", *words]
exec(program, globals())
"""


class Run:
    """A program under way; what it prints, errors too, is to be read from `stdout`."""

    def __init__(self, parent: subprocess.Popen, words: tuple[str, ...], program: str, pipe: Path) -> None:
        self._parent = parent
        os.mkfifo(pipe)
        parent.stdin.write(json.dumps([words, program, str(pipe)]) + "\n")
        parent.stdin.flush()
        self.pid = int(parent.stdout.readline())
        self.stdout: IO[str] = pipe.open()
        self.returncode: int | None = None

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Its exit code, or minus the number of the signal that ended it."""
        if self.returncode is None:
            self.returncode = int(self._parent.stdout.readline())
            self.stdout.close()
        return self.returncode

    def communicate(self) -> str:
        """All that it prints until it has ended."""
        said = self.stdout.read()
        self.wait()
        return said


class Forks:
    """Starts programs, one after the other."""

    def __init__(self, parent: subprocess.Popen, folder: Path) -> None:
        self._parent, self._folder, self._runs = parent, folder, 0

    def run(self, *words: str, program: str) -> Run:
        self._runs += 1
        return Run(self._parent, words, program, self._folder / str(self._runs))


@contextmanager
def forks(imports: str, env: dict[str, str] | None = None) -> Iterator[Forks]:
    """A process with the lines ``imports`` behind it, while the block lasts; its runs end with it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", SOURCE.format(imports=imports)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        parent = subprocess.Popen(command, cwd=CHECKOUT, env=env, preexec_fn=end_with_us, **pipes)
        try:
            yield Forks(parent, Path(folder))
        finally:
            parent.kill()
            parent.wait()
