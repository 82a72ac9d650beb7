"""What a system costs: multiply-accumulates and parameters, counted on the meta device."""

from typing import Annotated, Literal

from pydantic import Field

from storage.errors import InputError


def cost(
    system: Annotated[str, Field(description="Model family.")] = "x3d",
    size: Annotated[str, Field(description="Size of the system: M, L or TINY.")] = "M",
    frames: Annotated[int, Field(description="Frames of the input.", ge=1)] = 128,
    pixels: Annotated[int, Field(description="Height and width of the input.", ge=1)] = 224,
    classes: Annotated[int, Field(description="Classes of the head.", ge=1)] = 157,
    thesis: Annotated[bool, Field(description="Instead, every figure that the thesis prints, ours beside it.")] = False,
    form: Annotated[Literal["markdown", "csv"], Field(description="Form of that table.")] = "markdown",
) -> str:
    """Print multiply-accumulates (convolutions only, as the thesis counts, and linear layers beside) and parameters."""
    import models
    from models.cost import count, table
    from models.published import as_csv, as_markdown, published

    if thesis:
        return (as_csv if form == "csv" else as_markdown)(list(published()))
    try:
        counted = count(lambda: models.build(system, size=size, num_classes=classes), (1, 3, frames, pixels, pixels))
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from error
    title = f"{system} {size}, {frames} frames of {pixels}x{pixels}, {classes} classes"
    parts = "\n".join(f"| {name} | {macs / 1e9:.5f} |" for name, macs in counted.parts.items())
    return f"{table([(title, counted)])}\n\n| part | conv GMACs |\n|---|---|\n{parts}"
