"""What a system costs: multiply-accumulates and parameters, counted on the meta device."""

from typing import Annotated, Any, Literal

from pydantic import Field

from storage.errors import InputError


def cost(
    system: Annotated[str, Field(description="Model family.")] = "x3d",
    size: Annotated[
        str | None, Field(description="Size: M, L or TINY; PAPER or TINY of systems on features. Default: the first.")
    ] = None,
    frames: Annotated[int, Field(description="Frames of the input.", ge=1)] = 128,
    pixels: Annotated[int, Field(description="Height and width of the input, where it is video.", ge=1)] = 224,
    classes: Annotated[int, Field(description="Classes of the head.", ge=1)] = 157,
    thesis: Annotated[bool, Field(description="Instead, every figure that the thesis prints, ours beside it.")] = False,
    form: Annotated[Literal["markdown", "csv"], Field(description="Form of the table.")] = "markdown",
) -> str:
    """Print multiply-accumulates (convolutions only, as the thesis counts, and linear layers beside) and parameters."""
    from models import cost, published

    if thesis:
        rows = list(published.published())
        return published.as_csv(rows) if form == "csv" else published.as_markdown(rows)
    size = size or ("PAPER" if _takes_features(system) else "M")
    try:
        seen, counted = _counted(system, size, frames, pixels, classes)
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from error
    title = f"{system} {size}, {seen}, {classes} classes"
    return cost.as_csv(title, counted) if form == "csv" else cost.as_markdown(title, counted)


def _takes_features(system: str) -> bool:
    import models

    return models.OTHER_INPUTS.get(system) == "features"


def _counted(system: str, size: str, frames: int, pixels: int, classes: int) -> tuple[str, Any]:
    """What the input is, in words, and the cost of one."""
    import torch

    import models
    from models.cost import count

    shape: tuple[int, ...] = (1, 3, frames, pixels, pixels)
    seen = f"{frames} frames of {pixels}x{pixels}"
    if _takes_features(system):
        with torch.device("meta"):
            config: Any = models.build(system, size=size, num_classes=1).config
        shape, seen = (1, frames, config.width), f"{frames} frames of {config.width} features"
    return seen, count(lambda: models.build(system, size=size, num_classes=classes), shape)
