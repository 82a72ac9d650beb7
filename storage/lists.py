"""An archive given as a list: CSV, Parquet or JSON lines with a column ``path`` or ``url``, and any others."""

import csv
import errno
import io
import json
import math
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from storage import files
from storage.errors import InputError, StoreError
from storage.ranges import opened
from storage.secrets import refuse_credentials, without_credentials
from storage.sources import Source, understood

SUFFIXES = (".csv", ".parquet", ".jsonl", ".ndjson", ".json")
OWN = ("path", "url", "label", "start", "end", "split")  # all other columns are metadata
SPLIT_ALONE = "a split but no label; give it a label, which may be empty, or leave split out"


def is_list(archive: str) -> bool:
    """Whether an archive is named as a list of files."""
    return archive.lower().endswith(SUFFIXES)


def rows(url: str) -> Iterator[dict[str, Any]]:
    """The rows of a list, as a stream; `InputError` that names the file and the row where it cannot be read."""
    number = 1
    try:
        with understood(url):
            listed = opened(files.absolute(url))
        with listed as file:
            for number, row in enumerate(_parsed(url, file), start=2):
                if not isinstance(row, dict) or None in row:
                    number -= 1
                    kind = "more values than the file has columns" if isinstance(row, dict) else "no object with names"
                    raise ValueError(kind)
                yield row
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{url}: no such file") from error
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise InputError(f"{url}: cannot be read ({error})") from error
    except (ValueError, RecursionError, csv.Error, pa.ArrowException) as error:
        raise InputError(f"{url}, row {number}: {error}; give CSV, Parquet or JSON lines") from error


def _parsed(url: str, file: Any) -> Iterator[Any]:
    name = url.lower()
    if name.endswith(".parquet"):
        parquet = pq.ParquetFile(file)
        _once([(name, None) for name in parquet.schema_arrow.names])
        for batch in parquet.iter_batches():
            yield from batch.to_pylist()
        return
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="" if name.endswith(".csv") else "\n")
    if name.endswith(".csv"):
        table = csv.DictReader(text)
        _once([(name, None) for name in table.fieldnames or ()])
        yield from table
    else:
        strict = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_number)
        yield from (_text(strict.decode(line)) for line in text if line.strip())


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON and CSV would take the last of two values of one name, silently."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a column comes twice")
    return found


def _text(value: Any) -> Any:
    """A JSON value, whose escapes may name half of a character, which nothing else can hold."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{error.object[error.start]!r} is half of a character") from error
    return value


def _finite(value: Any) -> Any:
    """A value with None for each number that is none: JSON has no NaN and no infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def listing(url: str) -> Iterator[Source]:
    """Yields the files that a list names, each once for a run of rows with the same path.

    A path is a URL or relative to the list's folder. A file that is not there comes with the problem ``not_found``.
    """
    url = files.absolute(url)
    folder = url.rsplit("/", 1)[0]
    named = ((_place(url, number, row), row) for number, row in enumerate(rows(url), start=1))
    once = (next(group)[1] for _, group in groupby(named, key=lambda pair: pair[0]))
    yield from files.at_once(lambda row: _source(folder, row), once)


def _place(url: str, number: int, row: dict[str, Any]) -> str:
    place = str(row.get("path") or row.get("url") or "").strip()
    if not place:
        has = ", ".join(repr(name) for name in list(row)[:8])
        raise InputError(f"{url}, row {number}: neither path nor url, which every row needs; it has {has}")
    return place


def _source(folder: str, row: dict[str, Any]) -> Source:
    place = str(row.get("path") or row.get("url")).strip()
    target = str(row.get("url") or place).strip()
    url = target if "://" in target or target.startswith("/") else files.join(folder, target)
    for name in [url] if place in url else [url, place]:
        refuse_credentials(name, "the list")
    try:
        beside = {k: v for k, v in _finite(row).items() if k not in OWN and v not in (None, "")}
        plain = without_credentials(json.loads(json.dumps(beside, default=str)))
    except RecursionError as error:
        raise InputError(f"{place}: what the list says of it is nested too deeply") from error
    metadata = json.dumps(plain, sort_keys=True, allow_nan=False)
    try:
        info = _looked_at(url)
    except (FileNotFoundError, NotADirectoryError):
        return Source(place, url, 0, "", problem="not_found", metadata=metadata)
    except PermissionError as error:
        if not isinstance(files.locate(url)[0], LocalFileSystem):  # our credentials, not this file
            raise StoreError(f"{url} may not be looked at: {error}") from error
        return Source(place, url, 0, "", problem="permission", metadata=metadata)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return Source(place, url, 0, "", problem="not_found", metadata=metadata)
        raise StoreError(f"{url} cannot be looked at: {error}") from error
    problem = "" if info["type"] == "file" else "not_regular_file"
    if "ino" in info:  # on this machine
        info["changed"] = info["created"]
    when, size = files.modified(info), int(info.get("size") or 0)
    return Source(place, url, size, files.stamp(info), problem=problem, metadata=metadata, modified=when)


def _looked_at(url: str) -> dict[str, Any]:
    try:
        return files.info(url)
    except (InputError, StoreError, OSError):
        raise
    except Exception as error:  # a name that can be no file's: each library says so in a kind of its own
        raise FileNotFoundError(url) from error


def has_labels(url: str) -> bool:
    """Whether any row of a list has a label; `InputError` where rows have a split and none has a label."""
    split = 0
    for number, row in enumerate(rows(url), start=1):
        if "label" in row:
            return True
        split = split or (number if row.get("split") else 0)
    if split:
        raise InputError(f"{url}, row {split}: {SPLIT_ALONE}")
    return False
