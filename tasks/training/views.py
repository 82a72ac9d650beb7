"""How a checkpoint scores the clips of a part: with those around them, within their whole video, or by a column.

A video that lies in several parts is opened once a process and not once a part, while its parts follow each other.
Letters: T frames of a clip at its source's rate, K classes.
"""

import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from cachetools import LRUCache, cached
from torch import Tensor

from storage.checkpoints import Checkpoint
from storage.errors import Damaged, InputError
from storage.parts import Part
from tasks.scorer import Context, alone, answer, at_source_rate, device, load, sequence_logits, takes
from tasks.training import stretches
from tasks.training.loader import CACHE_BYTES, Decoded, Footage, decode
from tasks.training.samples import source_times
from tasks.training.stretches import Ends, Scored
from tasks.training.videos import Clip, Features, Neighbours, Whole, columned, identity, whole

OPEN = 4  # videos that lie in several parts
INDEXES = 64  # of parts


def scored(root: str, unit: Neighbours, todo: list[dict[str, Any]], checkpoint: Checkpoint) -> Iterator[Scored]:
    """Yields the key, times `[T]` on the source clock and scores `[T, K]` of some clips of a part.

    The rest of their videos is looked for in its neighbours.
    """
    alone()
    wanted: dict[str, set[str]] = defaultdict(set)
    for row in todo:
        wanted[row["path"]].add(row["key"])
    kind = takes(checkpoint.about)
    ends = _ends(checkpoint, None, 0) if kind == "clip" else None  # one whole video does not go with another's windows
    for path, clips in _videos(unit, wanted).items():
        if kind == "features":
            yield from _by_features(root, unit.part, checkpoint, clips, wanted[path])
        else:
            yield from _seen_in(root, unit.part, checkpoint, clips, wanted[path], ends)
    if ends is not None:
        yield from ends.flush()


def _videos(unit: Neighbours, wanted: dict[str, set[str]]) -> dict[str, list[Clip]]:
    """The clips of some sources, in the order of their clocks, wherever they lie."""
    found: dict[str, list[Clip]] = {path: [] for path in sorted(wanted)}
    for one in sorted([unit.part, *unit.others], key=lambda part: part.id):
        for row in _rows(one):
            if row["path"] in found:
                found[row["path"]].append((one, row))
    return {path: sorted(clips, key=lambda clip: clip[1]["start"]) for path, clips in found.items()}


@lru_cache(maxsize=INDEXES)
def _rows(part: Part) -> list[dict[str, Any]]:
    return part.rows()


def _by_features(
    root: str, part: Part, checkpoint: Checkpoint, clips: list[Clip], wanted: set[str]
) -> Iterator[Scored]:
    logits, clock = _sequence(root, checkpoint, clips)
    for _, row in clips:
        if row["key"] in wanted:
            times = row["start"] + source_times(row)
            yield row["key"], times, at_source_rate(logits, clock, times)


def _seen_in(
    root: str, part: Part, checkpoint: Checkpoint, clips: list[Clip], wanted: set[str], ends: Ends | None = None
) -> Iterator[Scored]:
    """What is left for a batch to fill up stays in ``ends``, where it is given."""
    spec, context, footage = checkpoint.about["spec"], None, None
    if takes(checkpoint.about) != "clip":
        opened = _opened(root, checkpoint, clips)
        context, footage = opened.context, opened.footage

    def look(clip: Clip) -> Decoded | None:
        try:
            return footage.clip(*clip) if footage else decode(*clip, spec["fps"], spec["size"])
        except Damaged:
            if clip[0] == part:
                raise
            return None  # the part that has it says so

    for stretch in stretches.stretches(clips):
        begins = [0 if context is None else context.whole.begins[row["key"]] for _, row in stretch]
        left = ends or _ends(checkpoint, context, begins[0])
        for first, last in stretches.ranges(stretch, wanted):
            at = None if context is None else begins[first] - begins[0]
            yield from stretches.scored(stretch, first, last, look, left, spec["frames"], spec["fps"], at)
        if ends is None:
            yield from left.flush()


def _ends(checkpoint: Checkpoint, context: Context | None, origin: int) -> Ends:
    """Ends that the model of a checkpoint scores; frames count from ``origin`` of the context's whole video."""
    model = load(checkpoint.url, device())

    def answered(windows: Tensor, starts: list[int]) -> Tensor:
        return answer(model, windows, [origin + start for start in starts], context)

    return Ends(answered)


@dataclass(frozen=True)
class Opened:
    """A whole video and its clips, of which decoded ones are kept."""

    context: Context
    footage: Footage


def _opened(root: str, checkpoint: Checkpoint, clips: list[Clip]) -> Opened:
    if len({part.id for part, _ in clips}) == 1:  # nobody else will ask
        return _open(root, checkpoint, clips, CACHE_BYTES)
    return _shared(root, checkpoint, clips)


def _open(root: str, checkpoint: Checkpoint, clips: list[Clip], most: int) -> Opened:
    spec = checkpoint.about["spec"]
    footage = Footage(spec["fps"], spec["size"], most)
    return Opened(Context(_seen(root, spec, clips) or whole(clips, footage, spec["whole"])), footage)


def _named(root: str, checkpoint: Checkpoint, clips: list[Clip]) -> tuple[str, ...]:
    return root, checkpoint.url, checkpoint.digest, clips[0][1]["path"], identity(clips)


@cached(LRUCache(OPEN), _named, condition=threading.Condition())
def _shared(root: str, checkpoint: Checkpoint, clips: list[Clip]) -> Opened:
    """A video whose clips lie in several parts, opened once for the threads that work on these."""
    return _open(root, checkpoint, clips, CACHE_BYTES // OPEN)


@cached(LRUCache(OPEN), _named, condition=threading.Condition())
def _sequence(root: str, checkpoint: Checkpoint, clips: list[Clip]) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a video's features and their times."""
    spec = checkpoint.about["spec"]
    video = Features(root, spec["features"]).video(clips)
    return sequence_logits(load(checkpoint.url, device()), video.features, spec["frames"]).numpy(), video.times


def _seen(root: str, spec: dict[str, Any], clips: list[Clip]) -> Whole | None:
    """The video as the column has it that a system was trained on; the same is computed of one that has none there."""
    if not spec.get("fine"):
        return None
    try:
        return columned(root, spec["fine"], spec["options"]["cells"]).video(clips)
    except InputError:
        return None
