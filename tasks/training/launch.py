"""A training as processes of its own: torchrun and its ranks are started, listened to, and ended where they hang."""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from storage.errors import InputError
from tasks import pool
from tasks.training.spec import Placement

CHECKOUT = Path(__file__).resolve().parent.parent.parent
SIDE_BY_SIDE = 2  # trainings at a time; each has its share of the cores
TAIL = 60  # lines of a failed training that are shown
LAST_WORDS = 3.0  # seconds for ranks that hang to say where


class TrainingFailed(RuntimeError):
    """A training ended without its last checkpoint; the message holds the end of its log.

    ``clips`` are those of the batches that led there, by step, where it diverged.
    """

    def __init__(self, message: str, clips: dict[str, list[str]] | None = None) -> None:
        super().__init__(message)
        self.clips = clips or {}


def command(spec: str, name: str, placement: Placement, *more: str) -> list[str]:
    """What starts the ranks of this node; ``spec`` is the file or URL of the Spec."""
    meeting = ["--standalone"]
    if placement.nodes > 1:
        meeting = [f"--nnodes={placement.nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={placement.rendezvous}"]
        meeting += [f"--rdzv-id={name}", f"--local-addr={_address(placement.rendezvous)}"]
    started = [sys.executable, "-m", "torch.distributed.run", *meeting, f"--nproc-per-node={placement.ranks}"]
    # Whoever waits in vain for another rank gives up after the launcher has, which can say more.
    limits = ["--sharding", placement.sharding, "--patience", str(2 * placement.patience)]
    return [*started, "-m", "tasks.train_rank", "--spec", spec, "--name", name, *limits, *more]


def _address(rendezvous: str) -> str:
    """This machine's address on the way to the rendezvous: its name may mean nothing to other machines."""
    host, _, port = rendezvous.rpartition(":")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
            way.connect((host, int(port)))  # sends nothing
            return str(way.getsockname()[0])
    except (OSError, ValueError) as error:
        raise InputError(f"--rendezvous {rendezvous}: no HOST:PORT that can be reached ({error})") from error


def environment(ranks: int) -> dict[str, str]:
    """That of the ranks: each has its share of the cores."""
    # Huge pages make the large activations of 3-D convolutions about twice as fast to come by on a CPU.
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": str(max(1, pool.workers() // (SIDE_BY_SIDE * ranks))),
        "THP_MEM_ALLOC_ENABLE": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }


class Running:
    """Ranks under way on this node."""

    def __init__(self, words: list[str], title: str, placement: Placement) -> None:
        self.title, self.patience = title, placement.patience
        self.tail: deque[str] = deque(maxlen=TAIL)
        self.failure: dict[str, Any] = {}
        self._said: queue.Queue[str | None] = queue.Queue()
        self.process = subprocess.Popen(
            words, cwd=CHECKOUT, env=environment(placement.ranks), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._said.put(line.rstrip())
        self._said.put(None)

    def reports(self) -> Iterator[dict[str, Any]]:
        """What the first rank reports, until the end. Raises `TrainingFailed` with the end of the log."""
        while (line := self._next()) is not None:
            self.tail.append(line)
            with suppress(ValueError):
                said = json.loads(line)
                if isinstance(said, dict) and "event" in said:
                    if said["event"] == "failed":
                        self.failure = said
                    yield said
        if self.process.wait() != 0:
            raise self._failed(f"ended with exit code {self.process.returncode}")

    def _next(self) -> str | None:
        try:
            return self._said.get(timeout=self.patience)
        except queue.Empty:
            ranks = self._ranks()
            states = ", ".join(f"pid {rank.pid} {_state(rank)}" for rank in ranks) or "none is left"
            self._ask(ranks)
            self.end()
            raise self._failed(f"said nothing for {self.patience:.0f} s and was ended; its ranks: {states}") from None

    def _ask(self, ranks: list[psutil.Process]) -> None:
        """Has ranks that hang write where; what they say is part of the log."""
        for rank in ranks:
            with suppress(psutil.NoSuchProcess):
                rank.send_signal(signal.SIGUSR1)
        until = time.monotonic() + LAST_WORDS
        with suppress(queue.Empty):
            while (left := until - time.monotonic()) > 0 and (line := self._said.get(timeout=left)) is not None:
                self.tail.append(line)

    def _ranks(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return [p for p in psutil.Process(self.process.pid).children(recursive=True) if _is_rank(p)]
        return []

    def end(self) -> None:
        """Kills what still runs: a rank that is stopped hears nothing else."""
        with suppress(psutil.NoSuchProcess):
            agent = psutil.Process(self.process.pid)
            found = [agent, *agent.children(recursive=True)]
            for process in found:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(found, timeout=LAST_WORDS)
        self.process.wait()

    def _failed(self, what: str) -> TrainingFailed:
        why = f": {self.failure['message']}" if self.failure else ""
        log = "\n".join(self.tail)
        return TrainingFailed(f"{self.title} {what}{why}\nthe end of its log:\n{log}", self.failure.get("clips"))


def _is_rank(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return "tasks.train_rank" in process.cmdline()
    return False


def _state(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return process.status()
    return "gone"


@contextmanager
def running(words: list[str], title: str, placement: Placement) -> Iterator[Running]:
    """Ranks that run while the block does."""
    started = Running(words, title, placement)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                started.process.wait(10)
            started.end()
