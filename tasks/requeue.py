"""Ask for quarantined videos to be tried again: after a fix, with more memory, on another machine."""

from collections import Counter
from typing import Annotated

from pydantic import Field

from storage import datasets, files, ledger, plans
from storage.errors import InputError
from storage.media.limits import REASONS
from storage.plans import Member
from storage.secrets import printable
from tasks.report import say

SHOWN = 20  # items on the terminal


def quarantined(root: str, name: str) -> dict[str, tuple[Member, str]]:
    """The sources of the newest plan that are quarantined, by item, with the reason."""
    plan = plans.latest(root, name)
    if not plan:
        datasets.load(root, name)  # names those that are there
    return among(root, plans.members_of(root, name, plan)) if plan else {}  # an adopted dataset has no plan


def among(root: str, members: dict[str, list[Member]]) -> dict[str, tuple[Member, str]]:
    """Those members of parts that are quarantined, by item, with the reason."""
    found: dict[str, tuple[Member, str]] = {}
    for part, some in members.items():
        entries = {entry.item: entry for entry in ledger.read(root, "shard", part)}
        for member in some:
            entry = entries.get(member.name)
            if entry is not None and entry.verdict == "quarantined":
                found[member.name] = (member, entry.reason)
    return found


def requeue(
    root: Annotated[str, Field(description="Folder or URL that `prepare` has written to.")],
    dataset: Annotated[str, Field(description="Name of the dataset.")] = "archive",
    reason: Annotated[list[str], Field(description="Only these reasons, such as timeout or oom; none: show all.")] = [],  # noqa: B006
) -> str:
    """Ask for quarantined videos of some reasons to be tried again; the next `reelmill prepare` does.

    The verdicts there are stay in the ledger of the part that they belong to; the next run makes another part, takes
    the clips of all others from the one before, and cuts these alone.
    """
    root = files.existing_root(root)
    if strangers := sorted(set(reason) - REASONS.keys()):
        raise InputError(f"--reason {', '.join(strangers)}: no such reason; there are {', '.join(REASONS)}")
    try:
        found = quarantined(root, dataset)
    except FileNotFoundError as error:
        raise InputError(f"dataset {dataset} has not been prepared to its end; run `reelmill prepare` first") from error
    counts = Counter(why for _, why in found.values())
    if not reason:
        rows = ", ".join(f"{n} {why}" for why, n in counts.most_common()) or "nothing"
        return f"quarantined: {rows}; name some with --reason"
    chosen = {item: member for item, (member, why) in found.items() if why in reason}
    for item in sorted(chosen)[:SHOWN]:
        say(f"  again        {printable(item)}")
    plans.ask_again(root, dataset, {member.identity: member.attempt for member in chosen.values()})
    return f"{len(chosen)} videos are tried again by the next `reelmill prepare`"
