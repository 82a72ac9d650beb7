"""rendered archive → prepare → retrain → infer → audit, each twice where the second run must find nothing to do"""

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from flows.audit import audit
from flows.infer import infer
from flows.prepare import prepare
from flows.retrain import retrain
from tasks.checks import opened
from tasks.demonstration import Watch, demonstrated
from tasks.failure import accounted
from tasks.forms import explained
from tasks.render import render_archive


@flow(flow_run_name="demo · seed {seed}")
@accounted
@explained
def demo(
    root: Annotated[str, Field(description="Folder of the demo.")] = "var/demo",
    seed: Annotated[int, Field(description="Seed of the archive and of the training.")] = 0,
    weak: Annotated[int, Field(description="Videos with one action and a video-level label.", ge=8)] = 640,
    dense: Annotated[int, Field(description="Videos with segments; a third is held out.", ge=6)] = 120,
    pretrain_steps: Annotated[int, Field(description="Steps of pretraining.", ge=1)] = 1000,
    finetune_steps: Annotated[int, Field(description="Steps of fine-tuning.", ge=1)] = 200,
) -> dict[str, Any]:
    """Render a labelled archive of real H.264 files and run the whole chain on it, on a CPU.

    The classification-pretrained candidate becomes the first champion, the detection-pretrained one challenges it,
    and the one without pretraining is a planted worse challenger. Writes ROOT/summary.json.
    """
    watch = Watch()
    root = opened(root)
    made = watch("render", render_archive, root, seed, weak, dense, again=True)
    source = {
        "root": root,
        "archive": made["archive"],
        "labels": made["labels"],
        "name": "demo",
        "seed": seed,
    }
    first = watch("prepare", prepare, **source)
    again = watch("prepare again", prepare, **source)
    kinds = ["classification", "detection", "none"]
    steps = {"pretrain_steps": pretrain_steps, "finetune_steps": finetune_steps}
    model = f"detector-{seed}" if seed else "detector"  # each archive has its own champion
    trained = watch("retrain", retrain, root, "demo", model, kinds, seed=seed, **steps)
    splits = ["heldout", "unlabelled"]
    inferred = watch("infer", infer, root, "demo", model, splits)
    nothing = watch("infer again", infer, root, "demo", model, splits)
    audited = watch("audit", audit, root, "demo", model)
    return demonstrated(root, made, first, again, trained, inferred, nothing, audited, watch)
