"""Tombstones: what was taken down, so that it never comes back, without the names that it had.

``forgotten/{id}.json`` knows a source by its content; its names, its clips' digests and pieces of their bytes are
there as patterns (`storage.search`) that find them and tell nothing of them. It is written before anything is removed,
and says what a run that was killed in between has to go on with.
"""

import json
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
    patterns: list[Pattern] = field(repr=False)
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


def write(root: str, tombstone: Tombstone) -> None:
    """Writes a tombstone, or what has become of it since."""
    value = {**asdict(tombstone), "patterns": as_plain(tombstone.patterns), "reason": redact(tombstone.reason)}
    sealed = records.seal({"schema": files.SCHEMA, **value})
    files.replace(json.dumps(sealed, sort_keys=True).encode(), url(root, tombstone.id))


def read(root: str) -> list[Tombstone]:
    """All tombstones of a root. Raises `Damaged`, as without one a source could come back."""
    names = files.names(files.join(root, FOLDER), ".json")
    return list(files.at_once(lambda name: _read(files.join(root, FOLDER, name)), names))


def _read(url: str) -> Tombstone:
    found = files.read_json(url)
    if not records.fits(found):
        raise Damaged(f"{url} differs from the digest in it; restore it from a copy, or what it names may come back")
    known = {name: value for name, value in found.items() if name not in ("schema", records.DIGEST)}
    return replace(Tombstone(**known), patterns=of_plain(known["patterns"]))


def joined(one: Tombstone, other: Tombstone) -> Tombstone:
    """What two runs know of a source: the first one's reason, and of parts, versions and models all of both."""
    return replace(
        one,
        identities=sorted({*one.identities, *other.identities}),
        patterns=sorted({*one.patterns, *other.patterns}, key=lambda p: (p.kind, p.length, p.anchor)),
        parts=_later(one.parts, other.parts),
        versions=_later(one.versions, other.versions),
        models=sorted({*one.models, *other.models}),
    )


def _later(one: dict[str, str], other: dict[str, str]) -> dict[str, str]:
    """Both, of what stands in both the second where it says something."""
    return {name: other.get(name) or one.get(name, "") for name in sorted({*one, *other})}
