"""Labels: what is known of the sources, from CSV, Parquet or JSON lines; and which split a source belongs to."""

import hashlib
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from storage import lists
from storage.errors import InputError

SPLITS = ("train", "heldout")
SAMPLE_OF_NAMES = 3  # how many offending names an error line shows


@dataclass(frozen=True, slots=True)
class Labels:
    """What is known of one source: rows of (start, end, label), both times None for the whole video."""

    rows: tuple[tuple[float | None, float | None, str], ...]
    split: str = ""

    @property
    def kind(self) -> str:
        # Looked at and nothing there is a video of background frames, not one with an unknown label.
        return "video" if any(start is None for start, _, _ in self.rows) else "segments"


def read_labels(url: str) -> dict[str, Labels]:
    """Reads labels from CSV, Parquet or JSON lines: ``path,label`` or ``path,start,end,label``, optionally ``split``.

    Times are seconds. A row whose label is empty says: looked at, nothing there; one without any says nothing.
    Raises `InputError` that names the file and the row.
    """
    found: dict[str, Any] = {}  # by path: its split and its rows, at the end its labels; a million have to fit
    for number, row in enumerate(_rows(url), start=1):
        where, path = f"{url}, row {number}", str(row.get("path") or "").strip()
        if not path:
            raise InputError(f"{where}: no path; every row needs path and label")
        split = str(row.get("split") or "").strip()
        if split and split not in SPLITS:
            raise InputError(f"{where}: split {split!r} must be {' or '.join(SPLITS)}, or left out")
        if "label" not in row:
            if split:
                raise InputError(f"{where}: {lists.SPLIT_ALONE}")
            continue
        kept = found.setdefault(path, [sys.intern(split)])
        if kept[0] != split:
            raise InputError(f"{where}: {path} is in two splits; a source belongs to one")
        for label in dict.fromkeys(_names(row["label"], where)):
            kept.append((*_times(row, where), sys.intern(label)))
    for path, (split, *rows) in found.items():
        if len({start is None for start, _, _ in rows}) > 1:
            raise InputError(f"{url}: {path} has rows with and without times; give all of them times or none")
        found[path] = Labels(tuple(sorted(rows, key=str)), split)
    return found


def _rows(url: str) -> Iterator[dict[str, Any]]:
    empty, labelled = True, False
    for row in lists.rows(url):
        labelled = labelled or "label" in row
        if empty and not {"path", "url"} & row.keys():
            raise _lacking(url, "path" if labelled else "label or path")
        empty = False
        yield {**row, "path": row.get("path") or row.get("url")}
    if empty:
        raise InputError(f"{url}: no rows; leave --labels out for an unlabelled archive")
    if not labelled:
        raise _lacking(url, "label")


def _lacking(url: str, columns: str) -> InputError:
    return InputError(f"{url}: no column {columns}; columns are path,label or path,start,end,label")


def _names(value: Any, where: str) -> list[str]:
    """The labels that a row has at its times: a name, a number or a list of these; none where it is empty."""
    if value is None or value != value:  # NaN, as tables have it where a value is missing
        return []
    if isinstance(value, list) and not any(isinstance(item, list) for item in value):
        return [name for item in value for name in _names(item, where)]
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value in (math.inf, -math.inf):
        raise InputError(f"{where}: {str(value)[:80]} is no label; give a name, or a list of names")
    return [name] if (name := str(value).strip()) else []


def _times(row: dict[str, Any], where: str) -> tuple[float | None, float | None]:
    start, end = row.get("start"), row.get("end")
    if start in (None, "") and end in (None, ""):
        return None, None
    try:
        if "_" in f"{start}{end}" or isinstance(start, bool) or isinstance(end, bool):  # float() takes these
            raise ValueError
        start, end = float(start), float(end)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: start {start!r} and end {end!r} must be seconds, both or none") from error
    if not (math.isfinite(start) and math.isfinite(end) and 0 <= start < end):
        raise InputError(f"{where}: needs 0 <= start < end, got {start:g} to {end:g}")
    return start, end


def check_classes(labels: dict[str, Labels], url: str, classes: list[str]) -> None:
    """Raises `InputError` for classes that are not in ``classes``; with none given, all are right."""
    named = {label for entry in labels.values() for _, _, label in entry.rows}
    strangers = sorted(named - set(classes)) if classes else []
    if strangers:
        raise InputError(f"{url} names classes that --classes does not list: {_some(strangers)}")


def check_paths(unknown: set[str], url: str) -> None:
    """Raises `InputError` where labels name files that were not listed."""
    if unknown:
        raise InputError(
            f"{url} names {len(unknown)} files that are not in the archive ({_some(sorted(unknown))}); "
            "paths are relative to the archive"
        )


def _some(values: list[str]) -> str:
    return ", ".join(values[:SAMPLE_OF_NAMES]) + (", …" if len(values) > SAMPLE_OF_NAMES else "")


def _share(*words: str) -> float:
    """A number in [0, 1) that follows from the words alone."""
    return int(hashlib.sha256("\0".join(words).encode()).hexdigest()[:13], 16) / 16**13


def split_of(path: str, labels: Labels | None, held_out: float) -> str:
    """train, heldout or unlabelled: as the labels say, else by a hash of the path for sources with segments."""
    if labels is None:
        return "unlabelled"
    if labels.split:
        return labels.split
    if labels.kind == "segments" and _share("split", path) < held_out:
        return "heldout"
    return "train"
