"""Descriptions of parameters, once: beside their types, for the command line and for Prefect's forms alike."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

Function = TypeVar("Function", bound=Callable[..., Any])
HEADING = "\n\nArgs:\n"


def explained(function: Function) -> Function:
    """Appends the descriptions in a signature to the docstring, where Prefect's forms take them from."""
    hints = get_type_hints(function, include_extras=True)
    lines = [f"    {name}: {description(hint)}" for name, hint in hints.items() if description(hint)]
    function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}{HEADING}" + "\n".join(lines)
    return function


def description(hint: Any) -> str:
    """The description in ``Annotated[type, Field(description=…)]``; empty where there is none."""
    notes = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((note.description for note in notes if getattr(note, "description", None)), "")
