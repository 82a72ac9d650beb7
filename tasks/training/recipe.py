"""What a person chooses about a training, and the schedules that choose what was not given."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch

import models
from models.augment import Mode
from storage.errors import InputError
from tasks.training import multigrid
from tasks.training.spec import Placement, Precision, Rate, Sharding

Schedule = Literal["short", "thesis"]

# "short" trains TINY on a CPU in minutes. "thesis" is that of thesis 001, chapters 3.2.5, 4.3.1 and 4.3.2; its
# downstream trainings last 100 epochs of 7,900 Charades videos at 16 clips a step.
SCHEDULES: dict[str, dict[str, Any]] = {
    "short": {},  # the defaults of `Recipe`
    "thesis": {
        "optimizer": "sgd",
        "pretrain_steps": 100_000,
        "finetune_steps": 49_431,
        "pretrain_batch": 64,
        "batch": 16,
        "pretrain_lr": 0.05,
        "finetune_lr": 0.02,
        "weight_decay": 1e-5,
        "warmup": 0.0,
        "pretrain_milestones": [0.8],
        "finetune_milestones": [0.6, 0.8],
        "head_times": 10.0,
        "joint_times": 1.0,
        "rate": "source",
    },
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a person chooses about a training; every field is a parameter of the `retrain` flow, or a schedule's."""

    system: str = "x3d"
    size: str = "TINY"
    schedule: Schedule = "short"
    fps: float = 8.0
    frames: int = 16
    pixels: int = 24
    whole: int = 128  # frames of the whole video beside a clip; features of a video
    features: str | None = None  # version of the feature column of systems that take one
    fine_features: bool = False  # the second stage of two streams on a column of the Fine stream's maps
    batch: int = 16
    pretrain_batch: int = 16
    optimizer: str = "adamw"
    momentum: float = 0.9
    pretrain_steps: int = 1000
    finetune_steps: int = 200
    pretrain_lr: float = 0.01
    finetune_lr: float = 0.005
    pretrain_milestones: list[float] = field(default_factory=list)
    finetune_milestones: list[float] = field(default_factory=list)
    head_times: float = 1.0  # the head's learning rate in pretraining, over that of the rest
    joint_times: float = 0.2  # the learning rate of the second stage of two streams, over that of fine-tuning
    fusion_times: float = 10.0  # that of the fusion in it, over that of the rest
    weight_decay: float = 0.01
    warmup: float = 0.05
    rate: Rate = "sampled"
    multigrid: bool = False  # in pretraining
    norm_group: int = 8
    precision: Precision = "fp32"
    accumulate: int = 1
    clip: float = 0.0
    ema: float = 0.0
    compile: bool = False
    augmentation: Mode = "freeze"
    pseudo_labels: str | None = None  # version of the column to pretrain on; None: the video's label on every frame
    volumes: dict[str, Any] = field(default_factory=dict)  # other options of the augmentation, e.g. {"segments": 2}
    seed: int = 0
    ranks: int = 1
    nodes: int = 1
    rendezvous: str = ""
    sharding: Sharding = "none"
    patience: float = 600.0
    resume: bool = True

    @property
    def placement(self) -> Placement:
        """Where its trainings run."""
        given = (field.name for field in fields(Placement))
        return Placement(**{name: getattr(self, name) for name in given})

    @property
    def inputs(self) -> models.Inputs:
        """What the system takes."""
        return models.inputs(self.system)

    @property
    def backbone(self) -> str:
        """The system that is pretrained: that of a two-stream system's streams."""
        return "x3d" if self.system in models.TWO_STREAMS else self.system

    def optimisation(self, stage: Literal["pretrain", "finetune"]) -> dict[str, Any]:
        """The fields of a spec that say how a stage is optimised."""
        return {
            "batch": self.pretrain_batch if stage == "pretrain" else self.batch,
            "steps": getattr(self, f"{stage}_steps"),
            "lr": getattr(self, f"{stage}_lr"),
            "milestones": getattr(self, f"{stage}_milestones"),
            "optimizer": self.optimizer,
            "momentum": self.momentum,
            "weight_decay": self.weight_decay,
            "warmup": self.warmup,
            "precision": self.precision,
            "accumulate": self.accumulate,
            "clip": self.clip,
            "ema": self.ema,
            "compile": self.compile,
            "seed": self.seed,
        }


def candidates_of(recipe: Recipe, pretraining: list[str], ensemble_of: list[str]) -> list[str]:
    """The kinds of pretraining to compare: none for a system that takes features, whatever was asked for.

    Raises `InputError` for an ensemble of fewer than two models.
    """
    if ensemble_of and len(set(ensemble_of)) < 2:
        raise InputError(f"--ensemble-of {','.join(ensemble_of)}: an ensemble is of two augmentations or more")
    if ensemble_of and recipe.inputs == "features":
        raise InputError(f"--ensemble-of joins models of several augmentations; {recipe.system} is not pretrained")
    return ["none"] if recipe.inputs == "features" else list(pretraining)


def recipe(
    schedule: Schedule = "short",
    *,
    segments: int = 1,
    seamless: bool = True,
    cutmix: str = "both",
    **given: Any,
) -> Recipe:
    """A recipe of a schedule, with what was given (what is None was not) in its place.

    A ``batch`` that is given is that of pretraining, too; ``segments``, ``seamless`` and ``cutmix`` are options of
    the augmentation. Raises `InputError` for what does not go together.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if "batch" in chosen:
        chosen.setdefault("pretrain_batch", chosen["batch"])
    if chosen.get("system", "x3d") != "x3d":
        chosen.setdefault("rate", "source")
    options = {"segments": (segments, 1), "seamless": (seamless, True), "window": (cutmix, "both")}
    chosen["volumes"] = {name: value for name, (value, unset) in options.items() if value != unset}
    made = Recipe(schedule=schedule, **{**SCHEDULES[schedule], **chosen})
    if made.system == "ensemble" or made.system not in models.SYSTEMS:
        names = ", ".join(name for name in models.SYSTEMS if name != "ensemble")
        raise InputError(f"--system {made.system}: choose from {names}; --ensemble-of promotes several models as one")
    _check(made)
    return made


def _check(made: Recipe) -> None:
    """Raises `InputError` for a size that the system has not, and for frames that it cannot be trained on."""
    try:
        with torch.device("meta"):
            config: Any = models.build(made.system, size=made.size, num_classes=1).config
    except ValueError as error:
        raise InputError(f"--system {made.system} --size {made.size}: {error}") from error
    for batch in {made.pretrain_batch, made.batch}:
        made.placement.check(batch, made.accumulate, made.multigrid)
    if made.system in models.TWO_STREAMS and made.frames % config.ratio:
        raise InputError(
            f"--frames {made.frames}: {made.system} keeps one of {config.ratio} frames; give a multiple of it"
        )
    if made.fine_features and made.inputs != "context":
        names = ", ".join(name for name, given in models.OTHER_INPUTS.items() if given == "context")
        raise InputError(f"--fine-features: {made.system} has no Fine stream that sees whole videos; choose {names}")
    least = 3 * made.volumes.get("segments", 1) - 1 if made.augmentation in ("freeze", "joint", "joint_single") else 1
    if made.frames // (multigrid.LONG[0][0] if made.multigrid else 1) < least:
        raise InputError(f"--frames {made.frames}: too few for the frozen segments of its shortest clips")
