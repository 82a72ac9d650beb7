"""Finding bytes that are known by their digests alone: at every place of an object, whatever lies around them.

A pattern is kept as its length, a hash of its first 16, 8 or 4 bytes and a digest of all of it, so a list of patterns
holds nothing of what it finds. Every place of what is searched is hashed, a table of 2^20 bits passes on one in
hundreds, and the digest decides. Tables that are compressed are searched by their values as well.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage import files, tables

Kind = Literal["name", "digest", "bytes"]
WIDTHS = (16, 8, 4)  # bytes that a hash is taken of; of a pattern the most that it has
ODD = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)  # multipliers without small factors
BITS = 20  # of a hash that the table is asked with
WINDOW = 64  # bytes of a window of a payload
VARIED = 24  # different bytes that a window has at least; padding and headers have fewer
PIECE = 16 << 20  # bytes fetched at a time
BLOCK = 1 << 18  # and searched at a time, so that what is computed of them stays in a processor's cache
INSIDE = np.zeros(256, bool)  # bytes that a name goes on with
INSIDE[[*b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-%/", *range(128, 256)]] = True


@dataclass(frozen=True)
class Pattern:
    """Bytes to be found: what they are, how many, the hash of the first and the digest of all."""

    kind: Kind
    length: int
    anchor: int
    check: str


def pattern(kind: Kind, data: bytes) -> Pattern:
    """A pattern of at least four bytes. A name counts only where no longer name goes on."""
    width = next(width for width in WIDTHS if width <= len(data))
    ((_, hashes),) = [found for found in _hashes(np.frombuffer(data[:width], np.uint8), width) if len(found[1])]
    return Pattern(kind, len(data), int(hashes[0]), _check(data))


def as_plain(patterns: Iterable[Pattern]) -> list[list[Any]]:
    """Patterns as JSON has them, in order."""
    return [list(values) for values in sorted({astuple(one) for one in patterns})]


def of_plain(values: list[list[Any]]) -> list[Pattern]:
    """The patterns of `as_plain`."""
    return [Pattern(*one) for one in values]


def windows(data: bytes, most: int) -> list[bytes]:
    """Up to ``most`` windows of a payload, evenly over it, those left out that hold next to nothing."""
    step = max(WINDOW, len(data) // most)
    cut = [data[begin : begin + WINDOW] for begin in range(0, len(data) - WINDOW + 1, step)]
    return [window for window in cut if len(set(window)) >= VARIED]


def _check(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _hashes(data: np.ndarray, width: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first place, hashes of ``width`` bytes at every ``step``-th place from it), for all places; step: 8, or 4."""
    kind, step = ("<u4", 4) if width == 4 else ("<u8", 8)
    for shift in range(step):
        count = (len(data) - shift) // step
        words = data[shift : shift + step * count].view(kind).astype(np.uint64, copy=False)
        if width == 16:
            hashes = words[:-1] * ODD[0]
            hashes += words[1:] * ODD[1]
            yield shift, hashes
        else:
            yield shift, words * ODD[0]


class Search:
    """Looks for some patterns; may be used by several threads."""

    def __init__(self, patterns: Iterable[Pattern]) -> None:
        self.patterns = set(patterns)
        self.longest = max((one.length for one in self.patterns), default=0)
        self.known: dict[int, dict[int, list[Pattern]]] = {}
        for one in self.patterns:
            width = next(width for width in WIDTHS if width <= one.length)
            self.known.setdefault(width, {}).setdefault(one.anchor, []).append(one)
        self.tables = {width: np.zeros(1 << BITS, bool) for width in self.known}
        for width, anchors in self.known.items():
            self.tables[width][[anchor >> (64 - BITS) for anchor in anchors]] = True
        self.anchors = {width: np.array(sorted(anchors), np.uint64) for width, anchors in self.known.items()}

    def found(self, data: bytes | memoryview, first: bool = True, last: bool = True) -> set[Pattern]:
        """The patterns that are in some bytes; ``first`` and ``last`` say whether these are the ends of an object."""
        whole, hits = np.frombuffer(data, np.uint8), set()
        for begin in range(0, len(whole), BLOCK):
            block = whole[begin : begin + BLOCK + self.longest + 2]
            for width in self.known:
                for place in self._places(block, width):
                    hits |= self._at(whole, begin + place, width, first, last)
        return hits

    def _places(self, block: np.ndarray, width: int) -> Iterator[int]:
        if len(block) < width:
            return
        table, anchors, step = self.tables[width], self.anchors[width], 4 if width == 4 else 8
        for shift, hashes in _hashes(block, width):
            some = np.flatnonzero(table.take((hashes >> np.uint64(64 - BITS)).view(np.int64)))
            if len(some):
                asked = hashes[some]
                near = anchors[np.searchsorted(anchors, asked).clip(max=len(anchors) - 1)]
                for place in some[near == asked].tolist():
                    yield shift + place * step

    def _at(self, whole: np.ndarray, place: int, width: int, first: bool, last: bool) -> set[Pattern]:
        ((_, hashes),) = [h for h in _hashes(whole[place : place + width], width) if len(h[1])]
        found = set()
        for one in self.known[width].get(int(hashes[0]), ()):
            end = place + one.length
            fits = end <= len(whole) and _check(whole[place:end].tobytes()) == one.check
            if fits and (one.kind != "name" or _alone(whole, place, end, first, last)):
                found.add(one)
        return found

    def in_object(self, url: str, size: int) -> set[Pattern]:
        """The patterns that are in an object: in its name, its bytes, and the values of a table."""
        hits = self.found(url.rpartition("/")[2].encode())
        for begin in range(0, size, PIECE):
            end = min(size, begin + PIECE + self.longest + 2)
            hits |= self.found(files.read(url, begin, end), begin == 0, end == size)
        if url.endswith(".parquet"):
            for text in _texts(files.read(url)):
                hits |= self.found(text)
        return hits


def _alone(whole: np.ndarray, place: int, end: int, first: bool, last: bool) -> bool:
    """Whether no longer name goes on before or after a name; what is cut off there is seen in the next piece."""
    before = first if place == 0 else not (INSIDE[whole[place - 1]] or whole[place - 1] == ord("."))
    if end == len(whole):
        return before and last
    dot = whole[end] == ord(".") and end + 1 < len(whole) and INSIDE[whole[end + 1]]
    return bool(before and not INSIDE[whole[end]] and not dot)


def _texts(data: bytes) -> Iterator[bytes]:
    """The values of a table that are text or bytes, with a zero byte between them; none of what is no table."""
    try:
        table = pq.read_table(io.BytesIO(data))
    except tables.BROKEN:  # then it has no values, and its bytes were searched
        return
    for column in table.columns:
        for array in column.chunks:
            for text in _flat(array):
                values = text.drop_null().to_pylist()
                yield b"\0".join(value.encode() if isinstance(value, str) else value for value in values)


def _flat(array: pa.Array) -> Iterator[pa.Array]:
    """The arrays of text or bytes inside an array."""
    kind, is_ = array.type, pa.types
    if is_.is_dictionary(kind):
        yield from _flat(array.dictionary_decode())
    elif is_.is_struct(kind):
        for inner in array.flatten():
            yield from _flat(inner)
    elif is_.is_map(kind):
        yield from _flat(array.keys)
        yield from _flat(array.items)
    elif is_.is_list(kind) or is_.is_large_list(kind) or is_.is_fixed_size_list(kind):
        yield from _flat(array.flatten())
    elif any(test(kind) for test in (is_.is_string, is_.is_large_string, is_.is_binary, is_.is_large_binary)):
        yield array
    elif is_.is_fixed_size_binary(kind):
        yield array.cast(pa.binary())
