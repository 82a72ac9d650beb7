"""Join trained checkpoints into one that evaluates, passes the gate and infers as any other: their ensemble."""

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from storage import checkpoints, files
from storage.checkpoints import Checkpoint
from storage.datasets import Dataset
from storage.errors import InputError
from tasks import report, tracking

SEEN = ("fps", "frames", "size", "whole", "features")  # what of a training's spec says how a model sees video


def join(root: str, members: list[Checkpoint]) -> Checkpoint:
    """Writes the ensemble of some checkpoints, once; the same members in any order are the same ensemble.

    Raises `InputError` for fewer than two members, and where they know other classes or see video otherwise.
    """
    members = sorted({member.digest: member for member in members}.values(), key=lambda member: member.digest)
    if len(members) < 2:
        raise InputError(f"an ensemble needs two models or more, got {len(members)}")
    first, *others = members
    for other in others:
        if other.about["classes"] != first.about["classes"]:
            raise InputError(f"{first.url} and {other.url} know other classes; train them on the same dataset")
        if _seen(other) != _seen(first):
            raise InputError(f"{first.url} sees {_seen(first)}, {other.url} {_seen(other)}; train them alike")
    name = f"ensemble-{files.digest_of([member.digest for member in members])[:12]}"
    found = checkpoints.find(root, name)
    if found and found.final:
        return found
    about = {
        "system": "ensemble",
        "options": {"members": [[member.about["system"], member.about["options"]] for member in members]},
        "classes": first.about["classes"],
        "spec": _seen(first),
        "members": [{"url": member.url, "digest": member.digest} for member in members],
    }
    weights = {
        f"members.{number}.{key}": tensor
        for number, member in enumerate(members)
        for key, tensor in checkpoints.load_weights(member.url).items()
    }
    return checkpoints.save(root, name, max(member.step for member in members), weights, {}, about, True)


def _seen(checkpoint: Checkpoint) -> dict[str, Any]:
    return {name: checkpoint.about["spec"].get(name) for name in SEEN}


@task(task_run_name="ensemble · {title}", cache_policy=NO_CACHE)
def ensemble(root: str, dataset: Dataset, tuned: list[dict[str, Any]], title: str, parent: str) -> dict[str, Any]:
    """Joins what `finetune` returned, with an MLflow run of its own; `evaluate` and `gate` take it as one of them."""
    checkpoint = join(root, [one["checkpoint"] for one in tuned])
    parts = [one["url"] for one in checkpoint.about["members"]]
    tags = {"dataset": f"{dataset.name}@{dataset.version}", "title": title, "checkpoint": checkpoint.url}
    name = checkpoint.url.rstrip("/").split("/")[-2]
    run = tracking.resume_or_start(root, title, name, {"members": parts, "mean": "probabilities"}, tags, parent)
    tracking.tag(root, run, {"checkpoint_digest": checkpoint.digest})
    tracking.end(root, run)
    report.say(f"  ensemble     {title}: {len(parts)} models as one")
    return {"checkpoint": checkpoint, "run": run, "curve": [], "seconds": 0.0, "pretrained": None}
