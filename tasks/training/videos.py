"""Whole source videos out of the clips that parts hold: frames at a limited number, or a column's features."""

import math
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from cachetools import LRUCache, cachedmethod
from torch import Tensor

from storage import columns, files
from storage.errors import Damaged, InputError
from storage.parts import Part
from tasks.training.loader import Footage

FEATURES = "features"
FINE = "fine"
HOW = "make them with `reelmill features` (a champion's) or `reelmill prepare` (open_clip's)"
HOW_FINE = "`reelmill retrain --fine-features` makes them"
Clip = tuple[Part, dict[str, Any]]


def videos(parts: list[Part]) -> dict[str, list[Clip]]:
    """The clips of every source video by its path, in the order of its clock, wherever they lie."""
    found: dict[str, list[Clip]] = defaultdict(list)
    for part in sorted(parts, key=lambda p: p.id):
        for row in part.rows():
            found[row["path"]].append((part, row))
    return {path: sorted(clips, key=lambda clip: clip[1]["start"]) for path, clips in sorted(found.items())}


def beside(parts: list[Part]) -> dict[str, list[Part]]:
    """By the id of a part, the other parts that hold clips of the same source videos."""
    holders: dict[str, list[Part]] = defaultdict(list)
    for part in parts:
        for path in set(part.table(["path"])["path"].to_pylist()):
            holders[path].append(part)
    found: dict[str, dict[str, Part]] = defaultdict(dict)
    for together in holders.values():
        for part in together if len(together) > 1 else ():
            found[part.id] |= {other.id: other for other in together if other.id != part.id}
    return {part: list(others.values()) for part, others in found.items()}


@dataclass(frozen=True)
class Neighbours:
    """A part to work on, and the others that hold clips of its videos: what a cluster is sent of them is these few."""

    part: Part
    others: tuple[Part, ...] = ()

    @property
    def id(self) -> str:
        return self.part.id

    @property
    def samples(self) -> int:
        return self.part.samples


def in_turn(parts: list[Part], others: dict[str, list[Part]]) -> list[Neighbours]:
    """Parts with those that hold clips of the same videos after each other, as `beside` found them."""
    known = {part.id for part in parts}
    order: dict[str, Part] = {}
    for first in parts:
        waiting = [first]
        while waiting:
            part = waiting.pop()
            if part.id in known and part.id not in order:
                order[part.id] = part
                waiting += others.get(part.id, [])
    return [Neighbours(part, tuple(others.get(part.id, []))) for part in order.values()]


@dataclass(frozen=True)
class Whole:
    """Every ``step``-th frame of a video at the clips' rate, `[F, 3, S, S]`, and where each clip begins in it.

    Or what the Fine stream makes of these frames: `[F, C, h, w]`, float16.
    """

    frames: Tensor
    step: int
    begins: dict[str, int]  # by key, in frames of the clip


def whole(clips: list[Clip], footage: Footage, most: int) -> Whole:
    """A video in at most ``most`` frames: all at the clips' rate, or every second, third … one of a longer video.

    The number is decided on the index alone, so a long video is never held whole.
    """
    # Sampling may give one frame more than the duration says, at each of the ends.
    longest = sum(math.ceil(row["duration"] * footage.fps) + 1 for _, row in clips)
    count = sum(len(footage.clip(*clip).frames) for clip in clips) if longest <= 2 * most else longest
    step = max(1, -(-count // most))
    frames, begins, done = [], {}, 0
    for part, row in clips:
        found = footage.clip(part, row).frames
        begins[row["key"]] = done
        frames.append(found[-done % step :: step].clone() if step > 1 else found)
        done += len(found)
    return Whole(torch.cat(frames), step, begins)


@dataclass(frozen=True)
class Sequence:
    """A video as features `[T, D]` at times on the source clock."""

    features: Tensor
    times: np.ndarray


@dataclass
class Features:
    """A version of the feature column under a root; videos are read once, each part's column on first use."""

    root: str
    version: str
    _read: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)

    def video(self, clips: list[Clip]) -> Sequence:
        """The features of a video's clips, one after the other. Raises `InputError` where they do not fit."""
        pieces = [(row, *self._part(part)[row["key"]]) for part, row in clips]
        widths = {vectors.shape[1] for _, _, vectors in pieces}
        if len(widths) != 1:
            raise InputError(f"column {FEATURES} {self.version}: {clips[0][1]['path']} has features of widths {widths}")
        times = np.concatenate([row["start"] + clock for row, clock, _ in pieces])
        return Sequence(torch.from_numpy(np.concatenate([vectors for _, _, vectors in pieces])), times)

    def _part(self, part: Part) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        if part.id not in self._read:
            try:
                table = columns.read(self.root, FEATURES, self.version, part, ["times", "embedding"])
            except FileNotFoundError as error:
                raise missing(self.version, part) from error
            self._read[part.id] = {
                key: _checked(part, key, times, vectors)
                for key, times, vectors in zip(
                    table["key"].to_pylist(), table["times"].to_pylist(), table["embedding"].to_pylist(), strict=True
                )
            }
        return self._read[part.id]


def identity(clips: list[Clip]) -> str:
    """What a video's clips are together, by their bytes."""
    return files.digest_of([row["sha256"] for _, row in clips])[:16]


@dataclass(frozen=True)
class FinePiece:
    """The Fine stream's maps `[F, C, h, w]` float16 of those frames of a whole video that lie in one clip."""

    video: str  # its `identity`
    begin: int  # of the clip in the video, in frames of the clip
    step: int  # frames of the clip to a map
    maps: np.ndarray


Pieces = dict[str, FinePiece]  # by key


class FineMaps:
    """A version of the column of the Fine stream's maps under a root; may be asked by threads.

    Parts are read whole, and those used last are kept in ``most`` bytes: of more, parts are read again.
    """

    def __init__(self, root: str, version: str, cells: int, most: int = 1 << 30) -> None:
        self.root, self.version, self.cells = root, version, cells
        # A part that is larger by itself is kept, alone.
        self._read: LRUCache[Any, Pieces] = LRUCache(most, getsizeof=lambda pieces: min(most, _bytes(pieces)))
        self._changes = threading.Condition()

    def video(self, clips: list[Clip]) -> Whole:
        """A video's maps. Raises `InputError` where a part has none, or those of other clips than these."""
        pieces = [self._part(part)[row["key"]] for part, row in clips]
        if {piece.video for piece in pieces} != {identity(clips)}:
            raise InputError(f"column {FINE} {self.version}: {clips[0][1]['path']} had other clips; {HOW_FINE}")
        begins = {row["key"]: piece.begin for (_, row), piece in zip(clips, pieces, strict=True)}
        return Whole(torch.from_numpy(np.concatenate([p.maps for p in pieces])), pieces[0].step, begins)

    @cachedmethod(lambda self: self._read, lambda self, part: part.id, condition=lambda self: self._changes)
    def _part(self, part: Part) -> Pieces:
        try:
            table = columns.read(self.root, FINE, self.version, part).combine_chunks()
        except FileNotFoundError as error:
            raise InputError(f"part {part.id} has no {FINE} maps {self.version}; {HOW_FINE}") from error
        lists = table["maps"].combine_chunks()
        width, odd = divmod(lists.type.value_type.list_size, self.cells**2)
        if odd:
            raise Damaged(f"part {part.id}: column {FINE} {self.version} is not of {self.cells} by {self.cells} cells")
        flat = lists.flatten().flatten().to_numpy(zero_copy_only=False)
        ends = np.cumsum(lists.value_lengths().to_numpy(zero_copy_only=False))
        maps = np.split(flat.reshape(-1, width, self.cells, self.cells), ends[:-1])
        rows = table.select(["key", "video", "begin", "step"]).to_pylist()
        return {
            row["key"]: FinePiece(row["video"], row["begin"], row["step"], piece)
            for row, piece in zip(rows, maps, strict=True)
        }


def _bytes(pieces: Pieces) -> int:
    return sum(piece.maps.nbytes for piece in pieces.values())


@lru_cache(maxsize=1)
def columned(root: str, version: str, cells: int) -> FineMaps:
    """The Fine stream's maps of a process."""
    return FineMaps(root, version, cells)


def _checked(part: Part, key: str, times: list[float], vectors: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    clock, matrix = np.asarray(times, float), np.asarray(vectors, np.float32)
    if matrix.ndim != 2 or len(clock) != len(matrix) or not len(clock) or not np.isfinite(matrix).all():
        raise Damaged(f"part {part.id}: clip {key} has features that are none: {matrix.shape} at {len(clock)} times")
    return clock, matrix


def missing(version: str, part: Part) -> InputError:
    """What to say where a part lacks the column."""
    return InputError(f"part {part.id} has no features {version}; {HOW}")


def width(root: str, version: str, parts: list[Part]) -> int:
    """The width D of the features of some parts."""
    for part in parts:
        if part.samples:
            clips = [(part, part.rows()[0])]
            return Features(root, version).video(clips).features.shape[1]
    raise InputError("no part has clips")


def version(root: str, parts: list[Part], wanted: str | None) -> str:
    """The version of the feature column to use: the one that is wanted, or the only one that all parts have.

    Raises `InputError`, which says what makes one, where there is none, and where there are several to choose from.
    """
    known = columns.versions(root, FEATURES)
    full = [name for name in known if all(columns.has(root, FEATURES, name, part.id) for part in parts)]
    if wanted in full:
        return str(wanted)
    if wanted is None and len(full) == 1:
        return full[0]
    if wanted is None and full:
        raise InputError(f"there are {len(full)} versions of the column features; choose one with --features: {full}")
    asked = f"no features {wanted}" if wanted else "no features"
    some = f"; complete are {', '.join(full)}" if full else ""
    raise InputError(f"{root} has {asked} for all {len(parts)} parts, which this system needs; {HOW}{some}")
