"""Writes that hold only if nobody else wrote: create once, and swap what one has read.

Local disks, memory and S3 servers with conditional puts can do this themselves. Whether an S3 server can is tried
once per bucket, since some take the condition and ignore it. Where it cannot, one process at a time may write below a
root: the holder of its lease (`storage.lease`).
"""

import hashlib
import os
import sys
import uuid
from pathlib import Path
from threading import Lock
from typing import Any

from storage import lease, local
from storage.errors import StoreError
from storage.stores import (
    answered,
    ask,
    bucket_and_key,
    code_of,
    is_local,
    is_memory,
    is_s3,
    locate,
    unless_refused,
    within,
)

MARKER = "reelmill.json"
SMALL = 1 << 20  # bytes of an object that is read first and put as they are
CHUNK = 50 << 20  # bytes of one part of an upload; twice that and more is uploaded in parts
_creating = Lock()  # fsspec's memory file system looks and then writes
_probing = Lock()
_honoured: dict[tuple[Any, str], bool] = {}  # by file system and bucket
_roots: dict[tuple[int, str], str] = {}  # folder: its root


def honoured(url: str) -> bool:
    """Whether the store of a URL refuses a put whose condition does not hold; tried once per bucket and process."""
    fs, path = locate(url)
    if is_local(fs) or is_memory(fs):
        return True
    if not is_s3(fs):
        return False  # a look and then a write, by all that is known
    bucket = bucket_and_key(fs, path)["Bucket"]
    with _probing:
        if (fs, bucket) not in _honoured:
            _honoured[fs, bucket] = _probe(fs, url)
        return _honoured[fs, bucket]


def _probe(fs: Any, url: str) -> bool:
    """Tries every conditional request on an object of its own: each has to be refused where it must be."""
    folder = root_of(url) or url.rpartition("/")[0]
    target = bucket_and_key(fs, locate(f"{folder}/.write-{uuid.uuid4().hex}")[1])
    wrong = '"00000000000000000000000000000000"'
    try:
        ask(fs, "call_s3", "put_object", **target, Body=b"1")
        return (
            _refused(fs, "put_object", **target, Body=b"2", IfNoneMatch="*")
            and _refused(fs, "put_object", **target, Body=b"3", IfMatch=wrong)
            and _upload_refused(fs, target)
        )
    finally:
        ask(fs, "call_s3", "delete_object", **target)


def _refused(fs: Any, method: str, **request: Any) -> bool:
    try:
        return not unless_refused(lambda: ask(fs, "call_s3", method, **request))[0]
    except OSError as error:
        if code_of(error) == "NotImplemented":
            return False
        raise


def _upload_refused(fs: Any, target: dict[str, Any]) -> bool:
    """Whether an upload in parts, too, cannot be completed over an object that is there."""
    upload = {**target, "UploadId": ask(fs, "call_s3", "create_multipart_upload", **target)["UploadId"]}
    tag = ask(fs, "call_s3", "upload_part", **upload, PartNumber=1, Body=b"4")["ETag"]
    listed = {"Parts": [{"PartNumber": 1, "ETag": tag}]}
    refused = _refused(fs, "complete_multipart_upload", **upload, MultipartUpload=listed, IfNoneMatch="*")
    if refused:
        ask(fs, "call_s3", "abort_multipart_upload", **upload)
    return refused


def root_of(url: str) -> str | None:
    """The root that a URL is below, by its marker; a folder whose root was found is not asked for again."""
    folder = url.rstrip("/").rpartition("/")[0]
    tried = []
    while "/" in folder.partition("://")[2]:
        known = _roots.get((os.getpid(), folder))
        if known is None:
            tried.append(folder)
            fs, path = locate(f"{folder}/{MARKER}")
            known = folder if ask(fs, "exists", path) else None
        if known is not None:
            _roots.update({(os.getpid(), name): known for name in tried})
            return known
        folder = folder.rpartition("/")[0]
    return None


def admit(url: str) -> None:
    """Says that this process may write at a URL; where the store lacks conditions, only with the lease of its root.

    Raises `InputError` where another process is writing, `StoreError` for a URL below no root.
    """
    if not honoured(url):
        _leased(url)


def _leased(url: str) -> str:
    """The root of a URL, whose lease this process now has."""
    root = root_of(url)
    if root is None:
        raise StoreError(f"{url}: this store ignores conditions on a put, and the object is below no Reelmill root")
    lease.take(root)
    return root


def announce(root: str) -> None:
    """Takes the lease of a root, new or not, whose store needs one, and says so in one line."""
    if honoured(f"{root}/{MARKER}"):
        return
    _roots[os.getpid(), root] = root
    if lease.take(root):
        print(
            f"reelmill: {root}: this store ignores conditions on a put; only this process and its children may "
            "write below this root until it ends",
            file=sys.stderr,
        )


def create(source: str | Path, url: str, give: bool = False) -> bool:
    """Puts a local file at a URL if nothing is there; whether it did. One that is given may become the object."""
    fs, path = locate(url)
    if is_local(fs):
        try:
            if give and local.hand_over(source, path):
                return True
            with local.beside(source, path) as temporary:
                os.link(temporary, path)
        except FileExistsError:
            return False
        return True
    if is_memory(fs):
        with _creating:
            return unless_refused(lambda: fs.pipe_file(path, Path(source).read_bytes(), mode="create"))[0]
    size = Path(source).stat().st_size
    if honoured(url):
        mark = _mark()
        how: dict[str, Any] = {"mode": "create", "chunksize": CHUNK, "size": size, **mark}
        if size <= SMALL:  # what goes on around its one request is felt, and there is less of it for bytes
            done, _ = unless_refused(lambda: ask(fs, "pipe_file", path, Path(source).read_bytes(), **how))
        else:
            done, _ = unless_refused(lambda: ask(fs, "put_file", str(source), path, **how))
        return done or _ours(fs, path, mark)
    with lease.held(_leased(url)):
        if ask(fs, "exists", path):
            return False
        ask(fs, "put_file", str(source), path, size=size)
        return True


def overwrite(data: bytes, url: str) -> None:
    """Puts bytes at a URL, whatever is there: a reader sees the old ones or these."""
    fs, path = locate(url)
    if is_local(fs):
        with local.beside(data, path) as temporary:
            os.replace(temporary, path)
    elif is_memory(fs):
        with _creating:
            fs.pipe_file(path, data)
    elif honoured(url):
        ask(fs, "pipe_file", path, data, size=len(data))
    else:
        with lease.held(_leased(url)):
            ask(fs, "pipe_file", path, data, size=len(data))


def read_tagged(url: str) -> tuple[bytes | None, str]:
    """The bytes of an object and a tag that changes with them; (None, "") where nothing is."""
    fs, path = locate(url)
    try:
        if is_s3(fs):
            with answered(url):
                return within(fs, lambda: _get_tagged(fs, path))
        data = bytes(ask(fs, "cat_file", path))
    except (FileNotFoundError, NotADirectoryError):
        return None, ""
    return data, tag_of(data)


def read_settled(url: str) -> tuple[bytes | None, str]:
    """`read_tagged` for one who is about to write: a store that ignores conditions may show half of another's write."""
    if honoured(url):
        return read_tagged(url)
    with lease.held(_leased(url)):
        return read_tagged(url)


async def _get_tagged(fs: Any, path: str) -> tuple[bytes, str]:
    answer = await fs._call_s3("get_object", **bucket_and_key(fs, path))
    async with answer["Body"] as body:
        return await body.read(), answer["ETag"]


def swap(data: bytes, url: str, tag: str) -> bool:
    """Puts bytes where what is there still has the tag of `read_tagged` ("": nothing); whether they are there now.

    False may also follow a swap that took place, whose reply was lost, and that another writer has replaced since.
    """
    fs, path = locate(url)
    if is_local(fs):
        with local.locked(path):
            return _swap_held(data, url, tag)
    if is_memory(fs):
        with _creating:
            if read_tagged(url)[1] != tag:
                return False
            fs.pipe_file(path, data)
            return True
    if not honoured(url):
        with lease.held(_leased(url)):
            return _swap_held(data, url, tag)
    condition = {"IfMatch": tag} if tag else {"IfNoneMatch": "*"}
    mark = _mark()
    request = {**bucket_and_key(fs, path), "Body": data, **condition, **mark}
    try:
        done, _ = unless_refused(lambda: ask(fs, "call_s3", "put_object", **request, size=len(data)))
    except FileNotFoundError:
        return False  # the object was removed
    return done or _ours(fs, path, mark)


def _mark() -> dict[str, Any]:
    """What tells a put from every other one, also of the same bytes; it is kept beside them."""
    return {"Metadata": {"put": uuid.uuid4().hex}}


def _ours(fs: Any, path: str, mark: dict[str, Any]) -> bool:
    """Whether the object is ours after all: where the reply to a put is lost, it is sent again and then refused."""
    try:
        found = ask(fs, "call_s3", "head_object", **bucket_and_key(fs, path))
    except FileNotFoundError:
        return False
    return found.get("Metadata") == mark["Metadata"]


def _swap_held(data: bytes, url: str, tag: str) -> bool:
    """Looks and then writes, while nobody else may."""
    if read_tagged(url)[1] != tag:
        return False
    fs, path = locate(url)
    if is_local(fs):
        overwrite(data, url)
    else:
        ask(fs, "pipe_file", path, data, size=len(data))
    return True


def tag_of(data: bytes) -> str:
    """The tag of bytes on a store that gives none."""
    return hashlib.sha256(data).hexdigest()
