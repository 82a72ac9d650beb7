"""Batch normalisation over a few clips at a time, whatever the batch: what multigrid training needs.

Source: thesis 001, section 3.4, after Wu et al., "A Multigrid Method for Efficiently Training Video Models", CVPR
2020. A batch of N clips is split into groups of the same size; each is normalised by its own mean and variance, and
all share scale and shift. The running statistics are those of the whole batch:

    mean = mean_k mean_k        variance = mean_k variance_k + mean_k (mean_k - mean)^2

Letters: N clips, C channels, k groups.
"""

import torch
from torch import Tensor, nn


class SubBatchNorm3d(nn.BatchNorm3d):
    """A BatchNorm3d that normalises `group` clips at a time while it trains; same parameters, same names."""

    group = 8

    def forward(self, x: Tensor) -> Tensor:
        """Return x [N, C, T, h, w] normalised; a batch that is no multiple of `group` is split as evenly."""
        splits = max(1, round(x.shape[0] / self.group))
        if not self.training or splits == 1 or x.shape[0] % splits:
            return super().forward(x)
        N, C = x.shape[:2]
        parts = x.unflatten(0, (splits, -1))  # [k, N / k, C, T, h, w]
        variance, mean = torch.var_mean(parts.float(), (1, 3, 4, 5), correction=0)  # [k, C]
        self._remember(mean.detach(), variance.detach(), x.numel() // C)
        scale = (variance + self.eps).rsqrt() * self.weight
        shift = self.bias - mean * scale
        wide = (N, C, 1, 1, 1)
        scale, shift = (t.to(x.dtype).repeat_interleave(N // splits, 0).view(wide) for t in (scale, shift))
        return torch.addcmul(shift, x, scale)

    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        whole = mean.mean(0)
        spread = (variance.mean(0) + (mean - whole).square().mean(0)) * count / max(1, count - 1)
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(whole, share)
        self.running_var.lerp_(spread, share)


def split_norms(model: nn.Module, group: int) -> nn.Module:
    """Let every BatchNorm3d of a model normalise `group` clips at a time; its state dict stays as it is."""
    for module in model.modules():
        if type(module) is nn.BatchNorm3d:
            module.__class__ = SubBatchNorm3d
            module.group = group  # type: ignore[assignment]
    return model
