"""Take a source down: it never comes back, nothing of it stays below the root, and a search of every byte proves that.

A tombstone is written first, then what replaces the parts that had the source, then the lists move on, and only then
anything is removed. Each step looks at the store and does what is missing, so a run that was killed is run again.
"""

import getpass
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Annotated, Literal

from prefect.settings import get_current_settings
from pydantic import Field

from storage import datasets, files, forgetting, inventory, parts, plans, tables, tombstones, without
from storage.datasets import Dataset
from storage.errors import Conflict, Damaged
from storage.forgetting import Gone
from storage.lineage import Sought
from storage.search import Pattern, Search
from storage.tombstones import Tombstone
from tasks.lineage import ancestry, proof, scope
from tasks.lineage.scope import Scope
from tasks.report import say

EVENT = "reelmill.source.forgotten"


@dataclass
class Takedown:
    """What one call takes down, and what that touches: parts with the keys of the clips that go, and replacements."""

    scope: Scope
    instead: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stones, self.touched = self.scope.stones, self.scope.touched

    @property
    def patterns(self) -> list[Pattern]:
        """What the sources are found by, in what is left."""
        return [one for stone in self.stones for one in self.scope.patterns[stone.id]]

    @property
    def identities(self) -> set[str]:
        return {identity for stone in self.stones for identity in stone.identities}


def forget(
    sources: Annotated[list[str], Field(description="Paths, URLs, identities or content ids of sources.")],
    root: Annotated[str, Field(description="Folder or URL that `prepare` has written to.")],
    dry_run: Annotated[bool, Field(description="Only say what would be done.")] = False,
    reason: Annotated[str, Field(description="Why, kept with the tombstone; name nobody here.")] = "",
    search: Annotated[
        Literal["all", "indexes"],
        Field(description="Read every byte; or pass over tars that an index of other sources vouches for."),
    ] = "all",
) -> str:
    """Take sources down for good: from parts, columns, plans, ledgers, pictures and predictions.

    SOURCES are paths or URLs, identities or content ids. They are never taken in again under any name. Checkpoints
    stay; the models trained on a source are tagged. At the end everything below the root is searched for what is left
    of them, and the exit code is 1 where anything is. A run that was killed is completed by running it again.
    """
    root = files.existing_root(root)
    found = scope.find(root, sources, reason, datetime.now(UTC).isoformat(timespec="seconds"), _who())
    down = Takedown(found)
    down.instead = _instead(root, down)
    lists = {f"{name}@{version}": "" for _, name, version in _lists(root, down)}
    models = {stone.id: _trained(root, found.of[stone.id]) for stone in down.stones}
    named = ", ".join(sorted({name for some in models.values() for name in some})) or "none"
    say(f"  sources      {len(down.stones)}: {len(found.clips.keys)} clips in {len(down.touched)} parts, "
        f"{len(lists)} versions of datasets, models {named}")  # fmt: skip
    if dry_run:
        return "nothing was changed; run again without --dry-run"
    down.stones = [replace(one, parts={**one.parts, **_known(down, one)},
                           versions={**dict.fromkeys(lists, ""), **one.versions},
                           models=sorted({*one.models, *models[one.id]})) for one in down.stones]  # fmt: skip
    for stone in down.stones:
        found.patterns[stone.id] = tombstones.keep(root, stone, found.patterns[stone.id])
    _keep(root, down)
    _parts(root, down)
    _datasets(root, down)
    _models(root, down)
    gone = _remove(root, down)
    say(f"  removed      {gone} objects; {len(down.instead)} parts made anew")
    told = _tell(root, down)
    return _prove(root, down, search == "all") + told


def _trained(root: str, found: Sought) -> set[str]:
    """The models that were trained on a source, as name/version."""
    return {f"{use.model.name}/{use.model.version}" for use in ancestry.trained_on(root, found.by_part())}


def _who() -> str:
    """Who asked, as the system knows them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _keep(root: str, down: Takedown) -> None:
    for stone in down.stones:
        tombstones.write(root, stone)


def _known(down: Takedown, stone: Tombstone) -> dict[str, str]:
    """What takes the place of the parts that had something of one source."""
    return {id: down.instead.get(id) or stone.parts.get(id, "") for id in down.touched}


def _lists(root: str, down: Takedown) -> list[tuple[inventory.Item, str, str]]:
    return list(forgetting.versions(root, list(inventory.walk(root)), _ids(down)))


def _ids(down: Takedown) -> set[str]:
    """The ids of all parts that had something of the sources, in this run or in one before."""
    return {*down.touched, *(id for stone in down.stones for id in stone.parts)}


def _latest(root: str) -> Iterable[Dataset]:
    """The newest version of every dataset that has one."""
    for name in datasets.names(root):
        if datasets.latest(root, name):
            yield datasets.load(root, name)


def _instead(root: str, down: Takedown) -> dict[str, str]:
    """The id of the part that takes the place of each touched one that a plan or a newest dataset needs."""
    ids: dict[str, str] = {}
    for name in files.names(files.join(root, "plans")):
        if plan := plans.latest(root, name):
            table, about = tables.both(plans.url(root, name, plan))
            ids |= without.plan(table, about["recipe"], down.identities)[1]
    known = {id: new for stone in down.stones for id, new in stone.parts.items() if new}
    for data in _latest(root):
        for part in data.parts:
            if part.id in down.touched and part.id not in ids:
                ids[part.id] = known.get(part.id) or without.fallback(part.id, down.touched[part.id])
    return ids


def _parts(root: str, down: Takedown) -> None:
    """Makes the parts that take the place of others, then the plans that name them."""
    for id, new in sorted(down.instead.items()):
        found = without.sound(root, id)
        if found is None or not new:
            continue  # it was never committed, or nothing is left of it
        made = without.make(
            root, found[0], new, set(down.touched.get(id, ())), without.accounts(root, id, down.scope.names)
        )
        down.instead[id] = made.id
    down.stones = [replace(one, parts={**one.parts, **_known(down, one)}) for one in down.stones]
    _keep(root, down)
    for name in files.names(files.join(root, "plans")):
        if plans.latest(root, name):
            without.replan(root, name, down.identities)


def _datasets(root: str, down: Takedown) -> None:
    """Moves every newest dataset that has a touched part on to one without."""
    from tasks import duplicates, select, thresholds

    known = {id: new for stone in down.stones for id, new in stone.parts.items()} | down.instead
    for data in _latest(root):
        if not _ids(down) & {part.id for part in data.parts}:
            continue
        kept = [part for part in data.parts if part.id not in _ids(down)]
        made = [parts.find(root, known[part.id]) for part in data.parts if known.get(part.id)]
        kept += [part for part in made if part is not None]
        about = {key: value for key, value in data.about.items() if key != "before"}
        after = Dataset(data.name, "", kept, about, None)
        scored = duplicates.scores.version()
        if duplicates.read_pairs(root, data) is not None:
            duplicates.find_duplicates(root, after, scored)
        if data.selection and kept:
            wanted = thresholds.Thresholds(**data.about["thresholds"])
            after, _ = select.select_dataset(root, after, data.about["scores"], wanted, before=data.version)
        else:
            after = datasets.freeze(root, data.name, kept, about, before=data.version)
        if _ids(down) & {part.id for part in after.parts}:
            raise Conflict(f"dataset {data.name} has moved on meanwhile; run again, nothing is lost")
        say(f"  dataset      {data.name} {data.version} → {after.version}: {after.clips} clips in {len(kept)} parts")
        down.stones = [replace(one, versions=_followed(one.versions, after)) for one in down.stones]


def _followed(versions: dict[str, str], after: Dataset) -> dict[str, str]:
    """The versions of a dataset that had a source, with the one that follows where none did yet."""
    return {old: new or (after.version if old.partition("@")[0] == after.name else "") for old, new in versions.items()}


def _models(root: str, down: Takedown) -> None:
    """Tags the models that were trained on a source, and lets pictures of the datasets concerned go from MLflow."""
    _keep(root, down)
    if not ancestry.tracked(root):
        return
    from tasks import registry, tracking

    for stone in down.stones:
        for model in stone.models:
            name, _, version = model.rpartition("/")
            registry.add_to_tag(root, name, int(version), tombstones.TAG, stone.id)
        for version in stone.versions:
            tracking.remove_pictures(root, version)


def _gone(down: Takedown) -> Gone:
    clips = down.scope.clips
    held_out = "heldout" in clips.clips["split"].to_pylist()
    if not len(clips.clips):  # a run before has removed them, and if it did not get to its end, perhaps no picture
        held_out = not all(stone.proved for stone in down.stones)
    word = f"forgotten source {down.stones[0].id}" if len(down.stones) == 1 else "forgotten source"
    split = [version.rpartition("@") for stone in down.stones for version in stone.versions]
    old = {(name, version) for name, _, version in split}
    return Gone(_ids(down), set(clips.keys), down.identities, Search(down.patterns), word, old, held_out)


def _remove(root: str, down: Takedown) -> int:
    """Removes what had something of the sources, and takes their names out of what stays; how many objects went."""
    gone = _gone(down)
    names = forgetting.removals(root, list(inventory.walk(root)), gone)
    for name in names:
        files.remove(files.join(root, name))
    for upload in inventory.uploads(root):
        if upload.name.startswith("parts/") and upload.name[6:22] in gone.parts:
            inventory.abort(root, upload)
    forgetting.rewrite(root, inventory.walk(root), gone)
    return len(names)


def _tell(root: str, down: Takedown) -> str:
    """Asks for models without the sources: by an event where there is a Prefect server, else in words.

    Asked for are successors of champions that were trained on one, again each time until they are there.
    """
    due = _due(root, down)
    if not due:
        return ""
    models = ", ".join(sorted(due))
    if not get_current_settings().api.url:  # without a server nobody listens, and one would be started to be told
        commands = [f"`reelmill retrain --root {root} --dataset {data.name} --model {model}`"
                    for model, data in sorted(due.items())]  # fmt: skip
        return f"; models {models} were trained on it: run {' and '.join(commands)}"
    from prefect.events import emit_event

    for model, data in sorted(due.items()):
        resource = {"prefect.resource.id": f"reelmill.dataset.{data.name}", "prefect.resource.name": data.name}
        payload = {"root": root, "dataset": data.name, "model": model, "version": data.version}
        emit_event(EVENT, resource=resource, payload=payload)
    return f"; {EVENT} was emitted for {models}, which starts the deployments that wait for it"


def _due(root: str, down: Takedown) -> dict[str, Dataset]:
    """The models of which the champion was trained on one of the sources, with the dataset to train the next one on."""
    named = sorted({model.rpartition("/")[0] for stone in down.stones for model in stone.models})
    if not named:
        return {}
    from tasks import registry

    due = {}
    for name in named:
        champion, stones = registry.champion(root, name), {stone.id for stone in down.stones}
        if champion is None or not stones & set(champion.taken_down.split(",")):
            continue
        dataset = champion.tags.get("dataset", "").partition("@")[0]
        if dataset and datasets.latest(root, dataset):
            due[name] = datasets.load(root, dataset)
    return due


def _prove(root: str, down: Takedown, media: bool) -> str:
    """Searches the root; raises `Damaged` that names what was found."""
    found = proof.look(root, Search(down.patterns), media)
    assert found.found is not None
    if found.found:
        for name, what in sorted(found.found.items())[:200]:
            whose = "" if proof.is_ours(name) else ", which Reelmill did not write and leaves alone"
            say(f"  still there  {name}: {what}{whose}")
        first = min(found.found)
        others = [name for name in found.found if not proof.is_ours(name)]
        more = f"; {len(others)} of them were not written by Reelmill: remove them and run again" if others else ""
        raise Damaged(
            f"{len(found.found)} objects still have something, the first: {first}: {found.found[first]}{more}"
        )
    when = datetime.now(UTC).isoformat(timespec="seconds")
    facts = {"objects": found.objects, "bytes": found.bytes, "tars_by_index": found.passed, "when": when}
    for stone in down.stones:
        tombstones.write(root, replace(stone, proved=facts))
    return f"proved: {found}, nothing is left of {len(down.stones)} sources"
