"""Look over a root without changing it: what is stale, dropped, drifting or behind."""

from typing import Any

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from storage import columns, datasets
from storage.datasets import Dataset
from tasks import report
from tasks.audit_columns import behind
from tasks.audit_data import drift, freshness, labels, losses

SAMPLE = 2000  # vectors that uniformity is measured on


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
