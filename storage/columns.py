"""Columns: per-clip quantities beside the media, each in versions: features, pseudo labels, predictions.

``columns/{column}/{version}/{part}.parquet`` has the keys of the part in the part's order.
"""

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage import files
from storage.errors import Damaged
from storage.parts import Part


def url(root: str, column: str, version: str, part: str) -> str:
    return files.join(root, "columns", column, version, f"{part}.parquet")


def has(root: str, column: str, version: str, part: str) -> bool:
    """Whether the column is committed for the part."""
    return files.exists(url(root, column, version, part))


def write(root: str, column: str, version: str, part: Part, table: pa.Table, about: dict[str, Any]) -> bool:
    """Commits a column of one part; whether this call did (a faster writer's result stays).

    Raises `Damaged` where the keys are not exactly the part's, in its order.
    """
    _check_keys(table, part, column)
    table = table.replace_schema_metadata({"reelmill": json.dumps(about, sort_keys=True)})
    with files.scratch() as folder:
        pq.write_table(table, folder / "column", compression="zstd", write_page_checksum=True)
        return files.publish(folder / "column", url(root, column, version, part.id), same=False)


def read(root: str, column: str, version: str, part: Part, fields: list[str] | None = None) -> pa.Table:
    """Reads a column of one part and checks that it is aligned with the media."""
    where = url(root, column, version, part.id)
    try:
        table = pq.read_table(
            io.BytesIO(files.read(where)),
            columns=None if fields is None else ["key", *fields],
            page_checksum_verification=True,
        )
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise Damaged(f"column {column} {version}: {where} cannot be read ({error})") from error
    _check_keys(table, part, column)
    return table


def about(root: str, column: str, version: str, part: Part) -> dict[str, Any]:
    """What the column was made from."""
    schema = pq.read_schema(io.BytesIO(files.read(url(root, column, version, part.id))))
    return json.loads(schema.metadata[b"reelmill"])


def versions(root: str, column: str) -> list[str]:
    return files.names(files.join(root, "columns", column))


def _check_keys(table: pa.Table, part: Part, column: str) -> None:
    if table.column("key").to_pylist() != part.table(["key"]).column("key").to_pylist():
        raise Damaged(f"column {column}: its keys are not those of part {part.id} in their order")
