"""Versions of columns from the command line: list, compare, add, drop."""

import json
import os
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from storage import checkpoints, columns, datasets, files, versions
from storage.datasets import Dataset
from storage.errors import InputError
from storage.inventory import in_units
from storage.versions import Difference, Version
from tasks import pool

if TYPE_CHECKING:
    from tasks.registry import ModelVersion

ROOT = Field(description="Folder or URL that `prepare` has written to.")
COLUMN = Field(description="Name of the column, e.g. features.")


def _datasets(root: str, name: str | None) -> list[Dataset]:
    return [datasets.load(root, known) for known in ([name] if name else datasets.names(root))]


def _one(root: str, column: str, version: str, listed: list[Version]) -> Version:
    for entry in listed:
        if (entry.column, entry.version) == (column, version):
            return entry
    known = ", ".join(f"{e.column} {e.version}" for e in listed) or "none at all"
    raise InputError(f"{root} has no column {column} {version}; there are: {known}")


def show(
    root: Annotated[str, ROOT],
    dataset: Annotated[str | None, Field(description="Only what covers parts of this dataset.")] = None,
) -> str:
    """List the columns and their versions: what they cover, how large they are and what they were made from."""
    root = files.existing_root(root)
    known = _datasets(root, dataset)
    rows = ["| column | version | parts | rows | size | covers | made from |", "|---|---|---|---|---|---|---|"]
    for entry in versions.survey(root, known):
        if dataset and dataset not in entry.covers:
            continue
        covers = ", ".join(f"{name} {have} of {all_}" for name, (have, all_) in entry.covers.items()) or "no dataset"
        about = json.dumps(entry.about, sort_keys=True)
        about = about if len(about) <= 120 else about[:119] + "…"
        facts = [entry.column, entry.version, len(entry.parts), entry.rows, in_units(entry.bytes), covers, about]
        rows.append("| " + " | ".join(str(fact).replace("|", "\\|") for fact in facts) + " |")
    return "\n".join(rows) if len(rows) > 2 else f"no columns under {root}"


def compare(
    root: Annotated[str, ROOT],
    column: Annotated[str, COLUMN],
    one: Annotated[str, Field(description="A version.")],
    two: Annotated[str, Field(description="Another version.")],
    dataset: Annotated[str, Field(description="Name of the dataset.")] = "archive",
) -> str:
    """Compare two versions of a column: rows changed by part and field, how far numbers moved, which labels changed."""
    from tasks.report import Progress  # which loads Prefect

    root = files.existing_root(root)
    data = datasets.load(root, dataset)
    listed = versions.survey(root, [data])
    ones, twos = _one(root, column, one, listed).parts, _one(root, column, two, listed).parts
    both = [part for part in data.parts if part.id in ones & twos]
    progress = Progress("compare", len(both), "parts")
    found: dict[str, dict[str, Difference]] = {}
    for part, result in pool.run(lambda part: versions.diff(root, column, one, two, part), both):
        if isinstance(result, Exception):
            raise result
        found[part.id] = result
        progress.advance()
    lines = [f"{column} {one} → {two} on {dataset} {data.version}: {len(both)} parts have both"]
    for version, have in ((one, ones - twos), (two, twos - ones)):
        alone = [part.id for part in data.parts if part.id in have]
        lines += [f"only {version}: {len(alone)} parts ({', '.join(alone[:3])})"] if alone else []
    fields = list(dict.fromkeys(name for differences in found.values() for name in differences))
    for name in fields:
        lines.append(f"{name}: {sum((d[name] for d in found.values() if name in d), Difference())}")
        changed = {part: d[name].changed for part, d in sorted(found.items()) if name in d and d[name].changed}
        lines += [f"  part {part}: {count} rows" for part, count in changed.items()]
    return "\n".join(lines)


def add(
    root: Annotated[str, ROOT],
    file: Annotated[str, Field(description="Parquet, CSV or JSON lines with `key` and the values.")],
    column: Annotated[str, COLUMN],
    version: Annotated[str, Field(description="Name of the version; one that exists is never changed.")],
    dataset: Annotated[str, Field(description="Name of the dataset; every clip of it needs a row.")] = "archive",
    replace: Annotated[
        bool, Field(description="If the version exists with other values, write them as a new version.")
    ] = False,
) -> str:
    """Add a column of values from elsewhere, joined by key; unknown, missing and repeated keys are errors."""
    root = files.existing_root(root)
    versions.check_name("column", column)
    versions.check_name("version", version)
    data = datasets.load(root, dataset)
    table = versions.load(file)
    pieces = list(versions.aligned(table, data, file))
    about = {"file": file.rpartition("/")[2], "digest": files.digest(files.read(files.absolute(file)))}
    made, note = version, ""
    if _others(root, column, version, data, about):
        if not replace:
            raise InputError(
                f"column {column} {version} exists with other values, and a version never changes; "
                "give another --version, or --replace to have one made"
            )
        made = f"{version}-{about['digest'][:8]}"
        note = f"; {version} stays as it is, name {made} where the new values are wanted"
    written = sum(columns.write(root, column, made, part, piece, about) for part, piece in pieces)
    return f"column {column} {made}: {written} parts written, {len(pieces) - written} were there{note}"


def _others(root: str, column: str, version: str, data: Dataset, about: dict[str, Any]) -> bool:
    """Whether a part has this version from something else."""
    there = [part for part in data.parts if columns.has(root, column, version, part.id)]
    return any(columns.about(root, column, version, part) != about for part in there)


def tracked(root: str) -> bool:
    """Whether runs and models are tracked somewhere; asking loads no MLflow."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI")) or files.exists(files.join(root, "mlflow", "mlflow.db"))


def champion(root: str, model: str) -> "ModelVersion | None":
    """The champion of a model, None where there is none or no tracking; a root without models loads no MLflow."""
    if not tracked(root):
        return None
    from tasks import registry

    return registry.champion(root, model)


def _uses(root: str, entry: Version, listed: list[Version], known: list[Dataset], model: str) -> list[str]:
    """Who needs a version."""
    found = []
    for name, (have, all_) in entry.covers.items():
        others = [e for e in listed if e.column == entry.column and e.version != entry.version]
        if have == all_ and not any(e.covers.get(name) == (all_, all_) for e in others):
            found.append(f"it is the only version that covers dataset {name}")
    if entry.column == datasets.SELECTION:
        found += [f"dataset {data.name} is selected by it" for data in known if data.selection == entry.version]
    if entry.column == "pseudo_labels":
        from tasks import label

        if entry.version == label.version():
            found.append("it is what `reelmill retrain` trains on")
    if best := champion(root, model):
        from tasks import predict

        checkpoint = checkpoints.describe(best.checkpoint)
        if entry.column == predict.COLUMN and entry.version == predict.version(checkpoint):
            found.append(f"it holds the predictions of the champion, {model} {best.version}")
        if entry.column in ("features", "fine") and entry.version == checkpoint.about["spec"].get(entry.column):
            found.append(f"the champion, {model} {best.version}, takes it")
    return found


def drop(
    root: Annotated[str, ROOT],
    column: Annotated[str, COLUMN],
    version: Annotated[str, Field(description="The version to remove.")],
    model: Annotated[str, Field(description="Model whose champion's predictions are kept.")] = "detector",
    dry_run: Annotated[bool, Field(description="Only say what would be removed.")] = True,
    force: Annotated[bool, Field(description="Remove it although it is in use.")] = False,
) -> str:
    """Remove a version of a column, unless it is in use: the champion's predictions, or all that a dataset has."""
    root = files.existing_root(root)
    known = _datasets(root, None)
    listed = versions.survey(root, known)
    entry = _one(root, column, version, listed)
    uses = _uses(root, entry, listed, known, model)
    if uses and not force:
        raise InputError(f"column {column} {version} is in use: {'; '.join(uses)}; --force removes it all the same")
    what = f"column {column} {version}: {len(entry.parts)} parts, {in_units(entry.bytes)}"
    if dry_run:
        return f"would remove {what}; run again with --no-dry-run"
    versions.drop(root, column, version, entry.parts)
    return f"removed {what}"
