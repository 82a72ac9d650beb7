"""Remove what nobody refers to: the remains of killed writers, and parts that no dataset and no plan names any more.

What a dataset version or a plan in use names is never removed, whatever its age. All else has a grace period, counted
on the store's clock, in which it may belong to somebody who is still at work. Names that Reelmill does not write are
left alone.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from storage import columns, datasets, files, inventory, parts, tables
from storage.errors import InputError, StoreError
from storage.inventory import Item, Upload
from tasks.report import say

TEMPORARY = re.compile(r"\.(.+\.)?[0-9a-f]{32}\.tmp|\.write-[0-9a-f]{32}")
PART = r"(?P<part>[0-9a-f]{16})"
TAR = re.compile(PART + r"(-[0-9a-f]{16})?\.tar")
ABOUT_A_PART = re.compile(PART + r"\.parquet")  # an index, a column, segments, a ledger
VOLUMES = "volume_labels"  # the column of parts that were made from other parts
SHARE = 0.1  # of all objects; more than that is removed only when forced


@dataclass
class Found:
    """What may go: objects by reason, and uploads."""

    items: dict[str, list[Item]] = field(default_factory=dict)
    uploads: list[Upload] = field(default_factory=list)
    objects: int = 0  # that were looked at

    @property
    def count(self) -> int:
        return sum(len(items) for items in self.items.values())

    @property
    def bytes(self) -> int:
        return sum(item.size for items in self.items.values() for item in items)


class References:
    """What datasets and plans name, as it stands when this is made."""

    def __init__(self, root: str, old: Callable[[float], bool]) -> None:
        self.root, self.old = root, old
        self.read_from = _lists(root)
        self.named: dict[str, parts.Part] = {}  # by dataset versions
        self.media: set[str] = set()
        for name, _ in sorted(item for item in self.read_from if item[0].startswith("datasets/")):
            if name.endswith(".json") and not name.endswith("/latest.json"):
                _, dataset, version = name[: -len(".json")].split("/")
                for part in datasets.load(root, dataset, version).parts:
                    self.named[part.id] = part
                    self.media.add(part.media.rsplit("/", 1)[-1])
        self.plans = set(self._plans_in_use())
        self.planned = {id for name in self.plans for id in _parts_of_plan(root, name)}
        self._derived: dict[str, set[str]] = {}

    def _plans_in_use(self) -> Iterator[str]:
        """The plans that a pointer names, and young ones: their pointer comes after them."""
        plans = {name: put for name, put in self.read_from if name.startswith("plans/")}
        for name, put in plans.items():
            if name.endswith("/latest.json"):
                latest = files.read_json(files.join(self.root, name))["plan"]
                yield f"{name.removesuffix('latest.json')}{latest}.parquet"
            elif name.endswith(".parquet") and not self.old(put):
                yield name

    def renewed(self) -> "References":
        """The references as they are now."""
        return self if _lists(self.root) == self.read_from else References(self.root, self.old)

    def keeps(self, part: str) -> bool:
        """Whether a part is named, or made from one that is."""
        return part in self.named or part in self.planned or self._is_derived(part)

    def keeps_tar(self, name: str, part: str) -> bool:
        """Whether the tar is the one that a part's index names, or one that its next writer would go on with."""
        if name in self.media or not self.keeps(part):
            return name in self.media
        index = parts.find(self.root, part)
        return index is None or index.media.rsplit("/", 1)[-1] == name

    def _is_derived(self, part: str) -> bool:
        """Whether a part holds volumes made from a part that is named; the column beside it says how."""
        if not (versions := columns.versions(self.root, VOLUMES)):
            return False
        from tasks.volumes import volume_id  # which loads torch

        for version in versions:
            try:
                settings = tables.about(columns.url(self.root, VOLUMES, version, part))
            except FileNotFoundError:
                continue
            known = files.digest_of(settings)
            if known not in self._derived:
                self._derived[known] = {volume_id(one, settings) for one in self.named.values()}
            if part in self._derived[known]:
                return True
        return False


def _lists(root: str) -> set[tuple[str, float]]:
    """The lists of parts below a root, datasets and plans, and when each was put."""
    return {
        (f"{folder}/{item.name}", item.put)
        for folder in ("datasets", "plans")
        for item in inventory.walk(files.join(root, folder))
        if not TEMPORARY.fullmatch(item.name.rsplit("/", 1)[-1])
    }


def _parts_of_plan(root: str, name: str) -> list[str]:
    try:
        return [id for id in tables.read(files.join(root, name), ["part"]).column("part").to_pylist() if id]
    except FileNotFoundError as error:
        raise StoreError(f"{root}: a pointer names the plan {name}, which is gone; nothing is removed") from error


def _reason(item: Item, references: References) -> str:
    """Why an object may go, or nothing; its age is another matter."""
    folder, _, rest = item.name.partition("/")
    name = item.name.rsplit("/", 1)[-1]
    if TEMPORARY.fullmatch(name):
        return "temporary file of a writer that was killed"
    if folder == "writers":
        return "sign of life of a writer that was killed"
    if folder == "plans":
        return "plan of no latest listing" if name.endswith(".parquet") and item.name not in references.plans else ""
    if folder == "parts" and (found := TAR.fullmatch(rest)):
        return "" if references.keeps_tar(rest, found["part"]) else "tar that no index or plan names"
    if folder in ("parts", "columns", "segments", "ledger") and (found := ABOUT_A_PART.fullmatch(name)):
        return "" if references.keeps(found["part"]) else f"{folder} of a part in no dataset and no plan"
    return ""


def _aged(root: str, grace: float) -> Callable[[float], bool]:
    now = inventory.now(root)
    return lambda put: now - put > grace


def find(root: str, grace: float) -> Found:
    """Looks for what nobody refers to and is older than ``grace`` seconds on the store's clock."""
    old = _aged(root, grace)
    items = list(inventory.walk(root))  # before the references: what is put from now on is not among them
    references = References(root, old)
    found = Found(objects=len(items))
    for item in items:
        if old(item.put) and (reason := _reason(item, references)):
            found.items.setdefault(reason, []).append(item)
    found.uploads = [upload for upload in inventory.uploads(root) if old(upload.began)]
    return found


def remove(root: str, found: Found, grace: float) -> Counter:
    """Removes what was found, each looked at again just before; how many objects, bytes and uploads went.

    An index goes before its tar, so that no reader meets an index without one, and both before what is about their
    part: a writer who finds no index makes all of it anew, and what is new stays.
    """
    gone: Counter = Counter()
    references = References(root, _aged(root, grace))
    items = [item for group in found.items.values() for item in group]
    looked = time.monotonic()
    for item in sorted(items, key=_order):
        if item.name.startswith("parts/") or time.monotonic() - looked > 1:
            references, looked = references.renewed(), time.monotonic()
        if _reason(item, references) and inventory.unchanged(root, item) and not _busy(root, item):
            references = _remove(root, item, references)
            gone.update(objects=1, bytes=item.size)
    for upload in found.uploads:
        inventory.abort(root, upload)
        gone.update(uploads=1)
    return gone


def _order(item: Item) -> tuple[int, str]:
    if not item.name.startswith("parts/"):
        return 2, item.name
    return int(item.name.endswith(".tar")), item.name


def _remove(root: str, item: Item, references: References) -> References:
    """Removes an object; an index is put back where somebody began to count on its part at that very moment."""
    url = files.join(root, item.name)
    if not (item.name.startswith("parts/") and item.name.endswith(".parquet")):
        files.remove(url)
        return references
    index = files.read(url)
    files.remove(url)
    references = references.renewed()
    if not _reason(item, references):
        files.publish_bytes(index, url, same=False)
    return references


def _busy(root: str, item: Item) -> bool:
    name = item.name.rsplit("/", 1)[-1]
    return TEMPORARY.fullmatch(name) is not None and inventory.in_use(root, item)


def gc(
    root: Annotated[str, Field(description="Folder or URL that `prepare` has written to.")],
    grace_hours: Annotated[
        float, Field(description="Age in hours, on the store's clock, below which nothing is touched.", ge=0)
    ] = 24.0,
    dry_run: Annotated[bool, Field(description="Only say what would be removed.")] = True,
    force: Annotated[bool, Field(description="Also where it is more than a tenth of all objects.")] = False,
) -> str:
    """Remove what no dataset and no plan refers to. Only says what, unless --no-dry-run is given."""
    root = files.existing_root(root)
    grace = grace_hours * 3600
    found = find(root, grace)
    for reason, items in sorted(found.items.items()):
        say(f"  {len(items):>8,} {_size(sum(item.size for item in items)):>10}  {reason}")
        for item in items[:5]:
            say(f"           {'':>10}    {item.name}")
        if len(items) > 5:
            say(f"           {'':>10}    and {len(items) - 5:,} more")
    if found.uploads:
        say(f"  {len(found.uploads):>8,} {'':>10}  unfinished uploads")
    total = f"{found.count:,} of {found.objects:,} objects, {_size(found.bytes)}, {len(found.uploads)} uploads"
    if dry_run:
        return f"would remove {total}; --no-dry-run removes them"
    if found.count > SHARE * found.objects and not force:
        raise InputError(f"{root}: {total} would go, more than a tenth; look at them, then give --force")
    gone = remove(root, found, grace)
    if gone["objects"] < found.count:
        say(f"  {found.count - gone['objects']:,} stay, as somebody has begun to refer to them")
    return f"removed {gone['objects']:,} objects, {_size(gone['bytes'])}, {gone['uploads']} uploads"


def _size(count: float) -> str:
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count, units = count / 1000, units[1:]
    return f"{count:.0f} B" if units[0] == "B" else f"{count:.1f} {units[0]}"
