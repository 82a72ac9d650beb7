"""Submission files of the Charades localisation task: lines of ``id frame score score …``, frames counted from 1."""

import io
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from storage import files
from storage.errors import InputError
from storage.ranges import opened


def write(url: str, videos: Iterable[tuple[str, np.ndarray]]) -> int:
    """Writes (id, scores [F, K]) of some videos, replacing the file whole; returns how many lines that are.

    Scores are written as float32, in as many digits as tell two of them apart. Raises `InputError` for an id with a
    space or none.
    """
    lines = 0
    with files.scratch() as folder:
        path = Path(folder) / "submission.txt"
        with path.open("w", encoding="utf-8") as file:
            for id, scores in videos:
                if not id or len(id.split()) != 1:
                    raise InputError(f"{url}: {id!r} cannot be the id of a video: it must be one word")
                for frame, row in enumerate(np.asarray(scores, np.float32), start=1):
                    file.write(f"{id} {frame} {' '.join(f'{score:.9g}' for score in row)}\n")
                    lines += 1
        files.replace(path.read_bytes(), files.absolute(url))
    return lines


def read(url: str, num_classes: int) -> Iterator[tuple[str, int, np.ndarray]]:
    """(id, frame, scores [K]) of each line, as they come. Raises `InputError` that names the line.

    A score may be -inf, never NaN or +inf. It stays a double: scores that differ must not be made equal.
    """
    try:
        with opened(files.absolute(url)) as raw:
            for number, line in enumerate(io.TextIOWrapper(raw, encoding="utf-8-sig"), start=1):
                if line.strip():
                    yield _parsed(f"{url}, line {number}", line, num_classes)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise InputError(f"{url}: cannot be read ({error})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{url}: is not text ({error})") from error


def _parsed(where: str, line: str, num_classes: int) -> tuple[str, int, np.ndarray]:
    words = line.split()
    if len(words) != num_classes + 2:
        raise InputError(f"{where}: needs an id, a frame and {num_classes} scores, has {len(words)} words")
    try:
        frame, scores = int(words[1]), np.array([float(word) for word in words[2:]])
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    if frame < 0 or np.isnan(scores).any() or (scores == math.inf).any():
        raise InputError(f"{where}: frame {frame} or a score is not allowed: frames count from 1, scores are finite")
    return words[0], frame, scores


def gather(url: str, ids: Iterable[str], frames: int, num_classes: int) -> tuple[dict[str, np.ndarray], int, int]:
    """Scores [F, K] of each video in ``ids``, then how many of their frames are missing, and lines of other videos.

    A missing frame scores -inf. Where any frame is 0, all are counted from 0, as the official evaluation takes it.
    Raises `InputError` for a frame beyond the last, or one that comes twice.
    """
    wanted = {id: np.full((frames + 1, num_classes), -np.inf) for id in ids}
    seen: dict[str, set[int]] = {id: set() for id in wanted}
    others, lowest = 0, 1
    for id, frame, scores in read(url, num_classes):
        lowest = min(lowest, frame)
        if id not in wanted:
            others += 1
            continue
        if frame > frames or frame in seen[id]:
            problem = "comes twice" if frame in seen[id] else f"is beyond the {frames} frames of a video"
            raise InputError(f"{url}: frame {frame} of {id} {problem}")
        seen[id].add(frame)
        wanted[id][frame] = scores
    if lowest == 0 and any(frames in has for has in seen.values()):
        raise InputError(f"{url}: has frame 0 and frame {frames}; count from 1 to {frames}")
    found = {id: scores[lowest : lowest + frames] for id, scores in wanted.items()}
    return found, frames * len(wanted) - sum(map(len, seen.values())), others
