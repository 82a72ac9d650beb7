"""All that decides the outcome of a training, and where it runs."""

from dataclasses import dataclass, field
from typing import Any, Literal

from models.augment import Mode
from storage.errors import InputError

Rate = Literal["sampled", "source"]  # frames that labels are compared on: those the system sees, or the video's own
Precision = Literal["fp32", "bf16", "fp16"]
Auxiliary = Literal["none", "reconstruction", "flow"]  # losses of Grid Pool's points
Sharding = Literal["none", "fsdp"]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """All that decides the outcome of a training; the digest of it is the run's name."""

    root: str
    parts: list[dict[str, Any]]
    classes: list[str]
    objective: str  # a key of models.losses.OBJECTIVES
    system: str = "x3d"
    options: dict[str, Any] = field(default_factory=dict)
    labels: str | None = None  # version of the pseudo-label column; None: the segments of the index
    selection: str | None = None  # version of the selection column; None: every clip
    augmentation: Mode = "none"
    volumes: dict[str, Any] = field(default_factory=dict)  # other options of models.augment.augment, by name
    start: str | None = None  # checkpoint whose backbone to start from
    starts: dict[str, str] = field(default_factory=dict)  # checkpoints to start parts from, e.g. {"fine": URL}
    fps: float = 8.0
    frames: int = 16
    size: int = 24
    whole: int = 0  # frames of the whole video that go with a clip, at most; 0: none
    features: str | None = None  # version of the feature column that is trained on in place of video
    fine: str | None = None  # version of the column that has the maps of the Fine stream, which is frozen then
    rate: Rate = "sampled"
    batch: int = 16  # of a step, over all ranks
    accumulate: int = 1  # pieces in which a rank takes its share of a batch
    steps: int = 800
    optimizer: str = "adamw"  # or sgd, as the thesis trains X3D-M
    momentum: float = 0.9
    lr: float = 0.01
    faster: dict[str, float] = field(default_factory=dict)  # times the rate, for parameters of these first names
    weight_decay: float = 0.01
    warmup: float = 0.05  # share of the steps
    milestones: list[float] = field(default_factory=list)  # shares of the steps: a tenth of the rate from each on
    clip: float = 0.0  # largest norm of the gradient of all parameters together; 0: any
    ema: float = 0.0  # decay of the moving average of the weights, which is what is kept then; 0: the weights
    multigrid: bool = False
    norm_group: int = 0  # clips that are normalised together; 0: the batch
    precision: Precision = "fp32"
    compile: bool = False
    auxiliary: Auxiliary = "none"
    seed: int = 0
    checkpoint_every: int = 100


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a training runs: of its outcome it decides no more than how numbers are rounded and who is normalised."""

    ranks: int = 1  # processes, on each node
    nodes: int = 1
    rendezvous: str = ""  # HOST:PORT where nodes meet
    sharding: Sharding = "none"
    patience: float = 600.0  # seconds without a step, after which a training is given up

    def check(self, batch: int, accumulate: int, multigrid: bool = False) -> None:
        """Raises `InputError` for a placement that cannot be.

        That is of nodes that cannot meet, of a batch that ranks and pieces do not share evenly, and of shards of a
        model on one rank or in a multigrid schedule, which exchanges layers between steps.
        """
        if self.nodes > 1 and not self.rendezvous:
            raise InputError(f"--nodes {self.nodes}: say with --rendezvous HOST:PORT where they meet")
        if self.sharding == "fsdp" and (multigrid or self.ranks * self.nodes == 1):
            raise InputError("--sharding fsdp needs --ranks 2 or more, and does not go with --multigrid")
        share_of(batch, self.ranks * self.nodes, accumulate)


def share_of(batch: int, ranks: int, accumulate: int) -> int:
    """What each rank takes of a batch at once. Raises `InputError` where these would differ."""
    if batch % (ranks * accumulate):
        pieces = f" in {accumulate} pieces each" if accumulate > 1 else ""
        raise InputError(
            f"--batch {batch}: {ranks} ranks cannot share it evenly{pieces}; give a multiple of {ranks * accumulate}"
        )
    return batch // (ranks * accumulate)
