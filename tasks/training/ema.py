"""The moving average of a model's weights, which is what is kept and measured where a training asks for it."""

import torch
from torch import Tensor, nn

from tasks.training.parallel import like, whole


class Average:
    """An exponential moving average of weights, and of statistics where layers keep theirs under one name.

    The decay rises with the steps to the one that was asked for, as (1 + n) / (10 + n): an average over a training's
    first moments would hold on to random weights.
    """

    def __init__(self, model: nn.Module, decay: float, statistics: bool = True) -> None:
        self.decay, self.model = decay, model
        self.kept = {name: tensor.detach().clone() for name, tensor in self._tensors(statistics)}
        self.statistics = statistics

    def _tensors(self, statistics: bool) -> list[tuple[str, Tensor]]:
        buffers = [(n, b) for n, b in self.model.named_buffers() if b.is_floating_point()] if statistics else []
        return [*self.model.named_parameters(), *buffers]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes note of the weights after a step, counted from 0."""
        share = 1 - min(self.decay, (2 + step) / (11 + step))
        for name, tensor in self._tensors(self.statistics):
            self.kept[name].lerp_(tensor, share)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Goes on from what `over` returned."""
        self.kept = {name: like(weights[name], tensor).clone() for name, tensor in self.kept.items()}

    def over(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the model with the average in their place; all ranks call this."""
        found = {name: whole(tensor).cpu().clone() for name, tensor in self.kept.items()}
        return {name: found.get(name, tensor) for name, tensor in weights.items()}
