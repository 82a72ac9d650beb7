"""Checkpoints: ``checkpoints/{run}/step_{n}/`` with weights, optimiser state and, last, a manifest with digests.

A step whose manifest is missing is not there. Weights are safetensors, the rest is read with ``weights_only``:
nothing is unpickled.
"""

import io
import json
from dataclasses import dataclass
from typing import Any

from storage import files, records
from storage.errors import Damaged

WEIGHTS, STATE, MANIFEST = "weights.safetensors", "state.pt", "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint. ``about`` is the JSON that describes the model; ``digest`` is of the weights."""

    url: str
    step: int
    final: bool
    digest: str
    about: dict[str, Any]


def folder(root: str, run: str) -> str:
    return files.join(root, "checkpoints", run)


def save(
    root: str,
    run: str,
    step: int,
    weights: dict[str, Any],
    state: dict[str, Any],
    about: dict[str, Any],
    final: bool,
) -> Checkpoint:
    """Writes a checkpoint: the tensors first, the manifest with their digests last."""
    import torch
    from safetensors.torch import save as to_safetensors

    url = files.join(folder(root, run), f"step_{step:08d}")
    packed = to_safetensors({name: tensor.contiguous() for name, tensor in weights.items()})
    buffer = io.BytesIO()
    torch.save(state, buffer)
    files.replace(packed, files.join(url, WEIGHTS))
    files.replace(buffer.getvalue(), files.join(url, STATE))
    manifest: dict[str, Any] = {
        "schema": files.SCHEMA,
        "step": step,
        "final": final,
        "about": about,
        "digests": {WEIGHTS: files.digest(packed), STATE: files.digest(buffer.getvalue())},
    }
    files.replace_json(records.seal(manifest), files.join(url, MANIFEST))
    return Checkpoint(url, step, final, manifest["digests"][WEIGHTS], about)


def find(root: str, run: str) -> Checkpoint | None:
    """The newest complete checkpoint of a run."""
    for name in reversed(files.names(folder(root, run))):
        url = files.join(folder(root, run), name)
        if files.exists(files.join(url, MANIFEST)):
            return describe(url)
    return None


def describe(url: str) -> Checkpoint:
    """Reads the manifest of a checkpoint."""
    manifest = files.read_json(files.join(url, MANIFEST))
    files.check_schema(url, manifest)
    return Checkpoint(url, manifest["step"], manifest["final"], manifest["digests"][WEIGHTS], manifest["about"])


def load_weights(url: str) -> dict[str, Any]:
    """The state dict of a checkpoint, checked against its digest."""
    from safetensors.torch import load

    return load(_read(url, WEIGHTS))


def load_state(url: str) -> dict[str, Any]:
    """Optimiser state and step of a checkpoint, checked against its digest."""
    import torch

    return torch.load(io.BytesIO(_read(url, STATE)), weights_only=True)


def _read(url: str, name: str) -> bytes:
    data = files.read(files.join(url, name))
    if files.digest(data) != json.loads(files.read(files.join(url, MANIFEST)))["digests"][name]:
        raise Damaged(f"checkpoint {url}: {name} differs from its manifest; remove the folder to train on from before")
    return data


def prune(root: str, run: str, keep: int = 2) -> None:
    """Removes all but the newest ``keep`` complete checkpoints of a run (0: all), manifests first."""
    done = [n for n in files.names(folder(root, run)) if files.exists(files.join(folder(root, run), n, MANIFEST))]
    for name in done[: max(0, len(done) - keep)]:
        for item in (MANIFEST, STATE, WEIGHTS):
            files.remove(files.join(folder(root, run), name, item))
