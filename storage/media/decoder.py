"""The decoder child: `python -m storage.media.decoder`, started by the `sandbox` and killed by it when it has to be.

Messages on stdin and stdout are a 12-byte head (JSON length, blob length), a JSON object and a blob. Nothing is
pickled in either direction, so even a decoder taken over by a hostile file cannot make its parent run code.
"""

import ctypes
import errno
import json
import os
import resource
import signal
import struct
import sys
import time
from typing import Any, BinaryIO

HEAD = struct.Struct("<IQ")
STORE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE)
PR_SET_PDEATHSIG = 1
AHEAD = 4 << 20  # bytes of frames that wait to be handed over


def environment(checkout: str) -> dict[str, str]:
    """A bare environment for a process that meets foreign files: no credentials, one thread, this checkout's code."""
    kept = ("PATH", "LD_LIBRARY_PATH", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "TMPDIR")
    found = {name: os.environ[name] for name in kept if name in os.environ}
    return found | {"PYTHONPATH": checkout, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "LANG": "C.UTF-8"}


def die_with(parent: int) -> None:
    """Ends this process when the thread that started it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # the parent died before the line above


def send(pipe: BinaryIO, message: dict[str, Any], *blob: bytes | memoryview) -> None:
    """Writes one message; its blob may come in pieces."""
    text = json.dumps(message).encode()
    pipe.write(HEAD.pack(len(text), sum(map(len, blob))) + text)
    for piece in blob:
        pipe.write(piece)
    pipe.flush()


def receive(pipe: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """Reads one message; EOFError at the end of the stream."""
    head = pipe.read(HEAD.size)
    if len(head) < HEAD.size:
        raise EOFError
    text, blob = HEAD.unpack(head)
    return json.loads(pipe.read(text)), pipe.read(blob)


def _confine(memory: int, parent: int) -> None:
    """Dies with the parent, and gets no more address space than ``memory`` bytes."""
    die_with(parent)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class _Beat:
    """Tells the parent, at most twice a second, that work goes on."""

    def __init__(self, pipe: BinaryIO) -> None:
        self.pipe, self.last = pipe, 0.0

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self.last > 0.5:
            self.last = now
            send(self.pipe, {"beat": True})


class _Frames:
    """Hands frames over while the next ones are decoded, some megabytes at a time."""

    def __init__(self, pipe: BinaryIO) -> None:
        self.pipe, self.waiting, self.size = pipe, list[Any](), 0

    def take(self, frame: Any) -> None:
        self.waiting.append(frame)
        self.size += frame.nbytes
        if self.size >= AHEAD:
            self.flush()

    def flush(self) -> None:
        import numpy as np

        if self.waiting:
            shape = (len(self.waiting), *self.waiting[0].shape)
            send(self.pipe, {"part": shape}, *(np.ascontiguousarray(frame).reshape(-1).data for frame in self.waiting))
            self.waiting, self.size = [], 0

    def forget(self) -> None:
        """Has those that were handed over forgotten as well."""
        self.waiting, self.size = [], 0
        send(self.pipe, {"part": []})


def _answer(message: dict[str, Any], blob: bytes, pipe: BinaryIO) -> tuple[Any, ...]:
    """The answer to a message, and the pieces of its blob."""
    import numpy as np

    from storage.errors import StoreError
    from storage.media import copying, probing, sampling
    from storage.media.limits import Limits, Rejected

    call, options = message["call"], message["options"]
    beat = _Beat(pipe)
    if "limits" in options:
        options["limits"] = Limits(**options["limits"])
    try:
        if call == "sample":
            frames = _Frames(pipe)
            kept, times = sampling.picked(blob, frames.take, frames.forget, beat=beat, **options)
            frames.flush()
            return {"kept": kept, "times": times}, b""
        if call == "score":
            from storage.media import scores

            return scores.pack(scores.measure(blob, beat=beat, **options))
        if call == "cut":
            return {"result": copying.cut_any(beat=beat, **options)}, b""
        if call == "probe":
            return {"result": probing.probe(beat=beat, **options)}, b""
        if call == "thumbnails":
            for some, moments in sampling.thumbnails(beat=beat, **options):
                send(pipe, {"part": moments.tolist()}, np.ascontiguousarray(some).reshape(-1).data)
            return {"result": "done"}, b""
        raise LookupError(call)
    except Rejected as error:
        return {"reason": error.reason, "detail": error.detail, "kind": error.kind}, b""
    except StoreError as error:
        return {"error": str(error)}, b""
    except MemoryError:
        return {"reason": "oom", "detail": "memory limit reached", "kind": "MemoryError"}, b""
    except OSError as error:
        if error.errno in STORE_ERRORS:  # ours to mend, never the video's fault
            return {"error": f"{type(error).__name__}: {error}"}, b""
        if error.errno in (errno.ENOMEM, errno.EAGAIN):  # EAGAIN: no room for the stack of a thread
            return {"reason": "oom", "detail": str(error), "kind": type(error).__name__}, b""
        return _failed(error), b""
    except Exception as error:
        return _failed(error), b""


def _failed(error: Exception) -> dict[str, Any]:
    kind = type(error).__name__
    return {"reason": "decode_error", "detail": f"{kind}: {error}", "kind": kind}


def main() -> None:
    memory, parent = int(sys.argv[1]), int(sys.argv[2])
    _confine(memory, parent)
    # FFmpeg and libraries may print; what is a message must not be mixed with that.
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            message, blob = receive(sys.stdin.buffer)
        except EOFError:
            return
        send(pipe, *_answer(message, blob, pipe))


if __name__ == "__main__":
    main()
