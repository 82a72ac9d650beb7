"""weak clips → pretraining → fine-tuning → evaluation → gate → champion"""

from typing import Annotated, Any, Literal

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from tasks.checks import opened
from tasks.finetune import evaluate, finetune
from tasks.forms import explained
from tasks.gate import gate
from tasks.pretrain import pretrain
from tasks.summary import begin, retrained
from tasks.train import SIDE_BY_SIDE, Recipe


@flow(flow_run_name="retrain · {dataset}", task_runner=ThreadPoolTaskRunner(max_workers=SIDE_BY_SIDE))
@explained
def retrain(
    root: Annotated[str, Field(description="Folder or URL that `prepare` has written to.")],
    dataset: Annotated[str, Field(description="Name of the dataset.")] = "archive",
    model: Annotated[str, Field(description="Name in the model registry.")] = "detector",
    pretraining: Annotated[
        list[Literal["none", "classification", "detection"]],
        Field(description="Candidates, by their pretraining; each challenges the champion, in this order."),
    ] = ["classification", "detection"],  # noqa: B006
    system: Annotated[str, Field(description="Model family.")] = "x3d",
    size: Annotated[str, Field(description="Size of the system: M, L or TINY.")] = "TINY",
    augmentation: Annotated[
        Literal["none", "freeze", "mixup", "cutmix", "joint_single", "joint", "manifold"],
        Field(description="Volume augmentation of detection pretraining."),
    ] = "freeze",
    fps: Annotated[float, Field(description="Frames per second that models see.", gt=0)] = 8.0,
    frames: Annotated[int, Field(description="Frames of a training window.", ge=4)] = 16,
    pixels: Annotated[int, Field(description="Height and width that models see.", ge=16)] = 24,
    batch: Annotated[int, Field(description="Windows per step, over all ranks.", ge=2)] = 16,
    optimizer: Annotated[Literal["adamw", "sgd"], Field(description="AdamW, or SGD with momentum.")] = "adamw",
    pretrain_steps: Annotated[int, Field(description="Steps of pretraining, the same for every kind.", ge=1)] = 1000,
    finetune_steps: Annotated[int, Field(description="Steps of fine-tuning.", ge=1)] = 200,
    pretrain_lr: Annotated[float, Field(description="Learning rate of pretraining.", gt=0)] = 0.01,
    finetune_lr: Annotated[float, Field(description="Learning rate of fine-tuning.", gt=0)] = 0.005,
    weight_decay: Annotated[float, Field(description="Weight decay of the optimizer.", ge=0)] = 0.01,
    ranks: Annotated[int, Field(description="Processes per training.", ge=1)] = 1,
    resume: Annotated[bool, Field(description="Go on from checkpoints and reuse finished trainings.")] = True,
    margin: Annotated[
        float, Field(description="What the gate's lower bound must exceed, in mAP (0 to 1).", ge=0)
    ] = 0.0,
    seed: Annotated[int, Field(description="Seed of weights, order and augmentation.")] = 0,
) -> dict[str, Any]:
    """Train candidates, measure them on held-out videos and promote one that beats the champion.

    A training that was interrupted goes on from its newest checkpoint; one whose inputs did not change is reused.
    """
    recipe = Recipe(
        system=system, size=size, augmentation=augmentation, fps=fps, frames=frames, pixels=pixels, batch=batch,
        optimizer=optimizer, pretrain_steps=pretrain_steps, finetune_steps=finetune_steps, pretrain_lr=pretrain_lr,
        finetune_lr=finetune_lr, weight_decay=weight_decay, ranks=ranks, resume=resume, seed=seed,
    )  # fmt: skip
    root = opened(root)
    data, run = begin(root, dataset, recipe)
    pretrained = {kind: pretrain.submit(root, data, kind, recipe, run) for kind in pretraining}
    tuned = {kind: finetune.submit(root, data, pretrained[kind], kind, recipe, run) for kind in pretraining}
    candidates = {kind: evaluate.submit(root, data, tuned[kind], kind) for kind in pretraining}
    decisions = {kind: gate(root, data, model, candidates[kind], kind, margin, seed) for kind in pretraining}
    return retrained(root, data, model, run, [candidates[kind].result() for kind in pretraining], decisions)
