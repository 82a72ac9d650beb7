"""Objects under a URL, on any fsspec file system: read, list, publish once, replace a pointer.

`publish` is the commit protocol: the bytes are complete on local disk first, then put into place only if nothing
is there yet. A kill at any moment leaves either no object or the whole one.
"""

import errno
import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import fsspec
from fsspec.implementations.local import LocalFileSystem

from storage.errors import Conflict, Damaged, InputError, RootError, StoreError

SCHEMA = 2  # of everything below a root; a newer one is refused, see `open_root`
READS = (1, 2)  # schemas of roots that are still read; 2 added members and metadata to the index, hosts to the ledger
MARKER = "reelmill.json"
LOCALHOST = "file://localhost/"  # before a percent-encoded path, for names that are not text
_creating = Lock()  # fsspec's memory file system looks and then writes


def join(url: str, *parts: str) -> str:
    """Appends path parts to a URL."""
    return "/".join([url.rstrip("/"), *parts])


def absolute(url: str) -> str:
    """A URL as it is, a bare local path made absolute."""
    return url if "://" in url else os.path.abspath(url)


@lru_cache(maxsize=64)
def _system(protocol: str) -> fsspec.AbstractFileSystem:
    # Another writer's object must be seen at once, so no listing is ever cached.
    return fsspec.filesystem(protocol, use_listings_cache=False)


def locate(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL and the path on it. Chained URLs (``a::b``) are refused."""
    if url.startswith(LOCALHOST):
        return _system("file"), os.fsdecode(unquote_to_bytes(url[len(LOCALHOST) - 1 :]))
    if url.startswith("/"):  # whatever a local name may hold, it is no URL
        return _system("file"), url.rstrip("/") or "/"
    protocol = fsspec.utils.get_protocol(url)
    try:
        if url.startswith(f"{protocol}::"):
            raise ValueError("chained URLs are not supported")
        fs = _system(protocol)
    except (ValueError, ImportError, TypeError, OSError) as error:
        raise RootError(
            f"{url}: unknown kind of URL ({error}); give a plain path, file://, s3:// or memory:// URL"
        ) from error
    return fs, fs._strip_protocol(url)


def percent(path: str) -> str:
    """A local path that need not be text, percent-encoded; `LOCALHOST` and this make a URL."""
    return quote(os.fsencode(path), safe="/")


def exists(url: str) -> bool:
    """Whether an object is there; a store that does not answer raises."""
    fs, path = locate(url)
    try:
        return fs.info(path)["type"] == "file"
    except (FileNotFoundError, NotADirectoryError):
        return False


def read(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes of an object, or those from ``start`` up to ``end``; fewer where the object ends before."""
    fs, path = locate(url)
    if start is not None and end is not None and end <= start:
        return b""  # S3 would give the whole object
    try:
        return bytes(fs.cat_file(path, start=start, end=end))
    except OSError as error:
        if error.errno == errno.EINVAL and start is not None and start >= fs.info(path)["size"]:
            return b""  # S3 refuses a range that begins past the end
        raise


def read_json(url: str) -> Any:
    try:
        return json.loads(read(url))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise Damaged(f"{url} is not JSON ({error}); restore it from a copy or remove it") from error


def names(url: str, suffix: str = "") -> list[str]:
    """The names of the objects directly under a URL that end in ``suffix``, sorted; none where nothing is."""
    fs, path = locate(url)
    try:
        found = fs.ls(path, detail=False, **({} if isinstance(fs, LocalFileSystem) else {"refresh": True}))
    except (FileNotFoundError, NotADirectoryError):
        return []
    bare = (str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in found)
    return sorted(name for name in bare if name.endswith(suffix) and not name.startswith("."))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest_file(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """The sha256 of a JSON-able value in canonical form."""
    return digest(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


@contextmanager
def scratch() -> Iterator[Path]:
    """A private local folder, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="reelmill-") as folder:
        yield Path(folder)


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _beside(source: str | Path, path: str) -> Iterator[str]:
    """A fully written, synced temporary copy of ``source`` in the folder of ``path``."""
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(source, "rb") as data, open(temporary, "xb") as out:
            while block := data.read(1 << 22):
                out.write(block)
            out.flush()
            os.fsync(out.fileno())
        yield temporary
        _sync(folder)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def _create(source: str | Path, url: str) -> bool:
    """Puts a local file at a URL if nothing is there; whether it did."""
    fs, path = locate(url)
    try:
        if isinstance(fs, LocalFileSystem):
            with _beside(source, path) as temporary:
                os.link(temporary, path)
        elif hasattr(fs, "s3_additional_kwargs"):
            fs.put_file(str(source), path, mode="create")
        else:
            with _creating:
                fs.pipe_file(path, Path(source).read_bytes(), mode="create")
    except FileExistsError:
        return False
    except OSError as error:
        # A lost conditional put is EINVAL on some S3 servers; a lost reply to our own put looks the same.
        if error.errno == errno.EINVAL and fs.exists(path):
            return False
        raise
    return True


def publish(source: str | Path, url: str, *, same: bool = True) -> bool:
    """Puts a complete local file at a URL if nothing is there yet; whether this call created it.

    With ``same`` the object that was there already must have the same bytes, else `Conflict`; without it the
    first writer wins and the caller goes on with what is there.
    """
    created = _create(source, url)
    if not created and same and digest(read(url)) != digest_file(source):
        raise Conflict(f"{url} exists with other bytes")
    return created


def publish_bytes(data: bytes, url: str, *, same: bool = True) -> bool:
    """`publish` for bytes in memory."""
    with scratch() as folder:
        (folder / "object").write_bytes(data)
        return publish(folder / "object", url, same=same)


def replace(data: bytes, url: str) -> None:
    """Replaces an object whole: a reader sees the old or the new bytes, never a part."""
    fs, path = locate(url)
    if isinstance(fs, LocalFileSystem):
        with scratch() as folder:
            (folder / "object").write_bytes(data)
            with _beside(folder / "object", path) as temporary:
                os.replace(temporary, path)
    else:
        fs.pipe_file(path, data)


def replace_json(value: Any, url: str) -> None:
    replace(json.dumps(value, indent=1, sort_keys=True).encode(), url)


def remove(url: str) -> None:
    fs, path = locate(url)
    if fs.exists(path):
        fs.rm_file(path)


def open_root(root: str) -> str:
    """Checks that a root can be written and is of this schema, marks a new one, and returns its absolute URL."""
    root = absolute(root)
    marker = join(root, MARKER)
    try:
        if not exists(marker):
            publish_bytes(json.dumps({"schema": SCHEMA}).encode(), marker, same=False)
        found = read_json(marker)
        probe = join(root, f".write-{uuid.uuid4().hex}")
        replace(b"", probe)
        remove(probe)
    except PermissionError as error:
        raise RootError(
            f"{root}: no permission to write ({error}); choose another --root or mend its rights"
        ) from error
    except (NotADirectoryError, FileExistsError) as error:
        raise RootError(f"{root}: a file is in the way ({error}); choose another --root") from error
    except (StoreError, InputError):
        raise
    except Exception as error:
        raise RootError(f"{root}: cannot be used as a root ({type(error).__name__}: {error})") from error
    check_schema(root, found)
    if found["schema"] < SCHEMA:  # from here on an older Reelmill may not write here
        replace_json({"schema": SCHEMA}, marker)
    return root


def check_schema(root: str, marker: Any) -> None:
    """Refuses what was written with a schema that this version does not read."""
    schema = marker.get("schema") if isinstance(marker, dict) else None
    if isinstance(schema, bool) or schema not in READS:
        raise RootError(
            f"{root}: written with schema {schema!r}, this Reelmill reads {' and '.join(map(str, READS))}; "
            "use the matching Reelmill version or another --root"
        )


def existing_root(root: str) -> str:
    """The absolute URL of a root that must exist already and be of this schema."""
    root = absolute(root)
    marker = join(root, MARKER)
    try:
        found = read_json(marker)
    except FileNotFoundError as error:
        raise RootError(f"{root}: no Reelmill root here; run `reelmill prepare --root {root} …` first") from error
    except PermissionError as error:
        raise RootError(f"{root}: no permission to read ({error})") from error
    except (StoreError, InputError):
        raise
    except Exception as error:
        raise RootError(f"{root}: cannot be read ({type(error).__name__}: {error})") from error
    check_schema(root, found)
    return root
