"""Checkpoints: ``checkpoints/{run}/step_{n}/`` with weights, optimiser state and, last, a manifest with digests.

A step whose manifest is missing is not there. Weights are safetensors, the rest is read with ``weights_only``:
nothing is unpickled.
"""

import io
from dataclasses import dataclass
from typing import Any

from storage import files, records
from storage.errors import Damaged

WEIGHTS, STATE, MANIFEST = "weights.safetensors", "state.pt", "manifest.json"
MEND = "remove the folder to train on from before"


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


def place(root: str, run: str, step: int) -> str:
    """Where the checkpoint of a step is."""
    return files.join(folder(root, run), f"step_{step:08d}")


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

    url = place(root, run, step)
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
    """Reads the manifest of a checkpoint; raises `Damaged` where it is none."""
    manifest = _manifest(url)
    return Checkpoint(url, manifest["step"], manifest["final"], manifest["digests"][WEIGHTS], manifest["about"])


def _manifest(url: str) -> dict[str, Any]:
    return checked(url, files.read_json(files.join(url, MANIFEST)))


def checked(url: str, manifest: Any) -> dict[str, Any]:
    """The manifest of a checkpoint, given as it was read. Raises `Damaged`, or `RootError` for another schema."""
    files.check_schema(url, manifest)
    digests = manifest.get("digests")
    if not records.fits(manifest) or not {"step", "final", "about"} <= manifest.keys() or not isinstance(digests, dict):
        raise Damaged(f"checkpoint {url}: {MANIFEST} is not as it was written; {MEND}")
    return manifest


def load_weights(url: str, like: dict[str, Any] | None = None, free: str | None = None) -> dict[str, Any]:
    """The state dict of a checkpoint, checked against its digest.

    Raises `Damaged` where a tensor is not finite, and with ``like``, the state dict of the model that they are for,
    where names or shapes differ; tensors whose names begin with ``free`` may have other shapes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = _read(url, WEIGHTS)
    try:
        weights = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise Damaged(f"checkpoint {url}: {WEIGHTS} is not safetensors ({error}); {MEND}") from error
    return fitting(weights, url, WEIGHTS, like, free)


def fitting(
    weights: dict[str, Any], url: str, name: str, like: dict[str, Any] | None = None, free: str | None = None
) -> dict[str, Any]:
    """Weights as they were read from an object of a checkpoint; raises `Damaged` as `load_weights` says."""
    if flaws := _flaws(weights, like, free):
        raise Damaged(f"checkpoint {url}: {name}: {'; '.join(flaws)}; {MEND}")
    return weights


def _flaws(weights: dict[str, Any], like: dict[str, Any] | None, free: str | None) -> list[str]:
    wanted = weights if like is None else like
    found = {
        "no": sorted(wanted.keys() - weights.keys()),
        "unknown": sorted(weights.keys() - wanted.keys()),
        "another shape of": sorted(
            name
            for name in weights.keys() & wanted.keys()
            if weights[name].shape != wanted[name].shape and not (free and name.startswith(free))
        ),
        "values that are not finite in": sorted(
            name for name, tensor in weights.items() if tensor.is_floating_point() and not tensor.isfinite().all()
        ),
    }
    return [f"{what} {', '.join(names[:3])} ({len(names)} in all)" for what, names in found.items() if names]


def load_state(url: str) -> dict[str, Any]:
    """Optimiser state and step of a checkpoint, checked against its digest; raises `Damaged` where it is no such."""
    import torch

    data = _read(url, STATE)
    try:
        state = torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:  # a pickle that wants more than tensors, a zip that is none: torch raises many kinds
        raise Damaged(f"checkpoint {url}: {STATE} holds no plain tensors ({type(error).__name__}); {MEND}") from error
    if not isinstance(state, dict):
        raise Damaged(f"checkpoint {url}: {STATE} holds a {type(state).__name__}; {MEND}")
    return state


def _read(url: str, name: str) -> bytes:
    data = files.read(files.join(url, name))
    if files.digest(data) != _manifest(url)["digests"].get(name):
        raise Damaged(f"checkpoint {url}: {name} differs from its manifest; {MEND}")
    return data


def prune(root: str, run: str, keep: int = 2) -> None:
    """Removes all but the newest ``keep`` complete checkpoints of a run (0: all), manifests first."""
    done = [n for n in files.names(folder(root, run)) if files.exists(files.join(folder(root, run), n, MANIFEST))]
    for name in done[: max(0, len(done) - keep)]:
        for item in (MANIFEST, STATE, WEIGHTS):
            files.remove(files.join(folder(root, run), name, item))
