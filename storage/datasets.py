"""Datasets: named, versioned, frozen lists of parts. The digest of the list is the version."""

import json
from dataclasses import dataclass
from typing import Any

from storage import files, records
from storage.errors import InputError
from storage.parts import Part, as_record, from_record


@dataclass(frozen=True)
class Dataset:
    """A frozen list of parts with what it was made from."""

    name: str
    version: str
    parts: list[Part]
    about: dict[str, Any]

    @property
    def clips(self) -> int:
        return sum(part.samples for part in self.parts)

    def select(self, *, split: str | None = None, labelled: str | None = None) -> list[Part]:
        """The parts of one split and one kind of labels; each part is of one of each."""
        return [
            part
            for part in self.parts
            if (split is None or part.split == split) and (labelled is None or part.labelled == labelled)
        ]


def freeze(root: str, name: str, parts: list[Part], about: dict[str, Any]) -> Dataset:
    """Writes the list of parts (those with clips) under its digest, then moves ``latest`` to it."""
    kept = sorted((p for p in parts if p.samples), key=lambda p: p.id)
    listing = {"schema": files.SCHEMA, "name": name, "parts": [as_record(p) for p in kept], "about": about}
    version = _version(listing)
    url = files.join(root, "datasets", name, f"{version}.json")
    files.publish_bytes(json.dumps(records.seal(listing), sort_keys=True, indent=1).encode(), url, same=False)
    files.point({"version": version}, files.join(root, "datasets", name, "latest.json"))
    return Dataset(name, version, kept, about)


def _version(listing: dict[str, Any]) -> str:
    """The digest of the parts alone: the same parts are the same dataset, however they came about."""
    return files.digest_of([listing["schema"], listing["name"], listing["parts"]])[:16]


def load(root: str, name: str, version: str = "latest") -> Dataset:
    """Reads a dataset; the default is the version that ``latest`` points to."""
    folder = files.join(root, "datasets", name)
    try:
        if version == "latest":
            version = files.read_json(files.join(folder, "latest.json"))["version"]
        listing = files.read_json(files.join(folder, f"{version}.json"))
    except FileNotFoundError as error:
        known = names(root)
        raise InputError(
            f"no dataset {name!r} ({version}) under {root}; "
            + (f"there are: {', '.join(known)}" if known else "run `reelmill prepare` first")
        ) from error
    files.check_schema(root, listing)
    if _version(listing) != version:
        raise InputError(f"dataset {name} {version}: the list under {folder} was altered; prepare it again")
    return Dataset(name, version, [from_record(root, record) for record in listing["parts"]], listing["about"])


def names(root: str) -> list[str]:
    """The names of the datasets under a root."""
    return files.names(files.join(root, "datasets"))
