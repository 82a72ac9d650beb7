"""Tell what the files of an archive are: a fingerprint of each new one, and the whole of those that leave a doubt."""

import time
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from storage import files, ledger, sources, tombstones
from storage.media.limits import Rejected
from storage.planning import Planning
from storage.sources import Source
from storage.tombstones import Tombstone
from tasks.report import Progress, progress

Row = dict[str, Any]


def identify(planning: Planning, root: str) -> None:
    """Fingerprints what is new; where a fingerprint leaves a doubt, the whole file is read."""
    with progress("identify", planning.count_fresh(), "files") as state:
        planning.identified(_advancing(state, files.at_once(_fingerprint, planning.fresh())))
    if doubtful := planning.doubts(sources.WHOLE):
        with progress("read whole", doubtful, "files") as state:
            for now, then in planning.doubtful():
                planning.settle(_settled(root, now, then, state))
    if stones := tombstones.read(root):
        planning.settle(_forgotten(planning.like({one for stone in stones for one in stone.identities}), stones))


def _advancing(state: Progress, rows: Iterable[Row]) -> Iterator[Row]:
    for row in rows:
        state.advance()
        yield row


def _fingerprint(source: Source) -> Row:
    began = time.monotonic()
    try:
        row = {"path": source.path, "identity": sources.fingerprint(source)}
    except Rejected as error:
        row = {"path": source.path, **_refused(error)}
    return row | {"seconds": time.monotonic() - began}


def _refused(error: Rejected) -> Row:
    return {"problem": error.reason, "detail": error.detail, "error": error.kind}


def _settled(root: str, now: list[Row], then: list[Row], state: Progress) -> Iterator[Row]:
    """What files are that share a fingerprint among themselves or with files of the plan before."""
    known: dict[str, dict[str, str]] = {}  # by fingerprint: content id to identity
    for row, content in zip(then, _contents_before(root, then), strict=True):
        if content:
            known.setdefault(row["identity"][:32], {})[content] = row["identity"]
    seen = {_place(row) for row in then}
    unread = [row for row in now if _place(row) not in seen or row["identity"][:32] not in known]
    read: dict[str, list[tuple[Row, str]]] = {}
    for row, (content, error) in zip(unread, files.at_once(_content, unread), strict=True):
        state.advance()
        if error is not None:
            yield {"path": row["path"], **_refused(error)}
        else:
            read.setdefault(row["identity"][:32], []).append((row, content))
    for mark, rows in read.items():
        contents = known.get(mark, {})
        alone = not contents and len({content for _, content in rows}) == 1
        for row, content in rows:
            identity = contents.get(content) or (mark if alone else f"{mark}-{content[:16]}")
            yield {"path": row["path"], "identity": identity, "content_id": content}


def _forgotten(rows: Iterable[Row], stones: list[Tombstone]) -> Iterator[Row]:
    """Which of some files were taken down; where the fingerprint leaves a doubt, the whole file is read."""
    for row in rows:
        content = row["content_id"]
        for stone in stones:
            known = stone.is_of(row["identity"], row["size"], content)
            if known is None:
                content, error = _content(row)
                known = error is None and stone.is_of(row["identity"], row["size"], content)
            if known:
                detail = f"taken down on {stone.when[:10]}"
                yield {"path": row["path"], "identity": stone.id, "problem": tombstones.REASON, "detail": detail}
                break


def _place(row: Row) -> tuple[str, int, str]:
    return row["url"], row["offset"], row["stamp"]


def _content(row: Row) -> tuple[str, Rejected | None]:
    try:
        return sources.content_id(Source(row["path"], row["url"], row["size"], row["stamp"], row["offset"])), None
    except Rejected as error:
        return "", error


def _contents_before(root: str, then: list[Row]) -> list[str]:
    """What sources of the plan before turned out to hold, where they were cut; each part's ledger is read once."""
    parts = sorted({row["part"] for row in then if row["part"] and not row["content_id"]})
    books = dict(zip(parts, files.at_once(partial(_book, root), parts), strict=True))
    return [row["content_id"] or books.get(row["part"], {}).get(row["path"], "") for row in then]


def _book(root: str, part: str) -> dict[str, str]:
    try:
        return {entry.item: entry.content_id for entry in ledger.read(root, "shard", part)}
    except FileNotFoundError:
        return {}
