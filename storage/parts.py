"""Parts: a WebDataset shard and its index, committed together.

``parts/{part}.tar`` holds ``{key}.mp4`` and ``{key}.json`` per clip; ``parts/{part}.parquet`` is the index, written
last: its presence commits the part, and it names its tar. No tar is ever overwritten: where another writer's bytes
(of another encoder version, or cut short) have the name, ours go beside it as ``{part}-{digest}.tar``. A part whose
sources were all quarantined has an index of no rows and no tar.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from storage import files, tables
from storage.errors import Conflict, Damaged, StoreError
from storage.tars import Tar

LABEL = pa.struct([("start", pa.float64()), ("end", pa.float64()), ("label", pa.string())])
INDEX = pa.schema(
    [
        ("key", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("sha256", pa.string()),
        ("source", pa.string()),
        ("path", pa.string()),
        ("content_id", pa.string()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("start_pts", pa.int64()),
        ("end_pts", pa.int64()),
        ("time_base", pa.string()),
        ("duration", pa.float64()),
        ("frames", pa.int32()),
        ("fps", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("split", pa.string()),
        ("labelled", pa.string()),  # none | video | segments
        ("labels", pa.list_(LABEL)),
        ("member", pa.string()),  # the clip's name in the tar
        ("identity", pa.string()),  # of the source, as the plan has it
        ("metadata", pa.string()),  # what else the archive's list said of the source, a JSON object
    ]
)
ADDED = ("member", "identity", "metadata")  # since schema 1

Data = bytes  # `Part` has a field of that name


@dataclass(frozen=True)
class Part:
    """A committed part. ``bytes`` and ``digest`` (sha256) are of the tar; both are empty where no clip was kept.

    ``account`` is the digest of its ledger, where the part was read from its index and has one.
    """

    id: str
    media: str
    index: str
    samples: int
    bytes: int
    digest: str
    split: str = ""
    labelled: str = ""
    account: str = field(default="", compare=False)

    def rows(self) -> list[dict[str, Any]]:
        """The index rows, in order."""
        return self.table().to_pylist()

    def table(self, columns: list[str] | None = None) -> pa.Table:
        try:
            whole = columns is None or bool(set(columns) & set(ADDED))
            table = _current(tables.read(self.index, None if whole else columns), columns)
        except FileNotFoundError as error:
            raise Damaged(f"part {self.id}: its index {self.index} is gone") from error
        return self._checked(table, columns)

    def _checked(self, table: pa.Table, columns: list[str] | None) -> pa.Table:
        wanted = INDEX if columns is None else pa.schema([INDEX.field(name) for name in columns])
        if not table.schema.equals(wanted):
            raise Damaged(f"part {self.id}: the columns of {self.index} are not those of an index")
        if table.num_rows != self.samples:
            raise Damaged(f"part {self.id}: its index has {table.num_rows} rows, {self.samples} were committed")
        return table

    def verify(self) -> None:
        """Raises `Damaged` unless the media bytes are those that were committed."""
        if self.samples and files.digest(self._read()) != self.digest:
            raise Damaged(f"part {self.id}: {self.media} differs from its index")

    def clips(self, rows: list[dict[str, Any]] | None = None) -> Iterator[tuple[dict[str, Any], Data]]:
        """Yields (index row, MP4 bytes), each clip read by its byte range and checked against its sha256."""
        for row in self.rows() if rows is None else rows:
            try:
                data = files.read_verified(self.media, row["sha256"], row["offset"], row["offset"] + row["size"])
            except FileNotFoundError as error:
                raise Damaged(f"part {self.id}: {self.media} is gone") from error
            except Damaged as error:
                raise Damaged(f"part {self.id}: clip {row['key']} in {self.media} differs from its index") from error
            yield row, data

    def _read(self, start: int | None = None, end: int | None = None) -> Any:
        try:
            return files.read(self.media, start, end)
        except FileNotFoundError as error:
            raise Damaged(f"part {self.id}: {self.media} is gone") from error


def _current(table: pa.Table, columns: list[str] | None) -> pa.Table:
    """An index as this schema has it: what schema 1 lacked is filled in."""
    names = table.column_names
    if "member" not in names and "key" in names:
        table = table.append_column("member", pa.array([f"{key}.mp4" for key in table["key"].to_pylist()], pa.string()))
    if "identity" not in names:
        table = table.append_column("identity", pa.array([""] * table.num_rows, pa.string()))
    if "metadata" not in names:
        table = table.append_column("metadata", pa.array(["{}"] * table.num_rows, pa.string()))
    wanted = INDEX.names if columns is None else columns
    return table.select(wanted) if set(wanted) <= set(table.column_names) else table


def part_urls(root: str, part: str) -> tuple[str, str]:
    """The (media, index) URLs of a part; its index says whether the media have another name."""
    return files.join(root, "parts", f"{part}.tar"), files.join(root, "parts", f"{part}.parquet")


def committed(root: str, part: str) -> bool:
    """Whether the part is in the store."""
    return files.exists(part_urls(root, part)[1])


def find(root: str, part: str) -> Part | None:
    """The committed part of this id, or None."""
    try:
        facts = tables.about(part_urls(root, part)[1])
    except FileNotFoundError:
        return None
    return from_record(root, facts)


def whole(root: str, part: str) -> tuple[Part, pa.Table] | None:
    """The committed part of this id and its index, fetched once; or None. Raises `Damaged`."""
    try:
        table, facts = tables.both(part_urls(root, part)[1])
    except FileNotFoundError:
        return None
    found = from_record(root, facts)
    return found, found._checked(_current(table, None), None)


def commit(root: str, part: str, rows: list[dict[str, Any]], media: list[Path], folder: Path) -> Part:
    """`commit_tar` of these clips."""
    with Tar(folder / f"{part}.tar") as tar:
        tar.add(rows, media)
        return commit_tar(root, part, tar)


def commit_tar(root: str, part: str, tar: Tar, account: str = "") -> Part:
    """Commits a part: the tar into place, then the index. Returns the part that is in the store afterwards.

    Where another writer was first, its part is returned. A tar without an index is the remains of a killed writer,
    or of one still at work: it is left alone. ``account`` is the digest of the ledger that tells of these clips.
    """
    media_url, index_url = part_urls(root, part)
    digest, rows = tar.close(), tar.rows
    facts: dict[str, Any] = {
        "id": part,
        "media": "",
        "samples": len(rows),
        "bytes": 0,
        "digest": "",
        "split": "",
        "labelled": "",
        "account": account,
    }
    if rows:
        facts |= {"bytes": tar.path.stat().st_size, "digest": digest}
        facts |= {"split": rows[0]["split"], "labelled": rows[0]["labelled"]}
        try:
            files.publish(tar.path, media_url, give=True)
        except Conflict:
            media_url = files.join(root, "parts", f"{part}-{facts['digest'][:16]}.tar")
            files.publish(tar.path, media_url, give=True)
        facts["media"] = media_url.rsplit("/", 1)[1]
    index = tables.pack(pa.Table.from_pylist(rows, schema=INDEX), facts)
    if files.publish_bytes(index, index_url, same=False):
        if rows and not files.exists(media_url):  # this writer stood still, and `gc` took its tar for a dead one's
            files.remove(index_url)
            raise StoreError(f"{media_url} was removed while its part was committed; it is made again")
        return from_record(root, facts)
    found = find(root, part)
    assert found is not None, index_url
    return found


def as_record(part: Part) -> dict[str, Any]:
    """A part as the plain values a dataset lists."""
    record = asdict(part)
    del record["index"], record["account"]
    folder = part.index.rsplit("/", 1)[0]
    return {**record, "media": part.media.removeprefix(f"{folder}/")}


def from_record(root: str, record: dict[str, Any]) -> Part:
    """The part of such plain values under a root; media elsewhere (an adopted shard) are named by their whole URL."""
    media = record["media"]
    if media and "/" not in media:
        media = files.join(root, "parts", media)
    return Part(**{**record, "media": media, "index": part_urls(root, record["id"])[1]})
