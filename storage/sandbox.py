"""Decoding in a child process that can be killed: under limits of time, memory, frames and size.

A `Sandbox` runs one call at a time in one child. A child that dies, stalls or runs out of memory costs the file it
was working on and nothing else: the call raises `Rejected` and the next call gets a new child.
"""

import os
import selectors
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from storage.decoder import receive, send
from storage.errors import StoreError
from storage.video import Limits, Rejected

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
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
            cwd="/",
        )

    def close(self) -> None:
        """Ends the child."""
        if self.child is not None:
            self.child.kill()
            self.child.wait()
            for pipe in (self.child.stdin, self.child.stdout):
                if pipe:
                    pipe.close()
            self.child = None

    def call(self, call: str, options: dict[str, Any], blob: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """Runs a call of `storage.decoder`; raises `Rejected` for the file's faults, `StoreError` for ours."""
        if self.child is None or self.child.poll() is not None:
            self.close()
            self.child = self._start()
        try:
            assert self.child.stdin is not None
            send(self.child.stdin, {"call": call, "options": options}, blob)
            answer, data = self._await()
        except (BrokenPipeError, EOFError) as error:
            code = self.child.wait()
            self.close()
            raise Rejected("decoder_crash", f"exit code {code}") from error
        if "error" in answer:
            raise StoreError(answer["error"])
        if "reason" in answer:
            raise Rejected(answer["reason"], answer["detail"])
        return answer, data

    def _await(self) -> tuple[dict[str, Any], bytes]:
        assert self.child is not None and self.child.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.child.stdout.raw, selectors.EVENT_READ)  # type: ignore[attr-defined]
            while True:
                buffered = bool(self.child.stdout.peek(1)) if selector.select(self.stall) else None
                if buffered is None:
                    self.close()
                    raise Rejected("timeout", f"no sign of life for {self.stall:g} s")
                answer, data = receive(self.child.stdout)
                if "beat" not in answer:
                    return answer, data

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
        frames = np.frombuffer(blob, np.uint8).reshape(answer["shape"])
        return frames, np.asarray(answer["kept"]), np.asarray(answer["times"])


def mine() -> Sandbox:
    """The calling thread's own sandbox; its child dies with the thread."""
    if not hasattr(_local, "sandbox"):
        _local.sandbox = Sandbox()
    return _local.sandbox
