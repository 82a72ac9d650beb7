"""Parquet objects: written with a checksum on every page, checked when read, and named when they are damaged."""

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage import files
from storage.errors import Damaged

# What Arrow raises over altered bytes; FileNotFoundError never gets here, the bytes are read before.
BROKEN = (pa.ArrowException, OSError, ValueError, KeyError, TypeError)


def pack(table: pa.Table, about: dict[str, Any] | None = None) -> bytes:
    """The table as the bytes of a Parquet file; ``about`` goes with it as JSON."""
    if about is not None:
        text = json.dumps(about, sort_keys=True)
        table = table.replace_schema_metadata({"reelmill": text, "reelmill.sha256": files.digest(text.encode())})
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
