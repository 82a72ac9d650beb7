"""The archive's source videos: listed as a stream, fingerprinted, read.

An archive is a folder or a glob on any fsspec URL, or a list of files (`storage.lists`). Nothing here holds more than
one folder, or one page of a bucket, in memory.
"""

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from storage import files
from storage.errors import InputError, StoreError
from storage.media.limits import Rejected
from storage.stores import UNKNOWN, ask, bucket_and_key, is_s3, pages

EXTENSIONS = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".flv"),
    *(".ogv", ".wmv", ".3gp", ".3g2", ".asf", ".vob", ".mxf"),
)
KINDS = tuple(extension.removeprefix(".") for extension in EXTENSIONS)
PIECE = 16 << 20  # bytes that one request fetches of a source
BLOCK = 64 * 1024  # bytes of each of the three places that a fingerprint looks at
WHOLE = 4 * BLOCK  # a file up to this size is read whole: its fingerprint is exact
TAR = ".tar"


@dataclass(frozen=True)
class Source:
    """A video of the archive. ``stamp`` changes when the bytes may have changed (size and time, or the ETag).

    ``offset`` is where its bytes begin in a tar, -1 for a file of its own. ``problem`` is a reason of
    `storage.media.limits.REASONS` that was seen without opening it. ``metadata`` is a JSON object.
    """

    path: str  # below the archive
    url: str
    size: int
    stamp: str
    offset: int = -1
    problem: str = ""
    metadata: str = "{}"
    labels: Any = None  # `storage.labels.Labels` that lie beside it in its tar
    modified: float | None = None  # seconds since 1970, where the store says so; of its tar, where it is in one


def listing(archive: str) -> Iterator[Source]:
    """Yields the files under an archive URL or glob, hidden ones left out, each folder in order of name.

    A folder with the name of a video and a link to a folder come with a problem; links to files are followed.
    Raises `InputError` where the archive is missing or a folder of it may not be read.
    """
    archive = files.absolute(archive)
    base, wanted = _split_glob(archive)
    try:
        with understood(base):
            fs, top = files.locate(base)
            kind = files.info(base)["type"]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{base}: no such archive; give the folder or URL that holds the videos") from error
    if kind == "file" and not top.endswith(TAR):
        raise InputError(f"{base}: a file; give the folder or URL that holds the videos, or a list of them")
    for source in _everything(fs, top, base):
        if wanted is None or wanted.match(source.path):
            yield from _inside(source) if source.path.endswith(TAR) and not source.problem else [source]


@contextmanager
def understood(url: str) -> Iterator[None]:
    """`InputError` for a URL that its file system cannot make sense of; what a store answers is raised as it is."""
    try:
        yield
    except (InputError, StoreError, OSError):
        raise
    except Exception as error:  # each library has a kind of its own
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{url}: cannot be looked at ({why}); give a plain path or an s3:// URL") from error


def _split_glob(archive: str) -> tuple[str, re.Pattern[str] | None]:
    """The folder before the first wildcard, and a pattern for the paths below it; no pattern without wildcards."""
    if not any(sign in archive for sign in "*?[") or os.path.exists(archive):
        return archive, None
    pieces = archive.split("/")
    first = next(i for i, piece in enumerate(pieces) if any(sign in piece for sign in "*?["))
    return "/".join(pieces[:first]) or "/", re.compile(glob_translate("/".join(pieces[first:])))


def _everything(fs: fsspec.AbstractFileSystem, top: str, base: str) -> Iterator[Source]:
    local = isinstance(fs, LocalFileSystem)
    prefix = top.rstrip("/") + "/"
    for path, info in _local_files(top) if local else _remote_files(fs, top):
        below = path.removeprefix(prefix) if path != top else top.rsplit("/", 1)[-1]
        folder = info["type"] == "directory" or below.endswith("/")  # S3 may hold an empty object for a folder
        if any(piece.startswith(".") for piece in below.split("/")) or folder and not named_as_video(below):
            continue
        size, url = int(info.get("size") or 0), base if path == top else files.join(base, below)
        problem = "" if info["type"] == "file" else "not_regular_file"
        if local and not _is_text(below):
            below, url = files.percent(below), files.LOCALHOST + files.percent(path[1:])
            problem = problem or ("not_regular_file" if os.path.lexists(prefix + below) else "")
        yield Source(below, url, size, files.stamp(info), problem=problem, modified=files.modified(info))


def _inside(tar: Source) -> Iterator[Source]:
    """The videos of a WebDataset shard, with what lies beside them; the shard itself where something is wrong.

    A sample without a video comes under its key, a shard without a sample under its own name: none is a video's.
    """
    from storage import adoption, shards

    try:
        with reading(tar):
            samples = shards.group(shards.walk(tar.url, strict=False, open_end=True))
    except shards.Refused:
        yield replace(tar, problem="bad_shard")
        return
    except Rejected as error:
        yield replace(tar, problem=error.reason)
        return
    if not samples:
        yield tar
    for sample in samples:
        if sample.flaw:
            found: list[tuple[shards.Member, dict[str, shards.Member]]] = [(m, {}) for m in sample.members.values()]
        else:
            found = adoption.videos(sample, KINDS)
        if not found:
            yield replace(tar, path=f"{tar.path}/{sample.key}")
        for video, beside in found:
            name = f"{tar.path}/{video.name}"
            place: dict[str, Any] = {"size": video.size, "offset": video.offset, "stamp": f"{tar.stamp}:{video.offset}"}
            place["modified"] = tar.modified
            try:
                if sample.flaw or any(member.size > adoption.LARGEST_SIDECAR for member in beside.values()):
                    raise adoption.BadSidecar
                read = {kind: files.read(tar.url, m.offset, m.offset + m.size) for kind, m in beside.items()}
                labels, metadata = adoption.describe(read, "caption")
            except adoption.BadSidecar:
                yield Source(name, tar.url, **place, problem="bad_member")
            else:
                yield Source(name, tar.url, **place, metadata=json.dumps(metadata, sort_keys=True), labels=labels)


def _unreadable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # gone since its folder was read
        raise InputError(f"{error.filename}: cannot be listed ({error.strerror}); mend its rights or move it away")


def _local_files(top: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Paths with what fsspec's ``find`` says of them; an unreadable folder is an error, a link is its target."""
    if os.path.isfile(top):
        yield top, _facts(top)
        return
    for folder, folders, names in os.walk(top, onerror=_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (os.path.join(folder, name) for name in sorted(folders + names)):
            yield path, _facts(path)


def _facts(path: str) -> dict[str, Any]:
    try:
        facts, link = os.stat(path), os.path.islink(path)
    except OSError:  # a dangling link, or one in a loop
        return {"type": "other"}
    # Links to folders are not followed: they may lead back.
    kind = "directory" if stat.S_ISDIR(facts.st_mode) and not link else "other"
    kind = "file" if stat.S_ISREG(facts.st_mode) else kind
    return {"type": kind, "size": facts.st_size, "mtime": facts.st_mtime_ns, "changed": facts.st_ctime_ns}


def _remote_files(fs: fsspec.AbstractFileSystem, top: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if not is_s3(fs):  # no pages to be had: one answer holds them all
        yield from sorted(ask(fs, "find", top, detail=True, withdirs=True, size=UNKNOWN).items())
    elif top.endswith(TAR):
        yield top, ask(fs, "info", top)
    else:
        bucket = bucket_and_key(fs, top)["Bucket"]
        for entry in pages(fs, top):
            yield f"{bucket}/{entry['Key']}", {"type": "file", "size": entry["Size"], "ETag": entry["ETag"]}


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that are not UTF-8; neither JSON nor Parquet takes them
        return False
    return True


def named_as_video(path: str) -> bool:
    """Whether the name is that of a video file."""
    return path.lower().endswith(EXTENSIONS)


def is_video(source: Source) -> bool:
    """Whether a source has the name of a video file, in the archive or in its store."""
    return named_as_video(source.path) or named_as_video(source.url)


def _ranges(size: int) -> list[tuple[int, int]]:
    """Where a fingerprint of a file of this size looks: everywhere, or at its head, its middle and its tail."""
    if size <= WHOLE:
        return [(0, size)]
    return [(0, BLOCK), (size // 2, size // 2 + BLOCK), (size - BLOCK, size)]


def exact(size: int) -> bool:
    """Whether the fingerprint of a file of this size covers every byte."""
    return size <= WHOLE


def fingerprint(source: Source) -> str:
    """A digest of the size and of the head, middle and tail of a source: cheap, and equal for moved files.

    Equal fingerprints of files over `WHOLE` bytes are settled by `content_id`. Raises `Rejected` for what is gone
    or may not be read, `StoreError` where the store does not answer.
    """
    state = hashlib.blake2b(str(source.size).encode(), digest_size=16)
    start = max(0, source.offset)
    with reading(source):
        for begin, end in _ranges(source.size):
            state.update(files.read(source.url, start + begin, start + end))
    return state.hexdigest()


def fingerprint_file(path: str) -> str:
    """The fingerprint of a local copy."""
    size = os.path.getsize(path)
    state = hashlib.blake2b(str(size).encode(), digest_size=16)
    with open(path, "rb") as file:
        for begin, end in _ranges(size):
            file.seek(begin)
            state.update(file.read(end - begin))
    return state.hexdigest()


def content_id(source: Source) -> str:
    """The sha256 of a source's bytes, read in blocks; raises as `fingerprint` does."""
    whole = hashlib.sha256()
    with reading(source):
        for block in _blocks(source):
            whole.update(block)
    return whole.hexdigest()


def fetch(source: Source, folder: str) -> str:
    """A local path of a source's bytes: its own where it is a local file, else a copy in ``folder``."""
    target = os.path.join(folder, "source")
    with reading(source):
        if source.offset < 0:
            return files.local_path(source.url, target, source.size)
        with open(target, "wb") as file:
            file.writelines(_blocks(source))
    return target


def _blocks(source: Source) -> Iterator[bytes]:
    """The bytes of a source, a request for each block: as many as were listed."""
    begin = max(0, source.offset)
    for at in range(begin, begin + source.size, PIECE):
        yield files.read(source.url, at, min(at + PIECE, begin + source.size))


class reading:
    """Tells the video's faults (gone, no right to read it) from the store's."""

    def __init__(self, source: Source) -> None:
        self.url = source.url
        self.local = isinstance(files.locate(source.url)[0], LocalFileSystem)  # elsewhere it is our credentials' fault

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, PermissionError) and self.local:
            raise Rejected("permission", str(error)) from error
        if isinstance(error, FileNotFoundError):
            raise Rejected("not_found", str(error)) from error
        if isinstance(error, IsADirectoryError):
            raise Rejected("not_regular_file", str(error)) from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f"no room for a copy of {self.url}: {error}") from error
        if isinstance(error, OSError):  # the store's fault, not the video's
            raise StoreError(f"{self.url} cannot be read: {error}") from error


def outline(source: Source, folder: str, most: int) -> str:
    """A local path that shows a source's head and tail of ``most`` bytes in their places, for reading its header."""
    fs, path = files.locate(source.url)
    if isinstance(fs, LocalFileSystem) and source.offset < 0:
        return path
    target, start = os.path.join(folder, "outline" + os.path.splitext(source.path)[1]), max(0, source.offset)
    with reading(source), open(target, "wb") as file:
        for begin, end in [(0, min(most, source.size)), (max(most, source.size - most), source.size)]:
            file.seek(begin)
            file.write(files.read(source.url, start + begin, start + end))
        file.truncate(source.size)
    return target
