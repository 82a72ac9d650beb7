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

    Times are seconds. Raises `InputError` that names the file and the row.
    """
    found: dict[str, Any] = {}  # by path: its split and its rows, at the end its labels; a million have to fit
    for number, row in enumerate(_rows(url), start=1):
        path, label = str(row.get("path") or "").strip(), str(row.get("label") or "").strip()
        if not path:
            raise InputError(f"{url}, row {number}: no path; every row needs path and label")
        split = str(row.get("split") or "").strip()
        if split and split not in SPLITS:
            raise InputError(f"{url}, row {number}: split {split!r} must be {' or '.join(SPLITS)}, or left out")
        kept = found.setdefault(path, [sys.intern(split)])
        if kept[0] != split:
            raise InputError(f"{url}, row {number}: {path} is in two splits; a source belongs to one")
        if label:  # a row without a label says: looked at, nothing there
            kept.append((*_times(row, f"{url}, row {number}"), sys.intern(label)))
    for path, (split, *rows) in found.items():
        if len({start is None for start, _, _ in rows}) > 1:
            raise InputError(f"{url}: {path} has rows with and without times; give all of them times or none")
        found[path] = Labels(tuple(sorted(rows, key=str)), split)
    return found


def _rows(url: str) -> Iterator[dict[str, Any]]:
    empty = True
    for row in lists.rows(url):
        missing = [
            name for name, found in (("label", "label" in row), ("path", {"path", "url"} & row.keys())) if not found
        ]
        if empty and missing:
            raise InputError(f"{url}: no column {' or '.join(missing)}; columns are path,label or path,start,end,label")
        empty = False
        yield {**row, "path": row.get("path") or row.get("url")}
    if empty:
        raise InputError(f"{url}: no rows; leave --labels out for an unlabelled archive")


def _times(row: dict[str, Any], where: str) -> tuple[float | None, float | None]:
    start, end = row.get("start"), row.get("end")
    if start in (None, "") and end in (None, ""):
        return None, None
    try:
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
