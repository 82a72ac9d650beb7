"""The registry of models in MLflow: versions, the alias ``champion``, the gate's decisions and a person's word."""

import contextlib
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from storage import tombstones
from storage.secrets import redact
from tasks import tracking

CHAMPION = "champion"
# Tags of a version: when it got the alias; when and why a person took it; the gate's decision in full and in a word.
SINCE, ROLLED_BACK, DECISION = "champion_since", "rolled_back", ("gate", "gate_decision")
NO_ALIAS = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow's answers where there is none


def register(root: str, name: str, uri: str, run: str, tags: dict[str, str]) -> int:
    """Registers a model as the next version under a name; one that is registered already keeps its version."""
    c = tracking.client(root)
    with contextlib.suppress(tracking.MlflowException):
        c.create_registered_model(name, description="Reelmill detector; see the tags of each version")
    for version, known in versions(root, name).items():
        if known.get("checkpoint_digest") == tags["checkpoint_digest"]:
            return version
    return int(c.create_model_version(name, source=uri, run_id=run, tags=tracking.redacted(tags)).version)


@dataclass(frozen=True)
class ModelVersion:
    """A registered version as the other tasks need it."""

    name: str
    version: int
    run: str
    tags: dict[str, str]

    @property
    def checkpoint(self) -> str:
        return self.tags["checkpoint"]

    @property
    def taken_down(self) -> str:
        """The tombstones of sources that it was trained on, with commas between them."""
        return self.tags.get(tombstones.TAG, "")


def champion(root: str, name: str, alias: str = CHAMPION) -> ModelVersion | None:
    """The version that carries the alias ``champion``, or another one, if there is one."""
    try:
        found = tracking.client(root).get_model_version_by_alias(name, alias)
    except tracking.MlflowException as error:
        if error.error_code not in NO_ALIAS:  # a server that fails has not said that there is none
            raise
        return None
    return ModelVersion(name, int(found.version), found.run_id or "", dict(found.tags))


def promote(root: str, name: str, version: int) -> Callable[[], None]:
    """Moves the alias ``champion`` to a version; returns what takes that and the gate's decision on it back."""
    c = tracking.client(root)
    before, tags = champion(root, name), versions(root, name)[version]
    moves = before is None or before.version != version
    if moves:
        c.set_model_version_tag(name, str(version), SINCE, datetime.now(UTC).isoformat(timespec="microseconds"))
        c.set_registered_model_alias(name, CHAMPION, str(version))

    def back() -> None:
        if before is None:
            c.delete_registered_model_alias(name, CHAMPION)
        elif moves:
            c.set_registered_model_alias(name, CHAMPION, str(before.version))
        for tag_name in (SINCE, *DECISION):
            if tag_name in tags:
                c.set_model_version_tag(name, str(version), tag_name, tags[tag_name])
            else:
                c.delete_model_version_tag(name, str(version), tag_name)

    return back


def registered(root: str) -> list[ModelVersion]:
    """Every version of every model, in order of name and version."""
    c = tracking.client(root)
    names = sorted(model.name for model in tracking.every(c.search_registered_models))
    found = [version for name in names for version in tracking.every(functools.partial(_versions_of, c, name))]
    made = [ModelVersion(v.name, int(v.version), v.run_id or "", dict(v.tags)) for v in found]
    return sorted(made, key=lambda one: (one.name, one.version))


def _versions_of(c: tracking.MlflowClient, name: str, page_token: str | None = None) -> Any:
    return c.search_model_versions(f"name = '{name}'", page_token=page_token)


def reigns(root: str, name: str) -> list[int]:
    """The versions that have been champion, the last to become it first."""
    since = {version: tags[SINCE] for version, tags in versions(root, name).items() if SINCE in tags}
    return sorted(since, key=lambda version: (since[version], version), reverse=True)


def versions(root: str, name: str) -> dict[int, dict[str, str]]:
    """The tags of every version of a model, the oldest first."""
    found = tracking.client(root).search_model_versions(f"name = '{name}'")
    return dict(sorted((int(v.version), dict(v.tags)) for v in found))


def add_to_tag(root: str, name: str, version: int, tag_name: str, value: str) -> None:
    """Adds a value to those, with commas between them, that a tag of a version has; it is there once."""
    c = tracking.client(root)
    had = c.get_model_version(name, str(version)).tags.get(tag_name, "")
    if value not in had.split(","):
        c.set_model_version_tag(name, str(version), tag_name, f"{had},{value}".strip(","))


def rolled_back(root: str, name: str, version: int) -> str | None:
    """When and why a person took the alias from a version, if one did and nobody gave it back."""
    return tracking.client(root).get_model_version(name, str(version)).tags.get(ROLLED_BACK)


def roll_back(root: str, name: str, version: int, to: int, why: str) -> None:
    """Moves the alias from a version to another by a person's word, and keeps that word."""
    c = tracking.client(root)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    c.set_model_version_tag(name, str(version), ROLLED_BACK, redact(f"{now} {why}".strip()))
    if rolled_back(root, name, to):
        c.delete_model_version_tag(name, str(to), ROLLED_BACK)
    promote(root, name, to)


def stands(decision: dict[str, Any], champion: ModelVersion | None) -> bool:
    """Whether a decision is one on the champion as it is: of one that has to go since, less is asked of challengers."""
    due = champion.taken_down if champion and champion.version != decision["version"] else ""
    return due in ("", decision.get("taken_down"))


def decide(root: str, name: str, version: int, decision: dict[str, Any]) -> None:
    """Keeps the gate's decision, with every number, on the version that it was about."""
    c = tracking.client(root)
    for tag_name, value in zip(DECISION, (redact(json.dumps(decision)), decision["decision"]), strict=True):
        c.set_model_version_tag(name, str(version), tag_name, value)


def decided(root: str, name: str, version: int) -> dict[str, Any] | None:
    """The gate's decision on a version, if it was judged before."""
    kept = tracking.client(root).get_model_version(name, str(version)).tags.get(DECISION[0])
    return json.loads(kept) if kept else None
