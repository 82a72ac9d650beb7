"""Whether what is in a store is what was written: one check for every kind of object, each with what to do about it."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from storage import checkpoints, datasets, files, inventory, ledger, listed, near, parts, records, shards, tables
from storage.errors import Damaged, InputError, NewerSchema
from storage.listed import Seen, document
from storage.parts import Part

RESTORE = "restore it from a copy"
AGAIN = {  # what makes an object of this kind again once it is removed
    "ledger": "remove it and the index of its part; `reelmill prepare` writes both again",
    "plans": "remove it and its pointer; `reelmill prepare` lists the archive again",
    "columns": "remove it; the next run computes it again",
    "segments": "remove it; `reelmill infer` makes it again",
    "catalogues": "remove it; it is made again when it is asked for",
    "adopted": "remove it; `reelmill adopt` looks at the shard again",
    "checkpoints": "remove the folder; the next training goes on from the step before",
    "datasets": "remove it; `reelmill prepare` lists the same parts under the same version again",
    "near": "remove it; `reelmill prepare` compares the clips again",
    "requeued": "remove it; `reelmill requeue` asks again",
    "forgotten": "restore it from a copy, or forget the source again: without it the source may come back",
}
OURS = "remove it and its index; `reelmill prepare` makes the same bytes again from unchanged sources"
THEIRS = "restore the tar from a copy, or adopt it again as it is now"
KINDS = ("marker", "parts", *AGAIN)
LISTS = tuple(listed.CHECKS)  # checked last, with what was read of all others
BROKEN = (Damaged, InputError, ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True)
class Unit:
    """An object to check, or a few that belong together; ``size`` is what a listing says, in bytes."""

    kind: str
    url: str
    size: int = 0

    @property
    def id(self) -> str:
        return self.url


@dataclass(frozen=True)
class Finding:
    """What is wrong with an object, and what to do; ``part`` and ``gone`` as in `storage.listed.Problem`."""

    kind: str
    url: str
    problem: str
    remedy: str
    part: str = ""
    gone: bool = False


def units(root: str) -> list[Unit]:
    """All objects under a root that are checked."""
    found = [Unit("marker", files.join(root, files.MARKER))]
    for item in sorted(inventory.walk(root), key=lambda item: item.name):
        below = item.name
        kind, *rest = below.split("/")
        wanted = (".parquet",) if kind == "parts" else (".json", ".parquet")
        if kind not in KINDS or any(piece.startswith(".") for piece in rest) or not below.endswith(wanted):
            continue
        found.append(Unit(kind, files.join(root, below), item.size))
    return found


def of_dataset(root: str, name: str, found: list[Unit]) -> list[Unit]:
    """Those of the objects that belong to a dataset's latest version, and indexes that it lacks."""
    try:
        data = datasets.load(root, name)
    except NewerSchema:
        raise
    except (InputError, Damaged):
        if name not in datasets.names(root):
            raise
        return [unit for unit in found if unit.kind in ("marker", "datasets") and name in unit.url.split("/")]
    stems = {part.id for part in data.parts} | {name, *data.about.get("adopted", ())}
    stems.add(near.table_of(part.id for part in data.parts).removesuffix(".parquet"))
    folders = ("datasets", "plans", "catalogues")

    def belongs(unit: Unit) -> bool:
        if unit.kind in folders:
            return unit.url.split("/")[-2] == name
        stem = unit.url.rpartition("/")[2].rpartition(".")[0]
        return unit.kind == "marker" or stem in stems or stem.partition("-")[0] in stems - {name}

    chosen = [unit for unit in found if belongs(unit)]
    there = {unit.url for unit in chosen}
    return chosen + [Unit("parts", part.index) for part in data.parts if part.index not in there]


def bundles(found: Iterable[Unit]) -> list[tuple[Unit, ...]]:
    """The objects that are no lists, those together that need the same index: a part's own, its columns and ledgers."""
    together: dict[str, list[Unit]] = {}
    for unit in found:
        if unit.kind not in LISTS:
            shared = unit.url.rpartition("/")[2] if unit.kind in ("parts", "columns", "ledger") else unit.url
            together.setdefault(shared, []).append(unit)
    return [tuple(some) for some in together.values()]


def check(unit: Unit, root: str, whole: bool = True, seen: Seen | None = None) -> list[Finding]:
    """What is wrong with an object; without ``whole`` only what can be known without reading it.

    ``seen`` is shared by objects that need the same index, and holds what was read for one of them.
    """
    seen = seen or Seen(root)
    if unit.kind == "parts":
        return list(_part(unit, seen, whole))
    remedy = AGAIN.get(unit.kind, RESTORE)
    if not whole:
        return [] if unit.size else [Finding(unit.kind, unit.url, "it has no bytes", remedy)]
    try:
        if unit.kind in LISTS:
            return [_listed(unit, problem) for problem in listed.CHECKS[unit.kind](unit.url, seen)]
        return [Finding(unit.kind, unit.url, problem, remedy) for problem in CHECKS[unit.kind](unit.url, seen)]
    except FileNotFoundError:
        return [Finding(unit.kind, unit.url, "it is gone", remedy, gone=True)]
    except BROKEN as error:
        if isinstance(error, NewerSchema) and unit.kind == "datasets" and not document(unit.url)[1]:
            raise  # nothing is wrong with it
        return [Finding(unit.kind, unit.url, _plain(error), remedy)]


def still(finding: Finding, root: str) -> bool:
    """Whether something is wrong with an object yet: since it was looked at, another run may have made it again."""
    if finding.gone and finding.kind != "datasets":
        return not files.exists(finding.url)
    url = parts.part_urls(root, finding.part)[1] if finding.kind == "parts" else finding.url
    return any(found.url == finding.url for found in check(Unit(finding.kind, url), root))


def _listed(unit: Unit, problem: listed.Problem) -> Finding:
    """A finding about a list, or about an object that it misses."""
    kind = unit.kind if problem.url == unit.url else "ledger"
    return Finding(kind, problem.url, problem.said, AGAIN[kind], problem.part, problem.gone)


def _plain(error: BaseException) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__


def _marker(url: str, seen: Seen) -> list[str]:
    value, wrong = document(url)
    files.check_schema(seen.root, value)
    return wrong if set(value) >= {"schema"} else ["it names no schema"]


def _table(url: str, seen: Seen) -> list[str]:
    tables.read(url)
    return []


def _column(url: str, seen: Seen) -> list[str]:
    """A column against the keys of its part; where its part is gone, that is said of the lists that name it."""
    table, _ = tables.both(url)
    try:
        found = seen.index(url.rpartition("/")[2].removesuffix(".parquet"))
    except BROKEN:
        return []  # said of the index
    if found and ("key" not in table.column_names or not table["key"].equals(found[1]["key"])):
        return [f"its keys are not those of part {found[0].id} in their order"]
    return []


def _ledger(url: str, seen: Seen) -> list[str]:
    step, file = url.split("/")[-2:]
    stem = file.removesuffix(".parquet")
    entries = ledger.read(seen.root, step, stem)
    if wrong := {entry.verdict for entry in entries} - VERDICTS:
        return [f"it has verdicts that are none: {', '.join(sorted(wrong))}"]
    try:
        found = seen.index(stem) if step == "shard" else None
    except BROKEN:
        return []  # said of the index
    if found and found[0].account not in ("", ledger.digest(entries)):
        return ["it is not the account of its part"]
    return []


VERDICTS = {"kept", "dropped", "quarantined"}


def _checkpoint(url: str, seen: Seen) -> list[str]:
    value, wrong = document(url)
    folder = url.rpartition("/")[0]
    for name, digest in checkpoints.checked(folder, value)["digests"].items():
        if files.digest(files.read(files.join(folder, name))) != digest:
            wrong.append(f"{name} differs from its manifest")
    return wrong


def _either(url: str, seen: Seen) -> list[str]:
    return _table(url, seen) if url.endswith(".parquet") else document(url)[1]


def _requeued(url: str, seen: Seen) -> list[str]:
    value, wrong = document(url)
    counts = all(type(count) is int and count > 0 for name, count in value.items() if name != records.DIGEST)
    return wrong if counts else ["it does not say how often each source was asked for"]


CHECKS: dict[str, Callable[[str, Seen], list[str]]] = {
    "marker": _marker,
    "ledger": _ledger,
    "columns": _column,
    "segments": _table,
    "catalogues": _table,
    "adopted": _either,
    "checkpoints": _checkpoint,
    "requeued": _requeued,
    "forgotten": _either,
}


def _part(unit: Unit, seen: Seen, whole: bool) -> Iterator[Finding]:
    """An index, the tar it names, and every clip in it."""
    name = unit.url.rpartition("/")[2].removesuffix(".parquet")
    try:
        found = seen.index(name)
    except (Damaged, TypeError, KeyError) as error:
        yield Finding("parts", unit.url, _plain(error), OURS.replace("its index", "its tar"), name)
        return
    if found is None:
        yield Finding("parts", unit.url, "the index is gone", OURS.replace("it and its index", "its tar"), name, True)
        return
    part, table = found
    if part.id != name:
        yield Finding("parts", unit.url, f"the index is of part {part.id}", OURS, name)
        return
    if not part.samples:
        return
    remedy = OURS if part.media.startswith(files.join(seen.root, "parts", "")) else THEIRS
    try:
        if (size := int(files.info(part.media)["size"])) != part.bytes:
            yield Finding("parts", part.media, f"{size} bytes, {part.bytes} were committed", remedy, name)
            return
        for problem in _tar(part, table.to_pylist(), remedy == OURS) if whole else ():
            yield Finding("parts", part.media, problem, remedy, name)
    except FileNotFoundError:
        yield Finding("parts", part.media, "it is gone", remedy, name, True)


def _tar(part: Part, rows: list[dict[str, Any]], strict: bool) -> Iterator[str]:
    """What is wrong with a tar whose size is right; a remote one is fetched once.

    Clips are compared one by one only where the whole differs from what was committed.
    """
    with files.scratch() as folder:
        path = files.local_path(part.media, folder / "tar", part.bytes)
        with open(path, "rb") as file:
            differs = hashlib.file_digest(file, "sha256").hexdigest() != part.digest
            bad = [row["key"] for row in rows if _differs(file, row)] if differs else []
            if bad:
                yield f"{len(bad)} of {len(rows)} clips differ from the index: {', '.join(bad[:5])}"
            elif differs:
                yield "bytes beside the clips differ from what was committed"
            try:
                file.seek(0)
                walked = shards.walk(file, name=part.media, strict=strict, open_end=not strict)
                there = {(member.name, member.offset, member.size) for member in walked}
                strangers = [r["key"] for r in rows if (r["member"], r["offset"], r["size"]) not in there]
                if strangers:
                    yield f"{len(strangers)} clips are not where the index says: {', '.join(strangers[:5])}"
            except shards.Refused as error:
                yield f"it is no sound tar: {error.detail} ({error.reason})"


def _differs(file: BinaryIO, row: dict[str, Any]) -> bool:
    file.seek(row["offset"])
    return bool(hashlib.sha256(file.read(row["size"])).hexdigest() != row["sha256"])
