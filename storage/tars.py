"""Writing WebDataset shards whose bytes follow from the clips alone."""

import hashlib
import io
import json
import tarfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

BLOCK = 1 << 20  # bytes of a clip that are in memory at a time
SIDECAR = (
    "key",
    "content_id",
    "start",
    "end",
    "frames",
    "fps",
    "width",
    "height",
    "split",
    "labelled",
    "labels",
)


class Tar:
    """A shard that is written beside other work: clips are read once, for their sha256, the tar's, and its bytes.

    The bytes are a function of the clips alone: no times, owners or modes get in.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, list[dict[str, Any]]()
        self.file, self.whole, self.at = io.FileIO(path, "w"), hashlib.sha256(), 0
        self.buffer = memoryview(bytearray(BLOCK))
        self.behind = ThreadPoolExecutor(1, thread_name_prefix="reelmill-tar")
        self.under_way: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.behind.shutdown(cancel_futures=True)
        self.file.close()

    def add(self, rows: list[dict[str, Any]], media: list[Path], *, give: bool = False) -> None:
        """Appends clips, some time before `close` returns; those that are given are removed then."""
        for row, path in zip(rows, media, strict=True):
            self.under_way.append(self.behind.submit(self._append, row, path, give))

    def _append(self, row: dict[str, Any], path: Path, give: bool) -> None:
        clip, left = hashlib.sha256(), path.stat().st_size
        row = {"metadata": "{}", "identity": "", **row, "member": f"{row['key']}.mp4"}
        row |= {"offset": self.at + tarfile.BLOCKSIZE, "size": left}
        self._write(_header(row["member"], left))
        with open(path, "rb", buffering=0) as file:
            while left:
                count = file.readinto(self.buffer[:left])
                if not count:
                    raise OSError(f"{path} ends {left} bytes early")
                clip.update(self.buffer[:count])
                self._write(self.buffer[:count])
                left -= count
        row["sha256"] = clip.hexdigest()
        sidecar = _sidecar(row)
        self._write(_padding(row["size"]) + _header(f"{row['key']}.json", len(sidecar)) + sidecar)
        self._write(_padding(len(sidecar)))
        self.rows.append(row)
        if give:
            path.unlink()

    def _write(self, data: bytes | memoryview) -> None:
        self.whole.update(data)
        self.at += len(data)
        rest = memoryview(data)
        while rest:
            rest = rest[self.file.write(rest) :]

    def close(self) -> str:
        """Ends the tar and returns its sha256; ``rows`` have the offset, size and sha256 of each clip then."""
        for done in self.under_way:
            done.result()
        end = 2 * tarfile.BLOCKSIZE
        self._write(b"\0" * (end + -(self.at + end) % tarfile.RECORDSIZE))
        self.file.close()
        return self.whole.hexdigest()


def _sidecar(row: dict[str, Any]) -> bytes:
    facts = {name: row[name] for name in SIDECAR} | {"metadata": json.loads(row["metadata"])}
    return json.dumps(facts, sort_keys=True).encode()


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o644, 0
    return member.tobuf(tarfile.USTAR_FORMAT)


def _padding(size: int) -> bytes:
    return b"\0" * (-size % tarfile.BLOCKSIZE)
