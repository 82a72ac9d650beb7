"""The catalogue of a dataset version: where every clip is, by key, in one sorted Parquet object.

``catalogues/{dataset}/{version}.parquet`` is derived from the indexes of the parts, and made again when it is missing
or damaged when it is opened. A look-up reads one group of rows, whatever the number of clips.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage import files, tables
from storage.datasets import Dataset
from storage.errors import Damaged, InputError
from storage.parts import Part
from storage.ranges import opened
from storage.stores import is_local

GROUP = 8192  # rows that a look-up reads
KEPT = 64  # groups in memory
SMALL = 1 << 28  # bytes; a larger catalogue is not read whole, its seal is left to `verify`
AT_ONCE = 16  # requests to a store
FIELDS = ["key", "offset", "size", "sha256"]
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("part", pa.int32()),  # place in the dataset
        ("row", pa.int32()),  # place in the part
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("sha256", pa.binary(32)),
    ]
)


@dataclass(frozen=True)
class Place:
    """Where a clip is: its part, its row in the part's index, and its bytes in the part's tar."""

    key: str
    part: Part
    row: int
    offset: int
    size: int
    sha256: str


def url(root: str, dataset: Dataset) -> str:
    return files.join(root, "catalogues", dataset.name, f"{dataset.version}.parquet")


def build(root: str, dataset: Dataset) -> str:
    """Writes the catalogue of a dataset and returns its URL. Raises `Damaged` for a key in two parts."""
    indexes = files.at_once(lambda part: part.table(FIELDS), dataset.parts)
    pieces = []
    for number, table in enumerate(indexes):
        digests = [bytes.fromhex(value) for value in table["sha256"].to_pylist()]
        places = {"part": pa.array([number] * table.num_rows, pa.int32())}
        places["row"] = pa.array(range(table.num_rows), pa.int32())
        columns = {name: table[name] for name in ("key", "offset", "size")} | places
        pieces.append(pa.table(columns | {"sha256": pa.array(digests, pa.binary(32))}).select(SCHEMA.names))
    whole = pa.concat_tables([SCHEMA.empty_table(), *pieces]).sort_by("key").combine_chunks()
    keys = whole["key"].to_pylist()
    for place, (one, two) in enumerate(zip(keys, keys[1:], strict=False)):
        if one == two:
            owners = [dataset.parts[whole["part"][i].as_py()].id for i in (place, place + 1)]
            raise Damaged(f"dataset {dataset.name}: key {one} is in part {owners[0]} and in part {owners[1]}")
    about = {"dataset": dataset.name, "version": dataset.version, "clips": len(keys), "firsts": keys[::GROUP]}
    files.replace(tables.pack(whole, about, group=GROUP), url(root, dataset))
    return url(root, dataset)


@dataclass
class Catalogue:
    """Random access to the clips of a dataset, each read by its byte range and checked against its digest."""

    root: str
    dataset: Dataset

    def __post_init__(self) -> None:
        self._lock = Lock()
        try:
            self._load()
        except (FileNotFoundError, Damaged):
            build(self.root, self.dataset)
            self._load()

    def _load(self) -> None:
        """Opens the catalogue, a small one read whole, else a group at a time. Raises `Damaged`."""
        where = url(self.root, self.dataset)
        size = int(files.info(where)["size"])
        fs, path = files.locate(where)
        try:
            source: Any = path if is_local(fs) else opened(where)
            if size <= SMALL:
                data = files.read(where)
                tables.check(data)
                source = pa.BufferReader(data)
            self._file = pq.ParquetFile(source, memory_map=True, pre_buffer=True, page_checksum_verification=True)
            about = tables.parse_about(self._file.schema_arrow.metadata)
            if (about["dataset"], about["version"]) != (self.dataset.name, self.dataset.version):
                raise ValueError("it is of another dataset")
            if self._file.metadata.num_rows != about["clips"]:
                raise ValueError("its number of rows is wrong")
        except tables.BROKEN as error:
            tables.unless_ours(error, where)
            raise Damaged(f"{where} cannot be read ({error})") from error
        self._firsts: list[str] = about["firsts"]
        self._groups = lru_cache(maxsize=KEPT)(self._group)

    def __len__(self) -> int:
        return self._file.metadata.num_rows

    def _group(self, number: int) -> tuple[dict[str, int], pa.Table]:
        """The rows of a group and their places by key."""
        try:
            table = self._file.read_row_group(number, columns=SCHEMA.names)
            keys = {key: place for place, key in enumerate(table["key"].to_pylist())}
            if not table.schema.equals(SCHEMA) or next(iter(keys)) != self._firsts[number]:
                raise ValueError("its rows are not where they were written")
        except tables.BROKEN as error:
            tables.unless_ours(error, url(self.root, self.dataset))
            raise Damaged(f"{url(self.root, self.dataset)} cannot be read ({error}); remove it") from error
        return keys, table

    def find(self, key: str) -> Place:
        """Where a clip is. Raises `InputError` where the dataset has no such key."""
        number = bisect_right(self._firsts, key) - 1
        with self._lock:
            keys, table = self._groups(max(0, number)) if self._firsts else ({}, SCHEMA.empty_table())
        if key not in keys:
            raise InputError(f"dataset {self.dataset.name} {self.dataset.version} has no clip {key!r}")
        row = {name: table[name][keys[key]].as_py() for name in SCHEMA.names}
        part = self.dataset.parts[row["part"]]
        return Place(key, part, row["row"], row["offset"], row["size"], row["sha256"].hex())

    def clip(self, key: str) -> bytes:
        """The bytes of a clip. Raises `Damaged`, naming part and clip, where they are not those of the index."""
        place = self.find(key)
        wanted = {"key": key, "offset": place.offset, "size": place.size, "sha256": place.sha256}
        ((_, data),) = place.part.clips([wanted])
        return data

    def row(self, key: str) -> dict[str, Any]:
        """The whole row of the index."""
        place = self.find(key)
        return place.part.table().slice(place.row, 1).to_pylist()[0]

    def clips(self, keys: Iterable[str], *, width: int = AT_ONCE) -> Iterator[tuple[str, bytes]]:
        """Yields (key, bytes) in the order asked for, several requests at once."""
        wanted = list(keys)
        with ThreadPoolExecutor(width) as pool:
            for start in range(0, len(wanted), 4 * width):
                some = wanted[start : start + 4 * width]
                yield from zip(some, pool.map(self.clip, some), strict=True)
