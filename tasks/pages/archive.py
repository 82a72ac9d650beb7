"""What a page says of an archive: the way of its items and what was lost on it, quarantine, drift, lineage."""

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from storage import columns, datasets, files, ledger, plans, tables
from storage.datasets import Dataset
from storage.errors import StoreError
from storage.ledger import Report
from storage.media.limits import REASONS
from storage.parts import Part
from tasks import drift
from tasks.audits.contents import accounts, written
from tasks.pages import pictures
from tasks.predict import COLUMN

ROWS = 200  # of a table on a page, at most
ACCOUNT = ["item", "verdict", "reason", "detail"]  # columns of a ledger
BAD = 24  # quarantined items that are shown
READ = 64 << 20  # bytes of a quarantined file on a remote store that are fetched for a picture, at most; locally any


@dataclass(frozen=True)
class Step:
    """A step on the way of an archive's items: how many are left after it; (verdict, reason, count) of the others."""

    name: str
    count: int
    unit: str
    lost: list[tuple[str, str, int]] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class Clips:
    """Counts over the clips of a dataset; all but ``all`` of those that are selected."""

    all: int = 0
    selected: int = 0
    labelled: int = 0
    predicted: int = 0
    seconds: float = 0.0
    classes: Counter = field(default_factory=Counter)


def _ledger(root: str, step: str, name: str) -> pa.Table:
    """What a page needs of a ledger; no rows where it is gone."""
    try:
        return tables.read(ledger.url(root, step, name), ACCOUNT)
    except FileNotFoundError:
        return pa.schema([ledger.SCHEMA.field(one) for one in ACCOUNT]).empty_table()


def _lost(found: Report) -> list[tuple[str, str, int]]:
    """(verdict, reason, count), the most frequent first."""
    both = [(verdict, *one) for verdict in ("dropped", "quarantined") for one in getattr(found, verdict).items()]
    return sorted(both, key=lambda one: -one[2])


def counted(root: str, dataset: Dataset, predictions: str | None) -> Clips:
    """Counts the clips of a dataset; ``predictions`` is the version of that column."""

    def of(part: Part) -> Clips:
        table = part.table(["start", "end", "labels"]).filter(pa.array(dataset.kept(root, part)))
        names = [{label["label"] for label in some} for some in table["labels"].to_pylist()]
        there = predictions is not None and columns.has(root, COLUMN, predictions, part.id)
        seconds = pc.sum(pc.subtract(table["end"], table["start"])).as_py() or 0.0
        labelled = sum(map(bool, names))
        classes = Counter(name for some in names for name in some)
        return Clips(part.samples, len(table), labelled, len(table) if there else 0, seconds, classes)

    total = Clips()
    for one in files.at_once(of, dataset.parts):
        total = Clips(*(getattr(total, name) + getattr(one, name) for name in Clips.__dataclass_fields__))
    return total


def funnel(root: str, dataset: Dataset, clips: Clips, champion: str) -> list[Step]:
    """listed → kept → clips → selected → labelled → predicted, each with what was lost before it and why."""
    found = [ledger.total(root, step, names, 0)[0] for step, names in accounts(root, dataset)]
    lost = _lost(sum(found, Report()))
    listed = found[0].items if found else 0
    pieces = sum(n for _, _, n in lost) + (found[-1].kept if found else 0)
    split = f"read in {pieces:,} pieces" if pieces > listed else ""
    steps = [
        Step("Listed", listed, "files", note=split),
        Step("Kept", found[-1].kept if found else 0, "pieces" if split else "files", lost),
        Step("Clips", clips.all, "clips", note=f"in {len(dataset.parts)} parts"),
    ]
    dropped: list[tuple[str, str, int]] = []
    if dataset.selection:
        names = written(root, "select", [f"{part.id}-{dataset.selection}" for part in dataset.parts])
        dropped = _lost(ledger.total(root, "select", names, 0)[0])
    steps.append(
        Step("Selected", clips.selected, "clips", dropped, "" if dataset.selection else "no thresholds are set")
    )
    without = clips.selected - clips.labelled
    steps.append(
        Step("Labelled", clips.labelled, "clips", [("without", "no label was given", without)] if without else [])
    )
    missing = clips.selected - clips.predicted
    why = f"no predictions of {champion}" if champion else "no model is champion yet"
    steps.append(Step("Predicted", clips.predicted, "clips", [("missing", why, missing)] if missing else []))
    return steps


@dataclass(frozen=True)
class Bad:
    """A quarantined item: why, and a picture of it where one can be made."""

    item: str
    reason: str
    meaning: str
    detail: str
    picture: Markup | None


def quarantined(root: str, dataset: Dataset) -> tuple[list[Bad], int]:
    """The first quarantined items, as many of each reason as there is room for, and how many there are."""
    total, found = 0, dict[str, list[tuple[str, dict[str, Any]]]]()
    for step, names in accounts(root, dataset):
        for name, table in zip(names, files.at_once(partial(_ledger, root, step), names), strict=True):
            bad = table.filter(pc.equal(table["verdict"], "quarantined"))
            total += len(bad)
            for reason in pc.unique(bad["reason"]).to_pylist():
                kept = found.setdefault(reason, [])
                rows = bad.filter(pc.equal(bad["reason"], reason)).slice(0, BAD - len(kept)).to_pylist()
                kept += [(name if step == "shard" else "", row) for row in rows]
    chosen = [some[i] for i in range(BAD) for some in found.values() if i < len(some)][:BAD]
    places = _places(root, dataset, {part for part, _ in chosen if part})
    return [_bad(row, places.get(row["item"])) for _, row in chosen], total


def _bad(row: dict[str, Any], url: str | None) -> Bad:
    picture = pictures.first_frame(url, READ) if url else None
    return Bad(row["item"], row["reason"], REASONS.get(row["reason"], ""), row["detail"], picture)


def _places(root: str, dataset: Dataset, parts: set[str]) -> dict[str, str]:
    """Where the sources of some parts are, by the names that the ledger has for them."""
    found: dict[str, str] = {}
    for draft in plans.drafts(root, dataset.name, plans.latest(root, dataset.name)) if parts else ():
        if draft.id in parts:
            found |= {member.name: member.source.url for member in plans.members(draft)}
    return found


@dataclass(frozen=True)
class Moved:
    """What a dataset has that the version before had not; ``why`` where nothing could be compared."""

    before: str
    found: drift.Drift | None
    why: str = ""


def moved(root: str, dataset: Dataset, others: list[str]) -> Moved:
    """The drift against the version before, or else against one that a champion was trained on (name@version)."""
    known = [f"{dataset.name}@{dataset.about.get('before') or ''}", *others]
    mine = f"{dataset.name}@{dataset.version}"
    tried = [one for one in dict.fromkeys(known) if one.partition("@")[2] and one != mine]
    for one in tried:
        before, _ = drift.earlier(root, dataset, one)
        if before is not None:
            try:
                return Moved(one, drift.compare(root, before, dataset))
            except (FileNotFoundError, StoreError):
                continue
    if tried:
        return Moved(
            "", None, f"What there was before ({tried[0]}) is gone from the store, so nothing can be compared."
        )
    return Moved("", None, "This is the first version of the dataset; there is nothing to compare it with.")


def history(root: str, dataset: Dataset) -> list[dict[str, Any]]:
    """The dataset and its columns as (kind, name, version, detail)."""
    about = dataset.about
    made = ", ".join(f"{key} {value}" for key, value in sorted((about.get("recipe") or {}).items()))
    rows = [{"kind": "dataset", "name": dataset.name, "version": dataset.version, "detail": made or "adopted"}]
    if dataset.selection:
        limits = ", ".join(f"{key} {value}" for key, value in sorted((about.get("thresholds") or {}).items()))
        rows.append({"kind": "selection", "name": "", "version": dataset.selection, "detail": limits})
    for column in files.names(files.join(root, "columns")):
        for version in columns.versions(root, column) if column != datasets.SELECTION else ():
            have = sum(columns.has(root, column, version, part.id) for part in dataset.parts)
            if have:
                detail = f"{have} of {len(dataset.parts)} parts"
                rows.append({"kind": "column", "name": column, "version": version, "detail": detail})
    return rows
