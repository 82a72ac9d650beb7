"""Which parts are predicted first: those of the newest, the oldest or the most watched sources, as the plan says."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal

from storage import plans, tables
from storage.datasets import Dataset
from storage.errors import InputError
from storage.parts import Part

Order = Literal["newest", "oldest", "watched"]
VIEWS = "views"  # what a list of files calls how often a source was watched


def planned(root: str, dataset: Dataset) -> Iterator[dict[str, Any]]:
    """The sources of the newest plan of a dataset: part, path, url, stamp, metadata; none where it was adopted."""
    if digest := plans.latest(root, dataset.name):
        wanted = ["part", "path", "url", "stamp", "metadata"]
        for batch in tables.read(plans.url(root, dataset.name, digest), wanted).to_batches():
            yield from batch.to_pylist()


def stamped(stamp: str) -> float | None:
    """When a source was modified, in seconds since 1970, as its stamp says; None where it has an ETag instead."""
    said = stamp.partition(":")[2]
    try:
        value = float(said)
        return value / 1e9 if value > 1e14 else value  # of this machine's files in nanoseconds
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(said)
    except ValueError:
        return None
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()


def in_order(root: str, dataset: Dataset, parts: list[Part], order: Order) -> list[Part]:
    """Parts by the newest, oldest or most watched of their sources; those of which nothing is known come last.

    Raises `InputError` where the most watched are asked for and no source has `VIEWS`.
    """
    weights: dict[str, float] = {}
    for row in planned(root, dataset):
        value = _weight(row, order)
        if value is not None:
            weights[row["part"]] = max(value, weights.get(row["part"], value))
    if order == "watched" and not weights:
        raise InputError(
            f"dataset {dataset.name}: no source has {VIEWS!r}, so the most watched are not known; "
            f"prepare from a list of files with a column {VIEWS}, or give --order newest"
        )
    return sorted(parts, key=lambda part: (-weights.get(part.id, float("-inf")), part.id))


def _weight(row: dict[str, Any], order: Order) -> float | None:
    if order == "watched":
        try:
            return float(json.loads(row["metadata"])[VIEWS])
        except (KeyError, TypeError, ValueError):
            return None
    time = stamped(row["stamp"])
    return None if time is None else time if order == "newest" else -time
