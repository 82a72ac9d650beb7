"""How a checkpoint scores the clips of a part: each alone, within its whole video, or by a column's features.

A video that lies in several parts is opened once a process and not once a part, while its parts follow each other.
Letters: T frames of a clip at its source's rate, K classes.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any, Generic, TypeVar, cast

import numpy as np
from torch import Tensor, nn

from storage.checkpoints import Checkpoint
from storage.errors import InputError
from storage.parts import Part
from tasks.loader import CACHE_BYTES, Decoded, Footage, decode
from tasks.samples import source_times
from tasks.scorer import Context, at_source_rate, frame_logits, load, sequence_logits, takes
from tasks.videos import Clip, Features, Whole, columned, videos, whole

OPEN = 4  # videos that lie in several parts
Value = TypeVar("Value")
Scored = tuple[np.ndarray, np.ndarray]  # times [T] on the source clock, scores [T, K]
View = Callable[[Part, dict[str, Any]], Scored]


class Latest(Generic[Value]):
    """The values of the keys asked for last; each is made once, also where threads ask for it together."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._made: OrderedDict[Hashable, Future[Value]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of a key; where making it fails, whoever waits for it is told, and the next one tries again."""
        with self._lock:
            found = self._made.get(key)
            future = found or Future()
            self._made[key] = future
            self._made.move_to_end(key)
            while len(self._made) > self.most:
                self._made.popitem(last=False)
        if found is None:
            try:
                future.set_result(make())
            except BaseException as error:
                with self._lock:
                    self._made.pop(key, None)
                future.set_exception(error)
        return future.result()


_open: Latest[View] = Latest(OPEN)


def scored(
    root: str, part: Part, todo: list[dict[str, Any]], checkpoint: Checkpoint, others: list[Part]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields the key, times `[T]` on the source clock and scores `[T, K]` of some clips of a part.

    Systems that see whole videos look for the rest of these in the ``others``.
    """
    alone = takes(checkpoint.about) == "clip"
    clips_of = {} if alone or not todo else videos([part, *others])
    path, view = "", cast(View, partial(_alone, checkpoint))
    for row in todo if alone else sorted(todo, key=lambda row: row["path"]):
        if not alone and path != row["path"]:
            path = row["path"]
            view = _view(root, checkpoint, clips_of[path])
        yield row["key"], *view(part, row)


def _view(root: str, checkpoint: Checkpoint, clips: list[Clip]) -> View:
    holders = sorted({part.id for part, _ in clips})
    if len(holders) == 1:  # nobody else will ask
        return _of_video(root, checkpoint, clips, CACHE_BYTES)
    key = (root, checkpoint.url, checkpoint.digest, clips[0][1]["path"], *holders)
    return _open.get(key, lambda: _of_video(root, checkpoint, clips, CACHE_BYTES // OPEN))


def _of_video(root: str, checkpoint: Checkpoint, clips: list[Clip], most: int) -> View:
    """The view of a video's clips; decoded ones are kept in ``most`` bytes."""
    spec = checkpoint.about["spec"]
    if takes(checkpoint.about) == "features":
        video = Features(root, spec["features"]).video(clips)
        logits = sequence_logits(load(checkpoint.url), video.features, spec["frames"]).numpy()
        return partial(_of_features, logits, video.times)
    footage = Footage(spec["fps"], spec["size"], most)
    context = Context(_seen(root, spec, clips) or whole(clips, footage, spec["whole"]))
    return partial(_within, load(checkpoint.url), checkpoint, context, footage)


def _seen(root: str, spec: dict[str, Any], clips: list[Clip]) -> Whole | None:
    """The video as the column has it that a system was trained on; the same is computed of one that has none there."""
    if not spec.get("fine"):
        return None
    try:
        return columned(root, spec["fine"], spec["options"]["cells"]).video(clips)
    except InputError:
        return None


def _alone(checkpoint: Checkpoint, part: Part, row: dict[str, Any]) -> Scored:
    spec = checkpoint.about["spec"]
    clip = decode(part, row, spec["fps"], spec["size"])
    return _scores(row, clip, frame_logits(load(checkpoint.url), clip.frames, spec["frames"]))


def _within(
    model: nn.Module, checkpoint: Checkpoint, context: Context, footage: Footage, part: Part, row: dict[str, Any]
) -> Scored:
    clip, start = footage.clip(part, row), context.whole.begins[row["key"]]
    return _scores(row, clip, frame_logits(model, clip.frames, checkpoint.about["spec"]["frames"], context, start))


def _of_features(logits: np.ndarray, sampled: np.ndarray, part: Part, row: dict[str, Any]) -> Scored:
    times = row["start"] + source_times(row)
    return times, at_source_rate(logits, sampled, times)


def _scores(row: dict[str, Any], clip: Decoded, logits: Tensor) -> Scored:
    return clip.times + row["start"], at_source_rate(logits.numpy(), clip.sampled, clip.times)
