"""Bytes and records on any fsspec URL. Knows nothing of Prefect, MLflow or models."""

from typing import Any

__all__ = ["Part"]


def __getattr__(name: str) -> Any:
    # On demand: the decoder child imports this package too, and has no use for Arrow.
    if name == "Part":
        from storage.parts import Part

        return Part
    raise AttributeError(name)
