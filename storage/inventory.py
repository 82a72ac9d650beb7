"""Everything that is below a root, with the store's own times; and uploads in parts that were never finished."""

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from storage import conditions, files, local
from storage.errors import StoreError
from storage.stores import UNKNOWN, ask, bucket_and_key, code_of, is_local, is_s3, join, locate, pages

PAGE = 1000


@dataclass(frozen=True)
class Item:
    """An object: its name below the root, its bytes, and when it was put, in seconds on the store's clock."""

    name: str
    size: int
    put: float


@dataclass(frozen=True)
class Upload:
    """An upload in parts that is under way or was given up, and when it began, on the store's clock."""

    name: str
    id: str
    began: float


def in_units(count: float) -> str:
    """A number of bytes for a person, in the unit that fits."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count, units = count / 1000, units[1:]
    return f"{count:.0f} B" if units[0] == "B" else f"{count:.1f} {units[0]}"


def now(root: str) -> float:
    """The time on the store's clock: that of an object put just now, which is removed again.

    Raises `RootError` where nothing may be put.
    """
    url = join(root, f".write-{uuid.uuid4().hex}")
    fs, path = locate(url)
    with files.permitted(root):
        ask(fs, "pipe_file", path, b"")
        try:
            if is_local(fs):
                return os.stat(path).st_mtime
            return _put_at(ask(fs, "info", path))
        finally:
            ask(fs, "rm_file", path)


def walk(root: str) -> Iterator[Item]:
    """Every object below a root, in no order, hidden ones too; a page at a time where the store lists in pages."""
    fs, path = locate(root)
    if is_local(fs):
        yield from _walk_local(path, path)
    elif is_s3(fs):
        yield from _walk_s3(fs, path)
    else:
        for name, info in ask(fs, "find", path, detail=True, size=UNKNOWN).items():
            yield Item(name[len(path.rstrip("/")) + 1 :], int(info["size"]), _put_at(info))


def unchanged(root: str, item: Item) -> bool:
    """Whether an object is still the one that was listed; a single answer may round its time to a second."""
    fs, path = locate(join(root, item.name))
    try:
        info = ask(fs, "info", path)
    except FileNotFoundError:
        return False
    put = os.stat(path).st_mtime if is_local(fs) else _put_at(info)
    return int(info["size"]) == item.size and abs(put - item.put) <= 1


def _walk_local(root: str, folder: str) -> Iterator[Item]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk_local(root, entry.path)
        else:
            try:
                facts = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # a writer took its temporary file away
            yield Item(os.path.relpath(entry.path, root), facts.st_size, facts.st_mtime)


def _walk_s3(fs: Any, path: str) -> Iterator[Item]:
    base = bucket_and_key(fs, path)["Key"].rstrip("/")
    for entry in pages(fs, path, PAGE):
        name = entry["Key"].removeprefix(base + "/") if base else entry["Key"]
        yield Item(name, int(entry["Size"]), entry["LastModified"].timestamp())


def uploads(root: str) -> Iterator[Upload]:
    """The unfinished uploads below a root; none where the store cannot list them."""
    fs, path = locate(root)
    if not is_s3(fs):
        return
    target = bucket_and_key(fs, path)
    prefix = target["Key"].rstrip("/") + "/" if target["Key"] else ""
    more: dict[str, Any] = {}
    while True:
        try:
            page = ask(fs, "call_s3", "list_multipart_uploads", Bucket=target["Bucket"], Prefix=prefix, **more)
        except OSError as error:
            if code_of(error) in ("NotImplemented", "MethodNotAllowed"):
                return
            raise
        for entry in page.get("Uploads") or []:
            if entry["Key"].startswith(prefix):
                yield Upload(entry["Key"][len(prefix) :], entry["UploadId"], entry["Initiated"].timestamp())
        if not page.get("IsTruncated"):
            return
        more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def abort(root: str, upload: Upload) -> None:
    """Gives an upload up; one that has ended meanwhile is no error."""
    conditions.admit(join(root, upload.name))
    fs, path = locate(join(root, upload.name))
    try:
        ask(fs, "call_s3", "abort_multipart_upload", **bucket_and_key(fs, path), UploadId=upload.id)
    except FileNotFoundError:
        pass
    except OSError as error:
        if code_of(error) != "NoSuchUpload":
            raise


def in_use(root: str, item: Item) -> bool:
    """Whether a living process of this machine still writes a temporary file on a local disk."""
    fs, path = locate(join(root, item.name))
    return is_local(fs) and not local.abandoned(path)


def _put_at(info: dict[str, Any]) -> float:
    """When an object was put, from what a file system says of it."""
    for name in ("LastModified", "mtime", "updated", "last_modified", "created"):
        if (value := info.get(name)) is not None:
            return float(value) if isinstance(value, int | float) else float(value.timestamp())
    raise StoreError("this store does not say when an object was put, and without that nothing can be called old")
