"""What the columns of a dataset cover, which of their versions are stale, and what the champion has yet to predict."""

from typing import Any

from storage import datasets, files, versions
from storage.checkpoints import describe
from storage.datasets import Dataset
from storage.parts import Part
from storage.versions import Version


def survey(root: str, dataset: Dataset) -> list[Version]:
    """The versions of columns that some part of the dataset has."""
    return [entry for entry in versions.survey(root, [dataset]) if dataset.name in entry.covers]


def coverage(dataset: Dataset, listed: list[Version], predicted: str = "") -> dict[str, dict[str, Any]]:
    """By column, its current version: clips that have it, of all; versions beside it are stale, with their bytes.

    Current is what the dataset is selected by, what the champion predicts (``predicted``), and of any other column the
    version that covers most parts, of several the one written last.
    """
    known = {datasets.SELECTION: dataset.selection, "predictions": predicted}
    found: dict[str, dict[str, Any]] = {}
    for column in sorted({entry.column for entry in listed}):
        some = [entry for entry in listed if entry.column == column]
        wanted = known.get(column) or max(some, key=lambda e: (e.covers[dataset.name][0], e.put, e.version)).version
        have = next((entry.parts for entry in some if entry.version == wanted), set())
        stale = [entry for entry in some if entry.version != wanted]
        found[column] = {
            "version": wanted,
            "clips": sum(part.samples for part in dataset.parts if part.id in have),
            "of": dataset.clips,
            "stale": {entry.version: entry.bytes for entry in sorted(stale, key=lambda e: e.version)},
        }
    return found


def lacking(root: str, parts: list[Part], column: str, version: str) -> list[Part]:
    """The parts that lack a version of a column, by one listing of its folder."""
    there = set(files.names(files.join(root, "columns", column, version), ".parquet"))
    return [part for part in parts if f"{part.id}.parquet" not in there]


def behind(root: str, dataset: Dataset, model: str) -> dict[str, Any]:
    """How many parts and clips lack the champion's predictions; without models neither MLflow nor torch is loaded."""
    from tasks.columns import tracked

    if not tracked(root):
        return {"champion": None}
    from tasks import predict, registry

    champion = registry.champion(root, model)
    if champion is None:
        return {"champion": None}
    name = predict.version(describe(champion.checkpoint))
    missing = lacking(root, dataset.parts, predict.COLUMN, name)
    return {
        "champion": champion.version,
        "version": name,
        "parts_without_predictions": len(missing),
        "parts": len(dataset.parts),
        "clips_without_predictions": sum(part.samples for part in missing),
        "clips": dataset.clips,
    }
