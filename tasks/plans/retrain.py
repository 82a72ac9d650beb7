"""What `retrain` would do: whether the same inputs were trained on before, else which trainings, and how long."""

from dataclasses import asdict, replace
from typing import Any, Literal

import models
from models.gate import Rules
from storage import datasets, files
from storage.datasets import Dataset
from tasks import checks, retraining
from tasks.audits.contents import last_retraining
from tasks.columns import tracked
from tasks.report import clock
from tasks.training.recipe import Recipe, candidates_of, recipe
from tasks.training.spec import Spec

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
    stages = ["coarse", "fine", "finetune"] if made.system in models.TWO_STREAMS else ["finetune"]
    found = [("pretrain", made.pretrain_steps, first)] if first else []
    return [*found, *((stage, made.finetune_steps, tuned) for stage in stages)]


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
    """Seconds a step of the newest training of each stage that had the same model, batch, frames and pixels."""
    from tasks import tracking

    found: dict[str, float] = {}
    wanted = {stage: _alike(asdict(spec)) for stage, spec in _specs(made).items()}
    for run in tracking.trained(root):  # newest first
        params, stage = run.data.params, run.data.tags.get("title", "").partition("-")[0]
        if stage in wanted and "step_seconds" in run.data.metrics and _alike(params) == wanted[stage]:
            found.setdefault(stage, run.data.metrics["step_seconds"])  # of a training that went on: of its last part
    return found


def _alike(params: dict[str, Any]) -> list[str]:
    """What of a training decides how long a step takes, as MLflow has it; of options the first, the model's size."""
    options = str(params.get("options", "")).strip("{}").partition(",")[0]
    same = [str(params.get(name)) for name in ("system", "batch", "frames", "size")]
    return [*same, options, "fixed" if str(params.get("fine")) != "None" else "trained"]  # the Fine stream


def _specs(made: Recipe) -> dict[str, Spec]:
    """The trainings of a retraining by stage, without their parts."""
    from tasks.training.two_stages import streams

    def spec(system: str, stage: Literal["pretrain", "finetune"], frames: int) -> Spec:
        plain: dict[str, Any] = {"root": "", "parts": [], "classes": [""], "objective": "dense"}
        shape: dict[str, Any] = {"options": {"size": made.size}, "frames": frames, "size": made.pixels}
        return Spec(system=system, **plain, **shape, **made.optimisation(stage))

    found = {"pretrain": spec(made.backbone, "pretrain", made.frames)}
    frames = made.whole if made.inputs == "features" else made.frames
    tuned = spec(made.system, "finetune", frames)
    more = streams(tuned, None) if made.system in models.TWO_STREAMS else {}
    return {**found, **more, "finetune": replace(tuned, fine="" if made.fine_features else None)}
