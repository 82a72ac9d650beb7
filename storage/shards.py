"""Walking a tar that somebody else made: headers only, by range reads, never extracting.

What a lenient reader passes over in silence is said here. Damage of the whole (a cut, a bad checksum, a zero block in
the middle, a second tar behind the first) raises `Refused`, which names the shard. A member that cannot be used (a
link, a name that leads elsewhere, …) is a flaw: `strict` raises for it too, else it comes along with its flaw.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, NoReturn

from storage import files
from storage.errors import Damaged
from storage.secrets import ACTED_ON

BLOCK = 512
CHUNK = 1 << 16  # bytes that one read fetches at least
LONGEST_NAME = 1024
MOST_MEMBERS = 1000  # of one key
LONGEST_EXTENSION = 1 << 16  # bytes of a PAX or GNU header before a member

REASONS = {
    "empty": "no bytes, or no member",
    "compressed": "a compressed tar, which cannot be read at an offset",
    "not_tar": "does not begin with the header of a tar",
    "truncated": "ends within a member",
    "no_end": "ends at the edge of a member, without the zero blocks of a tar's end",
    "bad_header": "a header whose checksum or numbers are wrong",
    "zero_block": "a zero block with more members behind it",
    "concatenated": "a second tar behind the end of the first",
    "sparse": "a sparse member",
    "unknown_member": "a member of a kind that is not known",
    "long_header": "an extended header that is too long or nested",
}
FLAWS = {
    "link": "a symbolic or hard link",
    "special": "a device or a pipe",
    "unsafe_name": "an absolute name or one with `..`",
    "bad_name": "a name that is too long, not UTF-8, or has control characters",
    "no_key": "a name without a key and an extension, which WebDataset passes over",
    "duplicate": "two members of one name, or two samples of one key",
    "interleaved": "the members of a sample are not next to each other",
    "many_members": "more than 1,000 members of one key",
}
KEY = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$", re.DOTALL)  # WebDataset's rule: up to the first dot of the base name
META = re.compile(r"__[^/]*__($|/)")
MAGICS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PK\x03\x04")
COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip")


class Refused(Damaged):
    """A shard that is not used; ``reason`` is a key of `REASONS` or `FLAWS`."""

    def __init__(self, shard: str, reason: str, detail: str) -> None:
        super().__init__(f"{shard}: {detail} ({reason}: {(REASONS | FLAWS)[reason]})")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Member:
    """A regular file in a tar: its name, where its bytes begin and how many they are. ``flaw`` is a key of `FLAWS`."""

    name: str
    offset: int
    size: int
    flaw: str = ""


@dataclass(frozen=True)
class Sample:
    """Members of one WebDataset key by extension, as it is written; one with a flaw must not be used."""

    key: str
    members: dict[str, Member]
    flaw: str = ""


class _Bytes:
    """Bytes of a URL or an open file at any place, fetched in chunks."""

    def __init__(self, source: str | BinaryIO) -> None:
        self.source, self.at, self.buffer = source, 0, b""
        if isinstance(source, str):
            self.size = int(files.info(source)["size"])
        else:
            self.size = source.seek(0, 2)

    def read(self, start: int, count: int) -> bytes:
        """Up to ``count`` bytes from ``start``; fewer at the end."""
        if not (self.at <= start and start + count <= self.at + len(self.buffer)):
            self.at, self.buffer = start, self._fetch(start, min(self.size, start + max(count, CHUNK)))
        return self.buffer[start - self.at : start - self.at + count]

    def _fetch(self, start: int, end: int) -> bytes:
        if isinstance(self.source, str):
            return files.read(self.source, start, end)
        self.source.seek(start)
        return self.source.read(max(0, end - start))


@dataclass
class _Header:
    """What one 512-byte header says."""

    name: bytes
    kind: bytes
    size: int

    @classmethod
    def parse(cls, block: bytes) -> "_Header":
        """Raises ValueError where the checksum or a number is wrong."""
        stated = _number(block[148:156])
        blank = block[:148] + b" " * 8 + block[156:]
        total = sum(blank)
        if stated not in (
            total,
            total - 256 * sum(byte > 127 for byte in blank if total != stated),
        ):  # old tars: signed
            raise ValueError("its checksum differs")
        name = block[:100].split(b"\0", 1)[0]
        if block[257:263] == b"ustar\0" and (prefix := block[345:500].split(b"\0", 1)[0]):
            name = prefix + b"/" + name
        return cls(name, block[156:157], _number(block[124:136]))


def _number(field: bytes) -> int:
    """An octal number, or GNU's base 256; ValueError for anything else."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.strip(b"\0 ")
    if not re.fullmatch(rb"[0-7]*", text):
        raise ValueError(f"{field!r} is no octal number")
    return int(text or b"0", 8)


def walk(source: str | BinaryIO, *, name: str = "", strict: bool = True, open_end: bool = False) -> Iterator[Member]:
    """Yields the members of a tar (a URL or a file that can seek) in order; folders are passed over.

    ``open_end`` accepts a tar without end blocks, which may be one that was cut between two members. ``name`` is what
    errors call the tar. Raises `Refused`; FileNotFoundError where nothing is.
    """
    walker = _Walker(_Bytes(source), name or str(source), strict, open_end)
    yield from walker.members()


@dataclass
class _Walker:
    data: _Bytes
    shard: str
    strict: bool
    open_end: bool
    at: int = 0

    def refuse(self, reason: str, detail: str) -> NoReturn:
        raise Refused(self.shard, reason, detail)

    def members(self) -> Iterator[Member]:
        head = self.data.read(0, BLOCK)
        if not head:
            self.refuse("empty", "0 bytes")
        if head.startswith(MAGICS) or self.shard.lower().endswith(COMPRESSED):
            self.refuse("compressed", "unpack it first")
        count = 0
        extra: dict[str, Any] = {}
        while (header := self.header(first=count == 0)) is not None:
            count += 1
            began = self.at
            self.at += BLOCK
            if header.kind in (b"L", b"K", b"x", b"g"):
                self.extend(header, extra)
                continue
            member = self.member(header, extra, began)
            extra = {}
            if member is None:
                continue
            if member.flaw and self.strict:
                self.refuse(member.flaw, f"member {member.name!r} at byte {began}")
            yield member
        if extra:
            self.refuse("truncated", f"ends after an extended header, at byte {self.at}")
        if not count:
            self.refuse("empty", f"{self.data.size} bytes and no member")

    def header(self, *, first: bool) -> _Header | None:
        """The header at this place; None at the end of the tar."""
        block = self.data.read(self.at, BLOCK)
        if not block:
            if not self.open_end:
                self.refuse("no_end", f"{self.at} bytes; it may have been cut there")
            return None
        if first and len(block) < BLOCK:
            self.refuse("not_tar", f"{len(block)} bytes")
        if len(block) < BLOCK:
            self.refuse("truncated", f"{len(block)} bytes of a header at byte {self.at}")
        if not any(block):
            self.ending()
            return None
        try:
            return _Header.parse(block)
        except ValueError as error:
            self.refuse("not_tar" if first else "bad_header", f"the header at byte {self.at}: {error}")

    def ending(self) -> None:
        """From the first zero block on: at least two of them, and nothing else up to the end of the file."""
        began = self.at
        while block := self.data.read(self.at, CHUNK):
            if any(block):
                where = self.at + next(i for i, byte in enumerate(block) if byte)
                reason = "zero_block" if where - began < 2 * BLOCK else "concatenated"
                self.refuse(reason, f"zeros at byte {began}, more at byte {where}")
            self.at += len(block)
        if self.at - began < 2 * BLOCK and not self.open_end:
            self.refuse("no_end", f"{self.at - began} of 1024 zero bytes at its end")

    def payload(self, header: _Header) -> bytes:
        if header.size > LONGEST_EXTENSION:
            self.refuse("long_header", f"{header.size} bytes before a member, at byte {self.at}")
        data = self.data.read(self.at, header.size)
        self.skip(header.size)
        return data

    def skip(self, size: int) -> None:
        """Moves past a member's bytes and their padding, which must all be there."""
        end = self.at + -(-size // BLOCK) * BLOCK
        if end > self.data.size:
            self.refuse("truncated", f"{self.data.size} bytes, a member reaches to byte {end}")
        self.at = end

    def extend(self, header: _Header, extra: dict[str, Any]) -> None:
        """Takes in a header that speaks of the next member: a long name, or PAX records."""
        began = self.at
        data = self.payload(header)
        kind = header.kind.decode()
        if kind in extra:
            self.refuse("long_header", f"two extended headers of one kind before a member, at byte {began}")
        extra[kind] = True
        if kind == "L":
            extra["name"] = data.rstrip(b"\0")
        if kind not in "xg":
            return
        try:
            records = dict(_pax(data))
        except ValueError as error:
            self.refuse("bad_header", f"the extended header at byte {began}: {error}")
        if any(key.startswith(b"GNU.sparse") for key in records):
            self.refuse("sparse", f"at byte {began}")
        if kind == "g":
            if records.keys() & {b"path", b"size", b"linkpath"}:
                self.refuse("bad_header", f"a name or size for all members, at byte {began}")
            extra.pop("g")  # it does not speak of the next member alone
            return
        extra |= {"name": records[b"path"]} if b"path" in records else {}
        if b"size" in records:
            if not re.fullmatch(rb"[0-9]{1,18}", records[b"size"]):
                self.refuse("bad_header", f"size {records[b'size'][:20]!r} at byte {began}")
            extra["size"] = int(records[b"size"])

    def member(self, header: _Header, extra: dict[str, Any], began: int) -> Member | None:
        """The member of a header whose bytes follow; None for a folder."""
        size = extra.get("size", header.size)
        raw: bytes = extra.get("name", header.name)
        name = raw.decode(errors="backslashreplace")
        kind = header.kind
        if kind == b"5" or kind in (b"0", b"\0") and name.endswith("/"):
            self.skip(size if kind != b"5" else 0)
            return None
        if kind in (b"1", b"2", b"3", b"4", b"6"):
            if size:
                self.refuse("bad_header", f"a link or device of {size} bytes at byte {began}")
            return Member(name, self.at, 0, "link" if kind in b"12" else "special")
        if kind == b"S":
            self.refuse("sparse", f"member {name!r} at byte {began}")
        if kind not in (b"0", b"\0", b"7"):
            self.refuse("unknown_member", f"kind {kind!r} at byte {began}")
        found = Member(name, self.at, size, _flaw(raw))
        self.skip(size)
        return found


def _pax(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The records ``length key=value\\n`` of a PAX header."""
    while data and data.strip(b"\0"):
        digits, _, rest = data.partition(b" ")
        length = int(digits) if re.fullmatch(rb"[0-9]{1,6}", digits) else 0
        record = data[len(digits) + 1 : length]
        if length > len(data) or not record.endswith(b"\n") or b"=" not in record or not rest:
            raise ValueError("its records are not PAX")
        key, _, value = record[:-1].partition(b"=")
        yield key, value
        data = data[length:]


def _flaw(raw: bytes) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        return "bad_name"
    if not name or len(raw) > LONGEST_NAME or ACTED_ON.search(name):
        return "bad_name"
    if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or re.match(r"[A-Za-z]:", name):
        return "unsafe_name"
    if META.match(name) or not KEY.match(name):
        return "no_key"
    return ""


def group(members: Iterable[Member]) -> list[Sample]:
    """The samples of a tar by WebDataset's rule, in order; a member with a flaw is a sample of its own.

    All samples of a key that comes twice have a flaw: which of them is meant cannot be known.
    """
    found: list[Sample] = []
    places: dict[str, list[int]] = {}
    names: set[str] = set()  # extensions of the last sample, in lower case
    last = -1  # place of the sample that the next member may belong to; members with a flaw do not come between
    for member in members:
        match = KEY.match(member.name)
        if member.flaw or match is None:
            found.append(Sample(member.name, {"": member}, member.flaw or "no_key"))
            continue
        key, extension = match.groups()
        if last < 0 or found[last].key != key:
            last = len(found)
            places.setdefault(key, []).append(last)
            found.append(Sample(key, {}))
            names = set()
        if extension.lower() in names and not found[last].flaw:
            found[last] = replace(found[last], flaw="duplicate")
        found[last].members[extension] = member
        names.add(extension.lower())
        if len(found[last].members) > MOST_MEMBERS and not found[last].flaw:
            found[last] = replace(found[last], flaw="many_members")
    for several in places.values():
        if len(several) > 1:
            extensions = [e.lower() for place in several for e in found[place].members]
            flaw = "duplicate" if len(set(extensions)) < len(extensions) else "interleaved"
            for place in several:
                found[place] = replace(found[place], flaw=flaw)
    return found
