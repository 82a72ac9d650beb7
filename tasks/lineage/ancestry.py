"""What models were trained on, as their checkpoints say: trainings, their parts and columns, back to the first."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from storage import checkpoints, datasets, files, tombstones
from storage.checkpoints import Checkpoint
from storage.datasets import SELECTION
from storage.errors import Damaged, InputError
from storage.parts import find
from tasks.columns import tracked

if TYPE_CHECKING:
    from tasks.registry import ModelVersion

COLUMNS = {"labels": "pseudo_labels", "selection": SELECTION, "features": "features", "fine": "fine"}  # by their field


@dataclass(frozen=True)
class Training:
    """A training behind a model: its name, the ids of its parts, and the version of each column that it read."""

    name: str
    objective: str
    checkpoint: str
    parts: list[str]  # those that a take-down has replaced are those that took their place
    columns: dict[str, str]
    had: list[str] = field(default_factory=list)  # the parts that it read, whatever became of them


def columns_of(spec: dict[str, Any]) -> dict[str, str]:
    """The versions of columns that a training's spec names."""
    return {column: spec[name] for name, column in COLUMNS.items() if spec.get(name)}


def here(root: str, url: str) -> str:
    """A checkpoint's URL below the root, whatever name the root had when it was written down."""
    return files.join(root, "checkpoints", *url.rstrip("/").split("/")[-2:])


def trainings(root: str, url: str) -> Iterator[Training]:
    """The training that made a checkpoint, and those that made what it started from, each once.

    Raises `InputError` where a checkpoint is gone.
    """
    waiting, seen = [here(root, url)], set()
    now = tombstones.successors(tombstones.read(root))
    while waiting:
        if (one := waiting.pop(0)) in seen:
            continue
        seen.add(one)
        about = _described(one).about
        spec = about["spec"]
        members = [member["url"] for member in about.get("members", [])]  # of an ensemble, which was not trained
        before = [*members, spec.get("start"), *spec.get("starts", {}).values()]
        waiting += [here(root, start) for start in before if start]
        had = [part["id"] for part in spec.get("parts", [])]
        parts = [part for part in (now.get(id, id) for id in had) if part]
        name = one.rstrip("/").split("/")[-2]
        yield Training(name, spec.get("objective", "ensemble"), one, parts, columns_of(spec), had)


def taken_down(root: str, url: str) -> list[str]:
    """The tombstones of sources that a part had which was read by a training behind a checkpoint."""
    stones = tombstones.read(root)
    had = {part for training in trainings(root, url) for part in training.had} if stones else set()
    return sorted(stone.id for stone in stones if had & stone.parts.keys())


def _described(url: str) -> Checkpoint:
    try:
        return checkpoints.describe(url)
    except FileNotFoundError as error:
        raise InputError(f"{url}: the checkpoint is gone, and with it what it was trained on") from error


def models(root: str) -> "list[ModelVersion]":
    """Every registered version; none where nothing is tracked, without loading MLflow."""
    if not tracked(root):
        return []
    from tasks import registry

    return registry.registered(root)


@dataclass(frozen=True)
class Use:
    """A model version that was trained on a clip or more of a source, in one of the trainings behind it."""

    model: "ModelVersion"
    training: Training
    keys: dict[str, list[str]]  # by part


def trained_on(root: str, keys: dict[str, list[str]]) -> list[Use]:
    """The model versions that were trained on some clips, given by part; clips that a selection dropped do not count.

    A version whose checkpoint is gone is left out.
    """
    found = []
    for model in models(root):
        try:
            known = list(trainings(root, model.checkpoint)) if "checkpoint" in model.tags else []
        except (InputError, Damaged):
            continue
        for training in known:
            used = selected(root, training, keys)
            if used:
                found.append(Use(model, training, used))
    return found


def selected(root: str, training: Training, keys: dict[str, list[str]]) -> dict[str, list[str]]:
    """Those of some clips, by part, that a training had."""
    parts = [part for part in training.parts if part in keys]
    had = files.at_once(lambda part: _selected(root, training, part, keys[part]), parts)
    return {part: some for part, some in zip(parts, had, strict=True) if some}


def _selected(root: str, training: Training, part: str, keys: list[str]) -> list[str]:
    """Those of a part's clips that a training had; all of them where its selection is gone."""
    known = find(root, part)
    version = training.columns.get(SELECTION)
    if known is None or version is None:
        return keys
    try:
        order = known.table(["key"])["key"].to_pylist()
        used = {key for key, use in zip(order, datasets.kept(root, version, known, order), strict=True) if use}
    except Damaged:
        return keys
    return [key for key in keys if key in used]
