"""Cut the sources of a part into clips and commit them as one WebDataset part."""

import math
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

from prefect import task
from prefect.cache_policies import NO_CACHE

from storage import datasets, files, inflight, ledger, parts, plans, sources
from storage.errors import BudgetExceeded, Damaged, Incomplete
from storage.ledger import Entry, Report
from storage.media import sandbox
from storage.media.cutting import METHOD
from storage.media.limits import PASSING, Rejected, check_size
from storage.media.video import NEAR
from storage.parts import Part
from storage.plans import Draft, Member
from storage.tars import Tar
from tasks import report, requeue, shots
from tasks.spending import staged
from tasks.stage import cover

BUDGET_FROM = 20  # bad items; below that a share says little
SHOWN = 1000  # quarantined files that the table of a run lists

Splitting = Literal["span", "content", "learned"]
Cutting = Literal["exact", "copy"]


def recipe(span: float, short_side: int, splitting: Splitting, cutting: Cutting) -> dict[str, Any]:
    """What decides which clips a source gives: part of every part's identity."""
    found: dict[str, Any] = {"span": span, "short_side": short_side, "cutting": cutting, "method": METHOD}
    if splitting != "span":
        found["shots"] = shots.describe(splitting)
    return found


def _labels_within(member: Member, start: float, end: float) -> list[dict[str, Any]]:
    """The labels of a source that touch a span; those of the whole video belong to every clip."""
    rows = member.labels.rows if member.labels else ()
    return [
        {"start": s, "end": e, "label": label}
        for s, e, label in rows
        if s is None or e is None or (s < end and e >= start)
    ]


def _beyond(member: Member, rows: list[dict[str, Any]]) -> str:
    """What the ledger says of labels that begin after the end of their source: no clip has them."""
    end = max((row["end"] for row in rows), default=math.inf)
    said = member.labels.rows if member.labels and member.end is None else ()
    lost = sum(start is not None and start > end for start, _, _ in said)
    return f"{lost} labels begin after its end at {end:g} s" if lost else ""


def _row(member: Member, content: str, clip: dict[str, Any]) -> dict[str, Any]:
    """The index row of a clip: where it comes from is the member's to say, what it is the clip's."""
    return {
        **{name: clip[name] for name in parts.INDEX.names if name in clip},
        "key": f"{content[:20]}-{round(clip['start'] * 1000):09d}",
        "source": member.source.url,
        "path": member.source.path,
        "identity": member.identity,
        "content_id": content,
        "duration": clip["end"] - clip["start"],
        "split": member.split,
        "labelled": member.labelled,
        "labels": _labels_within(member, clip["start"], clip["end"]),
        "metadata": member.source.metadata,
    }


class _Cutter:
    """Makes the clips of one part: takes those that another part has, and cuts the others in the sandbox."""

    def __init__(self, root: str, draft: Draft, recipe: dict[str, Any], folder: Path, beside: Executor) -> None:
        self.root, self.draft, self.recipe, self.folder, self.beside = root, draft, recipe, folder, beside
        self.local: tuple[str, str] = ("", "")  # URL and path of the source fetched last: its windows lie together
        self.others: dict[str, tuple[Part | None, list[dict[str, Any]]]] = {}
        self.decoded = 0

    def entries(self, members: list[Member], suspects: set[str]) -> Iterator[tuple[Entry, list[Any], list[Path]]]:
        for number, member in enumerate(members):
            began = time.monotonic()
            folder = self.folder / str(number)
            folder.mkdir()
            if (taken := self._taken(member, folder)) is not None:
                yield self._entry(member, began, taken, f"clips taken from part {member.was}")
                continue
            inflight.begin(self.root, self.draft.id, member.name, suspects)
            try:
                done, notes = self._cut(member, folder, alone=member.name in suspects)
            except Rejected as error:
                detail = error.detail.replace(str(self.folder), "").strip()
                spent = time.monotonic() - began
                entry = Entry(member.name, "quarantined", error.reason, detail, error=error.kind, seconds=spent)
                yield entry, [], []
            else:
                yield self._entry(member, began, done, notes)

    def _entry(
        self, member: Member, began: float, done: tuple[list[Any], list[Path]], detail: str = ""
    ) -> tuple[Entry, list[Any], list[Path]]:
        rows, media = done
        duration = sum(row["end"] - row["start"] for row in rows)
        content = rows[0]["content_id"] if rows else member.content_id
        detail = "; ".join(filter(None, [detail, _beyond(member, rows)]))
        spent = time.monotonic() - began
        entry = Entry(member.name, "kept", "", detail, content, len(rows), duration, seconds=spent)
        return entry, rows, media

    def _taken(self, member: Member, folder: Path) -> tuple[list[Any], list[Path]] | None:
        """The clips of a member out of the part that it was in before; None where they have to be cut."""
        try:
            part, rows = self._before(member.was)
            rows = [row for row in rows if _holds(member, row)]
            if part is None or not rows:
                return None
            media: list[Path] = []
            for _, data in part.clips(rows):
                media.append(folder / f"{len(media):06d}.mp4")
                media[-1].write_bytes(data)
        except Damaged:
            return None
        return [_row(member, row["content_id"], row) for row in rows], media

    def _before(self, part: str) -> tuple[Part | None, list[dict[str, Any]]]:
        """A part that clips may be taken from, and its index rows; read once for all members."""
        if part and part not in self.others:
            found = parts.whole(self.root, part)
            self.others[part] = (found[0], found[1].to_pylist()) if found else (None, [])
        return self.others.get(part, (None, []))

    def _cut(self, member: Member, folder: Path, *, alone: bool) -> tuple[tuple[list[Any], list[Path]], str]:
        """The rows and files of a source's clips, and what was done to its frames beyond scaling."""
        check_size(member.source.size)
        path = self._fetch(member)
        with sources.reading(member.source):
            if sources.fingerprint_file(path) != member.identity[:32]:
                raise Rejected("source_changed", "other bytes than when it was listed; the next run takes it up")
        digest = None if member.content_id else self.beside.submit(files.digest_file, path)
        window = None if member.whole else (member.start, member.end)
        box = sandbox.mine()
        bounds = None
        if "shots" in self.recipe:
            bounds = _bounds(*box.thumbnails(path, window=window), member, self.recipe["shots"])
        options = {name: self.recipe[name] for name in ("span", "short_side")} | {"mode": self.recipe["cutting"]}
        options |= {"window": window, "bounds": bounds}
        self.decoded += 1
        clips = sandbox.cut_alone(path, folder, **options) if alone else box.cut(path, folder, **options)
        if member.attempt and self.recipe["cutting"] == "copy":
            clips = _proven(box, clips, path, folder, options)
        with sources.reading(member.source):
            content = digest.result() if digest else member.content_id
        rows, media = [_row(member, content, clip) for clip in clips], [folder / clip["file"] for clip in clips]
        return (rows, media), "; ".join(dict.fromkeys(note for clip in clips for note in clip["notes"]))

    def _fetch(self, member: Member) -> str:
        place = f"{member.source.url}@{member.source.offset}"
        if self.local[0] != place:
            for old in self.folder.glob("fetched/*"):
                old.unlink()
            (self.folder / "fetched").mkdir(exist_ok=True)
            self.local = (place, sources.fetch(member.source, str(self.folder / "fetched")))
        return self.local[1]


def _proven(
    box: sandbox.Sandbox, clips: list[dict[str, Any]], path: str, folder: Path, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Copied clips, decoded once: a copy looks at no picture, and what is taken up again may have been damaged."""
    try:
        for clip in clips:
            box.score((folder / clip["file"]).read_bytes())
        return clips
    except Rejected as error:
        cut = box.cut(path, folder, **options | {"mode": "exact"})
        return [clip | {"notes": [*clip["notes"], f"not copied: {error.reason}"]} for clip in cut]


def _holds(member: Member, row: dict[str, Any]) -> bool:
    start = row["start"] + float(NEAR)  # a frame this close before a border counts as on it
    within = start >= member.start and (member.end is None or start < member.end)
    return bool(row["identity"] == member.identity and within)


def _bounds(frames: Any, times: Any, member: Member, given: dict[str, Any]) -> list[float]:
    """Where shots begin, on the source clock; the ends of a window are bounds too, so that windows meet."""
    found = shots.find(frames, times, given["method"], given["threshold"], given["shortest"])
    first = float(times[0]) if len(times) else 0.0
    edges = [edge for edge in (member.start, member.end) if edge]
    return sorted({*(first + bound for bound in found), *edges})


def shard_part(draft: Draft, *, root: str, recipe: dict[str, Any]) -> Report:
    """Makes and commits one part: clips of every member, the ledger, the tar, then the index."""
    began = time.monotonic()
    entries: list[Entry] = []
    suspects = inflight.suspects(root, draft.id)
    try:
        with files.scratch() as folder, ThreadPoolExecutor(1) as beside, Tar(folder / "tar") as tar:
            cutter = _Cutter(root, draft, recipe, folder, beside)
            for entry, some, clips in cutter.entries(plans.members(draft), suspects):
                entries.append(entry)
                tar.add(some, clips, give=True)
            before = _account(root, draft.id)
            if not parts.committed(root, draft.id):  # a faster worker's account stays with its part
                ledger.write(root, "shard", draft.id, entries)
            part = parts.commit_tar(root, draft.id, tar, ledger.digest(entries))
            _settle(root, part, entries, before)
    except Exception:
        inflight.leave(root, draft.id, suspects)
        raise
    inflight.end(root, draft.id)
    done = ledger.tally(entries)
    done.decoded, done.bytes, done.seconds = cutter.decoded, part.bytes, time.monotonic() - began
    return done


def _account(root: str, part: str) -> list[Entry]:
    try:
        return ledger.read(root, "shard", part)
    except (FileNotFoundError, Damaged):
        return []


def _settle(root: str, part: Part, *accounts: list[Entry]) -> None:
    """Sees to it that a committed part has the account that its index names: of two writers that saw different things
    one commits, and the other may have written its account last."""
    if ledger.digest(_account(root, part.id)) != part.account:
        for entries in accounts:
            if ledger.digest(entries) == part.account:
                ledger.write(root, "shard", part.id, entries)


def shard_archive(
    root: str, name: str, plan: str, *, recipe: dict[str, Any], failure_budget: float, listed: Report
) -> tuple[list[Part], Report]:
    """Makes the parts of a plan that are missing.

    Returns all its parts and the counts over them, old and new; ``decoded`` counts the new ones alone.
    Raises `BudgetExceeded`, after committing the good ones, where too many sources were quarantined.
    """
    drafts = plans.drafts(root, name, plan)
    done = cover(
        "shard", drafts, partial(shard_part, root=root, recipe=recipe), lambda draft: parts.committed(root, draft.id)
    )
    inflight.sweep(root, [draft.id for draft in drafts])
    total, bad = ledger.total(root, "shard", [draft.id for draft in drafts], SHOWN)
    total.decoded, total.seconds, total.bytes = done.decoded, done.seconds, done.bytes
    if any(total.quarantined[reason] for reason in PASSING):
        _look_again(root, name, plan)
    if total.items != sum(draft.units for draft in drafts) or not total.balanced:
        raise Incomplete(f"shard: {sum(d.units for d in drafts)} sources were planned, {total.items} are in the ledger")
    found = [part for part in files.at_once(lambda draft: parts.find(root, draft.id), drafts) if part]
    for line in report.alike(total.quarantined, ((entry.reason, entry.item) for entry in bad)):
        report.say(f"  quarantined  {line}", **line.fields)
    _tables(found, bad, total.quarantined.total())
    count = total.quarantined.total() + listed.quarantined.total()
    if count >= BUDGET_FROM and count > failure_budget * listed.items:
        reasons = ", ".join(f"{n} {reason}" for reason, n in (total.quarantined + listed.quarantined).most_common())
        raise BudgetExceeded(
            f"{count} of {listed.items} files are quarantined ({reasons}), more than --failure-budget "
            f"{failure_budget:g}; the good ones are committed, see the ledger under {root}/ledger/shard"
        )
    return found, total


def _look_again(root: str, name: str, plan: str) -> None:
    """Has the next run look again at what could not be read: a disk may be back, and a file as it was."""
    found = requeue.among(root, plans.members_of(root, name, plan))
    plans.ask_again(root, name, {m.identity: m.attempt for m, reason in found.values() if reason in PASSING})


def _tables(found: list[Part], bad: list[Entry], count: int) -> None:
    rows = [{"part": p.id, "clips": p.samples, "bytes": p.bytes, "split": p.split} for p in found]
    report.table("parts", rows, f"{len(found)} parts")
    quarantine = [{"file": report.escape(e.item), "reason": e.reason, "detail": report.escape(e.detail)} for e in bad]
    report.table("quarantine", quarantine, f"{count} quarantined files")


@task(task_run_name="shard · {name}", cache_policy=NO_CACHE)
@staged("shard")
def shard(
    root: str, name: str, plan: str, recipe: dict[str, Any], failure_budget: float, listed: Report
) -> tuple[datasets.Dataset, Report]:
    """Cuts and shards what is missing of a plan; the dataset is not the latest before clips are selected."""
    before = datasets.latest(root, name)  # in this order: a plan that is newer than this shows
    plan = plans.newest(root, name, recipe)
    found, total = shard_archive(root, name, plan, recipe=recipe, failure_budget=failure_budget, listed=listed)
    if not any(part.samples for part in found):
        lost = total.quarantined + total.dropped + listed.quarantined + listed.dropped
        why = ", ".join(f"{n} {reason}" for reason, n in lost.most_common())
        raise BudgetExceeded(f"none of {listed.items} files gave a clip ({why}); see the ledger under {root}/ledger")
    about = {"recipe": recipe, "before": before}
    return datasets.freeze(root, name, found, about, move=False), total
