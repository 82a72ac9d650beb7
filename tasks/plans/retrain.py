"""What `retrain` would do: whether the same inputs were trained on before, else which trainings, and how long."""

from typing import Any

from models.gate import Rules
from storage import datasets, files
from storage.datasets import Dataset
from tasks import checks, retraining
from tasks.audits.contents import last_retraining
from tasks.columns import tracked
from tasks.report import clock
from tasks.training.recipe import Recipe, candidates_of, recipe

OF_THE_GATE = ("margin", "metric", "class_drop", "successor_drop", "slower", "costlier")
OF_NEITHER = ("approval", "optimizer", "schedule")


def retrain(root: str, dataset: str, model: str, pretraining: list[str], ensemble_of: list[str], **given: Any) -> str:
    """Say whether these inputs were trained on before, else what would be trained and how long; changes nothing."""
    checks.retrain(root, dataset, pretraining, **given)
    root = files.existing_root(root)
    data = datasets.load(root, dataset)
    chosen = {name: value for name, value in given.items() if name not in (*OF_THE_GATE, *OF_NEITHER)}
    optimizer = None if given["optimizer"] == "schedule" else given["optimizer"]
    made = recipe(given["schedule"], optimizer=optimizer, **chosen)
    rules = Rules(**{name: given[name] for name in OF_THE_GATE})
    kinds = candidates_of(made, pretraining, ensemble_of)
    title = f"retrain · {dataset} @ {data.version} · {model}: {', '.join(kinds)}"
    key = retraining.identity(root, data, model, made, rules, kinds, ensemble_of)
    url = files.join(root, "retrained", model, f"{key}.json")
    if made.resume and tracked(root) and retraining.outcome(root, model, url):
        return f"{title}\nnothing to do: this dataset version was trained on with this recipe before"
    wanted = trainings(made, kinds, ensemble_of)
    steps = sum(number * times for _, number, times in wanted)
    clips = sum(part.samples for part in data.parts if part.split == "train")
    said = ", ".join(
        f"{stage} of {number:,} steps{f' × {times}' if times > 1 else ''}" for stage, number, times in wanted
    )
    lines = [title, f"why      {_why(root, model, data)}"]
    work = f"{sum(times for *_, times in wanted)} trainings: {said}; {steps:,} steps, {clips:,} clips to draw from"
    lines.append(f"work     {work}; one whose own inputs are the same is reused")
    return "\n".join([*lines, *_time(root, made, wanted)])


def trainings(made: Recipe, kinds: list[str], ensemble_of: list[str]) -> list[tuple[str, int, int]]:
    """(stage, steps, how many) of a retraining."""
    more = [mode for mode in ensemble_of if not ("detection" in kinds and mode == made.augmentation)]
    first = sum(kind != "none" for kind in kinds) + len(more)
    tuned = len(kinds) + len(more)
    return [("pretrain", made.pretrain_steps, first)] * bool(first) + [("finetune", made.finetune_steps, tuned)]


def _why(root: str, model: str, data: Dataset) -> str:
    if (last := last_retraining(root, model)) is None:
        return f"no retraining of {model} is kept under this root"
    now = f"{data.name}@{data.version}"
    return (
        f"new dataset version: {last['dataset']} → {now}"
        if last["dataset"] != now
        else "other options, candidates or rules than those that are kept"
    )


def _time(root: str, made: Recipe, wanted: list[tuple[str, int, int]]) -> list[str]:
    """What the trainings take, by the seconds a step of the newest ones of the same system in MLflow."""
    took = measured(root, made) if tracked(root) else {}
    if unknown := [stage for stage, _, _ in wanted if stage not in took]:
        return [f"time     not known: no {' or '.join(unknown)} of {made.system} has been measured here"]
    total = sum(number * times * took[stage] for stage, number, times in wanted)
    rates = ", ".join(f"{stage} {took[stage]:.3g} s a step" for stage, _, _ in wanted)
    return [f"time     about {clock(total)} (m:ss) one after another ({rates}, of the newest such training in MLflow)"]


def measured(root: str, made: Recipe) -> dict[str, float]:
    """Seconds a step of the newest training of each stage that had the same system, batch, frames and size."""
    from tasks import tracking

    found: dict[str, float] = {}
    for run in tracking.trained(root):
        params, stage = run.data.params, run.data.tags.get("title", "").partition("-")[0]
        batch = made.pretrain_batch if stage == "pretrain" else made.batch
        system = made.backbone if stage == "pretrain" else made.system
        same = {"system": system, "batch": batch, "frames": made.frames, "size": made.pixels}
        steps = int(params.get("steps", 0))
        if steps and all(params.get(name) == str(value) for name, value in same.items()):
            found.setdefault(stage, run.data.metrics["train_seconds"] / steps)  # newest first
    return found
