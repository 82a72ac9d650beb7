"""What a model costs, counted on the meta device: no weights are filled and nothing is multiplied.

The published figures of thesis 001 (Tables 3.2 and 3.3) are multiply-accumulates of convolution modules
alone: biases, normalisation, activations, pooling and linear layers are left out. The same rule is kept here,
with the linear layers reported beside.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
HEAD = ("model", "conv GMACs", "linear GMACs", "params (M)")


@dataclass(frozen=True)
class Cost:
    """One forward pass in multiply-accumulates, and the number of parameters.

    `parts` splits `conv_macs` by part of the model, in the order of the first call.
    """

    conv_macs: int
    linear_macs: int
    params: int
    parts: dict[str, int]


def count(model: nn.Module | Callable[[], nn.Module], *shapes: tuple[int, ...], depth: int = 1) -> Cost:
    """Return the cost of one forward pass on float inputs of the given shapes, batch included.

    `model` is a module, left as it was, or a function that builds one, e.g. `lambda: build("L")`; that one is
    built on the meta device and counted in eval mode. `parts` are named by the first `depth` levels of
    module names. A convolution called as a function is not seen. Convention: thesis 001, Table 3.2.
    """
    if not isinstance(model, nn.Module):
        with torch.device("meta"), PassedBy():
            model = model().eval()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    on_meta = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    inputs = tuple(torch.empty(shape, device="meta") for shape in shapes)
    with counted_macs(model) as macs, torch.no_grad(), torch.device("meta"), PassedBy():
        functional_call(model, on_meta, inputs)
    convs = {name: n for (kind, name), n in macs.items() if kind == "conv"}
    parts: Counter[str] = Counter()
    for name, n in convs.items():
        parts[".".join(name.split(".")[:depth])] += n
    linear = sum(macs.values()) - sum(convs.values())
    return Cost(sum(convs.values()), linear, sum(p.numel() for p in model.parameters()), dict(parts))


class PassedBy(TorchFunctionMode):
    """Leave out what keeps shapes and counts nothing, but takes most of the time on the meta device."""

    LEFT_OUT = (nn.functional.batch_norm, Tensor.normal_, Tensor.uniform_)

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return args[0] if function in self.LEFT_OUT else function(*args, **(kwargs or {}))


@contextmanager
def counted_macs(model: nn.Module) -> Iterator[Counter[tuple[str, str]]]:
    """Count, while the context lasts, the MACs of every call by ("conv" or "linear", module name)."""
    macs: Counter[tuple[str, str]] = Counter()

    def add(key: tuple[str, str], terms: int, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        macs[key] += output.numel() * terms

    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            key = ("linear" if isinstance(module, nn.Linear) else "conv", name)
            terms = module.weight[0].numel()  # Products summed in one output number.
            hooks.append(module.register_forward_hook(partial(add, key, terms)))
    try:
        yield macs
    finally:
        for hook in hooks:
            hook.remove()


def as_markdown(title: str, cost: Cost) -> str:
    """Return Markdown tables of a cost: GMACs of convolutions and of linear layers, parameters in M; then its parts."""
    lines = [HEAD, ("---",) * len(HEAD), _figures(title, cost)]
    parts = [("part", "conv GMACs"), ("---", "---"), *_parts(cost)]
    return "\n\n".join("\n".join(f"| {' | '.join(line)} |" for line in part) for part in (lines, parts))


def as_csv(title: str, cost: Cost) -> str:
    """Return the same as one CSV table: the whole, then its parts, of which convolutions alone are known."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(
        [HEAD, _figures(title, cost), *((name, macs, "", "") for name, macs in _parts(cost))]
    )
    return out.getvalue().rstrip("\n")


def _figures(title: str, cost: Cost) -> tuple[str, ...]:
    return title, f"{cost.conv_macs / 1e9:.5f}", f"{cost.linear_macs / 1e9:.5f}", f"{cost.params / 1e6:.6f}"


def _parts(cost: Cost) -> list[tuple[str, str]]:
    return [(name, f"{macs / 1e9:.5f}") for name, macs in cost.parts.items()]
