"""What is different from the dataset that the champion was trained on: class shares, changed labels, missing classes.

Shown before anything is trained. A part never changes, so labels are compared only where a dataset has other parts.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from storage import datasets
from storage.datasets import Dataset
from storage.errors import InputError
from storage.parts import Part
from tasks import report

SHOWN = 5  # classes in a line on the terminal
Clip = tuple[str, float, float]  # content of the source, start, end


@dataclass(frozen=True)
class Drift:
    """What differs; shares are of the selected, labelled clips of a split that have the class, 0 to 1."""

    before: str  # version compared with; empty: none
    rows: list[dict[str, Any]]  # class, split, before, now, by falling change
    distance: float | None  # total variation between the class counts of training, 0 (alike) to 1
    common: int  # clips of both
    changed: int  # of which the labels changed
    new: list[str] = field(default_factory=list)  # classes that training did not have before
    gone: list[str] = field(default_factory=list)  # and those that it has no longer
    untrained: list[str] = field(default_factory=list)  # measured on held-out videos, in no segment of training

    @property
    def churn(self) -> float | None:
        """Share of the clips of both of which the labels changed."""
        return self.changed / self.common if self.common else None


@dataclass(frozen=True)
class Labelled:
    """Clips with a label, and how many of them have each class."""

    clips: int
    counts: Counter

    def share(self, name: str) -> float:
        return self.counts[name] / self.clips if self.clips else 0.0


def labelled(root: str, dataset: Dataset, parts: Iterable[Part]) -> Labelled:
    """Counts the selected clips of some parts by class; a class counts once a clip."""
    clips, counts = 0, Counter[str]()
    for part in parts:
        lists = part.table(["labels"])["labels"].combine_chunks().filter(pa.array(dataset.kept(root, part)))
        clips += pc.sum(pc.greater(pc.list_value_length(lists), 0)).as_py() or 0
        flat = pa.table({"clip": pc.list_parent_indices(lists), "name": pc.list_flatten(lists).field("label")})
        each = flat.group_by(["clip", "name"]).aggregate([])
        for row in each.group_by("name").aggregate([("clip", "count")]).to_pylist():
            counts[row["name"]] += row["clip_count"]
    return Labelled(clips, counts)


def distance(before: Counter, now: Counter) -> float | None:
    """Total variation distance between two shares of classes, 0 (alike) to 1; None where one has none."""
    if not before.total() or not now.total():
        return None
    gaps = (before[n] / before.total() - now[n] / now.total() for n in before.keys() | now.keys())
    return sum(abs(gap) for gap in gaps) / 2


def relabelled(before: Dataset, now: Dataset) -> tuple[int, int]:
    """How many clips both versions have, and of how many the labels changed."""
    old, new = ({part.id: part for part in one.parts} for one in (before, now))
    same = sum(part.samples for part in now.parts if part.id in old)
    was, is_now = (
        _labels(part for id, part in one.items() if id not in other) for one, other in ((old, new), (new, old))
    )
    both = was.keys() & is_now.keys()
    return same + len(both), sum(was[clip] != is_now[clip] for clip in both)


def _labels(parts: Iterable[Part]) -> dict[Clip, list[tuple[str, float, float]]]:
    found = {}
    for part in parts:
        for row in part.table(["content_id", "start", "end", "labels"]).to_pylist():
            clip = row["content_id"], round(row["start"], 3), round(row["end"], 3)
            found[clip] = sorted((label["label"], label["start"], label["end"]) for label in row["labels"])
    return found


def compare(root: str, before: Dataset | None, now: Dataset) -> Drift:
    """What training on ``now`` sees that training on ``before`` (None: nothing) did not, and what it misses."""
    sides: dict[str, tuple[Labelled, Labelled]] = {}
    for split in ("train", "heldout"):
        was = labelled(root, before, before.select(split=split)) if before else Labelled(0, Counter())
        sides[split] = was, labelled(root, now, now.select(split=split))
    rows = [
        {"class": name, "split": split, "before": was.share(name) if before else None, "now": found.share(name)}
        for split, (was, found) in sides.items()
        for name in sorted(was.counts.keys() | found.counts.keys())
    ]
    rows.sort(key=lambda row: -abs(row["now"] - (row["before"] or 0.0)))
    old, trained = (side.counts for side in sides["train"])
    segments, measured = (
        labelled(root, now, now.select(split=split, labelled="segments")).counts for split in ("train", "heldout")
    )
    common, changed = relabelled(before, now) if before else (0, 0)
    return Drift(
        before.version if before else "", rows, distance(old, trained), common, changed,
        new=sorted(trained.keys() - old.keys()) if before else [], gone=sorted(old.keys() - trained.keys()),
        untrained=sorted(measured.keys() - segments.keys()),
    )  # fmt: skip


def earlier(root: str, dataset: Dataset, trained_on: str) -> tuple[Dataset | None, str]:
    """The version that ``trained_on`` (``name@version``; empty: there is no champion) names, or why it is not there."""
    name, _, version = trained_on.partition("@")
    if not trained_on:
        return None, "there is no champion"
    if name != dataset.name:
        return None, f"the champion was trained on another dataset, {trained_on}"
    try:
        return datasets.load(root, name, version), ""
    except InputError:
        return None, f"the list of {trained_on}, which the champion was trained on, is gone"


def show(root: str, dataset: Dataset, trained_on: str) -> tuple[dict[str, float], dict[str, str]]:
    """Prints the drift and publishes it as a table; returns it as metrics and tags for a run."""
    before, why = earlier(root, dataset, trained_on)
    found = compare(root, before, dataset)
    for line in lines(found, trained_on, why):
        report.say(line)
    shown = [row | {n: f"{100 * row[n]:.1f} %" for n in ("before", "now") if row[n] is not None} for row in found.rows]
    against = f"against {trained_on}" if before else why
    report.table("drift", shown, f"{dataset.name}@{dataset.version} {against}: clips of a split that have the class")
    metrics = {"classes_untrained": float(len(found.untrained))}
    if before:
        metrics |= {"classes_new": float(len(found.new)), "classes_gone": float(len(found.gone))}
    metrics |= {name: value for name, value in (("class_drift", found.distance), ("label_churn", found.churn))
                if value is not None}  # fmt: skip
    named = ("new", "gone", "untrained")
    tags = {f"classes_{name}": ", ".join(getattr(found, name))[:4000] for name in named if getattr(found, name)}
    return metrics, tags | ({"compared_with": trained_on} if before else {})


def lines(found: Drift, trained_on: str, why: str) -> list[str]:
    """The drift as the terminal has it; a class that cannot be learned is a warning that names it."""
    made = [f"  drift        not compared: {why}"]
    if found.before:
        moved = [row for row in found.rows if row["split"] == "train" and row["now"] != row["before"]]
        most = ", ".join(
            f"{row['class']} {100 * row['before']:.1f} → {100 * row['now']:.1f} %" for row in moved[:SHOWN]
        )
        churn = f"{found.changed} of {found.common} clips that both have changed their labels"
        made = [f"  drift        since {trained_on}, of training clips: {most or 'nothing moved'}; {churn}"]
    for word, names in (("new", found.new), ("gone", found.gone)):
        if names:
            made.append(f"  drift        {word} in training: {', '.join(names)}")
    if found.untrained:
        said = f"{', '.join(found.untrained)}: on held-out videos, but in no segment that is trained on"
        made.append(f"  WARNING      {said}; no model can find it there, so label some training videos with it")
    return made
