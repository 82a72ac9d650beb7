"""What a dataset holds and what became of the rest: freshness, growth, losses, labels and what is in hand now.

Only reads, and imports neither Prefect nor torch: `reelmill status` is to answer at once.
"""

import math
import time
from collections import Counter
from datetime import UTC, datetime
from typing import Any

from storage import claims, datasets, files, inventory, lease, ledger, plans
from storage.datasets import Dataset
from storage.errors import InputError
from storage.timing import Spent

STAGES = "stages"  # step of the ledger
WALL = "of the run"  # beside the kinds of work in it: the seconds of the run that were a stage's


def freshness(root: str, dataset: Dataset) -> dict[str, Any]:
    """When the dataset's pointer moved last, as far as the store says, and how many hours that is ago."""
    put = files.modified(files.info(files.join(root, "datasets", dataset.name, "latest.json")))
    moved = None if put is None else datetime.fromtimestamp(put, UTC).isoformat(timespec="seconds")
    hours = None if put is None else round(max(0.0, time.time() - put) / 3600, 2)
    return {"version": dataset.version, "moved": moved, "age_hours": hours, "clips": dataset.clips}


def growth(root: str, dataset: Dataset) -> dict[str, Any]:
    """Clips, parts and bytes that came and went since the dataset version before this one."""
    before = str(dataset.about.get("before") or "")
    if not before:
        return {"since": "none before it"}
    try:
        old = datasets.load(root, dataset.name, before)
    except InputError:  # a version that `reelmill gc` let go
        return {"since": f"{before}, whose list is gone"}
    had, have = ({part.id: part for part in data.parts} for data in (old, dataset))
    come, gone = [have[id] for id in have.keys() - had.keys()], [had[id] for id in had.keys() - have.keys()]
    return {
        "since": before,
        "clips": dataset.clips - old.clips,
        "parts_new": len(come),
        "parts_gone": len(gone),
        "bytes": sum(part.bytes for part in come) - sum(part.bytes for part in gone),
    }


def funnel(root: str, dataset: Dataset) -> dict[str, Any]:
    """How many files were listed and what became of them, from the ledgers: pieces = kept + dropped + quarantined.

    A long file is read in several pieces, each of which may be lost; any other is one.
    """
    counts, reasons = Counter(), Counter()  # type: Counter[str], Counter[str]
    for number, (step, names) in enumerate(accounts(root, dataset)):
        found, _ = ledger.total(root, step, names, 0)
        counts["listed"] += found.items if number == 0 else 0
        counts["kept"] = found.kept  # of the last step: what it was given the step before has kept
        for verdict in ("dropped", "quarantined"):
            lost = getattr(found, verdict)
            counts[verdict] += lost.total()
            reasons.update({f"{verdict}: {reason}": n for reason, n in lost.items()})
    ends = {name: counts[name] for name in ("kept", "dropped", "quarantined")}
    made = {"listed": counts["listed"], "pieces": sum(ends.values()), **ends}
    return made | {"by_reason": dict(reasons.most_common())}


def in_files(listed: int, pieces: int) -> str:
    """How many files, and in how many pieces where long ones are read in several."""
    return f"{listed:,} file{'s' * (listed != 1)}" + (f" in {pieces:,} pieces" if pieces > listed else "")


def accounts(root: str, dataset: Dataset) -> list[tuple[str, list[str]]]:
    """The steps that brought the dataset's clips in, with the names of their ledgers."""
    if adopted := dataset.about.get("adopted"):
        return [("adopt", written(root, "adopt", list(adopted)))]
    try:
        drafts = plans.drafts(root, dataset.name, plans.latest(root, dataset.name))
    except FileNotFoundError:  # a root that holds no plan of this dataset, such as one of parts alone
        return []
    cut = written(root, "shard", [draft.id for draft in drafts])  # a newer plan may be at work
    return [("list", written(root, "list", [dataset.name])), ("shard", cut)]


def written(root: str, step: str, names: list[str]) -> list[str]:
    """Those ledgers of a step that are there."""
    there = files.at_once(lambda name: files.exists(ledger.url(root, step, name)), names)
    return [name for name, found in zip(names, there, strict=True) if found]


def labels(root: str, dataset: Dataset) -> dict[str, dict[str, int]]:
    """Selected clips per class and split; a class of one split alone is what a model cannot learn or be measured on."""
    found: dict[str, Counter[str]] = {}
    for part, counter in zip(dataset.parts, files.at_once(lambda one: _classes(root, dataset, one), dataset.parts),
                             strict=True):  # fmt: skip
        found.setdefault(part.split, Counter()).update(counter)
    return {split: dict(sorted(counter.items())) for split, counter in found.items()}


def _classes(root: str, dataset: Dataset, part: Any) -> Counter[str]:
    counter: Counter[str] = Counter()
    for row in dataset.rows(root, part):
        counter.update({label["label"] for label in row["labels"]})
    return counter


def clips(dataset: Dataset) -> dict[str, int]:
    """Clips by split, selected or not."""
    found: Counter[str] = Counter()
    for part in dataset.parts:
        found[part.split] += part.samples
    return dict(sorted(found.items()))


def balance(counts: dict[str, dict[str, int]]) -> dict[str, dict[str, Any]]:
    """By split: how even its classes are, 1 all alike and 0 one alone (entropy of their shares over its maximum), the
    rarest and the most frequent class, and the classes that only other splits have."""
    every, found = {name for some in counts.values() for name in some}, {}
    for split, some in counts.items():
        if not some:
            continue
        shares = [n / sum(some.values()) for n in some.values()]
        even = -sum(p * math.log(p) for p in shares) / math.log(len(every)) if len(every) > 1 else 1.0
        order = sorted(some, key=lambda name: (some[name], name))
        least, most = (f"{name} {some[name]}" for name in (order[0], order[-1]))
        found[split] = {
            "evenness": round(even, 3),
            "rarest": least,
            "most": most,
            "missing": sorted(every - some.keys()),
        }
    return found


def drift(counts: dict[str, dict[str, int]]) -> float | None:
    """Total variation distance between the class shares of train and held-out clips, 0 (alike) to 1."""
    train, held = counts.get("train", {}), counts.get("heldout", {})
    if not train or not held:
        return None
    names = train.keys() | held.keys()
    shares = [(train.get(n, 0) / sum(train.values()), held.get(n, 0) / sum(held.values())) for n in names]
    return sum(abs(a - b) for a, b in shares) / 2


def times(root: str, flow: str, dataset: str) -> dict[str, Spent]:
    """What the stages of a flow took when they did something last, the longest first."""
    try:
        entries = ledger.read(root, STAGES, f"{flow}-{dataset}")
    except FileNotFoundError:
        return {}
    found = {}
    for entry in sorted(entries, key=lambda entry: -entry.seconds):
        into = Counter({kind: seconds for kind, seconds in entry.scores.items() if seconds > 0 and kind != WALL})
        found[entry.item] = Spent(entry.seconds, 0, entry.clips, into, entry.scores.get(WALL, 0.0))
    return found


def in_hand(root: str) -> dict[str, Any]:
    """Who makes what now, and which source of which part a worker has in hand or died over."""
    now, found = time.time(), {}
    for item in inventory.walk(files.join(root, claims.FOLDER)):
        name, _, file = item.name.rpartition("/")
        if file.startswith(".") or not file.endswith(".json"):
            continue
        try:
            holder = files.read_json(files.join(root, claims.FOLDER, item.name))
        except FileNotFoundError:  # given back meanwhile
            continue
        if now - item.put <= lease.EXPIRY:
            found[name] = claims.who(holder, now - item.put)
    for file in files.names(files.join(root, "inflight"), ".json"):
        try:
            at = files.read_json(files.join(root, "inflight", file))
        except FileNotFoundError:
            continue
        earlier = f", after {len(at['suspects'])} suspects" if at["suspects"] else ""
        found[f"part {file.removesuffix('.json')}"] = (at["item"] or "nothing") + earlier
    return found


def last_retraining(root: str, model: str) -> dict[str, Any] | None:
    """What the newest retraining whose outcome is kept came to; None where there is none."""
    kept = [item for item in inventory.walk(files.join(root, "retrained", model)) if item.name.endswith(".json")]
    kept = [item for item in kept if not item.name.rpartition("/")[2].startswith(".")]
    if not kept:
        return None
    newest = max(kept, key=lambda item: (item.put, item.name))
    found = files.read_json(files.join(root, "retrained", model, newest.name))["found"]
    when = datetime.fromtimestamp(newest.put, UTC).isoformat(timespec="seconds")
    gates = {kind: f"{gate['decision']}, {gate['why']}" for kind, gate in found["gates"].items()}
    return {"when": when, "dataset": found["dataset"], "champion": found["champion"], "gates": gates}
