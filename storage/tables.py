"""Parquet objects: written with a checksum on every page, checked when read, and named when they are damaged."""

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage import files
from storage.errors import Damaged

# What Arrow raises over altered bytes; FileNotFoundError never gets here, the bytes are read before.
BROKEN = (pa.ArrowException, OSError, ValueError, KeyError, TypeError)


GROUP = 16_384  # rows of a row group in what is written as a stream


def _described(schema: pa.Schema, about: dict[str, Any] | None) -> pa.Schema:
    if about is None:
        return schema
    text = json.dumps(about, sort_keys=True)
    return schema.with_metadata({"reelmill": text, "reelmill.sha256": files.digest(text.encode())})


def pack(table: pa.Table, about: dict[str, Any] | None = None) -> bytes:
    """The table as the bytes of a Parquet file; ``about`` goes with it as JSON."""
    table = table.replace_schema_metadata(_described(table.schema, about).metadata)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def read(url: str, columns: list[str] | None = None) -> pa.Table:
    """Reads a table (or some of its columns); raises `Damaged` where its bytes are not what was written."""
    data = files.read(url)
    try:
        table = pq.read_table(io.BytesIO(data), columns=columns, page_checksum_verification=True)
        table.validate(full=True)
    except BROKEN as error:
        raise Damaged(f"{url} cannot be read ({error}); restore it from a copy or remove it") from error
    return table


def about(url: str) -> dict[str, Any]:
    """The JSON that `pack` put beside the table."""
    data = files.read(url)
    try:
        stored = pq.read_schema(io.BytesIO(data)).metadata
        if files.digest(stored[b"reelmill"]).encode() != stored[b"reelmill.sha256"]:
            raise ValueError("its metadata differ from their digest")
        found = json.loads(stored[b"reelmill"])
    except BROKEN as error:
        raise Damaged(f"{url} cannot be read ({error}); restore it from a copy or remove it") from error
    return found


def write(
    path: Path, batches: Iterable[pa.RecordBatch], schema: pa.Schema, about: dict[str, Any] | None = None
) -> None:
    """Writes batches to a local Parquet file as they come; the bytes follow from the rows, not from their batches."""
    schema = _described(schema, about)
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        held: list[pa.RecordBatch] = []
        rows = 0
        for batch in batches:
            while rows + batch.num_rows >= GROUP:
                here = GROUP - rows
                held.append(batch.slice(0, here))
                writer.write_table(pa.Table.from_batches(held).cast(schema), row_group_size=GROUP)
                batch, held, rows = batch.slice(here), [], 0
            held.append(batch)
            rows += batch.num_rows
        if rows:
            writer.write_table(pa.Table.from_batches(held).cast(schema), row_group_size=GROUP)
