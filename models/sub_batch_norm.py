"""Sub-batch normalisation: a large batch normalised in parts, as multigrid training needs it.

Source: Wu et al., "A Multigrid Method for Efficiently Training Video Models", CVPR 2020; thesis 001, section 3.3.1
trains with statistics over eight clips. A schedule that makes its clips shorter or smaller makes its batches larger,
and each part of a batch keeps statistics of its own, so that these mean the same throughout.
"""

from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Model = TypeVar("Model", bound=nn.Module)


class SubBatchNorm3d(nn.Module):
    """Normalise [B, C, T, h, w] in `splits` equal runs of the batch, under one weight and bias.

    Every run has a mean and a variance of its own; in eval mode all are normalised by those of the runs together.
    Raises ValueError for a training batch that cannot be split evenly.
    """

    def __init__(self, norm: nn.BatchNorm3d, splits: int) -> None:
        super().__init__()
        self.splits, self.eps, self.momentum = splits, norm.eps, cast(float, norm.momentum)
        self.weight, self.bias = norm.weight, norm.bias  # The same tensors: an optimizer that has them keeps them.
        mean, var = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        self.split_mean: Tensor  # [splits, C]
        self.split_var: Tensor
        self.register_buffer("split_mean", mean.repeat(splits, 1))
        self.register_buffer("split_var", var.repeat(splits, 1))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, *self.aggregate(), self.weight, self.bias, False, 0.0, self.eps)
        if x.shape[0] % self.splits:
            raise ValueError(f"a batch of {x.shape[0]} cannot be normalised in {self.splits} equal parts")
        runs = zip(x.chunk(self.splits), self.split_mean, self.split_var, strict=True)
        return torch.cat([self.normalise(run, mean, var) for run, mean, var in runs])

    def normalise(self, run: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        """Return a run of the batch normalised by its own statistics, of which `mean` and `var` take note."""
        return F.batch_norm(run, mean, var, self.weight, self.bias, True, self.momentum, self.eps)

    def aggregate(self) -> tuple[Tensor, Tensor]:
        """Return mean and variance [C] of the runs together: the means' own variance is part of it."""
        return self.split_mean.mean(0), self.split_var.mean(0) + self.split_mean.var(0, correction=0)

    def whole(self) -> nn.BatchNorm3d:
        """Return the batch norm that does in eval mode what this does, with the same weight and bias."""
        norm = nn.BatchNorm3d(self.weight.shape[0], self.eps, self.momentum).to(self.weight)
        norm.weight, norm.bias = self.weight, self.bias
        norm.running_mean, norm.running_var = (statistic.clone() for statistic in self.aggregate())
        return norm.train(self.training)


def split_norms(model: Model, splits: int) -> Model:
    """Normalise in `splits` parts throughout the model, in place; 1 is a plain batch norm again, to save or to export.

    May be called again with another number as the batch grows or shrinks; what was learnt is kept, and the parts
    start from the statistics together. Returns the model. Raises ValueError for less than one part.
    """
    if splits < 1:
        raise ValueError(f"a batch is normalised in 1 part or more, not {splits}")

    def changed(norm: Any) -> nn.Module:
        plain = norm.whole() if isinstance(norm, SubBatchNorm3d) else norm
        return plain if splits == 1 else SubBatchNorm3d(plain, splits).train(plain.training)

    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, (nn.BatchNorm3d, SubBatchNorm3d)):
                setattr(parent, name, changed(child))
    return model
