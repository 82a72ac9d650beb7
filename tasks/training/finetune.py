"""Fine-tune a pretrained system on videos with frame-exact segments, and evaluate it on those held out."""

from functools import partial
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

import models
from storage import files
from storage.checkpoints import Checkpoint
from storage.datasets import Dataset
from storage.errors import InputError
from tasks import figures, report, tracking
from tasks.evaluate import as_plain, draw, evaluate_checkpoint, held_out, summary_rows
from tasks.footprint import shown
from tasks.scorer import Scorer, example, load
from tasks.spending import staged
from tasks.training import videos
from tasks.training.pretrain import classes_of, records, tracked_fit
from tasks.training.recipe import Recipe
from tasks.training.spec import Spec
from tasks.training.two_stages import in_two_stages


def spec_for(root: str, dataset: Dataset, start: Checkpoint | None, recipe: Recipe) -> Spec:
    """The fine-tuning of a whole system, from a checkpoint or from random weights."""
    parts = dataset.select(split="train", labelled="segments")
    if not parts:
        raise InputError(
            f"dataset {dataset.name} has no training videos with segments, which fine-tuning needs; "
            "add rows with path,start,end,label"
        )
    options: dict[str, Any] = {"size": recipe.size}
    features = None
    if recipe.inputs == "features":
        wanted = [*parts, *held_out(dataset)]
        features = videos.version(root, wanted, recipe.features)
        options["width"] = videos.width(root, features, wanted)
    return Spec(
        root=root,
        parts=records(parts),
        classes=classes_of(parts, partial(dataset.kept, root)),
        objective="dense",
        system=recipe.system,
        options=options,
        selection=dataset.selection,
        start=start.url if start else None,
        fps=recipe.fps,
        frames=recipe.whole if features else recipe.frames,
        size=recipe.pixels,
        whole=recipe.whole if recipe.inputs == "context" else 0,
        features=features,
        rate=recipe.rate,
        **recipe.optimisation("finetune"),
    )


@task(task_run_name="fine-tune · {kind}", cache_policy=NO_CACHE)
def finetune(
    root: str, dataset: Dataset, pretrained: dict[str, Any] | None, kind: str, recipe: Recipe, parent: str
) -> dict[str, Any]:
    """Fine-tunes what `pretrain` returned on the dense training split; a two-stream system in two stages."""
    held_out(dataset)  # before the work, not after it
    start = pretrained["checkpoint"] if pretrained else None
    if recipe.system in models.TWO_STREAMS:
        made = in_two_stages(root, dataset, spec_for(root, dataset, None, recipe), start, kind, recipe, parent)
    else:
        spec = spec_for(root, dataset, start, recipe)
        made = tracked_fit(root, spec, f"finetune-{kind}", dataset, recipe, parent)
    return made | {"pretrained": pretrained}


@task(task_run_name="evaluate · {kind}", cache_policy=NO_CACHE)
@staged("evaluate")
def evaluate(root: str, dataset: Dataset, tuned: dict[str, Any], kind: str) -> dict[str, Any]:
    """Measures a fine-tuned model on the held-out videos and logs metrics, figures and the model itself."""
    checkpoint: Checkpoint = tuned["checkpoint"]
    run = tuned["run"]
    evaluation = evaluate_checkpoint(root, dataset, checkpoint, f"evaluate-{kind}")
    tracking.log_metrics(root, run, evaluation.metrics)
    tracking.log_dataset(root, run, dataset, "evaluation", len(held_out(dataset)))
    read = {"predictions": evaluation.version} | ({"selection": dataset.selection} if dataset.selection else {})
    tracking.log_columns(root, run, read, [part.id for part in held_out(dataset)], "evaluation")
    url = files.join(root, "figures", dataset.name, f"{kind}-{checkpoint.digest[:12]}")
    with files.scratch() as folder:
        made = draw(evaluation, checkpoint.about["classes"], folder, held_out(dataset))
        series = {f"fine-tune · {kind}": tuned["curve"]}
        if tuned["pretrained"]:
            series = {f"pretrain · {kind}": tuned["pretrained"]["curve"]} | series
        if any(series.values()):  # a reused training has no new curve, and its old figure stays
            made.append(figures.curves(series, folder / "losses.png"))
        for path in made:
            files.replace(path.read_bytes(), files.join(url, path.name))
        tracking.log_files(root, run, made, "figures")
    files.replace_json(as_plain(evaluation), files.join(url, "evaluation.json"))
    report.table(f"classes-{kind}", summary_rows(evaluation), f"{kind}: AP per class on every held-out frame")
    uri = _log_model(root, run, checkpoint)
    score = 100 * evaluation.metrics["every_frame_map"]
    report.say(
        f"  evaluate     {kind}: {score:.1f} mAP on every frame of {len(evaluation.videos)} held-out videos"
        f" · {shown(evaluation.metrics)}"
    )
    return {
        "kind": kind,
        "evaluation": evaluation,
        "checkpoint": checkpoint,
        "run": run,
        "model_uri": uri,
        "figures": url,
    }


def _log_model(root: str, run: str, checkpoint: Checkpoint) -> str:
    known = tracking.export(root, run)["tags"].get("model_uri")
    if known:
        return known
    tags = {"checkpoint": checkpoint.url, "classes": ",".join(checkpoint.about["classes"])}
    uri = tracking.log_model(root, run, Scorer(load(checkpoint.url)).eval(), example(checkpoint), tags)
    tracking.tag(root, run, {"model_uri": uri})
    return uri
