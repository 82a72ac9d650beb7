"""Objects as files to read, wherever they are."""

import errno
import io
from typing import Any, BinaryIO

from storage import files
from storage.errors import StoreError
from storage.stores import is_local


def opened(url: str, block: int = 1 << 20) -> BinaryIO:
    """An object as a file to read, on a remote store in ranges of ``block`` bytes, each a `files.read`."""
    fs, path = files.locate(url)
    if is_local(fs):
        return open(path, "rb")
    found = files.info(url)
    if found["type"] != "file":
        raise FileNotFoundError(errno.ENOENT, "no object", url)
    if found["size"] is None:  # a web server need not say
        return io.BytesIO(files.read(url))
    return io.BufferedReader(_Ranges(url, int(found["size"])), block)


class _Ranges(io.RawIOBase):
    """The bytes of an object; each request has the limits in time of `files.read`, and is asked again as it is."""

    def __init__(self, url: str, size: int) -> None:
        self.url, self.size, self.at = url, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, to: int, whence: int = io.SEEK_SET) -> int:
        self.at = to + (0, self.at, self.size)[whence]
        return self.at

    def readinto(self, into: Any) -> int:
        end = min(self.size, self.at + len(into))
        if end <= self.at:
            return 0
        data = files.read(self.url, self.at, end)
        if len(data) < end - self.at:
            raise StoreError(f"{self.url}: it became shorter while it was read")
        into[: len(data)] = data
        self.at += len(data)
        return len(data)
