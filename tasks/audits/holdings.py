"""What a root costs: bytes by what they are, bytes that nobody refers to, and seconds of compute by stage."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from storage import files, ledger
from storage.datasets import Dataset
from storage.inventory import Item
from tasks import gc
from tasks.audits.contents import STAGES
from tasks.columns import tracked

GRACE = 24 * 3600.0  # as `reelmill gc` has it


def orphaned(found: gc.Found) -> dict[str, Any]:
    """What `reelmill gc` would remove: bytes and objects by reason, and unfinished uploads."""
    reasons = {reason: sum(item.size for item in items) for reason, items in sorted(found.items.items())}
    return {"bytes": found.bytes, "objects": found.count, "uploads": len(found.uploads), "by_reason": reasons}


def cost(root: str, dataset: Dataset, items: Iterable[Item]) -> dict[str, Any]:
    """Bytes under the root by folder, and the seconds of compute that are on record.

    ``cutting`` sums what each source of the dataset's parts took, of all cores; stages are wall time of the last run
    that did something, ``trainings`` of all trainings that MLflow has.
    """
    stored: Counter[str] = Counter()
    for item in items:
        stored[item.name.partition("/")[0] if "/" in item.name else "other"] += item.size
    seconds: dict[str, float] = {}
    names = [part.id for part in dataset.parts if files.exists(ledger.url(root, "shard", part.id))]
    for entries in files.at_once(lambda name: ledger.read(root, "shard", name), names):
        seconds["cutting"] = seconds.get("cutting", 0.0) + sum(entry.seconds for entry in entries)
    for name in files.names(files.join(root, "ledger", STAGES), f"-{dataset.name}.parquet"):
        for entry in ledger.read(root, STAGES, name.removesuffix(".parquet")):
            seconds[f"{name.partition('-')[0]}: {entry.item}"] = entry.seconds
    if tracked(root):
        seconds["trainings"] = _trainings(root)
    return {"bytes": dict(stored.most_common()), "seconds": {name: round(n, 1) for name, n in seconds.items()}}


def _trainings(root: str) -> float:
    from tasks import tracking

    return float(sum(run.data.metrics["train_seconds"] for run in tracking.trained(root)))
