"""List the archive and plan its parts: what is there, what it is labelled, which part it belongs to."""

import json
from typing import Any

import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from storage import files, ledger, tables
from storage.archive import (
    Draft,
    Labels,
    Member,
    Source,
    check_labels,
    content_id,
    drafts,
    is_video,
    listing,
    read_labels,
    split_of,
)
from storage.errors import InputError, StoreError
from storage.ledger import Entry, Report
from tasks.report import progress, say

PLAN = pa.schema(
    [(name, pa.string()) for name in ("part", "path", "url", "stamp", "content_id", "split", "labels")]
    + [("size", pa.int64())]
)


def _plan_url(root: str, name: str, digest: str) -> str:
    return files.join(root, "plans", name, f"{digest}.parquet")


def save_plan(root: str, name: str, parts: list[Draft], known: list[Member]) -> str:
    """Writes the plan (every known source, with its part where it has one) and returns its digest."""
    owner = {member.source.path: part.id for part in parts for member in part.members}
    rows = [
        {
            "part": owner.get(m.source.path, ""),
            "path": m.source.path,
            "url": m.source.url,
            "size": m.source.size,
            "stamp": m.source.stamp,
            "content_id": m.content_id,
            "split": m.split,
            "labels": json.dumps(m.labels.rows) if m.labels else None,
        }
        for m in known
    ]
    packed = tables.pack(pa.Table.from_pylist(rows, schema=PLAN))
    digest = files.digest(packed)[:16]
    files.publish_bytes(packed, _plan_url(root, name, digest), same=False)
    files.replace_json({"plan": digest}, files.join(root, "plans", name, "latest.json"))
    return digest


def load_plan(root: str, name: str, digest: str) -> list[Draft]:
    """The parts of a plan."""
    table = tables.read(_plan_url(root, name, digest))
    found: dict[str, list[Member]] = {}
    for row in table.to_pylist():
        if row["part"]:
            rows = json.loads(row["labels"]) if row["labels"] is not None else None
            labels = None if rows is None else Labels(tuple(tuple(r) for r in rows))
            source = Source(row["path"], row["url"], row["size"], row["stamp"])
            found.setdefault(row["part"], []).append(Member(source, row["content_id"], row["split"], labels))
    return [Draft(part, tuple(sorted(members, key=lambda m: m.content_id))) for part, members in found.items()]


def _remembered(root: str, name: str) -> dict[tuple[str, str], str]:
    """Content ids by (URL, stamp) from the last listing: files that were not touched are not read again."""
    try:
        latest = files.read_json(files.join(root, "plans", name, "latest.json"))["plan"]
        table = tables.read(_plan_url(root, name, latest), ["url", "stamp", "content_id"])
    except FileNotFoundError:
        return {}
    return {(row["url"], row["stamp"]): row["content_id"] for row in table.to_pylist()}


def plan_archive(
    root: str,
    name: str,
    archive: str,
    labels_url: str | None,
    *,
    classes: list[str],
    held_out: float,
    per_part: int,
    config: dict[str, Any],
) -> tuple[str, Report]:
    """Lists, identifies and groups the sources; returns the plan's digest and the counts.

    Every file listed is in the ledger: kept, dropped (``unknown_extension``, ``duplicate``) or quarantined.
    """
    found = list(listing(archive))
    if not found:
        raise InputError(f"{archive}: the archive is empty; put videos there or give another --archive")
    if not any(is_video(source) for source in found):
        raise InputError(f"{archive}: {len(found)} files, none with the name of a video")
    labels = read_labels(labels_url) if labels_url else {}
    check_labels(labels, found, labels_url or "", classes)
    remembered = _remembered(root, name)
    entries: list[Entry] = []
    known: list[Member] = []
    owners: dict[str, str] = {}
    with progress("list", len(found), "files") as state:
        for source in found:
            entry, member = _identify(source, labels.get(source.path), remembered, owners, held_out)
            entries.append(entry)
            if member:
                known.append(member)
            state.advance()
    parts = list(drafts([m for m in known if owners[m.content_id] == m.source.path], config, per_part))
    ledger.write(root, "list", name, entries)
    report = ledger.tally(entries)
    say(f"  list         {report.items} files: {report.kept} to shard in {len(parts)} parts")
    return save_plan(root, name, parts, known), report


def _identify(
    source: Source,
    labels: Labels | None,
    remembered: dict[tuple[str, str], str],
    owners: dict[str, str],
    held_out: float,
) -> tuple[Entry, Member | None]:
    if not is_video(source):
        return Entry(source.path, "dropped", "unknown_extension"), None
    if not source.regular:
        return Entry(source.path, "quarantined", "not_regular_file"), None
    try:
        identity = remembered.get((source.url, source.stamp)) or content_id(source)
    except PermissionError as error:
        return Entry(source.path, "quarantined", "permission", str(error)), None
    except FileNotFoundError as error:
        return Entry(source.path, "quarantined", "not_found", str(error)), None
    except IsADirectoryError as error:
        return Entry(source.path, "quarantined", "not_regular_file", str(error)), None
    except OSError as error:  # the store's fault, not the video's
        raise StoreError(f"{source.url} cannot be read: {error}") from error
    member = Member(source, identity, split_of(source, labels, held_out), labels)
    owner = owners.setdefault(identity, source.path)
    if owner != source.path:
        return Entry(source.path, "dropped", "duplicate", f"same bytes as {owner}", identity), member
    return Entry(source.path, "kept", content_id=identity), member


@task(task_run_name="list · {archive}", cache_policy=NO_CACHE)
def list_archive(
    root: str,
    name: str,
    archive: str,
    labels: str | None,
    classes: list[str],
    held_out: float,
    per_part: int,
    span: float,
    short_side: int,
) -> tuple[str, Report]:
    """Lists the archive and plans its parts; see `plan_archive`."""
    config = {"span": span, "short_side": short_side}
    return plan_archive(
        root, name, archive, labels, classes=classes, held_out=held_out, per_part=per_part, config=config
    )
