"""Remove what nobody refers to: the remains of killed writers, and parts that no dataset and no plan names any more.

What a dataset version or a plan in use names is never removed, whatever its age. All else has a grace period, counted
on the store's clock, in which it may belong to somebody who is still at work. Names that Reelmill does not write are
left alone. Old versions of datasets are let go only when asked for: the list goes first, to ``retired/``, and its
parts when that has been there for the grace period.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Annotated

from pydantic import Field

from storage import datasets, files, inventory
from storage.errors import InputError, RootError
from storage.inventory import Item, Upload, in_units
from tasks.columns import champion
from tasks.references import TEMPORARY, References, version_of
from tasks.report import say

SHARE = 0.1  # of all objects; more than that is removed only when forced
LOOK = 1.0  # seconds after which the lists are looked at again


@dataclass
class Found:
    """What may go: objects by reason, uploads, and lists of old versions with the bytes that go after them."""

    references: References
    items: dict[str, list[Item]] = field(default_factory=dict)
    uploads: list[Upload] = field(default_factory=list)
    objects: int = 0  # that were looked at
    versions: list[Item] = field(default_factory=list)
    freed: int = 0

    @property
    def count(self) -> int:
        return sum(len(items) for items in self.items.values())

    @property
    def bytes(self) -> int:
        return sum(item.size for items in self.items.values() for item in items)


def _aged(root: str, grace: float, look: bool) -> Callable[[float], bool]:
    try:
        now = inventory.now(root)
    except RootError as error:
        if not look:
            raise
        say(f"  the store's clock cannot be asked ({error}); ages are by this machine's")
        now = time.time()
    return lambda put: now - put > grace


def find(root: str, grace: float, keep: int | None = None, model: str = "detector", look: bool = False) -> Found:
    """Looks for what nobody refers to and is older than ``grace`` seconds on the store's clock.

    With ``keep`` also for versions of datasets beyond the newest so many that nothing uses. With ``look`` nothing
    will be removed, and this machine's clock will do for a root that may not be written.
    """
    old = _aged(root, grace, look)
    items = list(inventory.walk(root))  # before the references: what is put from now on is not among them
    references = References(root, old, items)
    found = Found(references, objects=len(items))
    for item in items:
        if old(item.put) and (reason := references.reason(item)):
            found.items.setdefault(reason, []).append(item)
    found.uploads = [upload for upload in inventory.uploads(root) if old(upload.began)]
    if keep is not None:
        found.versions = _surplus(root, references, keep, model)
        without = references.without(item.name for item in found.versions)
        later = [item for item in items if without.reason(item) and not references.reason(item)]
        found.freed = sum(item.size for item in (*later, *found.versions))
    return found


def _surplus(root: str, references: References, keep: int, model: str) -> list[Item]:
    """The lists of versions that may be let go: not the newest, the latest, a young one or what it follows on, nor
    what the champion was judged on."""
    best = champion(root, model)
    used = {best.tags.get("dataset", "")} if best else set()
    found: list[Item] = []
    of_name: dict[str, list[Item]] = {}
    for item in references.items:
        if item.name.startswith("datasets/") and item.name.count("/") == 2 and version_of(item.name):
            of_name.setdefault(item.name.split("/")[1], []).append(item)
    for name, versions in sorted(of_name.items()):
        if not (latest := datasets.latest(root, name)):
            continue  # nothing says which one counts
        order = sorted(versions, key=lambda item: (-item.put, version_of(item.name) != latest, item.name))
        kept = {version_of(item.name) for item in order[:keep]} | {latest}
        kept |= {one.partition("@")[2] for one in used if one.partition("@")[0] == name}
        for item in order:
            if not references.old(item.put):  # whoever made it may still take columns over from the one before
                about = datasets.load(root, name, version_of(item.name)).about
                kept |= {version_of(item.name), str(about.get("before"))}
        found += [item for item in order if version_of(item.name) not in kept]
    return found


def retire(root: str, item: Item) -> bool:
    """Lets a version of a dataset go: its list moves to ``retired/``; whether it is gone.

    It is put back where ``latest`` moves to it in that moment; `datasets.freeze` looks as well, after it has moved it.
    """
    url, name = files.join(root, item.name), item.name.split("/")[1]
    version = version_of(item.name)
    if datasets.latest(root, name) == version or not inventory.unchanged(root, item):
        return False
    data = files.read(url)
    files.replace(data, files.join(root, "retired", name, f"{version}.json"))
    files.remove(url)
    if datasets.latest(root, name) == version:
        files.publish_bytes(data, url, same=False)
        return False
    return True


def remove(root: str, found: Found) -> Counter:
    """Removes what was found, each looked at again just before; how many objects, bytes and uploads went.

    An index goes before its tar, so that no reader meets an index without one, and both before what is about their
    part: a writer who finds no index makes all of it anew, and what is new stays. The lists are read again every
    second; an index that went since is put back where a list has begun to name its part.
    """
    gone: Counter = Counter()
    items = sorted((item for group in found.items.values() for item in group), key=_order)
    references = found.references
    taken: list[tuple[Item, bytes]] = []

    def look() -> float:
        references.renew()
        for item, index in taken:
            if not references.reason(item):
                files.publish_bytes(index, files.join(root, item.name), same=False)
                gone.subtract({"objects": 1, "bytes": item.size})
        taken.clear()
        return time.monotonic()

    for kind, some in groupby(items, key=lambda item: _order(item)[0]):
        looked = look()
        for item in some:
            if time.monotonic() - looked > LOOK:
                looked = look()
            if references.reason(item) and inventory.unchanged(root, item) and not _busy(root, item):
                url = files.join(root, item.name)
                if kind == INDEX:
                    taken.append((item, files.read(url)))
                files.remove(url)
                gone.update(objects=1, bytes=item.size)
    look()
    for upload in found.uploads:
        inventory.abort(root, upload)
        gone.update(uploads=1)
    return gone


INDEX, MEDIA, ABOUT, RETIRED = range(4)  # the order in which objects go


def _order(item: Item) -> tuple[int, str]:
    if item.name.startswith("parts/"):
        return (MEDIA if item.name.endswith(".tar") else INDEX), item.name
    return (RETIRED if item.name.startswith("retired/") else ABOUT), item.name


def _busy(root: str, item: Item) -> bool:
    name = item.name.rsplit("/", 1)[-1]
    return TEMPORARY.fullmatch(name) is not None and inventory.in_use(root, item)


def gc(
    root: Annotated[str, Field(description="Folder or URL that `prepare` has written to.")],
    grace_hours: Annotated[
        float, Field(description="Age in hours, on the store's clock, below which nothing is touched.", ge=0)
    ] = 24.0,
    keep_versions: Annotated[
        int | None, Field(description="Let versions of datasets go beyond the newest so many; none: keep all.", ge=1)
    ] = None,
    model: Annotated[str, Field(description="Model whose champion's dataset version is kept.")] = "detector",
    dry_run: Annotated[bool, Field(description="Only say what would be removed.")] = True,
    force: Annotated[bool, Field(description="Also where it is more than a tenth of all objects.")] = False,
) -> str:
    """Remove what no dataset and no plan refers to. Only says what, unless --no-dry-run is given."""
    root = files.existing_root(root)
    grace = grace_hours * 3600
    found = find(root, grace, keep_versions, model, dry_run)
    for reason, items in sorted(found.items.items()):
        say(f"  {len(items):>8,} {in_units(sum(item.size for item in items)):>10}  {reason}")
        for item in items[:5]:
            say(f"           {'':>10}    {item.name}")
        if len(items) > 5:
            say(f"           {'':>10}    and {len(items) - 5:,} more")
    if found.uploads:
        say(f"  {len(found.uploads):>8,} {'':>10}  unfinished uploads")
    if found.versions:
        say(f"  {len(found.versions):>8,} {in_units(found.freed):>10}  versions of datasets; their parts stay for "
            f"{grace_hours:g} hours more")  # fmt: skip
        for item in found.versions:
            say(f"           {'':>10}    {item.name}")
    total = f"{found.count:,} of {found.objects:,} objects, {in_units(found.bytes)}, {len(found.uploads)} uploads"
    if dry_run:
        more = f", and let {len(found.versions)} versions go" if found.versions else ""
        return f"would remove {total}{more}; --no-dry-run removes them"
    if found.count > SHARE * found.objects and not force:
        raise InputError(f"{root}: {total} would go, more than a tenth; look at them, then give --force")
    gone = remove(root, found)
    let_go = sum(retire(root, item) for item in found.versions)
    if gone["objects"] < found.count:
        say(f"  {found.count - gone['objects']:,} stay, as somebody has begun to refer to them")
    more = f"; {let_go} versions let go" if let_go else ""
    return f"removed {gone['objects']:,} objects, {in_units(gone['bytes'])}, {gone['uploads']} uploads{more}"
