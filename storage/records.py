"""JSON documents with a digest of themselves, and whether their bytes are still those that were written."""

import json
from typing import Any

from storage import files

DIGEST = "sha256"


def seal(value: dict[str, Any]) -> dict[str, Any]:
    """The document with the digest of all else in it."""
    return {**value, DIGEST: files.digest_of(value)}


def fits(value: Any) -> bool:
    """Whether a document agrees with its digest; one without a digest is taken as it is."""
    if not isinstance(value, dict) or DIGEST not in value:
        return True
    return files.digest_of({key: entry for key, entry in value.items() if key != DIGEST}) == value[DIGEST]


def as_written(data: bytes) -> bool:
    """Whether the bytes are JSON in one of the forms that Reelmill writes, to the last space."""
    value = json.loads(data)
    forms: list[dict[str, Any]] = [{"indent": 1}, {}, {"separators": (",", ":")}, {"indent": 2}]
    return any(data == json.dumps(value, sort_keys=keys, **form).encode() for form in forms for keys in (True, False))
