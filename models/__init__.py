"""The systems of the papers by name. Importing this package loads no torch; building a system does."""

from dataclasses import fields, replace
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from torch import nn

Preset = TypeVar("Preset")  # a system's Config

Inputs = Literal["clip", "context", "features"]
SYSTEMS: dict[str, str] = {
    "x3d": "models.x3d",
    "coarse_fine": "models.coarse_fine",
    "fine_fine": "models.fine_fine",
    "slowfast_det": "models.slowfast_det",
    "super_events": "models.super_events",
    "tgm": "models.tgm",
    "pdan": "models.pdan",
    "ensemble": "models.ensemble",
}

OTHER_INPUTS: dict[str, Inputs] = {  # what is not here takes a clip
    "coarse_fine": "context",
    "fine_fine": "context",
    "super_events": "features",
    "tgm": "features",
    "pdan": "features",
}
TWO_STREAMS = ("coarse_fine", "fine_fine", "slowfast_det")  # trained apart first, then together


def inputs(system: str, options: "dict[str, Any] | None" = None) -> Inputs:
    """Return what the named system with these options of `build` is given.

    "clip": video [B, 3, T, H, W]. "context": the same, the whole video beside it, and the clip's place in that.
    "features": features [B, T, D] of a whole video and a mask [B, T]. An ensemble takes what its members take;
    raises ValueError where these differ.
    """
    options = options or {}
    if system == "ensemble":
        wanted = {inputs(name, dict(given)) for name, given in options.get("members", ())}
        if len(wanted) != 1:
            raise ValueError(
                f"the members of an ensemble take the same inputs, not {', '.join(sorted(wanted)) or 'none'}"
            )
        return wanted.pop()
    return "clip" if options.get("fusion") == "none" else OTHER_INPUTS.get(system, "clip")


def build(system: str, **options: object) -> "nn.Module":
    """Return the named system on random weights, e.g. `build("x3d", size="M", num_classes=157)`.

    `options` are the arguments of the module's own `build` and the fields of its `Config`.
    Raises ValueError for a system that is not in `SYSTEMS` and TypeError for an option it does not have.
    """
    if system not in SYSTEMS:
        raise ValueError(f"unknown system {system!r}; known systems: {', '.join(sorted(SYSTEMS))}")
    module = import_module(SYSTEMS[system])
    named = [p.name for p in signature(module.build).parameters.values() if p.kind is not p.VAR_KEYWORD]
    known = dict.fromkeys([*named, *(field.name for field in fields(module.Config))])
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(f"{system} has no option {', '.join(unknown)}; its options: {', '.join(known)}")
    return module.build(**options)


def preset(system: str, presets: dict[str, Preset], size: str, num_classes: int, overrides: dict[str, Any]) -> Preset:
    """Return the `Config` of a system's preset size for these classes, with other fields replaced.

    Raises ValueError for an unknown size or value, or no class, and TypeError for an unknown field.
    """
    if num_classes < 1:
        raise ValueError(f"{system} needs a class or more, not {num_classes}")
    if size not in presets:
        raise ValueError(f"{system} has the sizes {', '.join(presets)}, not {size!r}")
    return replace(presets[size], num_classes=num_classes, **overrides)  # type: ignore[type-var]
