"""Versions of columns: which there are, how two differ, adding one from a table, dropping one.

A version never changes once it is written: other values are another version.
"""

import contextlib
import csv
import io
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from storage import columns, files, inventory, tables
from storage.datasets import Dataset
from storage.errors import InputError
from storage.parts import Part

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
CHANGES = 5  # changes of labels that a difference shows


@dataclass
class Version:
    """A version of a column; ``covers`` counts the parts of each dataset that have it: name → (have, all)."""

    column: str
    version: str
    parts: set[str] = field(default_factory=set)
    bytes: int = 0
    rows: int = 0
    covers: dict[str, tuple[int, int]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    put: float = 0.0  # when its last part was written, on the store's clock


def survey(root: str, datasets: list[Dataset]) -> list[Version]:
    """All versions of all columns, from one listing, one object a version and the datasets' own counts.

    ``rows`` counts those of parts that a dataset lists.
    """
    found: dict[tuple[str, str], Version] = {}
    for item in sorted(inventory.walk(files.join(root, "columns")), key=lambda item: item.name):
        pieces = item.name.split("/")
        if len(pieces) != 3 or pieces[2].startswith(".") or not pieces[2].endswith(".parquet"):
            continue
        entry = found.setdefault((pieces[0], pieces[1]), Version(pieces[0], pieces[1]))
        entry.parts.add(pieces[2].removesuffix(".parquet"))
        entry.bytes += item.size
        entry.put = max(entry.put, item.put)
    samples = {part.id: part.samples for data in datasets for part in data.parts}
    for entry in found.values():
        entry.rows = sum(samples.get(part, 0) for part in entry.parts)
        for data in datasets:
            have = sum(part.id in entry.parts for part in data.parts)
            if have:
                entry.covers[data.name] = (have, len(data.parts))
        entry.about = tables.about(columns.url(root, entry.column, entry.version, min(entry.parts)))
    return list(found.values())


def newest(root: str, column: str, parts: list[Part], other_than: str = "") -> str | None:
    """The version of a column written last, on the store's clock, that covers all of some parts."""
    have: dict[str, set[str]] = defaultdict(set)
    put: dict[str, float] = defaultdict(float)
    for item in inventory.walk(files.join(root, "columns", column)):
        name, _, part = item.name.rpartition("/")
        have[name].add(part.removesuffix(".parquet"))
        put[name] = max(put[name], item.put)
    whole = [name for name, ids in have.items() if name != other_than and ids >= {part.id for part in parts}]
    return max(whole, key=lambda name: (put[name], name), default=None)


@dataclass
class Difference:
    """How two versions of a column differ in one field over some rows; numbers count where the shapes are the same."""

    rows: int = 0
    changed: int = 0
    reshaped: int = 0
    numbers: int = 0
    largest: float = 0.0
    total: float = 0.0
    changes: Counter = field(default_factory=Counter)

    def __add__(self, other: "Difference") -> "Difference":
        sums = [getattr(self, n) + getattr(other, n) for n in ("rows", "changed", "reshaped", "numbers")]
        largest, total = max(self.largest, other.largest), self.total + other.total
        return Difference(*sums, largest=largest, total=total, changes=self.changes + other.changes)  # type: ignore[misc]

    def __str__(self) -> str:
        text = f"{self.changed} of {self.rows} rows changed"
        if self.reshaped:
            text += f", {self.reshaped} of them in shape"
        if self.numbers:
            text += f"; numbers differ by {self.total / self.numbers:.3g} on average, {self.largest:.3g} at most"
        if self.changes:
            text += "; " + ", ".join(f"{a} → {b}: {n}" for (a, b), n in self.changes.most_common(CHANGES))
        return text


def diff(root: str, column: str, one: str, two: str, part: Part) -> dict[str, Difference]:
    """How two versions differ on a part, by field; fields that only one of them has are named with all rows changed."""
    a, b = columns.read(root, column, one, part), columns.read(root, column, two, part)
    found = {}
    for name in dict.fromkeys([*a.column_names, *b.column_names]):
        if name == "key":
            continue
        if name not in a.column_names or name not in b.column_names:
            found[name] = Difference(part.samples, part.samples, part.samples)
            continue
        found[name] = sum(map(_compare, a[name], b[name]), Difference())
    return found


def _compare(one: pa.Scalar, two: pa.Scalar) -> Difference:
    """Two values of a row: numbers in lists of any depth by size, all else as text."""
    lengths_a, a = _flat(one)
    lengths_b, b = _flat(two)
    if a is None or b is None:
        x, y = one.as_py(), two.as_py()
        if x == y:
            return Difference(1)
        return Difference(1, 1, changes=Counter({(_short(x), _short(y)): 1}))
    if lengths_a != lengths_b:
        return Difference(1, 1, 1)
    gap = np.abs(a - b)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return Difference(1, numbers=len(a))
    gap = np.where(same, 0.0, np.where(np.isnan(gap), np.inf, gap))
    return Difference(1, 1, 0, len(a), float(gap.max()), float(gap.sum()))


def _flat(value: pa.Scalar) -> tuple[list[Any], np.ndarray | None]:
    """The numbers of a scalar or of nested lists with the lengths of the lists; None for what is no number."""
    array = pa.array([value.as_py()], value.type)
    lengths: list[Any] = []
    while pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type) or pa.types.is_large_list(array.type):
        lengths.append([None if entry is None else len(entry) for entry in array.to_pylist()])
        array = array.flatten()
    if array.null_count or not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
        return lengths, None
    return lengths, array.to_numpy(zero_copy_only=False).astype(np.float64)


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else text[:59] + "…"


def check_name(what: str, name: str) -> str:
    """A name that may be a folder under the root. Raises `InputError`."""
    if not NAME.fullmatch(name) or name == "latest":
        raise InputError(f"{what} {name!r}: use letters, digits, dots, dashes and underscores, at most 100")
    return name


def load(url: str) -> pa.Table:
    """A table with a ``key`` and at least one other field, from Parquet, CSV or JSON lines. Raises `InputError`."""
    try:
        data = files.read(files.absolute(url))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise InputError(f"{url}: cannot be read ({error}); give a Parquet, CSV or JSON lines file") from error
    try:
        if url.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(data))
        elif url.endswith((".jsonl", ".ndjson", ".json")):
            table = pa.json.read_json(io.BytesIO(data))
        else:
            head = next(csv.reader(io.StringIO(data[: 1 << 16].decode("utf-8-sig"))), [])
            as_text = pa.csv.ConvertOptions(column_types={"key": pa.string()}) if "key" in head else None
            table = pa.csv.read_csv(io.BytesIO(data), convert_options=as_text)
        table.validate(full=True)
    except (pa.ArrowException, ValueError, OSError, csv.Error) as error:
        raise InputError(f"{url}: cannot be read as a table ({error}); give Parquet, CSV or JSON lines") from error
    if "key" not in table.column_names or table.num_columns < 2:
        raise InputError(f"{url}: needs a column `key` and at least one more; it has {', '.join(table.column_names)}")
    if not (pa.types.is_string(table["key"].type) or pa.types.is_large_string(table["key"].type)):
        raise InputError(f"{url}: its keys are {table['key'].type}, not text")
    return table


def aligned(table: pa.Table, dataset: Dataset, url: str) -> Iterator[tuple[Part, pa.Table]]:
    """The rows of a table as each part of a dataset has them, joined by key.

    Raises `InputError` that names keys that come twice, that the dataset does not have, or that are missing.
    """
    keys = table["key"].to_pylist()
    place = {key: number for number, key in enumerate(keys)}
    wanted = {part.id: part.table(["key"])["key"].to_pylist() for part in dataset.parts}
    known = {key for some in wanted.values() for key in some}
    wrong = {
        "come twice": [key for key, count in Counter(keys).items() if count > 1],
        f"are not in dataset {dataset.name}": [key for key in place if key not in known],
        "are missing": [key for some in wanted.values() for key in some if key not in place],
    }
    for problem, found in wrong.items():
        if found:
            some = ", ".join(map(str, found[:3])) + (", …" if len(found) > 3 else "")
            raise InputError(f"{url}: {len(found)} keys {problem} ({some})")
    for part in dataset.parts:
        yield part, table.take([place[key] for key in wanted[part.id]]).combine_chunks()


def drop(root: str, column: str, version: str, parts: set[str]) -> None:
    """Removes a version of a column."""
    for part in sorted(parts):
        files.remove(columns.url(root, column, version, part))
    fs, folder = files.locate(files.join(root, "columns", column, version))
    if isinstance(fs, LocalFileSystem):
        with contextlib.suppress(OSError):  # somebody is writing it again
            os.rmdir(folder)
