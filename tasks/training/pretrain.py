"""Pretrain a system on the weakly labelled parts: for classification, or for detection on augmented volumes."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from storage import checkpoints, claims, columns
from storage.datasets import Dataset
from storage.errors import InputError
from storage.parts import Part
from tasks import label, report, tracking
from tasks.lineage.ancestry import columns_of
from tasks.slots import slot
from tasks.training import frames
from tasks.training.loader import FRAMES
from tasks.training.recipe import Recipe
from tasks.training.spec import Spec
from tasks.training.train import fit, losses, run_name

KINDS = ("none", "classification", "detection")


def classes_of(parts: list[Part], used: Callable[[Part], list[bool]] | None = None) -> list[str]:
    """The class names that the labels of some parts use, sorted; ``used`` says which clips of a part count."""
    names: set[str] = set()
    for part in parts:
        rows = part.table(["labels"])["labels"].to_pylist()
        for labels, use in zip(rows, used(part) if used else [True] * len(rows), strict=True):
            names |= {label["label"] for label in labels if use}
    return sorted(names)


def records(parts: list[Part]) -> list[dict[str, Any]]:
    """Parts as the plain values of a training's spec."""
    return [asdict(part) for part in sorted(parts, key=lambda part: part.id)]


def spec_for(root: str, dataset: Dataset, kind: str, recipe: Recipe) -> Spec:
    """The training of one kind; both kinds see the same clips for the same number of steps."""
    parts = dataset.select(split="train", labelled="video")
    if not parts:
        raise InputError(
            f"dataset {dataset.name} has no videos with a label for the whole video, which pretraining needs; "
            "add rows with path,label, or run with --pretraining none"
        )
    return Spec(
        root=root,
        parts=records(parts),
        classes=classes_of(parts, partial(dataset.kept, root)),
        objective=kind,
        system=recipe.backbone,
        options={"size": recipe.size},
        labels=_labels(root, parts, recipe),
        selection=dataset.selection,
        augmentation=recipe.augmentation if kind == "detection" else "none",
        volumes=recipe.volumes if kind == "detection" else {},
        fps=recipe.fps,
        frames=recipe.frames,
        size=recipe.pixels,
        faster={"fc2": recipe.head_times} if recipe.head_times != 1 else {},
        multigrid=recipe.multigrid,
        norm_group=recipe.norm_group if recipe.multigrid else 0,
        **recipe.optimisation("pretrain"),
    )


def _labels(root: str, parts: list[Part], recipe: Recipe) -> str:
    """The version of the pseudo labels to train on; `InputError` where the one asked for does not cover the parts."""
    if recipe.pseudo_labels is None:
        return label.version()
    version = recipe.pseudo_labels
    lacking = [part.id for part in parts if not columns.has(root, label.COLUMN, version, part.id)]
    if lacking:
        raise InputError(
            f"--pseudo-labels {version}: {len(lacking)} of {len(parts)} parts lack it; "
            "run `reelmill label` again, or name a version that `reelmill columns` lists"
        )
    return version


def tracked_fit(
    root: str, spec: Spec, title: str, dataset: Dataset, recipe: Recipe, parent: str, **tags: str
) -> dict[str, Any]:
    """Trains with an MLflow run beside it; returns the checkpoint, the run's id and the loss curve.

    What another process trains is waited for, and then taken as it is; a training holds a slot of the limit ``gpu``.
    """
    name = run_name(spec, title)
    with claims.in_turn(root, f"train-{name}", lambda who: report.say(f"  {title}: waits, {who}")):
        return _tracked_fit(root, spec, name, title, dataset, recipe, parent, tags)


def _tracked_fit(
    root: str, spec: Spec, name: str, title: str, dataset: Dataset, recipe: Recipe, parent: str, tags: dict[str, str]
) -> dict[str, Any]:
    params = {key: value for key, value in asdict(spec).items() if key not in ("parts", "root")}
    tags = {"dataset": f"{dataset.name}@{dataset.version}", "title": title, **tags}
    run = tracking.resume_or_start(root, title, name, params, tags, parent)
    tracking.log_dataset(root, run, dataset, "training", len(spec.parts))
    tracking.log_columns(root, run, columns_of(asdict(spec)), [part["id"] for part in spec.parts], "training")
    buffer = tracking.MetricBuffer(root, run, {"loss", "lr"})
    try:
        with ExitStack() as held:
            found = checkpoints.find(root, name)
            if not (found and found.final and recipe.resume):
                _keep_frames(root, run, spec, dataset)
                held.enter_context(slot(title))
            held.enter_context(tracking.watched(root, run))
            checkpoint, figures = fit(spec, title, placement=recipe.placement, resume=recipe.resume, log=buffer.add)
    except BaseException as error:
        buffer.flush()
        tracking.log_failure(root, run, str(error) or type(error).__name__, getattr(error, "clips", {}))
        tracking.end(root, run, "FAILED")
        raise
    buffer.add(figures, spec.steps)
    buffer.flush()
    tracking.tag(root, run, {"checkpoint": checkpoint.url, "checkpoint_digest": checkpoint.digest})
    tracking.end(root, run)
    return {
        "checkpoint": checkpoint,
        "run": run,
        "curve": list(enumerate(losses(checkpoint), start=1)),
        "seconds": figures.get("train_seconds", 0.0),
    }


def _keep_frames(root: str, run: str, spec: Spec, dataset: Dataset) -> None:
    """Has the frames that a training sees decoded before it takes a GPU, so that it waits for none."""
    if spec.features:
        return
    parts = [Part(**record) for record in spec.parts]
    if name := frames.keep(root, dataset, parts, spec.fps, spec.size):
        tracking.log_columns(root, run, {FRAMES: name}, [part.id for part in parts], "training")


@task(task_run_name="pretrain · {kind}", cache_policy=NO_CACHE)
def pretrain(root: str, dataset: Dataset, kind: str, recipe: Recipe, parent: str) -> dict[str, Any] | None:
    """Pretrains for ``kind`` (classification or detection); None for ``none``.

    Every kind has the same clips, batches and number of iterations, which a tag of the run says.
    """
    if kind not in KINDS:
        raise InputError(f"--pretraining {kind}: choose from {', '.join(KINDS)}")
    if kind == "none":
        return None
    spec = spec_for(root, dataset, kind, recipe)
    said = f"{spec.steps}, the same for every kind of pretraining"
    return tracked_fit(root, spec, f"pretrain-{kind}", dataset, recipe, parent, iterations=said)
