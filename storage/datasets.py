"""Datasets: named, versioned, frozen lists of parts. The digest of the list is the version.

A dataset may name a selection, a version of the column ``selection`` that says which clips of the parts to use.
Media and columns have all clips; whoever trains or measures asks `Dataset.kept` or `Dataset.rows`.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from storage import columns, files, records
from storage.errors import Damaged, InputError
from storage.parts import Part, as_record, from_record

SELECTION = "selection"


def kept(root: str, selection: str | None, part: Part, keys: list[str] | None = None) -> list[bool]:
    """Whether each clip of a part is to be used, in the part's order; without a selection all are.

    ``keys`` are the part's, where they are known already.
    """
    if selection is None:
        return [True] * part.samples
    try:
        return columns.read(root, SELECTION, selection, part, ["kept"], keys)["kept"].to_pylist()
    except FileNotFoundError as error:
        raise Damaged(f"part {part.id}: selection {selection} is gone; run `reelmill select` again") from error


@dataclass(frozen=True)
class Dataset:
    """A frozen list of parts with what it was made from."""

    name: str
    version: str
    parts: list[Part]
    about: dict[str, Any]
    selection: str | None = None  # version of the selection column; None: every clip

    @property
    def clips(self) -> int:
        """How many clips the parts have, selected or not."""
        return sum(part.samples for part in self.parts)

    def kept(self, root: str, part: Part) -> list[bool]:
        """Whether each clip of a part is selected, in the part's order."""
        return kept(root, self.selection, part)

    def rows(self, root: str, part: Part) -> list[dict[str, Any]]:
        """The index rows of the selected clips of a part."""
        return [row for row, used in zip(part.rows(), self.kept(root, part), strict=True) if used]

    def select(self, *, split: str | None = None, labelled: str | None = None) -> list[Part]:
        """The parts of one split and one kind of labels; each part is of one of each."""
        return [
            part
            for part in self.parts
            if (split is None or part.split == split) and (labelled is None or part.labelled == labelled)
        ]


def check_name(name: str) -> None:
    """Refuses a name of a dataset that is no name of one folder."""
    if not name or name.startswith(".") or any(c in "/\\" or not c.isprintable() for c in name):
        raise InputError(f"dataset {name!r}: a name may hold no slash, begin with no dot, and must not be empty")


def freeze(
    root: str,
    name: str,
    parts: list[Part],
    about: dict[str, Any],
    selection: str | None = None,
    *,
    move: bool = True,
    before: str | None = None,
) -> Dataset:
    """Writes the list of parts (those with clips) under its digest, then moves ``latest`` to it if asked to.

    ``before`` is the version that ``latest`` pointed to when the parts were decided on ("": none; None: as it is now).
    Where another writer has moved it since, its dataset is returned, to go on with.
    """
    check_name(name)
    current = latest(root, name)
    _readable(root, name, current)
    if move and before is None:
        before = current
    filled = sorted((p for p in parts if p.samples), key=lambda p: p.id)
    listing = {"schema": files.SCHEMA, "name": name, "parts": [as_record(p) for p in filled], "about": about}
    if selection is not None:
        listing["selection"] = selection
    version = _version(listing)
    url = files.join(root, "datasets", name, f"{version}.json")
    sealed = json.dumps(records.seal(listing), sort_keys=True, indent=1).encode()
    files.publish_bytes(sealed, url, same=False)
    if move:
        pointer = files.join(root, "datasets", name, "latest.json")
        held = files.point({"version": version}, pointer, {"version": before} if before else None)["version"]
        if held != version:
            return load(root, name, held)
        if not files.exists(url):  # a version that was there before may have been let go at that moment
            files.publish_bytes(sealed, url, same=False)
    return Dataset(name, version, filled, about, selection)


def _version(listing: dict[str, Any]) -> str:
    """The digest of the parts and the selection: these make the dataset, however they came about."""
    chosen = [listing["selection"]] if listing.get("selection") else []
    return files.digest_of([listing["schema"], listing["name"], listing["parts"], *chosen])[:16]


def latest(root: str, name: str) -> str:
    """The version that ``latest`` points to; empty where there is none."""
    try:
        return str(files.read_json(files.join(root, "datasets", name, "latest.json"))["version"])
    except FileNotFoundError:
        return ""


def _readable(root: str, name: str, version: str) -> None:
    """Raises `NewerSchema` where a later Reelmill wrote the version: its list must not be replaced by ours."""
    with suppress(FileNotFoundError, Damaged):  # which `verify` says and another run mends
        listing = files.read_json(files.join(root, "datasets", name, f"{version}.json")) if version else None
        if isinstance(listing, dict) and records.fits(listing):
            files.check_schema(f"{root}: dataset {name} {version}", listing)


def load(root: str, name: str, version: str = "latest") -> Dataset:
    """Reads a dataset; the default is the version that ``latest`` points to."""
    check_name(name)
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
    return parse(root, name, version, listing)


def parse(root: str, name: str, version: str, listing: Any) -> Dataset:
    """The dataset of a list that was read. Raises `InputError` where its digest is not the version."""
    files.check_schema(f"{root}: dataset {name} {version}", listing)
    if _version(listing) != version:
        raise InputError(f"dataset {name} {version}: the list under {root} was altered; prepare it again")
    parts = [from_record(root, record) for record in listing["parts"]]
    return Dataset(name, version, parts, listing["about"], listing.get("selection"))


def names(root: str) -> list[str]:
    """The names of the datasets under a root."""
    return files.names(files.join(root, "datasets"))
