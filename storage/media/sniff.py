"""What can be told of a file before FFmpeg sees it: whether it is one, what it claims to be, what its boxes say."""

import io
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

from storage.media.limits import Limits, Rejected, check_size

# Text that makes a player open other files or hosts.
REFERENCES = (b"#EXTM3U", b"ffconcat", b"v=0\r\n", b"v=0\n", b"<MPD", b"[playlist]", b"<ASX", b"<asx", b"RTSPtext")
PICTURES = (b"\x89PNG", b"GIF8", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"\0\0\1\0", b"\x8aMNG", b"YUV4MPEG2")
SOUNDS = (b"ID3", b"fLaC", b".snd", b"#!AMR", b"\xff\xfb", b"\xff\xf1")
BARE = (b"\0\0\0\1", b"\0\0\1\x67", b"\0\0\1\x09", b"\0\0\1\x40", b"DKIF")  # a stream without a container
OTHERS = (b"\x06\x0e\x2b\x34", b".RMF", b"nut/multimedia container")  # MXF, RealMedia, NUT
PARENTS = (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"stbl", b"moof", b"traf")
MAX_BOXES = 10_000


def check_file(path: str, limits: Limits) -> None:
    """Refuses what is not a readable, regular, non-empty file of bearable size."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise Rejected("not_regular_file")
        if found.st_size == 0:
            raise Rejected("empty")
        check_size(found.st_size, limits.max_bytes)
        with open(path, "rb") as file:
            head = file.read(1024)
    except PermissionError as error:
        raise Rejected("permission", str(error)) from error
    except FileNotFoundError as error:
        raise Rejected("not_found", str(error)) from error
    except OSError as error:
        if error.strerror and "symbolic links" in error.strerror:
            raise Rejected("not_regular_file", error.strerror) from error
        raise
    if mark := reference(head):
        raise Rejected("forbidden_reference", f"begins like a playlist: {mark}")


def reference(head: bytes) -> str:
    """The mark of a playlist, or nothing."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"<?xml"):
        text = b"<MPD" if b"<MPD" in text else text
    return next((mark.decode().strip() for mark in REFERENCES if text.startswith(mark)), "")


def verdict(head: bytes) -> str:
    """The reason for refusing a file that no allowed container reader would open, by its first bytes."""
    if container(head):
        return "truncated"
    riff = head[:4] == b"RIFF" and head[8:12] in (b"WEBP", b"WAVE")
    still = head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"heic", b"mif1")
    known = riff or still or any(head.startswith(mark) for mark in PICTURES + SOUNDS + BARE + OTHERS)
    return "unsupported_container" if known else "not_video"


def container(head: bytes) -> str:
    """The FFmpeg name of the container that a file of these first bytes claims to be, or nothing."""
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip") and head[8:12] not in (b"avif", b"heic"):
        return "mp4"
    if head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b""):
        return "avi"
    if head[:1] == b"\x47" and (len(head) <= 188 or head[188:189] == b"\x47"):
        return "mpegts"
    marks = {
        b"\x1aE\xdf\xa3": "matroska",
        b"OggS": "ogg",
        b"FLV\x01": "flv",
        b"\x30\x26\xb2\x75": "asf",
        b"\0\0\1\xba": "mpeg",
        b"\0\0\1\xb3": "mpegvideo",
    }
    return marks.get(head[:4], "")


def check_boxes(path: str) -> None:
    """Refuses an MP4 that ends within a box, that keeps its media in other files, or that is encrypted."""
    with open(path, "rb") as file:
        for name, start, end, whole in _boxes(file, 0, os.fstat(file.fileno()).st_size):
            if not whole and name in (b"mdat", b"moov", b"moof"):
                raise Rejected("truncated", f"the file ends within its {name.decode()} box")
            if name == b"dref":
                _check_dref(file, start, end)
            file.seek(start)
            if name == b"stsd" and file.read(min(end - start, 16))[12:16] in (b"encv", b"drmi"):
                raise Rejected("encrypted", "its samples are encrypted")


def check_references(data: bytes) -> None:
    """Refuses the bytes of an MP4 that keeps its media in other files; the decoder judges all else of a clip."""
    with io.BytesIO(data) as file:
        for name, start, end, _ in _boxes(file, 0, len(data)):
            if name == b"dref":
                _check_dref(file, start, end)


def _check_dref(file: BinaryIO, start: int, end: int) -> None:
    file.seek(start)
    if url := _foreign(file.read(min(end - start, 1 << 16))):
        raise Rejected("forbidden_reference", f"its media are in another file: {url}")


def check_segment(path: str) -> None:
    """Refuses a Matroska file that is shorter than its segment says; one that was written live says nothing."""
    with open(path, "rb") as file:
        size, head = os.fstat(file.fileno()).st_size, file.read(4096)
    begin, length = _element(head, 0, b"\x1aE\xdf\xa3")
    begin, length = _element(head, begin + length, b"\x18S\x80g")
    if begin + length > size:
        raise Rejected("truncated", f"{size} bytes, its segment reaches to byte {begin + length}")


def _element(head: bytes, at: int, name: bytes) -> tuple[int, int]:
    """Where the body of an EBML element of four bytes of name begins and how long it is; (0, 0) where it is not."""
    first = head[at + 4 : at + 5]
    if head[at : at + 4] != name or first in (b"", b"\0"):
        return 0, 0
    width = 9 - first[0].bit_length()
    value = int.from_bytes(head[at + 4 : at + 4 + width], "big") - (1 << 7 * width)
    unknown = value == (1 << 7 * width) - 1
    return at + 4 + width, 0 if unknown else value


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int, bool]]:
    """Yields (name, start of body, end of body, whole), parents first; damaged boxes end their level."""
    levels, seen = [(start, end)], 0
    while levels and seen < MAX_BOXES:
        at, end = levels.pop()
        while at + 8 <= end and seen < MAX_BOXES:
            seen += 1
            file.seek(at)
            head = file.read(16)
            size, name, skip = int.from_bytes(head[:4], "big"), head[4:8], 8
            if size == 1:  # the size follows in 64 bits
                size, skip = int.from_bytes(head[8:], "big"), 16
            if size < skip:  # 0: up to the end; anything else is no box
                break
            whole = at + size <= end
            yield name, at + skip, min(at + size, end), whole
            if name in PARENTS and len(levels) < 32:
                levels.append((at + skip, min(at + size, end)))
            at += size


def _foreign(data: bytes) -> str:
    """What the first entry of a dref box that is not "this very file" names, or nothing."""
    at = 8
    for _ in range(min(int.from_bytes(data[4:8], "big"), 64)):
        size, flags = int.from_bytes(data[at : at + 4], "big"), data[at + 8 : at + 12]
        if size < 12 or len(flags) < 4:
            break
        if not flags[3] & 1:
            return repr(data[at + 12 : at + min(size, 212)])
        at += size
    return ""
