"""Checkpoints written beside the training: one at a time, tried again where the store fails, in the order of steps."""

import errno
import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

from torch import Tensor

from storage import checkpoints
from storage.errors import StoreError
from tasks.training.threads import beside

WAITS = (1.0, 4.0, 15.0, 40.0)  # seconds between attempts; the store's own client has tried several times in each
FULL = (errno.ENOSPC, errno.EDQUOT)


class Saver:
    """Commits checkpoints of a run in a thread. Its errors reach who asks, at the next step or the next checkpoint."""

    def __init__(self, root: str, run: str, about: dict[str, Any]) -> None:
        self.root, self.run, self.about = root, run, about
        self.committed = 0  # the newest step
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reelmill-saver", initializer=beside)
        self._writing: Future[None] | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self.wait()
        except Exception:
            if error is None:  # else the training's own error is the one to tell
                raise
        finally:
            self._thread.shutdown()

    def save(self, step: int, weights: dict[str, Tensor], state: dict[str, Any], final: bool) -> None:
        """Begins to write a checkpoint of tensors that nobody changes; waits for the one before."""
        self.wait()
        self._writing = self._thread.submit(self._commit, step, weights, state, final)

    def check(self) -> None:
        """Raises what went wrong with a checkpoint, if that is known by now."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Waits for the checkpoint that is being written; raises what went wrong with it."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _commit(self, step: int, weights: dict[str, Tensor], state: dict[str, Any], final: bool) -> None:
        for wait in (*WAITS, None):
            try:
                checkpoints.save(self.root, self.run, step, weights, state, self.about, final)
                self.committed = step
                checkpoints.prune(self.root, self.run)
                return
            except (StoreError, OSError) as error:
                if wait is None:
                    raise StoreError(self._said(step, error)) from error
                time.sleep(wait)

    def _said(self, step: int, error: Exception) -> str:
        why = "there is no room" if getattr(error, "errno", None) in FULL else "the store fails"
        then = f"the next run goes on from step {self.committed}" if self.committed else "the next run begins anew"
        url = checkpoints.folder(self.root, self.run)
        tried = f"{len(WAITS) + 1} times in {sum(WAITS):.0f} s"
        return f"{why} for the checkpoint of step {step} under {url}, tried {tried} ({error}); {then}"
