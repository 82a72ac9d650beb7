"""Features of a trained X3D as a version of the feature column: what temporal heads are trained on without video.

Source: thesis 001, Tables 3.2, 4.1 and 4.3, whose temporal heads stand on the backbones' last maps.
"""

from functools import lru_cache
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from storage import checkpoints, columns, datasets, files
from storage.carry import Before
from storage.checkpoints import Checkpoint
from storage.datasets import Dataset
from storage.errors import InputError
from storage.ledger import Report
from storage.parts import Part
from tasks import registry
from tasks.extract import Embedded, Rows, commit, everywhere
from tasks.scorer import frame_logits, load, takes
from tasks.training.loader import decode
from tasks.training.videos import FEATURES


class Backbone(nn.Module):
    """An X3D up to conv5: the mean of its cells, `[B, T, D]`, in place of logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, video: Tensor) -> dict[str, Tensor]:
        """Return `logits` [B, T, D] of a normalised video [B, 3, T, H, W]."""
        return {"logits": self.model.features(video)["conv5"].mean((3, 4)).transpose(1, 2)}


@lru_cache(maxsize=2)
def backbone(url: str) -> Backbone:
    """The backbone of a checkpoint. Raises `InputError` where it is no X3D."""
    about = checkpoints.describe(url).about
    if about["system"] != "x3d":
        raise InputError(f"{url} is a {about['system']}: features are taken from an x3d")
    return Backbone(load(url)).eval()


def version(checkpoint: Checkpoint) -> str:
    """The version of the column: the weights and the map that is taken."""
    return f"x3d-{checkpoint.digest[:12]}-conv5"


def extract_part(part: Part, *, root: str, checkpoint: str, before: Before | None = None) -> Report:
    """Commits the column of one part: a vector for every frame that the system sees; see `extract.extract_part`."""
    found = checkpoints.describe(checkpoint)
    spec = found.about["spec"]

    def embed(rows: Rows) -> Embedded:
        times, vectors = [], []
        for row in rows:
            clip = decode(part, row, spec["fps"], spec["size"])
            vectors.append(frame_logits(backbone(checkpoint), clip.frames, spec["frames"]).numpy())
            times.append(clip.sampled)
        return times, vectors

    about = {"checkpoint": checkpoint, "weights": found.digest, "map": "conv5", "fps": spec["fps"]}
    return commit(root, version(found), part, before, embed, about)


def extract_dataset(root: str, dataset: Dataset, checkpoint: Checkpoint) -> str:
    """Extracts the parts of a dataset that lack the column; returns its version."""
    name = version(checkpoint)
    backbone(checkpoint.url)
    everywhere(root, dataset, name, extract_part, checkpoint=checkpoint.url)
    return name


def _maker(root: str, dataset: Dataset, name: str) -> Checkpoint:
    """The checkpoint whose features a version of the column holds. Raises `InputError` where no part says."""
    for part in dataset.parts:
        if columns.has(root, FEATURES, name, part.id):
            if url := columns.about(root, FEATURES, name, part).get("checkpoint"):
                return checkpoints.describe(url)
            break
    raise InputError(f"features {name} were not made by `reelmill features`; `reelmill prepare` brings them up to date")


def features(
    root: Annotated[str, Field(description="Folder or URL that `prepare` has written to.")],
    dataset: Annotated[str, Field(description="Name of the dataset.")] = "archive",
    model: Annotated[
        str,
        Field(
            description="Name in the model registry; its champion is used: an x3d, or the x3d that its features are of."
        ),
    ] = "detector",
) -> str:
    """Write a champion's backbone features as a version of the feature column, for super_events, tgm and pdan."""
    root = files.existing_root(root)
    champion = registry.champion(root, model)
    if champion is None:
        raise InputError(f"no model {model!r} has the alias champion; run `reelmill retrain --root {root}` first")
    data, found = datasets.load(root, dataset), checkpoints.describe(champion.checkpoint)
    if takes(found.about) == "features":  # its column is brought up to date, by the model that made it
        found = _maker(root, data, found.about["spec"]["features"])
    name = extract_dataset(root, data, found)
    return f"features {name}; train on them with `reelmill retrain --system tgm --features {name}`"
