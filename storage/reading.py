"""Reading parts in sequence, through WebDataset's own tar expander, checked against the index while the bytes pass.

WebDataset passes over damage in silence: a cut between members, a bad header or a zero block in the middle give fewer
samples and no error. Here every clip is compared with its digest as it passes, its place with the index, and at the
end of each part the whole tar with its digest. Nothing is decoded on the way, and nothing is ever unpickled.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from storage import files
from storage.datasets import Dataset
from storage.errors import Damaged
from storage.parts import Part
from storage.ranges import opened

os.environ.setdefault("WDS_SECURE", "1")  # before anybody imports WebDataset: no pickles, no shell
VIDEOS = ("mp4", "webm", "mkv", "avi", "mov", "m4v")
ALLOWED = (*VIDEOS, "json", "txt", "cls", "npy", "jpg", "png")  # others never leave the tar
BLOCK = 1 << 20


class _Hashed:
    """A stream that is hashed and counted as it is read."""

    def __init__(self, stream: BinaryIO, hashing: bool) -> None:
        self.stream, self.size = stream, 0
        self.whole = hashlib.sha256() if hashing else None

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(size)
        self.size += len(data)
        if self.whole is not None:
            self.whole.update(data)
        return data

    def drain(self) -> str:
        """Reads to the end and returns the digest of everything; empty where it was not hashed."""
        while self.read(BLOCK):
            pass
        return self.whole.hexdigest() if self.whole is not None else ""


def samples(
    parts: Dataset | Iterable[Part], *, verify: bool = True, share: tuple[int, int] = (0, 1)
) -> Iterator[dict[str, Any]]:
    """Yields the clips of parts in order as WebDataset samples: ``__key__``, ``__part__``, ``__row__`` (of the index),
    and the bytes of each member under its last extension, e.g. ``mp4`` and ``json``.

    ``share`` = (i, n) reads every n-th part from the i-th on, for workers and ranks. Raises `Damaged`, which names the
    part and, where it can be known, the clip; with ``verify=False`` only what is missing is noticed. Members beside
    the clip are covered by the digest of the whole tar, so by the end of their part.
    """
    listed = list(parts.parts if isinstance(parts, Dataset) else parts)
    for part in listed[share[0] :: share[1]]:
        if part.samples:
            yield from _samples(part, verify)


def _samples(part: Part, verify: bool) -> Iterator[dict[str, Any]]:
    rows = part.rows()
    place = {row["member"]: number for number, row in enumerate(rows)}
    if len(place) != len(rows):
        raise Damaged(f"part {part.id}: two rows of its index name one member")
    done = 0
    try:
        with opened(part.media, 4 * BLOCK) as stream:
            hashed = _Hashed(stream, verify)
            for sample in _expanded(part, hashed):
                for name in sample:
                    number = place.get(f"{sample['__key__']}.{name}")
                    if number is None:
                        continue
                    if number != done:
                        raise Damaged(
                            f"part {part.id}: clip {rows[min(done, number)]['key']} is not at its place in {part.media}"
                        )
                    yield _checked(part, rows[number], sample, name, verify)
                    done += 1
            digest = hashed.drain()
    except FileNotFoundError as error:
        raise Damaged(f"part {part.id}: {part.media} is gone") from error
    if done < len(rows):
        raise Damaged(
            f"part {part.id}: {part.media} gave {done} of {len(rows)} clips; {rows[done]['key']} is missing, "
            "the tar is cut short or damaged"
        )
    if hashed.size != part.bytes or verify and digest != part.digest:
        raise Damaged(f"part {part.id}: {part.media} differs from its index")


def _expanded(part: Part, stream: _Hashed) -> Iterator[dict[str, Any]]:
    """The samples of a tar as WebDataset groups them; its errors name the part."""
    from webdataset.tariterators import group_by_keys, tar_file_expander  # imports torch

    expanded = tar_file_expander([{"url": part.media, "stream": stream}], select_files=_allowed)
    found = group_by_keys(expanded, lcase=False)
    while True:
        try:
            yield next(found)
        except StopIteration:
            return
        except (tarfile.TarError, ValueError, EOFError) as error:
            raise Damaged(f"part {part.id}: {part.media} cannot be read as a tar ({error})") from error


def _allowed(name: str) -> bool:
    return name.rpartition(".")[2].lower() in ALLOWED


def _checked(part: Part, row: dict[str, Any], sample: dict[str, Any], name: str, verify: bool) -> dict[str, Any]:
    """One clip and what lies beside it: members of its own stem, else of the key alone."""
    data = sample[name]
    if len(data) != row["size"] or verify and files.digest(data) != row["sha256"]:
        raise Damaged(f"part {part.id}: clip {row['key']} in {part.media} differs from its index")
    found: dict[str, Any] = {"__key__": row["key"], "__url__": part.media, "__part__": part.id, "__row__": row}
    stem = name.rpartition(".")[0]
    for wanted in ("", stem):
        for other, value in sample.items():
            before, _, last = other.rpartition(".")
            if not other.startswith("__") and before == wanted and last.lower() not in VIDEOS:
                found[last.lower()] = value
    found[name.rpartition(".")[2].lower()] = data
    return found


def decoded(sample: dict[str, Any]) -> dict[str, Any]:
    """A sample with json, txt, cls and npy as values; media stay bytes. Raises `Damaged` for what does not decode."""
    import numpy as np

    table = {
        "json": lambda data: json.loads(data),
        "txt": lambda data: data.decode(),
        "cls": lambda data: int(data),
        "npy": lambda data: np.load(io.BytesIO(data), allow_pickle=False),
    }
    found = dict(sample)
    for name in table.keys() & sample.keys():
        try:
            found[name] = table[name](sample[name])
        except (ValueError, RecursionError, EOFError, OSError) as error:
            raise Damaged(f"part {sample['__part__']}: {name} of clip {sample['__key__']}: {error}") from error
    return found
