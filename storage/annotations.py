"""Annotations as the authors of public data sets publish them, read as a stream of videos.

    charades      CSV with id, actions "c092 11.90 21.20;c147 0.00 12.60" and length, among others
    multithumos   JSON {id: {"subset": "training", "duration": 16.9, "actions": [[class, start, end], ...]}, ...};
                  charades.json, which many train from, has the same form
    kinetics      CSV with label, youtube_id, time_start, time_end and split

Times are seconds. Every error is an `InputError` that names the file and the row or the video.
"""

import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from storage import files, lists
from storage.errors import InputError
from storage.ranges import opened

Format = Literal["charades", "multithumos", "kinetics"]
PATHS: dict[Format, str] = {
    "charades": "{id}.mp4",
    "multithumos": "{id}.mp4",
    "kinetics": "{id}_{start:06d}_{end:06d}.mp4",  # as the usual download scripts name clips
}
ACTION = re.compile(r"c(\d{3})\s+(\S+)\s+(\S+)")
CLASS = re.compile(r"c?(\d+)\s+(\S.*)")
SUBSETS = {"training": "train", "train": "train", "": ""}  # all others are held out
CHUNK = 1 << 16


@dataclass(frozen=True)
class Video:
    """What an annotation file says of one video, or of one span of it."""

    id: str
    duration: float | None = None
    actions: tuple[tuple[float, float, int], ...] = ()  # start, end, number of the class; as the file has them
    label: str = ""  # of the whole video
    split: str = ""  # train, heldout, or not said
    span: tuple[int, int] = (0, 0)  # whole seconds of the video that the label is about


def read(url: str, kind: Format) -> Iterator[Video]:
    """The videos of an annotation file, one at a time; one that comes twice is an error."""
    if kind not in get_args(Format):
        raise InputError(f"no annotations of the kind {kind!r}; there are {', '.join(get_args(Format))}")
    seen: set[tuple[str, tuple[int, int]]] = set()
    for video in READERS[kind](url):
        if (video.id, video.span) in seen:
            raise InputError(f"{url}: {video.id} comes twice")
        seen.add((video.id, video.span))
        yield video
    if not seen:
        raise InputError(f"{url}: no videos; is it a {kind} file?")


def _rows(url: str, names: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of a CSV that must have these columns."""
    for number, row in enumerate(lists.rows(url), start=1):
        if missing := [name for name in names if row.get(name) is None]:
            raise InputError(f"{url}, row {number}: no column {', '.join(missing)}; it has {', '.join(map(str, row))}")
        yield f"{url}, row {number}", row


def _charades(url: str) -> Iterator[Video]:
    for where, row in _rows(url, ("id", "actions", "length")):
        where, actions = f"{where} ({row['id']})", []
        for text in filter(None, (piece.strip() for piece in row["actions"].split(";"))):
            found = ACTION.fullmatch(text)
            if not found:
                raise InputError(f"{where}: {text!r} is not an action such as 'c092 11.90 21.20'")
            number, start, end = found.groups()
            actions.append((_seconds(where, start), _seconds(where, end), int(number)))
        duration = _seconds(where, row["length"])
        if duration == 0:
            raise InputError(f"{where}: a video cannot be 0 seconds long")
        yield Video(_id(where, row["id"]), duration, tuple(actions))


def _multithumos(url: str) -> Iterator[Video]:
    for key, entry in _entries(url):
        where = f"{url}, video {key}"
        try:
            duration, subset, actions = entry["duration"], entry.get("subset", ""), entry["actions"]
            found = tuple((_seconds(where, s), _seconds(where, e), _number(where, k)) for k, s, e in actions)
            yield Video(_id(where, key), _seconds(where, duration), found, split=SUBSETS.get(subset, "heldout"))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            form = '{"subset": "training", "duration": 16.9, "actions": [[class, start, end], ...]}'
            raise InputError(f"{where}: not of the form {form} ({type(error).__name__}: {error})") from error


def _kinetics(url: str) -> Iterator[Video]:
    for where, row in _rows(url, ("youtube_id", "time_start", "time_end", "split")):
        start, end = (_seconds(where, row[name]) for name in ("time_start", "time_end"))
        if not (start < end and start.is_integer() and end.is_integer()):
            raise InputError(f"{where}: needs whole seconds, time_start < time_end, got {start:g} to {end:g}")
        split, label = SUBSETS.get(row["split"].strip(), "heldout"), str(row.get("label") or "").strip()
        yield Video(_id(where, row["youtube_id"]), end - start, label=label, split=split, span=(int(start), int(end)))


READERS: dict[str, Callable[[str], Iterator[Video]]] = {
    "charades": _charades,
    "multithumos": _multithumos,
    "kinetics": _kinetics,
}


def _entries(url: str) -> Iterator[tuple[str, Any]]:
    """(key, value) of the JSON object that a file holds, without more of it in memory than one of them."""
    decoder, text, at = json.JSONDecoder(), "", "the beginning"
    try:
        with opened(files.absolute(url)) as raw:
            file = io.TextIOWrapper(raw, encoding="utf-8-sig")
            text = file.read(CHUNK).lstrip()
            if not text.startswith("{"):
                raise ValueError("it does not begin with {")
            text = text[1:].lstrip()
            while not text.startswith("}"):
                key, text = _decoded(decoder, text, file, ":")
                value, text = _decoded(decoder, text[1:], file, ",}")
                if not isinstance(key, str):
                    raise ValueError(f"{key!r} is not the id of a video")
                yield key, value
                at = f"video {key}"
                if text.startswith(","):
                    text = text[1:].lstrip()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise InputError(f"{url}: cannot be read ({error})") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{url}, after {at}: not the JSON of annotations ({error})") from error


def _decoded(decoder: json.JSONDecoder, text: str, file: io.TextIOBase, after: str) -> tuple[Any, str]:
    """The JSON value that a text begins with and the text from one of the characters ``after`` on."""
    while True:
        text = text.lstrip()
        try:
            value, end = decoder.raw_decode(text)
        except json.JSONDecodeError as error:
            problem: ValueError = error  # perhaps only because the value goes on
        else:
            rest = text[end:].lstrip()
            if rest and rest[0] in after:
                return value, rest
            problem = ValueError(f"{' or '.join(after)} is missing at {(rest or 'the end')[:20]!r}")
            if rest:
                raise problem
        more = file.read(max(CHUNK, len(text)))  # doubling: a long value is not parsed again for every chunk
        if not more:
            raise problem
        text += more


def _seconds(where: str, value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {value!r} is not a number of seconds") from error
    if not 0 <= seconds < math.inf:
        raise InputError(f"{where}: {value!r} is not a number of seconds, 0 or more")
    return seconds


def _number(where: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"{where}: {value!r} is not the number of a class")
    return value


def _id(where: str, value: str) -> str:
    if not value.strip():
        raise InputError(f"{where}: no id")
    return value.strip()


def read_classes(url: str) -> dict[int, str]:
    """Class names by number, from lines such as ``c000 Holding some clothes`` or ``1 BaseballPitch``."""
    names: dict[int, str] = {}
    try:
        lines = files.read(files.absolute(url)).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{url}: cannot be read ({error})") from error
    for row, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        found = CLASS.fullmatch(line.strip())
        if not found:
            raise InputError(f"{url}, row {row}: {line!r} is not a number and a name")
        number, name = int(found[1]), found[2].strip()
        if number in names or name in names.values():
            raise InputError(f"{url}, row {row}: class {number} or the name {name!r} comes twice")
        names[number] = name
    if not names:
        raise InputError(f"{url}: no classes")
    return names


def class_name(number: int, kind: Format, classes: dict[int, str] | None) -> str:
    """The name of a class: that of the list of classes, or c000 to c156 (charades), or its number in three digits."""
    if classes is None:
        return f"c{number:03d}" if kind == "charades" else f"{number:03d}"
    if number not in classes:
        raise InputError(f"class {number} is not in the list of classes, which has {len(classes)}")
    return classes[number]


def label_rows(
    videos: Iterable[Video],
    kind: Format,
    *,
    path: str | None = None,
    classes: dict[int, str] | None = None,
    split: str = "",
    counts: Counter | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of path, start, end, label and split, as `storage.labels.read_labels` takes them.

    ``path`` is a template of id, start, end, label and split. A video in which nothing happens has one row without
    a label. ``counts`` gets videos, rows and what was left out: actions that do not end after they start, and
    spans whose label is not published.
    """
    counts, template = Counter() if counts is None else counts, path or PATHS[kind]
    for video in videos:
        counts["videos"] += 1
        names = {"id": video.id, "start": video.span[0], "end": video.span[1], "label": video.label}
        try:
            where = template.format(**names, split=split or video.split)
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise InputError(
                f"the path {template!r} is no template of id, start, end, label and split ({error})"
            ) from error
        plain: dict[str, Any] = {
            "path": where,
            "start": "",
            "end": "",
            "label": video.label,
            "split": split or video.split,
        }
        if kind == "kinetics":
            if not video.label:
                counts["spans without a label"] += 1
                continue
            rows = [plain]
        else:
            good = [action for action in video.actions if action[0] < action[1]]
            counts["actions of no length"] += len(video.actions) - len(good)
            rows = [plain | {"start": s, "end": e, "label": class_name(k, kind, classes)} for s, e, k in good]
        counts["rows"] += len(rows or [plain])
        yield from rows or [plain]
