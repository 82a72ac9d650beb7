"""Several systems as one: the mean of their probabilities, behind the interface of each.

Source: thesis 001, section 4.2.3, model ensembling: one model for each augmentation, combined at inference. The
mean is returned as its logit, so that losses, metrics, the gate and inference take it for any other system's.

Letters: M members, B batch, T frames, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

import models

Member = tuple[str, dict[str, Any]]  # a system and its options; from JSON a list of the two


@dataclass(frozen=True, kw_only=True)
class Config:
    """The members of an ensemble and what they have in common.

    `mean` and `std` are those that the members' videos are normalised with, None where they take features.
    Raises ValueError without members.
    """

    num_classes: int = 157
    members: tuple[Member, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError('an ensemble needs members, e.g. members=[("x3d", {"size": "M"}), ...]')


class Ensemble(nn.Module):
    """Score K classes in every frame as the mean of the members' probabilities."""

    def __init__(self, members: Sequence[nn.Module], config: Config) -> None:
        super().__init__()
        self.config = config
        self.members = nn.ModuleList(members)

    def forward(self, *inputs: Tensor | None, **named: Any) -> dict[str, Tensor]:
        """Return `logits` [B, T, K] of the mean and `member_logits` [M, B, T, K]; each member gets all inputs.

        They are those of the members, e.g. `whole`, `start` and `valid` of two-stream systems, `mask` of heads.
        Raises ValueError where the members answer with different shapes.
        """
        answers = [member(*inputs, **named)["logits"] for member in self.members]
        if any(answer.shape != answers[0].shape for answer in answers):
            raise ValueError(f"the members' logits differ in shape: {[list(a.shape) for a in answers]}")
        together = torch.stack(answers)
        return {"logits": mean_logit(together), "member_logits": together}


def mean_logit(logits: Tensor) -> Tensor:
    """Return the logit of the mean over the first dimension of the probabilities of logits [M, ...].

    Of sums of probabilities and of their complements, in logarithms: no probability is ever rounded to 0 or 1, so
    logits of any size come out right. Of one member it is the identity.
    """
    if len(logits) == 1:
        return logits[0]
    return logsigmoid(logits).logsumexp(0) - logsigmoid(-logits).logsumexp(0)


def build(num_classes: int = 157, members: Sequence[Member] = (), **overrides: Any) -> Ensemble:
    """Return an ensemble of `(system, options)`, all with the same classes, on random weights.

    Raises ValueError where there are no members, or members that normalise video differently.
    """
    named = tuple((system, dict(options)) for system, options in members)
    config = Config(num_classes=num_classes, members=named, **overrides)
    built = [models.build(system, num_classes=num_classes, **options) for system, options in named]
    pixels = {tuple(getattr(m.config, name, None) for name in ("mean", "std")) for m in built}
    if len(pixels) > 1:
        raise ValueError(f"the members normalise video differently: {sorted(map(str, pixels))}")
    ((mean, std),) = pixels
    return Ensemble(built, replace(config, mean=mean, std=std))
