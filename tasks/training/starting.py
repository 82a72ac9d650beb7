"""What a training begins with: the model, on random weights or on those of earlier checkpoints, and its optimiser."""

from typing import Any

import torch
from torch import Tensor, nn

import models
from storage import checkpoints
from storage.errors import InputError
from tasks.training.spec import Spec


def build(spec: Spec) -> nn.Module:
    """The model on the spec's seed, or with the weights of earlier checkpoints.

    Of the last layer the rows of classes that both know by name are kept; the others start at random. A Fine stream
    whose maps come from a column is frozen.
    """
    torch.manual_seed(spec.seed)
    model = models.build(spec.system, num_classes=len(spec.classes), **spec.options)
    weights = model.state_dict()
    if spec.start:
        checkpoints.load_weights(spec.start, weights, free="fc2.")  # says what does not fit
        _adopt(weights, list(weights), "", spec.start, spec.classes)
    for prefix, url in sorted(spec.starts.items()):
        known = checkpoints.load_weights(url)
        own = [name for name in weights if name in known or name.removeprefix(f"{prefix}.") in known]
        if not own:
            raise InputError(f"checkpoint {url} has no weights for {prefix!r} of {spec.system}")
        _adopt(weights, own, f"{prefix}.", url, spec.classes)
    model.load_state_dict(weights)
    if spec.fine:
        model.get_submodule("fine").requires_grad_(False)
    return model if spec.features else model.to(memory_format=torch.channels_last_3d)


def _adopt(weights: dict[str, Tensor], names: list[str], prefix: str, url: str, classes: list[str]) -> None:
    """Takes weights of these names from a checkpoint, which may lack their prefix."""
    known = checkpoints.describe(url).about["classes"]
    shared = [name for name in classes if name in known]
    rows, earlier_rows = ([names_.index(n) for n in shared] for names_ in (classes, known))
    earlier = checkpoints.load_weights(url)
    for name in names:
        found = earlier[name if name in earlier else name.removeprefix(prefix)]
        if "fc2." in name:
            weights[name][rows] = found[earlier_rows]
        else:
            weights[name] = found


def optimiser(model: nn.Module, spec: Spec) -> torch.optim.Optimizer:
    """AdamW, or SGD with plain momentum; a group's ``times`` multiplies its rate."""
    groups: list[dict[str, Any]] = [{"params": [], "times": 1.0}]
    groups += [{"params": [], "times": times} for times in spec.faster.values()]
    for name, parameter in ((n, p) for n, p in model.named_parameters() if p.requires_grad):
        place = [i for i, first in enumerate(spec.faster, 1) if name == first or name.startswith(f"{first}.")]
        groups[place[0] if place else 0]["params"].append(parameter)
    if empty := [first for first, group in zip(spec.faster, groups[1:], strict=True) if not group["params"]]:
        raise ValueError(f"{spec.system} has no parameters {', '.join(empty)} to train faster")
    if spec.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay)
    return torch.optim.AdamW(groups, lr=spec.lr, weight_decay=spec.weight_decay)
