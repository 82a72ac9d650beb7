"""Decoding in a child process that can be killed: under limits of time, memory, frames and size.

A `Sandbox` runs one call at a time in one child. A child that dies, stalls or runs out of memory costs the file it
was working on and nothing else: the call raises `Rejected` and the next call gets a new child.
"""

import json
import os
import select
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from storage import scores
from storage.decoder import HEAD
from storage.errors import StoreError
from storage.scores import Scores
from storage.video import REASONS, Limits, Rejected

CHECKOUT = str(Path(__file__).resolve().parent.parent)
_local = threading.local()


@dataclass
class Sandbox:
    """One decoder child. ``stall`` is in seconds without a sign of life, ``memory`` in bytes of address space."""

    stall: float = 30.0
    memory: int = 3 << 30
    limits: Limits = field(default_factory=Limits)
    child: subprocess.Popen | None = None

    def _start(self) -> subprocess.Popen:
        # A bare environment: no credentials, one thread, this checkout's code.
        env = {
            "PATH": os.environ.get("PATH", ""),
            "PYTHONPATH": CHECKOUT,
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "LANG": "C.UTF-8",
        }
        for name in ("LD_LIBRARY_PATH", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "TMPDIR"):
            if name in os.environ:
                env[name] = os.environ[name]
        command = [sys.executable, "-m", "storage.decoder", str(self.memory), str(os.getpid())]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        child = subprocess.Popen(command, **pipes, env=env, cwd="/", bufsize=0)  # type: ignore[call-overload]
        os.set_blocking(child.stdin.fileno(), False)  # a stopped child must not stop us
        return child

    def close(self) -> None:
        """Ends the child."""
        if self.child is not None:
            self.child.kill()
            self.child.wait()
            for pipe in (self.child.stdin, self.child.stdout):
                if pipe:
                    pipe.close()
            self.child = None

    def call(self, call: str, options: dict[str, Any], blob: bytes = b"") -> tuple[dict[str, Any], bytearray]:
        """Runs a call of `storage.decoder`; raises `Rejected` for the file's faults, `StoreError` for ours."""
        if self.child is None or self.child.poll() is not None:
            self.close()
            self.child = self._start()
        try:
            self._send({"call": call, "options": options}, blob)
            answer, data = self._receive()
            while "beat" in answer:
                answer, data = self._receive()
            if answer.get("reason", "oom") not in REASONS:
                raise ValueError("an unknown reason")
        except (BrokenPipeError, EOFError) as error:
            code = self.child.wait()
            self.close()
            raise Rejected("decoder_crash", f"exit code {code}") from error
        except TimeoutError as error:
            self.close()
            raise Rejected("timeout", f"no sign of life for {self.stall:g} s") from error
        except (ValueError, TypeError, MemoryError) as error:
            self.close()
            raise Rejected("decoder_crash", f"an answer that is none ({error})") from error
        except BaseException:
            self.close()  # an interrupt in the middle of a message: the next call must not read its rest
            raise
        if "error" in answer:
            raise StoreError(str(answer["error"]))
        if "reason" in answer:
            raise Rejected(answer["reason"], str(answer.get("detail", "")))
        return answer, data

    def _ready(self, pipe: Any, event: int) -> int:
        """Waits until the child takes or gives bytes; TimeoutError when it stalls."""
        poll = select.poll()
        poll.register(pipe, event)
        if not poll.poll(self.stall * 1000):
            raise TimeoutError
        return pipe.fileno()

    def _send(self, message: dict[str, Any], blob: bytes) -> None:
        assert self.child is not None
        text = json.dumps(message).encode()
        for data in (HEAD.pack(len(text), len(blob)) + text, blob):
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._ready(self.child.stdin, select.POLLOUT), rest) :]

    def _receive(self) -> tuple[dict[str, Any], bytearray]:
        text, blob = HEAD.unpack(self._read(HEAD.size))
        if max(text, blob) > self.memory:
            raise ValueError("longer than the child's memory")
        answer = json.loads(self._read(text))
        if not isinstance(answer, dict):
            raise ValueError("no object")
        return answer, self._read(blob)

    def _read(self, size: int) -> bytearray:
        assert self.child is not None
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            count = os.readv(self._ready(self.child.stdout, select.POLLIN), [rest])
            if not count:
                raise EOFError
            rest = rest[count:]
        return data

    def cut(self, path: str, folder: Path, *, span: float, short_side: int) -> list[dict[str, Any]]:
        """`storage.video.cut` in the child. A crash is tried once more, to spare who only sat beside the cause."""
        options = {"path": path, "folder": str(folder), "span": span, "short_side": short_side}
        options["limits"] = asdict(self.limits)
        try:
            answer, _ = self.call("cut", options)
        except Rejected as rejected:
            if rejected.reason != "decoder_crash":
                raise
            answer, _ = self.call("cut", options)
        return answer["result"]

    def sample(self, data: bytes, fps: float | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`storage.video.sample` in the child: frames `[T, H, W, 3]` uint8, their times and all frames' times."""
        answer, blob = self.call("sample", {"fps": fps}, data)
        try:
            frames = np.frombuffer(blob, np.uint8).reshape(answer["shape"])
            return frames, np.asarray(answer["kept"], float), np.asarray(answer["times"], float)
        except (ValueError, TypeError, KeyError) as error:
            raise Rejected("decoder_crash", f"an answer that is none ({error})") from error

    def score(self, data: bytes) -> tuple[Scores, np.ndarray, np.ndarray]:
        """`storage.scores.measure` in the child: scores and the two halves of the signature."""
        answer, blob = self.call("score", {}, data)
        try:
            return scores.unpack(answer, blob)
        except (ValueError, TypeError, KeyError) as error:
            raise Rejected("decoder_crash", f"an answer that is none ({error})") from error


def mine() -> Sandbox:
    """The calling thread's own sandbox; its child dies with the thread."""
    if not hasattr(_local, "sandbox"):
        _local.sandbox = Sandbox()
    return _local.sandbox
