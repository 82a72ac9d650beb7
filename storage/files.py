"""Objects under a URL, on any fsspec file system: read, list, publish once, replace a pointer.

`publish` is the commit protocol: the bytes are complete on local disk first, then put into place only if nothing
is there yet. A kill at any moment leaves either no object or the whole one.
"""

import errno
import hashlib
import json
import random
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from storage import conditions, timing
from storage.conditions import MARKER, announce, read_tagged
from storage.errors import Conflict, Damaged, InputError, NewerSchema, RootError, StoreError
from storage.stores import (
    LOCALHOST,
    UNKNOWN,
    _system,
    absolute,
    ask,
    for_ranges,
    is_local,
    join,
    locate,
    percent,
)

__all__ = ["LOCALHOST", "MARKER", "_system", "absolute", "join", "locate", "percent", "read_tagged"]  # and all below

SCHEMA = 2  # of everything below a root; a newer one is refused, see `open_root`
READS = (1, 2)  # schemas of roots that are still read; 2 added members and metadata to the index, hosts to the ledger
AT_ONCE = 16  # requests under way
Item = TypeVar("Item")
Result = TypeVar("Result")
LAST_MODIFIED = "Last-Modified"  # a web server's own words, which fsspec leaves as they are
SWAPS = 1000  # losing that often is no race any more


def exists(url: str) -> bool:
    """Whether an object is there; a store that does not answer raises."""
    fs, path = locate(url)
    try:
        return ask(fs, "info", path)["type"] == "file"
    except (FileNotFoundError, NotADirectoryError):
        return False


def read(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes of an object, or those from ``start`` up to ``end``; fewer where the object ends before.

    Bytes that arrive with a wrong checksum are asked for once more; raises `Damaged` where they are wrong again.
    """
    fs, path = locate(url)
    if start is not None and end is not None and end <= start:
        return b""  # S3 would give the whole object
    if start is not None or end is not None:
        fs = for_ranges(fs)
    size = UNKNOWN if end is None else end - (start or 0)
    try:
        return bytes(_fetched(fs, "cat_file", path, start=start, end=end, size=size))
    except OSError as error:
        if error.errno == errno.EINVAL and start is not None and start >= ask(fs, "info", path)["size"]:
            return b""  # S3 refuses a range that begins past the end
        raise


def _fetched(fs: Any, *request: Any, **options: Any) -> Any:
    """`ask` for bytes, once more where they arrive with a wrong checksum; raises `Damaged` where it is wrong again."""
    try:
        return ask(fs, *request, **options)
    except Damaged:
        return ask(fs, *request, **options)


def read_verified(url: str, sha256: str, start: int | None = None, end: int | None = None) -> bytes:
    """`read`, checked against a digest; asked for once more where it differs, then raises `Damaged`."""
    for _ in range(2):
        data = read(url, start, end)
        if digest(data) == sha256:
            return data
    raise Damaged(f"{url}: bytes {start or 0} to {'the end' if end is None else end} differ from their digest")


def info(url: str) -> dict[str, Any]:
    """What the store says of an object or a folder; FileNotFoundError where nothing is."""
    fs, path = locate(url)
    found: dict[str, Any] = ask(fs, "info", path)
    return found


def stamp(facts: dict[str, Any]) -> str:
    """What changes when an object's bytes may have changed: its size, and its ETag or time as the store says them.

    Where the facts have ``changed``, it follows too: of a local file, whose time can be set, the time that cannot be.
    Where the store says nothing but a size, the stamp ends in a colon.
    """
    changed = f":{facts['changed']}" if facts.get("changed") else ""
    for name in ("ETag", "etag", "mtime", "LastModified", LAST_MODIFIED, "last_modified", "updated", "created"):
        if facts.get(name):
            return f"{facts.get('size')}:{facts[name]}{changed}"
    return f"{facts.get('size')}:"


def modified(facts: dict[str, Any]) -> float | None:
    """When an object was changed last, in seconds since 1970 by the store's clock; None where it does not say."""
    for name in ("LastModified", "mtime", "last_modified", "updated", "created"):
        if (value := facts.get(name)) is not None:
            if hasattr(value, "timestamp"):
                return float(value.timestamp())
            if isinstance(value, int | float):
                return value / 1e9 if value > 1e14 else float(value)  # of this machine's files in nanoseconds
    try:
        return parsedate_to_datetime(facts[LAST_MODIFIED]).timestamp()
    except (KeyError, ValueError, TypeError):
        return None


def local_path(url: str, copy: str | Path, size: int = UNKNOWN) -> str:
    """Where an object of ``size`` bytes is on this machine: its own path on a local disk, else ``copy``, fetched."""
    fs, path = locate(url)
    if is_local(fs):
        return path
    _fetched(fs, "get_file", path, str(copy), size=size)
    return str(copy)


def read_json(url: str) -> Any:
    try:
        return json.loads(read(url))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise Damaged(f"{url} is not JSON ({error}); restore it from a copy or remove it") from error


def names(url: str, suffix: str = "") -> list[str]:
    """The names of the objects directly under a URL that end in ``suffix``, sorted; none where nothing is."""
    fs, path = locate(url)
    try:
        found = ask(fs, "ls", path, detail=False, size=UNKNOWN, **({} if is_local(fs) else {"refresh": True}))
    except (FileNotFoundError, NotADirectoryError):
        return []
    own = path.rstrip("/")  # which s3fs answers with where SeaweedFS keeps an emptied folder
    bare = (entry.rsplit("/", 1)[-1] for entry in (str(one).rstrip("/") for one in found) if entry != own)
    # Some servers list an object twice while it is being replaced.
    return sorted({name for name in bare if name.endswith(suffix) and not name.startswith(".")})


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


def at_once(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Results in order, several at a time, a bounded number ahead: for calls that wait for a store."""
    items = iter(items)
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="reelmill-store") as threads:
        while some := list(islice(items, 64 * AT_ONCE)):
            results = threads.map(function, some)
            for _ in some:
                with timing.during("read"):
                    result = next(results)
                yield result


def publish(source: str | Path, url: str, *, same: bool = True, give: bool = False) -> bool:
    """Puts a complete local file at a URL if nothing is there yet; whether this call created it.

    With ``same`` the object that was there already must have the same bytes, else `Conflict`; without it the
    first writer wins and the caller goes on with what is there. With ``give`` the file itself may become the object:
    nobody may write to it afterwards.
    """
    with permitted(url):
        created = conditions.create(source, url, give)
    if not created and same and digest(read(url)) != digest_file(source):
        raise Conflict(f"{url} exists with other bytes")
    return created


def publish_bytes(data: bytes, url: str, *, same: bool = True) -> bool:
    """`publish` for bytes in memory."""
    with scratch() as folder:
        (folder / "object").write_bytes(data)
        return publish(folder / "object", url, same=same, give=True)


def replace(data: bytes, url: str) -> None:
    """Replaces an object whole: a reader sees the old or the new bytes, never a part."""
    with permitted(url):
        conditions.overwrite(data, url)


def replace_json(value: Any, url: str) -> None:
    replace(_json(value), url)


def swap(data: bytes, url: str, tag: str) -> bool:
    """Replaces an object if it still has the tag of `read_tagged` ("" for none); whether these bytes are there now."""
    with permitted(url):
        return conditions.swap(data, url, tag)


def update(url: str, change: Callable[[bytes | None], bytes]) -> bytes:
    """Replaces an object by what ``change`` makes of it, again on top of whoever came between; returns that.

    ``change`` is given None where nothing is, and may be called many times.
    """
    for attempt in range(SWAPS):
        old, tag = conditions.read_settled(url)
        new = change(old)
        if new == old or swap(new, url, tag):
            return new
        time.sleep(random.uniform(0, 0.01) * min(attempt, 20))
    raise StoreError(f"{url}: {SWAPS} times another writer was faster; is something stuck in a loop?")


def point(value: Any, url: str, before: Any) -> Any:
    """Moves a pointer (a small JSON value) on from ``before``, which it held when that was decided (None: nothing).

    Returns what it holds then: of several writers that decided on the same ground one wins, and the others are given
    its value to go on with. A pointer that is gone is written.
    """

    def moved(old: bytes | None) -> bytes:
        return old if old is not None and json.loads(old) != before else _json(value)

    return json.loads(update(url, moved))


def remove(url: str) -> None:
    """Removes an object; one that is not there is no error."""
    fs, path = locate(url)
    with permitted(url):
        conditions.admit(url)
        with suppress(FileNotFoundError):
            ask(fs, "rm_file", path)


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()


@contextmanager
def permitted(url: str) -> Iterator[None]:
    """A store that forbids writing is a matter for the person who called: no second try helps."""
    try:
        with timing.during("write"):
            yield
    except OSError as error:
        if not isinstance(error, PermissionError) and error.errno != errno.EROFS:
            raise
        raise RootError(f"{url}: no permission to write ({error}); mend its rights or the credentials") from error


def open_root(root: str) -> str:
    """Checks that a root can be written and is of this schema, marks a new one, and returns its absolute URL."""
    root = absolute(root)
    marker = join(root, MARKER)
    try:
        announce(root)
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
    except (Conflict, Damaged, InputError):
        raise
    except Exception as error:
        raise RootError(f"{root}: cannot be used as a root ({type(error).__name__}: {error})") from error
    check_schema(root, found)
    if found["schema"] < SCHEMA:  # from here on an older Reelmill may not write here
        replace_json({"schema": SCHEMA}, marker)
    return root


def check_schema(what: str, marker: Any) -> None:
    """Refuses what was written with a schema that this version does not read; `NewerSchema` where it is a later one."""
    schema = marker.get("schema") if isinstance(marker, dict) else None
    if isinstance(schema, bool) or schema not in READS:
        kind = NewerSchema if type(schema) is int and schema > SCHEMA else RootError
        raise kind(
            f"{what}: written with schema {schema!r}, this Reelmill reads {' and '.join(map(str, READS))}; "
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
    except (Conflict, Damaged, InputError):
        raise
    except Exception as error:
        raise RootError(f"{root}: cannot be read ({type(error).__name__}: {error})") from error
    check_schema(root, found)
    return root
