"""A small root with everything that may hold something of a source: parts, columns, models, figures, tracking."""

from pathlib import Path
from typing import Any

from storage import checkpoints, datasets, files
from storage.checkpoints import Checkpoint
from storage.datasets import Dataset
from tasks import duplicates, label, predict, registry, score, select, thresholds, tracking, train_rank, volumes
from tasks.training import finetune, pretrain, recipe, train
from tests import lamps
from tests.preparing import prepare

RECIPE = recipe.recipe(finetune_steps=1, pretrain_steps=1)


def trained(root: str, spec: Any, title: str, dataset: Dataset, parent: str) -> tuple[Checkpoint, str]:
    """An untrained checkpoint where a training would leave its own, with the run that `tracked_fit` would leave."""
    name = train.run_name(spec, title)
    about, weights = train_rank._about(spec), train_rank.build(spec).state_dict()
    made = checkpoints.save(root, name, 1, weights, {}, about, True)
    tags = {"dataset": f"{dataset.name}@{dataset.version}", "title": title}
    run = tracking.resume_or_start(root, title, name, {}, tags, parent)
    tracking.log_dataset(root, run, dataset, "training", len(spec.parts))
    tracking.tag(root, run, {"checkpoint": made.url, "checkpoint_digest": made.digest})
    return made, run


def make(folder: Path, root: str) -> Dataset:
    """Renders an archive under a folder, prepares it into a root, and registers a champion of two trainings."""
    lamps.render(folder, train=4, held_out=2, weak=3)
    (folder / "archive" / "weak" / "copy of 02.mp4").write_bytes((folder / "archive" / "weak" / "02.mp4").read_bytes())
    return again(folder, root)


def again(folder: Path, root: str) -> Dataset:
    """Prepares the archive and registers a champion that is trained on it as it is now."""
    root = files.open_root(root)
    labels = str(folder / "labels.csv")
    dataset, _ = prepare(root, str(folder / "archive"), labels, units=4)
    name, _ = score.score_dataset(root, dataset)
    duplicates.find_duplicates(root, dataset, name)
    wanted = thresholds.Thresholds(near_duplicates="drop")
    dataset, _ = select.select_dataset(root, dataset, name, wanted, datasets.latest(root, "a"))
    made, _ = label.label_dataset(root, dataset)
    volumes.volumes.fn(root, dataset, made, "mixup", True, 0)
    champion(root, dataset)
    predict.predict.fn(root, "a", "detector", [])
    return dataset


def champion(root: str, dataset: Dataset) -> int:
    """Registers a champion of two trainings on a dataset with pseudo labels; returns its version."""
    parent = tracking.start(root, "retrain a", {}, {"dataset": f"a@{dataset.version}"})
    spec = pretrain.spec_for(root, dataset, "detection", RECIPE)
    first, _ = trained(root, spec, "pretrain-detection", dataset, parent)
    spec = finetune.spec_for(root, dataset, first, RECIPE)
    tuned, run = trained(root, spec, "finetune-detection", dataset, parent)
    tags = {"checkpoint": tuned.url, "checkpoint_digest": tuned.digest, "system": "x3d"}
    tags["dataset"] = f"a@{dataset.version}"
    version = registry.register(root, "detector", f"runs:/{run}/model", run, tags)
    registry.promote(root, "detector", version)
    return version
