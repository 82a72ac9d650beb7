"""Decoding in a child process that can be killed: under limits of time, memory, frames and size.

A `Sandbox` runs one call at a time in one child. A child that dies, stalls or runs out of memory costs the file it
was working on and nothing else: the call raises `Rejected` and the next call gets a new child.
"""

import fcntl
import json
import math
import mmap
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from storage.errors import StoreError
from storage.media import scores, suspects
from storage.media.decoder import HEAD, environment
from storage.media.limits import REASONS, Limits, Rejected
from storage.media.scores import Scores
from storage.timing import during

CHECKOUT = str(Path(__file__).resolve().parent.parent.parent)
PIPE = 1 << 20  # bytes that a child may be ahead
ROOM = 1 << 20  # bytes that frames have at first
Take = Callable[[Any, Any], None]
Room = Callable[[int], Any]  # bytes wanted: a buffer of them
_local = threading.local()


@dataclass
class Sandbox:
    """One decoder child. ``stall`` is in seconds without a sign of life, ``memory`` in bytes of address space."""

    stall: float = 30.0
    memory: int = 3 << 30
    limits: Limits = field(default_factory=Limits)
    child: subprocess.Popen | None = None

    def _start(self) -> subprocess.Popen:
        env = environment(CHECKOUT)
        command = [sys.executable, "-m", "storage.media.decoder", str(self.memory), str(os.getpid())]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        child = subprocess.Popen(command, **pipes, env=env, cwd="/", bufsize=0)  # type: ignore[call-overload]
        os.set_blocking(child.stdin.fileno(), False)  # a stopped child must not stop us
        with suppress(OSError):  # frames are large; fewer turns for them where the system allows it
            fcntl.fcntl(child.stdout.fileno(), fcntl.F_SETPIPE_SZ, PIPE)
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

    @during("decode")
    def call(
        self,
        call: str,
        options: dict[str, Any],
        blob: bytes = b"",
        take: Take | None = None,
        room: Room = bytearray,
    ) -> tuple[dict[str, Any], bytearray]:
        """Runs a call of `storage.media.decoder`; raises `Rejected` for the file's faults, `StoreError` for ours.

        ``take(part, blob)`` is handed the parts of an answer that comes in many; blobs are read into ``room(bytes)``.
        """
        if self.child is None or self.child.poll() is not None:
            self.close()
            self.child = self._start()
        try:
            self._send({"call": call, "options": options}, blob)
            answer, data = self._receive(room)
            while "beat" in answer or "part" in answer:
                if take and "part" in answer:
                    take(answer["part"], data)
                del data  # what it is a view of may have to grow
                answer, data = self._receive(room)
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
            raise Rejected(answer["reason"], str(answer.get("detail", "")), str(answer.get("kind", "")))
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

    def _receive(self, room: Room) -> tuple[dict[str, Any], Any]:
        text, blob = HEAD.unpack(self._read(HEAD.size))
        if max(text, blob) > self.memory:
            raise ValueError("longer than the child's memory")
        answer = json.loads(self._read(text))
        if not isinstance(answer, dict):
            raise ValueError("no object")
        return answer, self._read(blob, room)

    def _read(self, size: int, room: Room = bytearray) -> Any:
        assert self.child is not None
        data = room(size)
        rest = memoryview(data)
        while rest:
            count = os.readv(self._ready(self.child.stdout, select.POLLIN), [rest])
            if not count:
                raise EOFError
            rest = rest[count:]
        return data

    def cut(
        self,
        path: str,
        folder: Path,
        *,
        span: float,
        short_side: int,
        window: tuple[float, float | None] | None = None,
        bounds: Sequence[float] | None = None,
        mode: str = "exact",
        tail: float = 1.0,
    ) -> list[dict[str, Any]]:
        """`storage.media.copying.cut_any` in the child: mode "exact", or "copy" where the source can be copied."""
        if mode not in ("exact", "copy"):
            raise ValueError(f'mode is "exact" or "copy", not {mode!r}')
        options = {"path": path, "folder": str(folder), "span": span, "short_side": short_side, "tail": tail}
        options |= {"window": window, "bounds": None if bounds is None else [float(b) for b in bounds], "mode": mode}
        return self._twice("cut", options)[0]["result"]

    def probe(self, path: str, **options: int) -> dict[str, Any]:
        """`storage.media.probing.probe` in the child."""
        return self._twice("probe", {"path": path, **options})[0]["result"]

    def thumbnails(
        self,
        path: str,
        *,
        size: tuple[int, int] = (27, 48),
        window: tuple[float, float | None] | None = None,
        fps: float | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """`storage.media.sampling.thumbnails` in the child: all frames `[T, *size, 3]` uint8 and their times `[T]`."""
        frames: list[np.ndarray] = []
        times: list[np.ndarray] = []

        def take(part: Any, blob: bytearray) -> None:
            times.append(np.asarray(part, float))
            frames.append(np.frombuffer(blob, np.uint8).reshape(len(part), *size, 3))

        def afresh() -> None:
            times.clear()
            frames.clear()

        options = {"path": path, "size": size, "window": window, "fps": fps}
        self._twice("thumbnails", options, take=take, afresh=afresh)
        return np.concatenate(frames), np.concatenate(times)

    def _twice(
        self,
        call: str,
        options: dict[str, Any],
        blob: bytes = b"",
        take: Take | None = None,
        room: Room = bytearray,
        afresh: Callable[[], None] = lambda: None,
    ) -> tuple[dict[str, Any], bytearray]:
        """`call`, once more where the child crashed, to spare who only sat beside the cause."""
        options["limits"] = asdict(self.limits)
        try:
            return self.call(call, options, blob, take, room)
        except Rejected as rejected:
            if rejected.reason != "decoder_crash":
                raise
        afresh()  # and not within the handler, where the crash still holds views of what may have to grow
        return self.call(call, options, blob, take, room)

    def sample(self, data: bytes, fps: float | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`sampling.sample` in the child: frames `[T, H, W, 3]` uint8, their times and all frames' times."""
        frames = _Frames(self.memory)
        answer, _ = self._twice("sample", {"fps": fps}, data, frames.take, frames.room, frames.clear)
        try:
            found, kept = frames.whole(), np.asarray(answer["kept"], float)
            if len(found) != len(kept):
                raise ValueError("frames and times differ in number")
            return found, kept, np.asarray(answer["times"], float)
        except (ValueError, TypeError, KeyError) as error:
            raise Rejected("decoder_crash", f"an answer that is none ({error})") from error

    def score(self, data: bytes) -> tuple[Scores, np.ndarray, np.ndarray]:
        """`storage.media.scores.measure` in the child: scores and the two halves of the signature."""
        answer, blob = self._twice("score", {}, data)
        try:
            return scores.unpack(answer, bytes(blob))
        except (ValueError, TypeError, KeyError) as error:
            raise Rejected("decoder_crash", f"an answer that is none ({error})") from error


class _Frames:
    """Frames that come in parts, read into one array; it grows without its bytes being moved or touched before."""

    def __init__(self, most: int) -> None:
        self.most, self.used, self.shape = most, 0, (0, 0, 0, 0)
        self.memory = mmap.mmap(-1, ROOM, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def room(self, size: int) -> memoryview:
        """Where the next ``size`` bytes go."""
        if self.used + size > self.most:
            raise Rejected("oom", f"more than {self.most >> 20} MB of frames")
        if self.used + size > len(self.memory):
            self.memory.resize(max(2 * len(self.memory), self.used + size))
        return memoryview(self.memory)[self.used : self.used + size]

    def take(self, part: Any, blob: memoryview) -> None:
        if not part:  # what came by now comes once more
            return self.clear()
        count, *size = part
        if len(size) != 3 or (self.used and tuple(size) != self.shape[1:]) or math.prod(part) != len(blob):
            raise ValueError("frames of another size")
        self.used += len(blob)
        self.shape = (self.shape[0] + count, *size)

    def clear(self) -> None:
        self.used, self.shape = 0, (0, 0, 0, 0)

    def whole(self) -> np.ndarray:
        # Few bytes leave the map: a process may have no more than some ten thousand of them.
        kept = self.memory if self.used > ROOM else bytearray(memoryview(self.memory)[: self.used])
        return np.frombuffer(kept, np.uint8, self.used).reshape(self.shape)


def mine() -> Sandbox:
    """The calling thread's own sandbox; its child dies with the thread."""
    if not hasattr(_local, "sandbox"):
        _local.sandbox = Sandbox()
    return _local.sandbox


def cut_alone(path: str, folder: Path, **options: Any) -> list[dict[str, Any]]:
    """`Sandbox.cut` in a process of its own between us and the decoder, for files that took down a worker before.

    Raises `Rejected` ("worker_killed") where that process dies, and whatever `Sandbox.cut` raises.
    """
    return suspects.run(path, folder, options, CHECKOUT)
