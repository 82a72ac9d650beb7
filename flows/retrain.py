"""weak clips → pretraining → fine-tuning → evaluation → gate → champion"""

from dataclasses import replace
from typing import Annotated, Any, Literal

from prefect import State, flow
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from tasks.approval import judged
from tasks.checks import opened
from tasks.ensemble import ensemble
from tasks.failure import accounted
from tasks.forms import explained
from tasks.gate import Rules
from tasks.retraining import begun
from tasks.summary import measured, retrained, settled
from tasks.training.finetune import evaluate, finetune
from tasks.training.launch import SIDE_BY_SIDE
from tasks.training.pretrain import pretrain
from tasks.training.recipe import candidates_of, recipe


@flow(flow_run_name="retrain · {dataset}", task_runner=ThreadPoolTaskRunner(max_workers=SIDE_BY_SIDE))
@accounted
@explained
def retrain(
    root: Annotated[str, Field(description="Folder or URL that `prepare` has written to.")],
    dataset: Annotated[str, Field(description="Name of the dataset.")] = "archive",
    model: Annotated[str, Field(description="Name in the model registry.")] = "detector",
    pretraining: Annotated[
        list[Literal["none", "classification", "detection"]],
        Field(description="Candidates, by their pretraining; each challenges the champion, in this order."),
    ] = ["classification", "detection"],  # noqa: B006
    system: Annotated[
        Literal["x3d", "coarse_fine", "fine_fine", "slowfast_det", "super_events", "tgm", "pdan"],
        Field(description="Model family; the last three take a feature column and are not pretrained."),
    ] = "x3d",
    size: Annotated[str, Field(description="Size of the system: M, L or TINY; PAPER or TINY of features.")] = "TINY",
    schedule: Annotated[
        Literal["short", "thesis"],
        Field(description="What is not given below: minutes on a CPU, or SGD as the thesis trains."),
    ] = "short",
    augmentation: Annotated[
        Literal["none", "freeze", "mixup", "cutmix", "joint_single", "joint", "manifold"],
        Field(description="Volume augmentation of detection pretraining."),
    ] = "freeze",
    segments: Annotated[int, Field(description="Frozen segments of a clip.", ge=1, le=2)] = 1,
    seamless: Annotated[bool, Field(description="MixUp fades from clip to clip; else it cuts.")] = True,
    cutmix: Annotated[
        Literal["both", "transient", "constant"],
        Field(description="CutMix's window moves over still views, stays over moving ones, or either."),
    ] = "both",
    ensemble_of: Annotated[
        list[Literal["none", "freeze", "mixup", "cutmix", "joint_single", "joint", "manifold"]],
        Field(description="Augmentations of detection pretraining whose models are one more candidate, as one."),
    ] = [],  # noqa: B006
    pseudo_labels: Annotated[
        str | None, Field(description="Version of the pseudo labels; without it labels are on every frame.")
    ] = None,
    features: Annotated[str | None, Field(description="Version of the feature column; none: the only one.")] = None,
    fine_features: Annotated[
        bool, Field(description="Train two streams together on a column of the Fine stream's maps, which is frozen.")
    ] = False,
    fps: Annotated[float, Field(description="Frames per second that models see.", gt=0)] = 8.0,
    frames: Annotated[int, Field(description="Frames of a training window.", ge=4)] = 16,
    whole: Annotated[
        int, Field(description="Frames of the whole video beside a clip, at most; features of a video.", ge=4)
    ] = 128,
    pixels: Annotated[int, Field(description="Height and width that models see.", ge=16)] = 24,
    batch: Annotated[int | None, Field(description="Windows per step, over all ranks.", ge=2)] = None,
    optimizer: Annotated[
        Literal["schedule", "adamw", "sgd"], Field(description="AdamW, or SGD with momentum.")
    ] = "schedule",
    pretrain_steps: Annotated[
        int | None, Field(description="Steps of pretraining, the same for every kind.", ge=1)
    ] = None,
    finetune_steps: Annotated[int | None, Field(description="Steps of fine-tuning, of each stage.", ge=1)] = None,
    pretrain_lr: Annotated[float | None, Field(description="Learning rate of pretraining.", gt=0)] = None,
    finetune_lr: Annotated[float | None, Field(description="Learning rate of fine-tuning.", gt=0)] = None,
    weight_decay: Annotated[float | None, Field(description="Weight decay of the optimizer.", ge=0)] = None,
    multigrid: Annotated[bool, Field(description="Pretrain on smaller clips in larger batches first.")] = False,
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"], Field(description="Mixed precision; fp16 with its losses scaled.")
    ] = "fp32",
    accumulate: Annotated[int, Field(description="Pieces in which a rank takes its share of a batch.", ge=1)] = 1,
    clip: Annotated[float, Field(description="Largest norm of the gradient; 0: any.", ge=0)] = 0.0,
    ema: Annotated[
        float, Field(description="Decay of the average of the weights that is kept, as 0.999; 0: none.", ge=0, lt=1)
    ] = 0.0,
    compile: Annotated[bool, Field(description="Train through torch.compile; slow to start.")] = False,
    ranks: Annotated[int, Field(description="Processes per training, on each node.", ge=1)] = 1,
    nodes: Annotated[int, Field(description="Machines; others run `reelmill join`, or are Dask's GPUs.", ge=1)] = 1,
    rendezvous: Annotated[str, Field(description="HOST:PORT where the nodes meet; the host is one of them.")] = "",
    sharding: Annotated[
        Literal["none", "fsdp"], Field(description="Each rank has the whole model, or a shard of every tensor.")
    ] = "none",
    patience: Annotated[
        float, Field(description="Seconds without a step after which a training is ended as hung.", gt=0)
    ] = 600.0,
    resume: Annotated[bool, Field(description="Go on from checkpoints and reuse finished trainings.")] = True,
    margin: Annotated[
        float, Field(description="What the gate's lower bound must exceed, in mAP (0 to 1).", ge=0)
    ] = 0.0,
    metric: Annotated[
        Literal["map", "wap", "map_prior_normalised"], Field(description="What the gate compares, on every frame.")
    ] = "map",
    class_drop: Annotated[
        float, Field(description="AP (0 to 1) that a class may lose; one that surely loses more is refused.", ge=0)
    ] = 0.05,
    successor_drop: Annotated[
        float,
        Field(description="What may be lost against a champion trained on a source that was taken down since.", ge=0),
    ] = 0.05,
    slower: Annotated[
        float | None, Field(description="Times the champion's latency that a challenger may take.", gt=0)
    ] = None,
    costlier: Annotated[
        float | None, Field(description="Times the champion's multiply-accumulates that it may take.", gt=0)
    ] = None,
    approval: Annotated[
        bool, Field(description="Ask a person before a challenger is promoted; the run is suspended until then.")
    ] = False,
    seed: Annotated[int, Field(description="Seed of weights, order and augmentation.")] = 0,
) -> dict[str, Any] | State[Any]:
    """Train candidates, measure them on held-out videos and promote one that beats the champion.

    A training that was interrupted goes on from its newest checkpoint; one whose inputs did not change is reused.
    """
    given = recipe(
        schedule, system=system, size=size, augmentation=augmentation, segments=segments, seamless=seamless,
        cutmix=cutmix, pseudo_labels=pseudo_labels, features=features, fine_features=fine_features, fps=fps,
        frames=frames, whole=whole, pixels=pixels, batch=batch,
        optimizer=None if optimizer == "schedule" else optimizer, pretrain_steps=pretrain_steps,
        finetune_steps=finetune_steps, pretrain_lr=pretrain_lr, finetune_lr=finetune_lr, weight_decay=weight_decay,
        multigrid=multigrid, precision=precision, accumulate=accumulate, clip=clip, ema=ema, compile=compile,
        ranks=ranks, nodes=nodes, rendezvous=rendezvous, sharding=sharding, patience=patience, resume=resume, seed=seed,
    )  # fmt: skip
    rules = Rules(
        metric=metric, margin=margin, class_drop=class_drop, successor_drop=successor_drop, slower=slower,
        costlier=costlier,
    )  # fmt: skip
    root, kinds = opened(root), candidates_of(given, pretraining, ensemble_of)
    with begun(root, dataset, model, given, rules, kinds, ensemble_of) as this:
        if this.over is not None:
            return this.over
        data, run = this.dataset, this.run
        pretrained = {kind: pretrain.submit(root, data, kind, given, run) for kind in kinds}
        tuned = {kind: finetune.submit(root, data, pretrained[kind], kind, given, run) for kind in kinds}
        members = {augmentation: tuned["detection"]} if "detection" in kinds and augmentation in ensemble_of else {}
        if ensemble_of:
            for mode in (mode for mode in ensemble_of if mode not in members):
                other, kind = replace(given, augmentation=mode), f"detection-{mode}"
                pretrained[kind] = pretrain.submit(root, data, "detection", other, run)
                members[mode] = finetune.submit(root, data, pretrained[kind], kind, other, run)
            tuned["ensemble"] = ensemble.submit(root, data, list(members.values()), "ensemble", run)
        candidates = {kind: evaluate.submit(root, data, made, kind) for kind, made in tuned.items()}
        good = measured(candidates)
        decisions = {
            kind: judged(root, data, model, found, kind, rules, seed, approval) for kind, found in good.items()
        }
        settled(root, run, *pretrained.values(), *members.values(), *tuned.values(), *candidates.values())
        return this.kept(retrained(root, data, model, run, [c.result() for c in candidates.values()], decisions))
