"""Cut the sources of a part into clips and commit them as one WebDataset part."""

import time
from functools import partial
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from storage import datasets, files, ledger, parts
from storage.archive import Draft, Member, Source
from storage.errors import BudgetExceeded, Incomplete
from storage.ledger import Entry, Report
from storage.sandbox import mine
from storage.video import Rejected
from tasks import report
from tasks.listing import load_plan
from tasks.stage import cover

BUDGET_FROM = 20  # bad items; below that a share says little


def _local(source: Source, folder: Path) -> str:
    """A local path of a source's bytes; remote ones are fetched."""
    fs, path = files.locate(source.url)
    if "file" in fs.protocol or "local" in fs.protocol:
        return path
    target = folder / "source"
    fs.get_file(path, str(target))
    return str(target)


def _labels_within(member: Member, start: float, end: float) -> list[dict[str, Any]]:
    """The labels of a source that touch a span; those of the whole video belong to every clip."""
    rows = member.labels.rows if member.labels else ()
    return [
        {"start": s, "end": e, "label": label}
        for s, e, label in rows
        if s is None or e is None or (s < end and e >= start)
    ]


def _rows(member: Member, clips: list[dict[str, Any]]) -> list[dict[str, Any]]:
    shared = {
        "source": member.source.url,
        "path": member.source.path,
        "content_id": member.content_id,
        "split": member.split,
        "labelled": member.labelled,
    }
    return [
        {
            **shared,
            **{name: value for name, value in clip.items() if name != "file"},
            "key": f"{member.content_id[:20]}-{round(clip['start'] * 1000):09d}",
            "duration": clip["end"] - clip["start"],
            "labels": _labels_within(member, clip["start"], clip["end"]),
        }
        for clip in clips
    ]


def _cut(
    member: Member, folder: Path, *, span: float, short_side: int
) -> tuple[Entry, list[dict[str, Any]], list[Path]]:
    """Cuts one source in the sandbox; a bad one comes back as a quarantined entry and no clips."""
    folder.mkdir()
    try:
        path = _local(member.source, folder)
        if files.digest_file(path) != member.content_id:
            raise Rejected("source_changed", "other bytes than when it was listed; the next run takes it up")
        clips = mine().cut(path, folder, span=span, short_side=short_side)
    except FileNotFoundError as error:
        rejected = Rejected("not_found", str(error))
    except PermissionError as error:
        rejected = Rejected("permission", str(error))
    except Rejected as error:
        rejected = error
    else:
        seconds = sum(clip["end"] - clip["start"] for clip in clips)
        entry = Entry(member.source.path, "kept", "", "", member.content_id, len(clips), seconds)
        return entry, _rows(member, clips), [folder / clip["file"] for clip in clips]
    detail = rejected.detail.replace(str(folder), "").strip()
    return Entry(member.source.path, "quarantined", rejected.reason, detail, member.content_id), [], []


def shard_part(draft: Draft, *, root: str, span: float, short_side: int) -> Report:
    """Makes and commits one part: cut every member, write the ledger, publish the tar, then the index."""
    began = time.monotonic()
    entries: list[Entry] = []
    rows: list[dict[str, Any]] = []
    media: list[Path] = []
    with files.scratch() as folder:
        for number, member in enumerate(draft.members):
            entry, cut_rows, cut_media = _cut(member, folder / str(number), span=span, short_side=short_side)
            entries.append(entry)
            rows += cut_rows
            media += cut_media
        if not parts.committed(root, draft.id):  # a faster worker's account stays with its part
            ledger.write(root, "shard", draft.id, entries)
        part = parts.commit(root, draft.id, rows, media, folder)
    done = ledger.tally(entries)
    done.decoded, done.bytes, done.seconds = len(draft.members), part.bytes, time.monotonic() - began
    return done


def shard_archive(
    root: str, name: str, plan: str, *, span: float, short_side: int, failure_budget: float, listed: Report
) -> tuple[datasets.Dataset, Report]:
    """Makes the parts of a plan that are missing and freezes the dataset.

    Returns the dataset and the counts over all parts, old and new; ``decoded`` counts the new ones alone.
    Raises `BudgetExceeded`, after committing the good ones, where too many sources were quarantined.
    """
    drafts = load_plan(root, name, plan)
    done = cover(
        "shard",
        drafts,
        partial(shard_part, root=root, span=span, short_side=short_side),
        lambda draft: parts.committed(root, draft.id),
    )
    entries = [entry for draft in drafts for entry in ledger.read(root, "shard", draft.id)]
    total = ledger.tally(entries)
    total.decoded, total.seconds, total.bytes = done.decoded, done.seconds, done.bytes
    if total.items != listed.kept or not total.balanced:
        raise Incomplete(f"shard: {listed.kept} sources were listed, {total.items} are in the ledger")
    bad = [entry for entry in entries if entry.verdict == "quarantined"]
    listed_bad = listed.quarantined.total()
    found = [part for draft in drafts if (part := parts.find(root, draft.id))]
    _tables(found, bad)
    if (count := len(bad) + listed_bad) >= BUDGET_FROM and count > failure_budget * listed.items:
        reasons = ", ".join(f"{n} {reason}" for reason, n in (total.quarantined + listed.quarantined).most_common())
        raise BudgetExceeded(
            f"{count} of {listed.items} files are quarantined ({reasons}), more than --failure-budget "
            f"{failure_budget:g}; the good ones are committed, see the ledger under {root}/ledger/shard"
        )
    about = {"span": span, "short_side": short_side}
    return datasets.freeze(root, name, found, about), total


def _tables(found: list[parts.Part], bad: list[Entry]) -> None:
    rows = [{"part": p.id, "clips": p.samples, "bytes": p.bytes, "split": p.split} for p in found]
    report.table("parts", rows, f"{len(found)} parts")
    quarantine = [{"file": report.escape(e.item), "reason": e.reason, "detail": report.escape(e.detail)} for e in bad]
    report.table("quarantine", quarantine, f"{len(bad)} quarantined files")


@task(task_run_name="shard · {name}", cache_policy=NO_CACHE)
def shard(
    root: str, name: str, plan: str, span: float, short_side: int, failure_budget: float, listed: Report
) -> tuple[datasets.Dataset, Report]:
    """Cuts and shards what is missing of a plan; see `shard_archive`."""
    return shard_archive(
        root, name, plan, span=span, short_side=short_side, failure_budget=failure_budget, listed=listed
    )
