"""Give the alias ``champion`` back to an earlier version, by a person's word."""

from typing import Annotated

from prefect.settings import get_current_settings
from pydantic import Field

from storage import files, tombstones
from storage.errors import InputError
from tasks import registry
from tasks.gate import PROMOTED, announce


def rollback(
    root: Annotated[str, Field(description="Folder or URL of the root.")],
    model: Annotated[str, Field(description="Name in the model registry.")] = "detector",
    to: Annotated[int | None, Field(description="Version; none: the champion before this one.", ge=1)] = None,
    why: Annotated[str, Field(description="Kept with the version that loses the alias.")] = "",
) -> str:
    """Move the alias champion back. What was rolled back is not promoted again until it is rolled back to.

    Passed over are versions that were trained on a source that was taken down, unless --to names one.
    """
    root = files.existing_root(root)
    now = registry.champion(root, model)
    if now is None:
        raise InputError(f"no model {model!r} has the alias champion, so there is nothing to roll back")
    known = registry.versions(root, model)
    passed_over = {registry.ROLLED_BACK, tombstones.TAG}  # by a person, or for what it was trained on
    earlier = [
        version
        for version in registry.reigns(root, model)
        if version != now.version and not passed_over & known[version].keys()
    ]
    if to is None and not earlier:
        raise InputError(f"{model} version {now.version} has no champion before it to go back to; name one with --to")
    goal = earlier[0] if to is None else to
    if goal not in known:
        raise InputError(f"{model} has no version {goal}; it has {', '.join(map(str, known))}")
    if goal == now.version:
        raise InputError(f"{model} version {goal} is the champion")
    registry.roll_back(root, model, now.version, goal, why)
    dataset = known[goal].get("dataset", "").partition("@")[0]
    if get_current_settings().api.url:  # without a server nobody listens, and one would be started to be told
        announce(
            PROMOTED, model, {"root": root, "dataset": dataset, "version": goal, "decision": "promoted", "why": why}
        )
    return f"{model}: champion is version {goal} again, after version {now.version}"
