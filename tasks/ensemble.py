"""Several checkpoints as one: a checkpoint of the system ``ensemble``, for evaluation, gate and inference."""

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from storage import checkpoints, files
from storage.checkpoints import Checkpoint
from storage.datasets import Dataset
from storage.errors import InputError
from tasks import report, tracking

ALIKE = ("fps", "frames", "size", "whole", "features")  # how a system is given its clips


def join(root: str, members: list[Checkpoint]) -> Checkpoint:
    """Writes the ensemble of some checkpoints: the mean of their probabilities; the same members are the same one.

    Raises `InputError` unless all know the same classes and are given the same clips.
    """
    if len({member.digest for member in members}) < 2:
        raise InputError("an ensemble needs at least two different models")
    first = members[0].about
    for member in members[1:]:
        differ = [name for name in ALIKE if member.about["spec"].get(name) != first["spec"].get(name)]
        differ += ["classes"] if member.about["classes"] != first["classes"] else []
        if differ:
            raise InputError(f"{members[0].url} and {member.url} differ in {', '.join(differ)}: they cannot be joined")
    name = f"ensemble-{files.digest_of([member.digest for member in members])[:12]}"
    if found := checkpoints.find(root, name):
        return found
    weights = {
        f"members.{i}.{key}": tensor
        for i, member in enumerate(members)
        for key, tensor in checkpoints.load_weights(member.url).items()
    }
    options = {"members": [[member.about["system"], member.about["options"]] for member in members]}
    spec = {key: first["spec"].get(key) for key in ALIKE}
    about = {
        "system": "ensemble", "options": options, "classes": first["classes"], "spec": spec,
        "members": [{"checkpoint": member.url, "digest": member.digest} for member in members],
    }  # fmt: skip
    return checkpoints.save(root, name, max(member.step for member in members), weights, {}, about, True)


@task(task_run_name="ensemble", cache_policy=NO_CACHE)
def ensemble(root: str, dataset: Dataset, tuned: dict[str, dict[str, Any]], parent: str) -> dict[str, Any]:
    """Joins fine-tuned models, by what each was pretrained with, into a candidate like any other."""
    checkpoint = join(root, [made["checkpoint"] for made in tuned.values()])
    params = {"members": ", ".join(tuned), "mean": "probabilities"}
    tags = {"dataset": f"{dataset.name}@{dataset.version}", "title": "ensemble", "checkpoint": checkpoint.url}
    identity = checkpoint.url.rstrip("/").split("/")[-2]
    run = tracking.resume_or_start(root, "ensemble", identity, params, tags, parent)
    tracking.tag(root, run, {"checkpoint_digest": checkpoint.digest})
    tracking.end(root, run)
    report.say(f"  ensemble     {len(tuned)} models as one: {', '.join(tuned)}")
    seconds = sum(made["seconds"] for made in tuned.values())
    return {"checkpoint": checkpoint, "run": run, "curve": [], "seconds": seconds, "pretrained": None}
