"""Tombstones: what was taken down, so that it never comes back, without the names that it had.

``forgotten/{id}.json`` knows a source by its content, and says what a run that was killed in between has to go on with.
``forgotten/{id}-patterns.json`` has its names, its clips' digests and pieces of their bytes as patterns
(`storage.search`) that find them and tell nothing of them. Both are written before anything is removed.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from storage import files, records
from storage.errors import Damaged
from storage.search import Pattern, as_plain, of_plain
from storage.secrets import redact
from storage.sources import exact

FOLDER = "forgotten"
TAG = "forgotten_sources"  # of model versions and runs that were trained on one
REASON = "forgotten"  # in the ledger
PATTERNS = "-patterns.json"


@dataclass(frozen=True)
class Tombstone:
    """A source that was taken down. ``parts`` are the parts that had it, with those that took their place, or "".

    ``versions`` are the dataset versions that had it, as name@version, with those that followed; ``models`` those that
    were trained on it, as name/version; ``proved`` what the last search went through, when nothing was found.
    """

    identities: list[str]
    contents: list[str]
    reason: str
    when: str
    who: str
    parts: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    models: list[str] = field(default_factory=list)
    proved: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Follows from the content alone."""
        return files.digest_of([sorted({one[:32] for one in self.identities}), sorted(self.contents)])[:16]

    def is_of(self, identity: str, size: int, content: str) -> bool | None:
        """Whether a file of this fingerprint and size is it; None where its whole content has to be asked for."""
        if identity[:32] not in {one[:32] for one in self.identities}:
            return False
        if exact(size) or not self.contents:
            return True
        return content in self.contents if content else None


def url(root: str, id: str) -> str:
    return files.join(root, FOLDER, f"{id}.json")


def write(root: str, stone: Tombstone) -> None:
    """Writes a tombstone, or what has become of it since."""
    value = {"schema": files.SCHEMA, **asdict(stone), "reason": redact(stone.reason)}
    files.replace_json(records.seal(value), url(root, stone.id))


def read(root: str) -> list[Tombstone]:
    """All tombstones of a root. Raises `Damaged`, as without one a source could come back."""
    names = [name for name in files.names(files.join(root, FOLDER), ".json") if not name.endswith(PATTERNS)]
    return list(files.at_once(lambda name: _read(files.join(root, FOLDER, name)), names))


def _read(url: str) -> Tombstone:
    return Tombstone(**{name: value for name, value in _sealed(url).items() if name != "schema"})


def _sealed(url: str) -> dict[str, Any]:
    found = files.read_json(url)
    if not records.fits(found):
        raise Damaged(f"{url} differs from the digest in it; restore it from a copy, or what it names may come back")
    return {name: value for name, value in found.items() if name != records.DIGEST}


def keep(root: str, stone: Tombstone, patterns: Iterable[Pattern]) -> set[Pattern]:
    """Keeps the patterns of a source beside its tombstone, with those that are there; returns all."""
    both = {*patterns, *known(root, stone)}
    value = {"schema": files.SCHEMA, "patterns": as_plain(both)}
    files.replace(json.dumps(records.seal(value), sort_keys=True).encode(), _patterns_url(root, stone))
    return both


def known(root: str, stone: Tombstone) -> list[Pattern]:
    """The patterns of a source, as far as a run has kept them."""
    try:
        return of_plain(_sealed(_patterns_url(root, stone))["patterns"])
    except FileNotFoundError:
        return []


def _patterns_url(root: str, stone: Tombstone) -> str:
    return files.join(root, FOLDER, f"{stone.id}{PATTERNS}")


def successors(stones: Iterable[Tombstone]) -> dict[str, str]:
    """By which part a part that had a source is replaced now; "" where nothing is left of it."""
    steps = {old: new for stone in stones for old, new in stone.parts.items()}
    return {old: _last(old, steps) for old in steps}


def followers(stones: Iterable[Tombstone]) -> dict[str, str]:
    """Which version of a dataset follows on one that had a source, by name@version."""
    steps = {old: f"{old.partition('@')[0]}@{new}" for stone in stones for old, new in stone.versions.items() if new}
    return {old: _last(old, steps).partition("@")[2] for old in steps}


def _last(name: str, steps: dict[str, str]) -> str:
    seen = set()
    while name in steps and name not in seen:
        seen.add(name)
        name = steps[name]
    return name


def joined(one: Tombstone, other: Tombstone) -> Tombstone:
    """What two runs know of a source: the first one's reason, and of parts, versions and models all of both."""
    return replace(
        one,
        identities=sorted({*one.identities, *other.identities}),
        parts=_later(one.parts, other.parts),
        versions=_later(one.versions, other.versions),
        models=sorted({*one.models, *other.models}),
    )


def _later(one: dict[str, str], other: dict[str, str]) -> dict[str, str]:
    """Both, of what stands in both the second where it says something."""
    return {name: other.get(name) or one.get(name, "") for name in sorted({*one, *other})}
