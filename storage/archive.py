"""The archive: which source videos there are, what they are labelled with, and how they fall into parts."""

import csv
import hashlib
import io
import json
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from storage import files
from storage.errors import InputError

EXTENSIONS: tuple[str, ...] = (
    ".mp4",
    ".m4v",
    ".mov",
    ".mkv",
    ".webm",
    ".avi",
    ".mpg",
    ".mpeg",
    ".ts",
    ".m2ts",
    ".mts",
    ".flv",
)
EXTENSIONS += (".ogv", ".wmv", ".3gp", ".3g2", ".asf", ".vob", ".mxf")
SPLITS = ("train", "heldout")
SAMPLE_OF_NAMES = 3  # how many offending names an error line shows


@dataclass(frozen=True)
class Source:
    """A file of the archive. ``stamp`` changes when the bytes may have changed (size and time, or the ETag)."""

    path: str  # below the archive
    url: str
    size: int
    stamp: str
    regular: bool = True  # False: a device, pipe or dangling link, which must never be opened


@dataclass(frozen=True)
class Labels:
    """What is known of one source: rows of (start, end, label), both times None for the whole video."""

    rows: tuple[tuple[float | None, float | None, str], ...]
    split: str = ""

    @property
    def kind(self) -> str:
        # Looked at and nothing there is a video of background frames, not one with an unknown label.
        return "video" if any(start is None for start, _, _ in self.rows) else "segments"


@dataclass(frozen=True)
class Member:
    """A source as a part holds it."""

    source: Source
    content_id: str
    split: str
    labels: Labels | None

    @property
    def labelled(self) -> str:
        return self.labels.kind if self.labels else "none"

    def identity(self) -> list[Any]:
        return [self.content_id, self.split, self.labels.rows if self.labels else None]


@dataclass(frozen=True)
class Draft:
    """A part to be made: its id follows from its members and the step's configuration."""

    id: str
    members: tuple[Member, ...]


def listing(archive: str) -> Iterator[Source]:
    """Yields the files under an archive URL in order of path, hidden ones left out.

    A folder with the name of a video and a link to a folder come as irregular files; links to files are followed.
    Raises `InputError` where the archive is missing or a folder of it may not be read.
    """
    archive = files.absolute(archive)
    fs, top = files.locate(archive)
    if not fs.exists(top):
        raise InputError(f"{archive}: no such archive; give the folder or URL that holds the videos")
    if fs.isfile(top):
        raise InputError(f"{archive}: a file; give the folder or URL that holds the videos")
    prefix, local = top.rstrip("/") + "/", isinstance(fs, LocalFileSystem)
    found = _local_files(top) if local else fs.find(top, detail=True, withdirs=True)
    for path, info in sorted(found.items()):
        below = path.removeprefix(prefix)
        folder = info["type"] == "directory" or below.endswith("/")  # S3 may hold an empty object for a folder
        if any(piece.startswith(".") for piece in below.split("/")) or folder and not _named_as_video(below):
            continue
        stamp = info.get("ETag") or info.get("mtime") or info.get("created") or ""
        size, regular, url = int(info.get("size") or 0), info["type"] == "file", files.join(archive, below)
        if local and not _is_text(below):
            below, url = files.percent(below), files.LOCALHOST + files.percent(path[1:])
            regular = regular and prefix + below not in found
        yield Source(below, url, size, f"{size}:{stamp}", regular)


def _unreadable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # gone since its folder was read
        raise InputError(f"{error.filename}: cannot be listed ({error.strerror}); mend its rights or move it away")


def _local_files(top: str) -> dict[str, dict[str, Any]]:
    """What fsspec's ``find`` gives, but an unreadable folder is an error, and a link is what it leads to."""
    found: dict[str, dict[str, Any]] = {}
    for folder, folders, names in os.walk(top, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (os.path.join(folder, name) for name in folders + names):
            try:
                facts, link = os.stat(path), os.path.islink(path)
            except OSError:  # a dangling link, or one in a loop
                found[path] = {"type": "other"}
                continue
            # Links to folders are not followed: they may lead back.
            kind = "directory" if stat.S_ISDIR(facts.st_mode) and not link else "other"
            kind = "file" if stat.S_ISREG(facts.st_mode) else kind
            found[path] = {"type": kind, "size": facts.st_size, "mtime": facts.st_mtime_ns}
    return found


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that are not UTF-8; neither JSON nor Parquet takes them
        return False
    return True


def _named_as_video(path: str) -> bool:
    return path.lower().endswith(EXTENSIONS)


def is_video(source: Source) -> bool:
    """Whether the name is that of a video file."""
    return _named_as_video(source.path)


def content_id(source: Source) -> str:
    """The sha256 of a source's bytes, read in blocks."""
    fs, path = files.locate(source.url)
    whole = hashlib.sha256()
    with fs.open(path, "rb", cache_type="readahead") as file:
        while block := file.read(1 << 22):
            whole.update(block)
    return whole.hexdigest()


def read_labels(url: str) -> dict[str, Labels]:
    """Reads labels from CSV, Parquet or JSON lines: ``path,label`` or ``path,start,end,label``, optionally ``split``.

    Times are seconds. Raises `InputError` that names the file and the row.
    """
    rows = _rows(url)
    found: dict[str, list[tuple[float | None, float | None, str]]] = {}
    splits: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or None in row:
            raise InputError(f"{url}, row {number}: not a row of the columns that the file begins with")
        path, label = str(row.get("path") or "").strip(), str(row.get("label") or "").strip()
        if not path:
            raise InputError(f"{url}, row {number}: no path; every row needs path and label")
        split = str(row.get("split") or "").strip()
        if split and split not in SPLITS:
            raise InputError(f"{url}, row {number}: split {split!r} must be {' or '.join(SPLITS)}, or left out")
        if splits.setdefault(path, split) != split:
            raise InputError(f"{url}, row {number}: {path} is in two splits; a source belongs to one")
        kept = found.setdefault(path, [])
        if label:  # a row without a label says: looked at, nothing there
            kept.append((*_times(row, f"{url}, row {number}"), label))
    for path, kept in found.items():
        if len({start is None for start, _, _ in kept}) > 1:
            raise InputError(f"{url}: {path} has rows with and without times; give all of them times or none")
    return {path: Labels(tuple(sorted(kept, key=str)), splits[path]) for path, kept in found.items()}


def _rows(url: str) -> Iterator[dict[str, Any]]:
    try:
        data = files.read(files.absolute(url))
    except FileNotFoundError as error:
        raise InputError(f"{url}: no such labels file") from error
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise InputError(f"{url}: cannot be read as labels ({error})") from error
    try:
        if url.endswith(".parquet"):
            rows = pq.read_table(io.BytesIO(data)).to_pylist()
        elif url.endswith((".jsonl", ".ndjson", ".json")):
            rows = [_json(line, number) for number, line in enumerate(data.decode("utf-8-sig").split("\n"), 1)]
            rows = [row for row in rows if row is not None]
        else:
            rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"))))
    except (ValueError, OSError, csv.Error, pa.ArrowException) as error:
        raise InputError(f"{url}: cannot be read as labels ({error}); give CSV, Parquet or JSON lines") from error
    if not rows:
        raise InputError(f"{url}: no rows; leave --labels out for an unlabelled archive")
    missing = {"path", "label"} - set(rows[0] if isinstance(rows[0], dict) else ())
    if missing:
        raise InputError(
            f"{url}: no column {' or '.join(sorted(missing))}; columns are path,label or path,start,end,label"
        )
    yield from rows


def _json(line: str, number: int) -> Any:
    try:
        return json.loads(line) if line.strip() else None
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from error


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


def check_labels(labels: dict[str, Labels], sources: list[Source], url: str, classes: list[str]) -> None:
    """Raises `InputError` for labels of files that are not there, and for classes that are not in ``classes``."""
    unknown = sorted(labels.keys() - {source.path for source in sources})
    if unknown:
        raise InputError(
            f"{url} names {len(unknown)} files that are not in the archive ({_some(unknown)}); "
            "paths are relative to the archive"
        )
    named = {label for entry in labels.values() for _, _, label in entry.rows}
    strangers = sorted(named - set(classes)) if classes else []
    if strangers:
        raise InputError(f"{url} names classes that --classes does not list: {_some(strangers)}")


def _some(values: list[str]) -> str:
    return ", ".join(values[:SAMPLE_OF_NAMES]) + (", …" if len(values) > SAMPLE_OF_NAMES else "")


def _share(*words: str) -> float:
    """A number in [0, 1) that follows from the words alone."""
    return int(hashlib.sha256("\0".join(words).encode()).hexdigest()[:13], 16) / 16**13


def split_of(source: Source, labels: Labels | None, held_out: float) -> str:
    """train, heldout or unlabelled: as the labels say, else by a hash of the path for sources with segments."""
    if labels is None:
        return "unlabelled"
    if labels.split:
        return labels.split
    if labels.kind == "segments" and _share("split", source.path) < held_out:
        return "heldout"
    return "train"


def drafts(members: list[Member], config: dict[str, Any], per_part: int) -> Iterator[Draft]:
    """Groups members into parts of about ``per_part`` sources, each of one folder, one split and one kind of labels.

    A group that is too large is halved by the bits of a hash of the path until every piece fits, so the parts follow
    from the set of paths alone: a source that comes splits at most the part it falls in, one that goes joins at most
    that part with its other half, and all others stay as they were.
    """
    groups: dict[tuple[str, str, str], list[Member]] = {}
    for member in members:
        folder = member.source.path.rpartition("/")[0]
        groups.setdefault((folder, member.split, member.labelled), []).append(member)
    for _, group in sorted(groups.items()):
        for piece in _pieces([(_bits(m.source.path), m) for m in group], max(1, per_part * 3 // 2)):
            yield _draft(piece, config)


def _bits(path: str) -> int:
    return int(hashlib.sha256(f"part\0{path}".encode()).hexdigest(), 16)


def _pieces(group: list[tuple[int, Member]], most: int, bit: int = 0) -> Iterator[list[Member]]:
    """Halves a group by one bit of its hashes after the other until no piece has more than ``most`` members."""
    if len(group) <= most or bit == 256:
        if group:
            yield [member for _, member in group]
        return
    for side in (0, 1):
        yield from _pieces([pair for pair in group if pair[0] >> bit & 1 == side], most, bit + 1)


def _draft(group: list[Member], config: dict[str, Any]) -> Draft:
    members = tuple(sorted(group, key=lambda m: m.content_id))
    identity = {"schema": files.SCHEMA, "config": config, "members": [m.identity() for m in members]}
    return Draft(files.digest_of(identity)[:16], members)
