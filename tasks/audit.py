"""Look over a root without changing it: what is stale, dropped, drifting or behind."""

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from storage import columns, datasets, files, ledger, plans
from storage.checkpoints import describe
from storage.datasets import Dataset
from tasks import predict, registry, report

SAMPLE = 2000  # vectors that uniformity is measured on


def freshness(root: str, dataset: Dataset) -> dict[str, Any]:
    """When the dataset's pointer moved last, as far as the store says."""
    info = files.info(files.join(root, "datasets", dataset.name, "latest.json"))
    stamp = info.get("mtime") or info.get("LastModified") or info.get("created")
    when = datetime.fromtimestamp(stamp, UTC) if isinstance(stamp, int | float) else stamp
    return {"version": dataset.version, "moved": when.isoformat() if when else None, "clips": dataset.clips}


def losses(root: str, dataset: Dataset) -> dict[str, dict[str, int]]:
    """Dropped and quarantined items by step and reason."""
    found: Counter = Counter()
    for step, names in _accounts(root, dataset):
        counts, _ = ledger.total(root, step, names, 0)
        for verdict in ("dropped", "quarantined"):
            found.update({f"{verdict}: {reason}": n for reason, n in getattr(counts, verdict).items()})
    return {"by_reason": dict(found.most_common())}


def _accounts(root: str, dataset: Dataset) -> list[tuple[str, list[str]]]:
    """The steps that brought the dataset's clips in, with the names of their ledgers."""
    if adopted := dataset.about.get("adopted"):
        return [("adopt", list(adopted))]
    drafts = plans.drafts(root, dataset.name, plans.latest(root, dataset.name))
    return [("list", [dataset.name]), ("shard", [draft.id for draft in drafts])]


def labels(root: str, dataset: Dataset) -> dict[str, dict[str, int]]:
    """Selected clips per class and split; a class of one split alone is what a model cannot learn or be measured on."""
    found: dict[str, Counter] = {}
    for part in dataset.parts:
        counter = found.setdefault(part.split, Counter())
        for row in dataset.rows(root, part):
            counter.update({label["label"] for label in row["labels"]})
    return {split: dict(sorted(counter.items())) for split, counter in found.items()}


def drift(counts: dict[str, dict[str, int]]) -> float | None:
    """Total variation distance between the class shares of train and held-out clips, 0 (alike) to 1."""
    train, held = counts.get("train", {}), counts.get("heldout", {})
    if not train or not held:
        return None
    names = train.keys() | held.keys()
    shares = [(train.get(n, 0) / sum(train.values()), held.get(n, 0) / sum(held.values())) for n in names]
    return sum(abs(a - b) for a, b in shares) / 2


def embedding_health(root: str, dataset: Dataset) -> dict[str, Any]:
    """Coverage of each features version, and uniformity (Wang & Isola 2020): log mean exp(-2 d²), lower is better."""
    found: dict[str, Any] = {}
    for name in columns.versions(root, "features"):
        parts = [part for part in dataset.parts if columns.has(root, "features", name, part.id)]
        vectors = []
        for part in parts:
            table = columns.read(root, "features", name, part, ["embedding"]).combine_chunks()
            flat = table["embedding"].combine_chunks().flatten()
            vectors.append(flat.flatten().to_numpy().reshape(-1, flat.type.list_size))
        if not vectors:
            continue
        x = np.concatenate(vectors)
        x = x[np.linspace(0, len(x) - 1, min(SAMPLE, len(x))).astype(int)]
        squared = np.maximum(0, 2 - 2 * (x @ x.T))[np.triu_indices(len(x), 1)]
        found[name] = {
            "parts": f"{len(parts)} of {len(dataset.parts)}",
            "frames": sum(len(v) for v in vectors),
            "uniformity": float(np.log(np.exp(-2 * squared).mean())) if len(squared) else None,
        }
    return found


def behind(root: str, dataset: Dataset, model: str) -> dict[str, Any]:
    """How many parts lack the champion's predictions."""
    champion = registry.champion(root, model)
    if champion is None:
        return {"champion": None}
    name = predict.version(describe(champion.checkpoint))
    missing = sum(not columns.has(root, predict.COLUMN, name, part.id) for part in dataset.parts)
    return {"champion": champion.version, "parts_without_predictions": missing, "parts": len(dataset.parts)}


def said(value: Any) -> str:
    """A finding as people read it: names with their values, those of a group in brackets."""
    if isinstance(value, dict):
        group = {name: f"({said(inner)})" if isinstance(inner, dict) else said(inner) for name, inner in value.items()}
        return ", ".join(f"{name} {text}" for name, text in group.items()) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@task(task_run_name="audit · {name}", cache_policy=NO_CACHE)
def examine(root: str, name: str, model: str) -> dict[str, Any]:
    """Gathers all of the above, prints it and publishes it as an artifact."""
    dataset = datasets.load(root, name)
    counts = labels(root, dataset)
    found = {
        "freshness": freshness(root, dataset),
        "losses": losses(root, dataset),
        "labels": counts,
        "label_drift": drift(counts),
        "features": embedding_health(root, dataset),
        "predictions": behind(root, dataset, model),
    }
    lines = [f"# Audit of {name}", ""]
    for title, value in found.items():
        lines += [f"## {title.replace('_', ' ')}", ""]
        rows = value.items() if isinstance(value, dict) else [("", value)]
        lines += [
            "| | |",
            "|---|---|",
            *(f"| {report.escape(str(k))} | {report.escape(said(v))} |" for k, v in rows),
            "",
        ]
        report.say(f"  audit        {title.replace('_', ' ')}: {said(value)}")
    report.markdown("audit", "\n".join(lines), f"audit of {name}")
    return found
