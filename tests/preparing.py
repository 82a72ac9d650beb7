"""Preparing an archive without Prefect, as several test files and the processes that they kill do it."""

import shutil
from pathlib import Path
from typing import Any

from storage import datasets, files, ledger, plans
from storage.datasets import Dataset
from storage.ledger import VOLATILE, Report
from tasks import listing, shard

CHECKOUT = Path(__file__).parent.parent
RECIPE = shard.recipe(3.0, 64, "span", "exact")


def plan(
    root: str, archive: str, labels: str | None = None, recipe: dict[str, Any] = RECIPE, units: int = 12, **more: Any
) -> tuple[str, Report]:
    limits = plans.Limits(units=units)
    return listing.plan_archive(
        root, "a", archive, labels, classes=[], held_out=0.3, recipe=recipe, limits=limits, **more
    )


def prepare(
    root: str,
    archive: str,
    labels: str | None = None,
    budget: float = 1.0,
    recipe: dict[str, Any] = RECIPE,
    **more: Any,
) -> tuple[Dataset, Report]:
    root = files.open_root(root)
    planned, listed = plan(root, archive, labels, recipe, **more)
    found, report = shard.shard_archive(root, "a", planned, recipe=recipe, failure_budget=budget, listed=listed)
    return datasets.freeze(root, "a", found, {"recipe": recipe}), report


def two_folders(clips: list[Path], home: Path) -> Path:
    """Copies clips into two folders of `home`'s archive and prepares it there, three to a part."""
    for number, clip in enumerate(clips):
        folder = home / "archive" / ("one" if number % 2 else "two")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, folder / clip.name)
    again(home)
    return home


def again(home: Path, **more: Any) -> tuple[Dataset, Report]:
    """Prepares a home's archive into its root, anew or once more."""
    return prepare(str(home / "root"), str(home / "archive"), **{"units": 3, **more})


def bytes_of(root: Path) -> dict[str, Any]:
    """Everything that is committed, by name below the root; of the ledger what does not differ from run to run."""
    kept = ("parts", "datasets", "columns", "inflight")
    found = (p for folder in kept for p in (root / folder).rglob("*") if p.is_file())
    contents: dict[str, Any] = {
        str(p.relative_to(root)): p.read_bytes() for p in found if not p.name.startswith(".")
    }  # of killed writers there may be temporary files, which no reader sees
    for path in (root / "ledger" / "shard").rglob("*.parquet"):
        if not path.name.startswith("."):
            entries = ledger.read(str(root), "shard", path.stem)
            steady = [{k: v for k, v in vars(entry).items() if k not in VOLATILE} for entry in entries]
            contents[str(path.relative_to(root))] = steady
    return contents
