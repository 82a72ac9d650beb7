"""What datasets and plans name, and why an object that none of them names may go."""

import re
from collections.abc import Callable, Iterable, Iterator
from copy import copy

from storage import columns, datasets, files, inventory, near, parts, tables
from storage.datasets import Dataset
from storage.errors import StoreError
from storage.inventory import Item

TEMPORARY = re.compile(r"\.(.+\.)?[0-9a-f]{32}\.tmp|\.write-[0-9a-f]{32}")
ID = r"(?P<id>[0-9a-f]{16})"
TAR = re.compile(ID + r"(-[0-9a-f]{16})?\.tar")
ABOUT_A_PART = re.compile(ID + r"\.parquet")  # an index, a column, segments, a ledger
SELECTED = re.compile(ID + r"-(?P<version>select-[0-9a-f]+)\.parquet")
RECORD = re.compile(ID + r"(-[0-9a-f]{16})?\.(json|parquet)")  # of a shard; with the labels given for it
JOURNAL = re.compile(ID + r"\.json")  # see `storage.inflight`
PAGE = re.compile(r".+-(?P<version>[0-9a-f]{16})(-v\d+)?\.html")
LISTS = ("datasets", "plans", "retired")
VOLUMES = "volume_labels"  # the column of parts that were made from other parts


class References:
    """What datasets and plans name, as it stands when this is made.

    ``items`` is what was listed below the root. A version that was let go (below ``retired/``) names its parts until
    the grace period is over.
    """

    def __init__(self, root: str, old: Callable[[float], bool], items: list[Item]) -> None:
        self.root, self.old, self.items = root, old, items
        self._gone: frozenset[str] = frozenset()  # lists that are taken as gone
        self.names = {item.name for item in items}
        self._lists: dict[str, Dataset | list[str]] = {}  # that were read: they never change
        self._volumes: dict[str, list[str]] = {}
        self._pointed: dict[str, set[str]] = {}  # by dataset: the tables of pairs that its next comparison goes on from
        for item in items:
            folder, _, name = item.name.partition("/")
            if folder == "columns" and name.startswith(f"{VOLUMES}/"):
                self._volumes.setdefault(name.rpartition("/")[2].removesuffix(".parquet"), []).append(item.name)
            elif folder == "near" and name.endswith(".json") and not TEMPORARY.fullmatch(name.rpartition("/")[2]):
                table = str(files.read_json(files.join(root, item.name)).get("table"))
                self._pointed.setdefault(name.rpartition("/")[2].removesuffix(".json"), set()).add(table)
        self._read()

    def _read(self) -> None:
        self.read_from = lists(self.root)
        self.named: dict[str, parts.Part] = {}  # by dataset versions
        self.media: set[str] = set()
        self.versions: set[tuple[str, str]] = set()
        self.adopted: set[str] = set()
        self.tables: set[str] = set()
        self._derived: dict[str, set[str]] = {}
        for name, put in sorted(self.read_from):
            if name in self._gone or not version_of(name) or (name.startswith("retired/") and self.old(put)):
                continue
            data = self._dataset(name)
            self.versions.add((data.name, data.version))
            self.adopted |= set(data.about.get("adopted", ()))
            self.tables.add(near.table_of(part.id for part in data.parts))
            for part in data.parts:
                self.named[part.id] = part
                self.media.add(part.media.rsplit("/", 1)[-1])
        self.datasets = {name for name, _ in self.versions}
        self.tables |= {table for name in self.datasets for table in self._pointed.get(name, ())}
        self.plans = set(self._plans_in_use())
        self.planned = {id for name in self.plans for id in self._plan(name)}

    def _dataset(self, name: str) -> Dataset:
        if not isinstance(known := self._lists.get(name), Dataset):
            _, dataset, version = name.removesuffix(".json").split("/")
            known = datasets.parse(self.root, dataset, version, files.read_json(files.join(self.root, name)))
            self._lists[name] = known
        return known

    def _plan(self, name: str) -> list[str]:
        if not isinstance(known := self._lists.get(name), list):
            self._lists[name] = known = _parts_of_plan(self.root, name)
        return known

    def _plans_in_use(self) -> Iterator[str]:
        """The plans that a pointer names, and young ones: their pointer comes after them."""
        for name, put in self.read_from:
            if not name.startswith("plans/"):
                continue
            if name.endswith("/latest.json"):
                latest = files.read_json(files.join(self.root, name))["plan"]
                yield f"{name.removesuffix('latest.json')}{latest}.parquet"
            elif name.endswith(".parquet") and not self.old(put):
                yield name

    def renew(self) -> None:
        """Takes in what has come or gone among the lists."""
        if lists(self.root) != self.read_from:
            self._read()

    def without(self, names: Iterable[str]) -> "References":
        """What would be named if these lists were gone."""
        others = copy(self)
        others._gone = frozenset(names)
        others._read()
        return others

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
        if not (beside := self._volumes.get(part)):
            return False
        from tasks.volumes import volume_id  # which loads torch

        for name in beside:
            if any(part in made for made in self._derived.values()):
                return True
            try:
                settings = tables.about(files.join(self.root, name))
            except FileNotFoundError:
                continue
            known = files.digest_of(settings)
            if known not in self._derived:
                self._derived[known] = {volume_id(one, settings) for one in self.named.values()}
        return any(part in made for made in self._derived.values())

    def reason(self, item: Item) -> str:
        """Why an object may go, or nothing; its age is another matter."""
        folder, _, rest = item.name.partition("/")
        name = item.name.rpartition("/")[2]
        if TEMPORARY.fullmatch(name):
            return "temporary file of a writer that was killed"
        if folder in ("writers", "claims"):
            return "sign of life of a writer that was killed"
        if folder == "inflight" and (found := JOURNAL.fullmatch(rest)):
            at_work = found["id"] in self.planned and f"parts/{found['id']}.parquet" not in self.names
            return "" if at_work else "item in hand for a part that is committed or in no plan"
        if folder == "retired" and name.endswith(".json"):
            return "list of a version that was let go" if self.old(item.put) else ""
        if folder == "plans":
            return "plan of no latest listing" if name.endswith(".parquet") and item.name not in self.plans else ""
        if folder == "near":
            return self._reason_of_pairs(name)
        if folder == "catalogues" and rest.count("/") == 1 and name.endswith(".parquet"):
            known = (rest.partition("/")[0], name.removesuffix(".parquet")) in self.versions
            return "" if known else "catalogue of no dataset version"
        if folder == "reports" and (found := PAGE.fullmatch(rest)):
            known = found["version"] in {version for _, version in self.versions}
            return "" if known else "page of no dataset version"
        if rest.startswith("adopt/") if folder == "ledger" else folder == "adopted":
            found = RECORD.fullmatch(name)
            return f"{folder} of a shard in no dataset" if found and found["id"] not in self.adopted else ""
        return self._reason_of_a_part(folder, rest, name)

    def _reason_of_pairs(self, name: str) -> str:
        if name.endswith(".json"):
            return "" if name.removesuffix(".json") in self.datasets else "pairs of a dataset that is gone"
        return "pairs of parts that no dataset has" if ABOUT_A_PART.fullmatch(name) and name not in self.tables else ""

    def _reason_of_a_part(self, folder: str, rest: str, name: str) -> str:
        if folder == "parts" and (found := TAR.fullmatch(rest)):
            return "" if self.keeps_tar(rest, found["id"]) else "tar that no index or plan names"
        if folder == "ledger" and rest.startswith("select/") and (found := SELECTED.fullmatch(name)):
            column = columns.url("", datasets.SELECTION, found["version"], found["id"]).lstrip("/")
            there = column in self.names and self.keeps(found["id"])
            return "" if there else "account of a selection that is gone"
        if folder in ("parts", "columns", "segments", "ledger") and (found := ABOUT_A_PART.fullmatch(name)):
            return "" if self.keeps(found["id"]) else f"{folder} of a part in no dataset and no plan"
        return ""


def version_of(name: str) -> str:
    """The version whose list an object is, or nothing."""
    folder, _, file = name.rpartition("/")
    listed = folder.partition("/")[0] in ("datasets", "retired") and file.endswith(".json")
    return file.removesuffix(".json") if listed and file != "latest.json" else ""


def lists(root: str) -> set[tuple[str, float]]:
    """The lists of parts below a root, datasets and plans, and when each was put."""
    return {
        (f"{folder}/{item.name}", item.put)
        for folder in LISTS
        for item in inventory.walk(files.join(root, folder))
        if not TEMPORARY.fullmatch(item.name.rsplit("/", 1)[-1])
    }


def _parts_of_plan(root: str, name: str) -> list[str]:
    try:
        return [id for id in tables.read(files.join(root, name), ["part"]).column("part").unique().to_pylist() if id]
    except FileNotFoundError as error:
        raise StoreError(f"{root}: a pointer names the plan {name}, which is gone; nothing is removed") from error
