"""How a checkpoint scores the clips of a part: each alone, within its whole video, or by a column's features.

A video that lies in several parts is opened once a process and not once a part, while its parts follow each other.
Letters: T frames of a clip at its source's rate, K classes.
"""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import numpy as np
from cachetools import LRUCache, cached
from torch import Tensor, nn

from storage.checkpoints import Checkpoint
from storage.errors import InputError
from storage.parts import Part
from tasks.loader import CACHE_BYTES, Decoded, Footage, decode
from tasks.samples import source_times
from tasks.scorer import Context, at_source_rate, frame_logits, load, sequence_logits, takes
from tasks.videos import Clip, Features, Whole, columned, identity, videos, whole

OPEN = 4  # videos that lie in several parts
Scored = tuple[np.ndarray, np.ndarray]  # times [T] on the source clock, scores [T, K]
View = Callable[[Part, dict[str, Any]], Scored]


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
    if len({part.id for part, _ in clips}) == 1:  # nobody else will ask
        return _of_video(root, checkpoint, clips, CACHE_BYTES)
    return _shared(root, checkpoint, clips)


@cached(
    LRUCache(OPEN),
    lambda root, checkpoint, clips: (root, checkpoint.url, checkpoint.digest, clips[0][1]["path"], identity(clips)),
    condition=threading.Condition(),
)
def _shared(root: str, checkpoint: Checkpoint, clips: list[Clip]) -> View:
    """The view of a video whose clips lie in several parts, made once for the threads that work on these."""
    return _of_video(root, checkpoint, clips, CACHE_BYTES // OPEN)


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
