"""Parquet objects: written with a seal over every byte, checked when read, and named when they are damaged.

Pages have checksums, but a footer has none: a flipped bit in it may rename a field or change a statistic. So the
digest of all other bytes lies between the last page and the footer, where every Parquet reader passes over it.
"""

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage import files
from storage.errors import Damaged, StoreError
from storage.ranges import opened

# What Arrow raises over altered bytes; FileNotFoundError never gets here, the bytes are read before.
BROKEN = (pa.ArrowException, OSError, ValueError, KeyError, TypeError)
MAGIC, TAIL = b"PAR1", 8  # the end of a Parquet file: length of the footer (4 bytes), magic
SEAL = b"reelmill-seal:\0\0"
SEALED = b"reelmill.sealed"
TAILS = 1 << 16  # bytes at the end of a table among which its seal is, nearly always

GROUP = 16_384  # rows of a row group in what is written as a stream
BATCH = 4096  # rows in what is read as one


def _described(schema: pa.Schema, about: dict[str, Any] | None) -> pa.Schema:
    """The schema with what goes into its metadata: that there is a seal, and ``about`` with its digest."""
    metadata = {**(schema.metadata or {}), SEALED: b"1"}
    if about is not None:
        text = json.dumps(about, sort_keys=True)
        metadata = {SEALED: b"1", b"reelmill": text.encode(), b"reelmill.sha256": files.digest(text.encode()).encode()}
    return schema.with_metadata(metadata)


def pack(table: pa.Table, about: dict[str, Any] | None = None, *, group: int | None = None) -> bytes:
    """The table as the bytes of a Parquet file; ``about`` goes with it as JSON. ``group`` is in rows."""
    table = table.replace_schema_metadata(_described(table.schema, about).metadata)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True, row_group_size=group)
    return _seal(sink.getvalue())


def _footer(data: bytes) -> int:
    """Where the footer begins; ValueError where there is none."""
    length = int.from_bytes(data[-TAIL:-4], "little")
    if data[:4] != MAGIC or data[-4:] != MAGIC or not 0 < length <= len(data) - TAIL - 4:
        raise ValueError("it does not end like a Parquet file")
    return len(data) - TAIL - length


def _seal(data: bytes) -> bytes:
    footer = _footer(data)
    return data[:footer] + SEAL + bytes.fromhex(files.digest(data)) + data[footer:]


def check(data: bytes) -> bool:
    """Whether the bytes have a seal and fit it; ValueError where they do not fit, False for a table without one."""
    footer = _footer(data)
    began = footer - len(SEAL) - 32
    if began < 4 or data[began : began + len(SEAL)] != SEAL:
        if SEALED in (pq.read_schema(io.BytesIO(data)).metadata or {}):
            raise ValueError("its seal is gone")
        return False
    if bytes.fromhex(files.digest(data[:began] + data[footer:])) != data[footer - 32 : footer]:
        raise ValueError("its bytes differ from their seal")
    return True


def read(url: str, columns: list[str] | None = None) -> pa.Table:
    """Reads a table (or some of its columns); raises `Damaged` where its bytes are not what was written."""
    return _parsed(url, lambda data: _table(data, columns))


def rows(url: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of a table, a few thousand in memory at a time; raises `Damaged` where a page is altered."""
    try:
        with opened(url) as file:
            table = pq.ParquetFile(file, page_checksum_verification=True)
            for batch in table.iter_batches(BATCH, columns=columns, use_threads=False):  # see `_table`
                yield from batch.to_pylist()
    except FileNotFoundError:
        raise
    except BROKEN as error:
        unless_ours(error, url)
        raise Damaged(f"{url} cannot be read ({error}); restore it from a copy or remove it") from error


def seal(url: str) -> str:
    """The digest that a table was sealed with, from its last bytes; of a table without a seal that of all of it."""
    size = int(files.info(url)["size"])
    tail = files.read(url, max(0, size - TAILS), size)
    end = len(tail) - TAIL - int.from_bytes(tail[-TAIL:-4], "little")
    if end < len(SEAL) + 32 or tail[end - 32 - len(SEAL) : end - 32] != SEAL:
        return files.digest(files.read(url))
    return tail[end - 32 : end].hex()


def about(url: str) -> dict[str, Any]:
    """The JSON that `pack` put beside the table."""
    return _parsed(url, _about)


def both(url: str) -> tuple[pa.Table, dict[str, Any]]:
    """`read` and `about` of one object, fetched once."""
    return _parsed(url, lambda data: (_table(data, None), _about(data)))


def batches(url: str) -> tuple[dict[str, Any], Iterator[pa.RecordBatch]]:
    """`about` of a table, and its rows, of which a few thousand are unpacked at a time; both checked by its seal."""

    def parse(data: bytes) -> tuple[dict[str, Any], Iterator[pa.RecordBatch]]:
        file = pq.ParquetFile(io.BytesIO(data))
        return parse_about(file.schema_arrow.metadata), file.iter_batches(BATCH, use_threads=False)

    found: tuple[dict[str, Any], Iterator[pa.RecordBatch]] = _parsed(url, parse)
    return found


def unless_ours(error: Exception, url: str) -> None:
    """Raises `StoreError` for an error with a number: the system gave it, or the store; Arrow over bytes has none."""
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError):
        raise StoreError(f"{url} cannot be read now ({type(error).__name__}: {error}); try again") from error


def _parsed(url: str, parse: Any) -> Any:
    data = files.read(url)
    try:
        check(data)
        return parse(data)
    except BROKEN as error:
        raise Damaged(f"{url} cannot be read ({error}); restore it from a copy or remove it") from error


def parse(data: bytes) -> pa.Table:
    """The table that bytes are, checked against their seal, with its metadata; raises one of `BROKEN`."""
    check(data)
    return _table(data, None)


def _table(data: bytes, columns: list[str] | None) -> pa.Table:
    file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    # Not on Arrow's threads: one that lets go of our bytes while Python ends takes the process down.
    table = file.read(columns, use_threads=False)
    table.validate(full=True)
    return table if columns is None else table.select(columns)


def _about(data: bytes) -> dict[str, Any]:
    return parse_about(pq.read_schema(io.BytesIO(data)).metadata)


def parse_about(stored: dict[bytes, bytes]) -> dict[str, Any]:
    """What `pack` put beside a table, from the metadata of its schema; ValueError or KeyError where it is altered."""
    if files.digest(stored[b"reelmill"]).encode() != stored[b"reelmill.sha256"]:
        raise ValueError("its metadata differ from their digest")
    return json.loads(stored[b"reelmill"])


def write(
    path: Path,
    batches: Iterable[pa.RecordBatch],
    schema: pa.Schema,
    about: dict[str, Any] | None = None,
    *,
    group: int = GROUP,
) -> None:
    """Writes batches to a local Parquet file as they come; the bytes follow from the rows, not from their batches."""
    schema = _described(schema, about)
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        held: list[pa.RecordBatch] = []
        rows = 0
        for batch in batches:
            while rows + batch.num_rows >= group:
                here = group - rows
                held.append(batch.slice(0, here))
                writer.write_table(pa.Table.from_batches(held).cast(schema), row_group_size=group)
                batch, held, rows = batch.slice(here), [], 0
            held.append(batch)
            rows += batch.num_rows
        if rows:
            writer.write_table(pa.Table.from_batches(held).cast(schema), row_group_size=group)
    _seal_file(path)


def _seal_file(path: Path) -> None:
    digest = bytes.fromhex(files.digest_file(path))
    with open(path, "r+b") as file:
        file.seek(-TAIL, io.SEEK_END)
        length = int.from_bytes(file.read(4), "little") + TAIL
        at = file.seek(-length, io.SEEK_END)
        footer = file.read()
        file.seek(at)
        file.write(SEAL + digest + footer)
