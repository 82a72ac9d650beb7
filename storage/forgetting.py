"""Which objects below a root have something of a source that was taken down, and what is left of each of them."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from storage import datasets, files, inventory, ledger, plans, records, tables
from storage.errors import Damaged, InputError
from storage.inventory import Item
from storage.search import Search

LINE = "a line about a source that was taken down was here"


@dataclass(frozen=True)
class Gone:
    """What was taken down: ids of the parts that had it, keys of its clips, identities, and how to find the rest."""

    parts: set[str]
    keys: set[str]
    identities: set[str]
    search: Search
    word: str  # that stands where its name was
    versions: set[tuple[str, str]]  # of datasets that had it: name, version
    held_out: bool = True  # whether pictures of held-out videos may show it


def versions(root: str, items: Iterable[Item], parts: set[str]) -> Iterator[tuple[Item, str, str]]:
    """The lists of dataset versions that have one of some parts, those that were let go too: object, name, version."""
    for item in items:
        folder, _, rest = item.name.partition("/")
        if folder not in ("datasets", "retired") or not rest.endswith(".json") or rest.endswith("/latest.json"):
            continue
        name, _, version = rest.removesuffix(".json").partition("/")
        try:
            data = datasets.parse(root, name, version, files.read_json(files.join(root, item.name)))
        except (Damaged, InputError, FileNotFoundError):
            continue  # which `verify` says
        if parts & {part.id for part in data.parts}:
            yield item, name, version


def removals(root: str, items: list[Item], gone: Gone) -> list[str]:
    """The objects that go whole, in order: lists, indexes, tars, then what is about them."""
    lists = list(versions(root, items, gone.parts))
    old = gone.versions | {(name, version) for _, name, version in lists}
    found = [item.name for item, _, _ in lists]
    near_gone = {item.name for item in items if _compared(root, item, gone.parts)}
    chosen = selections(root, items, gone)
    remade = {(table, name) for table in ("segments", "days") for name, _ in old}  # which `infer` writes anew
    for item in items:
        folder, _, rest = item.name.partition("/")
        last = rest.rpartition("/")[2]
        of_part = last[:16] in gone.parts and last[16:17] in (".", "-")
        if (
            (of_part and folder in ("parts", "columns", "segments", "ledger", "inflight"))
            or (folder == "catalogues" and tuple(rest.removesuffix(".parquet").split("/")) in old)
            or (folder == "plans" and last.endswith(".parquet") and _planned(root, item, gone))
            or item.name in near_gone
            or (folder == "near" and last.endswith(".json") and _points(root, item, near_gone))
            or (folder == "columns" and rest.startswith("selection/") and rest.split("/")[1] in chosen)
            or (folder == "ledger" and rest.startswith("select/") and last[17:].removesuffix(".parquet") in chosen)
            or (folder == "tables" and tuple(rest.split("/")[:2]) in remade)
            or _shows(item.name, old, gone.held_out)
            or (last.endswith(".tmp") and last.startswith(".") and not inventory.in_use(root, item))
        ):
            found.append(item.name)
    return sorted(dict.fromkeys(found), key=_order)


def _order(name: str) -> tuple[int, str]:
    folder = name.partition("/")[0]
    if folder in ("datasets", "retired") or (folder == "near" and name.endswith(".json")):
        return 0, name
    if folder == "parts":
        return (2 if name.endswith(".tar") else 1), name
    return 3, name


def _compared(root: str, item: Item, parts: set[str]) -> bool:
    """Whether an object is a table of pairs of parts of which one is concerned."""
    if not item.name.startswith("near/") or not item.name.endswith(".parquet"):
        return False
    return bool(parts & set(tables.about(files.join(root, item.name))["parts"]))


def _points(root: str, item: Item, tables_: set[str]) -> bool:
    folder = item.name.rpartition("/")[0]
    return f"{folder}/{files.read_json(files.join(root, item.name))['table']}" in tables_


def _planned(root: str, item: Item, gone: Gone) -> bool:
    """Whether a plan names what was taken down; the newest of a name has been replaced before."""
    table = tables.read(files.join(root, item.name))
    return bool(gone.identities & set(table["identity"].to_pylist()))


def selections(root: str, items: Iterable[Item], gone: Gone) -> set[str]:
    """The versions of selections that dropped a clip because it repeats one that was taken down."""
    found = set()
    for item in items:
        if item.name.startswith("columns/selection/") and item.name.endswith(".parquet"):
            table = tables.read(files.join(root, item.name))
            if "of" in table.column_names and gone.keys & set(table["of"].to_pylist()):
                found.add(item.name.split("/")[2])
    return found


def _shows(name: str, old: set[tuple[str, str]], held_out: bool) -> bool:
    """Whether an object is a picture with frames of a dataset version that is concerned: whose they are, none tells."""
    folder, _, rest = name.partition("/")
    if folder == "reports":  # a page names files and shows frames; it can be made again
        return True
    dataset, last = rest.partition("/")[0], rest.rpartition("/")[2]
    if folder != "figures" or dataset not in {one for one, _ in old}:
        return False
    kind, _, version = last.removesuffix(".png").partition("-")
    return (kind in ("volumes", "shots") and (dataset, version) in old) or (held_out and last.startswith("timeline_"))


def rewrite(root: str, items: Iterable[Item], gone: Gone) -> list[str]:
    """Takes what names a source out of the objects that stay; returns the names of those that changed."""
    changed = []
    for item in items:
        if (change := _change(item, gone)) is not None:
            url = files.join(root, item.name)
            try:
                before = files.read(url)
            except FileNotFoundError:
                continue
            after = change(before)
            if after != before:
                files.replace(after, url)
                changed.append(item.name)
    return changed


def _change(item: Item, gone: Gone) -> Callable[[bytes], bytes] | None:
    folder, _, rest = item.name.partition("/")
    if rest.rpartition("/")[2].startswith("."):
        return None
    if folder == "ledger" and rest.partition("/")[0] in ("list", "repair", "adopt"):
        return partial(_account, gone=gone)
    if folder == "adopted" and rest.endswith(".parquet"):
        return partial(_examined, gone=gone)
    if folder == "requeued":
        return partial(_requeued, gone=gone)
    if folder == "figures" and rest.endswith("/evaluation.json"):
        return partial(_evaluation, gone=gone)
    return partial(_lines, gone=gone) if folder == "logs" else None


def named(search: Search, texts: list[bytes], first: int = 0) -> list[int]:
    """Which of some texts have a pattern: all at once, then each half of what has one."""
    if not texts or not search.found(b"\0".join(texts)):
        return []
    if len(texts) == 1:
        return [first]
    half = len(texts) // 2
    return named(search, texts[:half], first) + named(search, texts[half:], first + half)


def _account(data: bytes, gone: Gone) -> bytes:
    """A ledger in which a source is counted as forgotten, without its name."""
    table = tables.parse(data)
    texts = zip(*(table[name].to_pylist() for name in ("item", "detail", "content_id")), strict=True)
    hits = named(gone.search, ["\n".join(row).encode() for row in texts])
    if not hits:
        return data
    rows = table.to_pylist(maps_as_pydicts="strict")
    for hit in hits:
        rows[hit] |= {"item": gone.word, "verdict": "dropped", "reason": "forgotten", "detail": "", "content_id": ""}
        rows[hit] |= {"clips": 0, "error": ""}
    return tables.pack(pa.Table.from_pylist(rows, schema=ledger.SCHEMA))


def _examined(data: bytes, gone: Gone) -> bytes:
    """What is kept of an adopted shard, without the clips of a source."""
    table = tables.parse(data)
    about = tables.parse_about(table.schema.metadata)
    kept = [key not in gone.keys for key in table["key"].to_pylist()]
    return data if all(kept) else tables.pack(table.filter(pa.array(kept)), about)


def _requeued(data: bytes, gone: Gone) -> bytes:
    attempts = {k: v for k, v in json.loads(data).items() if k != records.DIGEST}
    rest = {identity: count for identity, count in attempts.items() if identity not in gone.identities}
    return data if rest == attempts else plans.asked(rest)


def _evaluation(data: bytes, gone: Gone) -> bytes:
    """An evaluation without the videos that it left out because they show what a source shows."""
    found = json.loads(data)
    texts = [str(sorted(leak.items())).encode() for leak in found.get("leaks", [])]
    hits = set(named(gone.search, texts))
    found["leaks"] = [leak for number, leak in enumerate(found.get("leaks", [])) if number not in hits]
    return json.dumps(found, indent=1, sort_keys=True).encode() if hits else data


def _lines(data: bytes, gone: Gone) -> bytes:
    lines = data.split(b"\n")
    for hit in named(gone.search, lines):
        lines[hit] = LINE.encode()
    return b"\n".join(lines)
