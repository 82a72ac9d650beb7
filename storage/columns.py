"""Columns: per-clip quantities beside the media, each in versions: features, pseudo labels, predictions.

``columns/{column}/{version}/{part}.parquet`` has the keys of the part in the part's order.
"""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from storage import files, tables
from storage.errors import Damaged
from storage.parts import Part


def url(root: str, column: str, version: str, part: str) -> str:
    return files.join(root, "columns", column, version, f"{part}.parquet")


def has(root: str, column: str, version: str, part: str) -> bool:
    """Whether the column is committed for the part."""
    return files.exists(url(root, column, version, part))


def write(
    root: str,
    column: str,
    version: str,
    part: Part,
    table: pa.Table,
    about: dict[str, Any],
    rows: list[dict[str, Any]] | None = None,
) -> bool:
    """Commits a column of one part; whether this call did (a faster writer's result stays).

    The part's index is read unless its ``rows`` are known. Raises `Damaged` where the keys are not exactly theirs, in
    their order.
    """
    _check_keys(table, part, column, None if rows is None else [row["key"] for row in rows])
    return files.publish_bytes(tables.pack(table, about), url(root, column, version, part.id), same=False)


def read(
    root: str, column: str, version: str, part: Part, fields: list[str] | None = None, keys: list[str] | None = None
) -> pa.Table:
    """Reads a column of one part and checks that it is aligned with the media, whose ``keys`` may be known already."""
    table = tables.read(url(root, column, version, part.id), None if fields is None else ["key", *fields])
    _check_keys(table, part, column, keys)
    return table


def about(root: str, column: str, version: str, part: Part) -> dict[str, Any]:
    """What the column was made from."""
    return tables.about(url(root, column, version, part.id))


def digest(root: str, column: str, version: str, parts: Iterable[str]) -> str:
    """The digest of a version over some parts, those of them that have it: of what their tables were sealed with."""
    there = sorted(parts)
    seals = files.at_once(lambda part: _seal(url(root, column, version, part)), there)
    return files.digest_of([pair for pair in zip(there, seals, strict=True) if pair[1]])[:16]


def _seal(url: str) -> str:
    try:
        return tables.seal(url)
    except FileNotFoundError:
        return ""


def versions(root: str, column: str) -> list[str]:
    return files.names(files.join(root, "columns", column))


def _check_keys(table: pa.Table, part: Part, column: str, keys: list[str] | None = None) -> None:
    keys = part.table(["key"])["key"].to_pylist() if keys is None else keys
    if "key" not in table.column_names or table["key"].to_pylist() != keys:
        raise Damaged(f"column {column}: its keys are not those of part {part.id} in their order")
