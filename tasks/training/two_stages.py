"""Two-stream systems in two stages: the streams apart, then together with a faster fusion.

Source: thesis 001, section 3.2.5. Both stages are trainings of their own, with MLflow runs of their own, that are
found again where nothing changed; the checkpoints of the first are where the second starts.

With ``fine_features`` the second stage reads the Fine stream's maps from a column, and that stream stays as the first
stage left it. The thesis trains it on: what is lost in accuracy buys steps that decode and compute a clip alone.
"""

from dataclasses import replace
from typing import Any

import torch

import models
from storage.checkpoints import Checkpoint
from storage.datasets import Dataset
from tasks.training.fine_maps import on_column
from tasks.training.pretrain import tracked_fit
from tasks.training.recipe import Recipe
from tasks.training.spec import Spec

FINE_FRAMES = 16  # of the Fine stream's clips when it is trained alone, at least


def streams(joint: Spec, start: Checkpoint | None) -> dict[str, Spec]:
    """The first stage of a two-stream training: the Coarse stream on its clips, the Fine stream on shorter ones.

    The Fine stream sees as many frames as are left of the Coarse stream's after pooling, and never fewer than
    `FINE_FRAMES` where the clips have them.
    """
    with torch.device("meta"):
        config: Any = models.build(joint.system, num_classes=1, **joint.options).config
    alone = {**joint.options, "fusion": "none", "pooling": config.pooling, "alpha": config.alpha}
    size = {"size": joint.options["size"]}
    frames = max(min(joint.frames, FINE_FRAMES), joint.frames // config.ratio)
    url = start.url if start else None
    coarse = replace(joint, system="coarse_fine", options=alone, start=None, starts={"coarse": url} if url else {})
    fine = replace(joint, system="x3d", options=size, start=url, frames=frames)
    return {"coarse": replace(coarse, whole=0), "fine": replace(fine, whole=0)}


def together(joint: Spec, stage: dict[str, Checkpoint], recipe: Recipe) -> Spec:
    """The second stage: from the checkpoints of the first, with a fusion at random that learns faster."""
    starts = {stream: checkpoint.url for stream, checkpoint in stage.items()}
    lr = joint.lr * recipe.joint_times
    return replace(joint, start=None, starts=starts, lr=lr, faster={"fusion": recipe.fusion_times})


def in_two_stages(
    root: str, dataset: Dataset, joint: Spec, start: Checkpoint | None, kind: str, recipe: Recipe, parent: str
) -> dict[str, Any]:
    """Trains both stages; returns what `tracked_fit` does of the second, with the seconds of both."""
    made = {
        stream: tracked_fit(root, spec, f"{stream}-{kind}", dataset, recipe, parent, stage="1")
        for stream, spec in streams(joint, start).items()
    }
    spec = together(joint, {stream: found["checkpoint"] for stream, found in made.items()}, recipe)
    tags = {"stage": "2"}
    if recipe.fine_features:
        spec = on_column(root, dataset, spec, made["fine"]["checkpoint"])
        tags["fine_stream"] = f"frozen, its maps from column fine {spec.fine}"
    last = tracked_fit(root, spec, f"finetune-{kind}", dataset, recipe, parent, **tags)
    return last | {"seconds": last["seconds"] + sum(found["seconds"] for found in made.values())}
