"""Rows of a column that a part before had: what a clip was found to be stays true when its part is made anew."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from storage import columns, datasets, files
from storage.datasets import Dataset
from storage.errors import Damaged, InputError
from storage.parts import Part


@dataclass(frozen=True)
class Before:
    """Which dataset version came before one: what is no longer in this one may be carried over. Nothing is read yet."""

    root: str
    name: str
    version: str
    before: str


def replaced(root: str, dataset: Dataset) -> Before | None:
    """What may be carried over into the parts of a dataset; None where it is the first of its name."""
    before = dataset.about.get("before")
    return Before(root, dataset.name, dataset.version, before) if before else None


@lru_cache(maxsize=4)
def _held(known: Before) -> dict[tuple[str, str], Part]:
    """Which part of the version before alone holds a clip of (key, sha256); read once a process."""
    try:
        here = {part.id for part in datasets.load(known.root, known.name, known.version).parts}
        old = datasets.load(known.root, known.name, known.before).parts
    except (InputError, Damaged):  # gone, or not to be trusted: everything is computed
        return {}
    gone = [part for part in old if part.id not in here]
    return {clip: part for part, clips in zip(gone, files.at_once(_clips, gone), strict=True) for clip in clips}


def _clips(part: Part) -> list[tuple[str, str]]:
    try:
        return [(row["key"], row["sha256"]) for row in part.table(["key", "sha256"]).to_pylist()]
    except Damaged:
        return []


def known(root: str, column: str, version: str, rows: list[dict[str, Any]], before: Before | None) -> pa.Table | None:
    """What parts of the version before have for clips, given by their index rows: of the same key and bytes."""
    held = _held(before) if before else {}
    shared: dict[Part, list[str]] = {}
    for row in rows:
        if old := held.get((row["key"], row["sha256"])):
            shared.setdefault(old, []).append(row["key"])
    found = []
    for old, keys in shared.items():
        try:
            if columns.has(root, column, version, old.id):
                found.append(of_keys(columns.read(root, column, version, old), keys))
        except Damaged:
            continue
    return pa.concat_tables(found).replace_schema_metadata(None) if found else None


def missing(rows: list[dict[str, Any]], table: pa.Table | None) -> list[dict[str, Any]]:
    """The index rows that a table has no row for."""
    there = set(table["key"].to_pylist()) if table is not None else set()
    return [row for row in rows if row["key"] not in there]


def together(rows: list[dict[str, Any]], *tables: pa.Table | None) -> pa.Table:
    """Tables of one part as one, in the order of its index rows; of two rows of a clip the first counts."""
    whole = pa.concat_tables([table for table in tables if table is not None], promote_options="permissive")
    first: dict[str, int] = {}
    for place, key in enumerate(whole["key"].to_pylist()):
        first.setdefault(key, place)
    order = [first[row["key"]] for row in rows]
    return whole.take(pa.array(order, pa.int64())).combine_chunks()


def of_keys(table: pa.Table, keys: list[str]) -> pa.Table:
    """The rows of a table whose key is one of these."""
    return table.filter(pc.is_in(table["key"], value_set=pa.array(keys, pa.string())))
