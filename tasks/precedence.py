"""Which parts are predicted first: those of the newest, the oldest or the most watched sources, as the plan says."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal

from storage import files, plans, tables
from storage.datasets import Dataset
from storage.errors import InputError
from storage.parts import Part
from storage.planning import batches
from tasks.report import say

Order = Literal["newest", "oldest", "watched"]
VIEWS = "views"  # what a list of files calls how often a source was watched


def planned(root: str, dataset: Dataset) -> Iterator[dict[str, Any]]:
    """The sources of the newest plan of a dataset: part, path, url, stamp, metadata; none where it was adopted."""
    if digest := plans.latest(root, dataset.name):
        yield from tables.rows(plans.url(root, dataset.name, digest), ["part", "path", "url", "stamp", "metadata"])


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


def asked(url: str) -> float | None:
    """When the store says that a source was modified, in seconds since 1970; None where it does not say."""
    try:
        return files.modified(files.info(url))
    except (OSError, ValueError):  # it may be gone, or be no URL
        return None


def in_order(root: str, dataset: Dataset, parts: list[Part], order: Order) -> list[Part]:
    """Parts by the newest, oldest or most watched of their sources; those of which nothing is known come last.

    A store that lists ETags is asked for the times of the sources of these parts, one by one; of how many it says none
    is said. Raises `InputError` where the most watched are asked for and no source has `VIEWS`.
    """
    weights: dict[str, float] = {}
    wanted, silent, count = {part.id for part in parts}, 0, 0
    for rows in batches(row for row in planned(root, dataset) if row["part"] in wanted):
        values = [_weight(row, order) for row in rows]
        if order != "watched":
            unknown = [place for place, value in enumerate(values) if value is None]
            times = files.at_once(lambda place: asked(rows[place]["url"]), unknown)  # noqa: B023
            for place, time in zip(unknown, times, strict=True):
                values[place] = _signed(time, order)
        for row, value in zip(rows, values, strict=True):
            if value is not None:
                weights[row["part"]] = max(value, weights.get(row["part"], value))
        silent, count = silent + values.count(None), count + len(values)
    if order == "watched" and not weights:
        raise InputError(
            f"dataset {dataset.name}: no source has {VIEWS!r}, so the most watched are not known; "
            f"prepare from a list of files with a column {VIEWS}, or give --order newest"
        )
    if order != "watched" and silent:
        say(f"  order        of {silent:,} of {count:,} sources nobody says how old they are: they come last")
    return sorted(parts, key=lambda part: (-weights.get(part.id, float("-inf")), part.id))


def _weight(row: dict[str, Any], order: Order) -> float | None:
    if order == "watched":
        try:
            return float(json.loads(row["metadata"])[VIEWS])
        except (KeyError, TypeError, ValueError):
            return None
    return _signed(stamped(row["stamp"]), order)


def _signed(time: float | None, order: Order) -> float | None:
    return time if time is None or order == "newest" else -time
