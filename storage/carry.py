"""Rows of a column that a part before had: what a clip was found to be stays true when its part is made anew."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from storage import columns, datasets, files
from storage.datasets import Dataset
from storage.errors import Damaged, InputError
from storage.parts import Part


@dataclass(frozen=True)
class Before:
    """The parts of the dataset version before that are in this one no longer, and the clips that each holds."""

    parts: tuple[Part, ...] = ()
    clips: tuple[frozenset[tuple[str, str]], ...] = ()  # (key, sha256) by part


NOTHING = Before()


def replaced(root: str, dataset: Dataset) -> Before:
    """What may be carried over into the parts of a dataset; reads each replaced part's index once."""
    if not (before := dataset.about.get("before")):
        return NOTHING
    try:
        old = datasets.load(root, dataset.name, before)
        here = {part.id for part in dataset.parts}
        gone = [part for part in old.parts if part.id not in here]
        return Before(tuple(gone), tuple(files.at_once(_clips, gone)))
    except (InputError, Damaged):  # gone, or not to be trusted: everything is computed
        return NOTHING


def _clips(part: Part) -> frozenset[tuple[str, str]]:
    return frozenset((row["key"], row["sha256"]) for row in part.table(["key", "sha256"]).to_pylist())


def known(root: str, column: str, version: str, part: Part, before: Before) -> pa.Table | None:
    """The rows that the parts ``before`` have for clips of this part: of the same key and the same bytes."""
    wanted = _clips(part) if before.parts else frozenset()
    found = []
    for old, clips in zip(before.parts, before.clips, strict=True):
        shared = [key for key, _ in wanted & clips]
        try:
            if shared and columns.has(root, column, version, old.id):
                found.append(of_keys(columns.read(root, column, version, old), shared))
        except Damaged:
            continue
    return pa.concat_tables(found).replace_schema_metadata(None) if found else None


def missing(part: Part, table: pa.Table | None) -> list[dict[str, Any]]:
    """The index rows of a part that a table has no row for."""
    there = set(table["key"].to_pylist()) if table is not None else set()
    return [row for row in part.rows() if row["key"] not in there]


def together(part: Part, *tables: pa.Table | None) -> pa.Table:
    """Tables of rows of one part as one, in the part's order; of two rows of a clip the first counts."""
    whole = pa.concat_tables([table for table in tables if table is not None], promote_options="permissive")
    first: dict[str, int] = {}
    for place, key in enumerate(whole["key"].to_pylist()):
        first.setdefault(key, place)
    order = [first[key] for key in part.table(["key"])["key"].to_pylist()]
    return whole.take(pa.array(order, pa.int64())).combine_chunks()


def of_keys(table: pa.Table, keys: list[str]) -> pa.Table:
    """The rows of a table whose key is one of these."""
    return table.filter(pc.is_in(table["key"], value_set=pa.array(keys, pa.string())))
