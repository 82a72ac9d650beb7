"""Whether what is in a store is what was written: one check for every kind of object, each with what to do about it."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from storage import checkpoints, columns, datasets, files, inventory, ledger, parts, records, shards, tables
from storage.errors import Damaged, InputError
from storage.parts import Part

RESTORE = "restore it from a copy"
AGAIN = {  # what makes an object of this kind again once it is removed
    "ledger": "remove it; it is an account only, and what it counted stays",
    "plans": "remove the folder; `reelmill prepare` lists the archive again",
    "columns": "remove it; the next run computes it again",
    "segments": "remove it and the predictions column of its part; `reelmill infer` computes both again",
    "catalogues": "remove it; it is made again when it is asked for",
    "adopted": "remove it; `reelmill adopt` looks at the shard again",
    "checkpoints": "remove the folder; the next training goes on from the step before",
    "datasets": "remove it; `reelmill prepare` lists the same parts under the same version again",
}
OURS = "remove it and its index; `reelmill prepare` makes the same bytes again from unchanged sources"
THEIRS = "restore the tar from a copy, or adopt it again as it is now"
KINDS = ("marker", "parts", *AGAIN)


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
    """What is wrong with an object, and what to do."""

    kind: str
    url: str
    problem: str
    remedy: str


def units(root: str, dataset: str | None = None) -> list[Unit]:
    """All objects under a root that are checked, or those of one dataset's latest version."""
    found = [Unit("marker", files.join(root, files.MARKER))]
    for item in sorted(inventory.walk(root), key=lambda item: item.name):
        below = item.name
        kind, *rest = below.split("/")
        wanted = (".parquet",) if kind == "parts" else (".json", ".parquet")
        if kind not in KINDS or any(piece.startswith(".") for piece in rest) or not below.endswith(wanted):
            continue
        found.append(Unit(kind, files.join(root, below), item.size))
    return found if dataset is None else _of_dataset(root, dataset, found)


def _of_dataset(root: str, name: str, found: list[Unit]) -> list[Unit]:
    try:
        data = datasets.load(root, name)
    except (InputError, Damaged):
        if name not in datasets.names(root):
            raise
        return [unit for unit in found if unit.kind in ("marker", "datasets") and name in unit.url.split("/")]
    stems = {part.id for part in data.parts} | {name, *data.about.get("adopted", ())}
    folders = ("datasets", "plans", "catalogues")

    def belongs(unit: Unit) -> bool:
        if unit.kind in folders:
            return unit.url.split("/")[-2] == name
        return unit.kind == "marker" or unit.url.rpartition("/")[2].rpartition(".")[0] in stems

    chosen = [unit for unit in found if belongs(unit)]
    there = {unit.url for unit in chosen}
    return chosen + [Unit("parts", part.index) for part in data.parts if part.index not in there]


def check(unit: Unit, root: str, whole: bool = True) -> list[Finding]:
    """What is wrong with an object; without ``whole`` only what can be known without reading it."""
    if unit.kind == "parts":
        return list(_part(unit, root, whole))
    if not whole:
        return [] if unit.size else [Finding(unit.kind, unit.url, "it has no bytes", AGAIN.get(unit.kind, RESTORE))]
    remedy = AGAIN.get(unit.kind, RESTORE)
    try:
        return [Finding(unit.kind, unit.url, problem, remedy) for problem in CHECKS[unit.kind](unit.url, root)]
    except FileNotFoundError:
        return [Finding(unit.kind, unit.url, "it is gone", remedy)]
    except (Damaged, InputError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [Finding(unit.kind, unit.url, _plain(error), remedy)]


def _plain(error: BaseException) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__


def _document(url: str) -> tuple[Any, list[str]]:
    """A JSON document and what is wrong with its bytes."""
    data = files.read(url)
    try:
        value = json.loads(data)
        if not records.as_written(data):
            return value, ["its bytes are not as they were written"]
    except ValueError as error:
        raise Damaged(f"it is not JSON ({error})") from error
    return value, [] if records.fits(value) else ["it differs from the digest in it"]


def _marker(url: str, root: str) -> list[str]:
    value, wrong = _document(url)
    files.check_schema(root, value)
    return wrong if set(value) >= {"schema"} else ["it names no schema"]


def _dataset(url: str, root: str) -> list[str]:
    """A version against its digest, the parts it lists against their indexes; a pointer against what it points to."""
    value, wrong = _document(url)
    name, file = url.split("/")[-2:]
    if file == "latest.json":
        datasets.load(root, name)
        return wrong
    for part in datasets.load(root, name, file.removesuffix(".json")).parts:
        try:
            found = parts.find(root, part.id)
        except Damaged:
            continue  # said of the part itself
        if found is None:
            wrong.append(f"it lists part {part.id}, which is not in the store; {OURS.partition('; ')[2]}")
        elif found != part:
            wrong.append(f"it lists part {part.id} with other bytes than its index has")
    return wrong


def _table(url: str, root: str) -> list[str]:
    tables.read(url)
    return []


def _column(url: str, root: str) -> list[str]:
    column, version, file = url.split("/")[-3:]
    part = parts.find(root, file.removesuffix(".parquet"))
    if part is None:
        return ["the part it belongs to is not in the store"]
    columns.read(root, column, version, part)
    columns.about(root, column, version, part)
    return []


def _ledger(url: str, root: str) -> list[str]:
    step, file = url.split("/")[-2:]
    wrong = {entry.verdict for entry in ledger.read(root, step, file.removesuffix(".parquet"))}
    return [f"it has verdicts that are none: {', '.join(sorted(wrong - VERDICTS))}"] if wrong - VERDICTS else []


VERDICTS = {"kept", "dropped", "quarantined"}


def _plan(url: str, root: str) -> list[str]:
    if url.endswith(".parquet"):
        return _table(url, root)
    value, wrong = _document(url)
    if url.endswith("/latest.json"):
        beside = files.join(url.rpartition("/")[0], f"{value['plan']}.parquet")
        wrong += [] if files.exists(beside) else [f"it points to {value['plan']}, which is not there"]
    return wrong


def _checkpoint(url: str, root: str) -> list[str]:
    value, wrong = _document(url)
    folder = url.rpartition("/")[0]
    checkpoints.describe(folder)
    for name, digest in value["digests"].items():
        if files.digest(files.read(files.join(folder, name))) != digest:
            wrong.append(f"{name} differs from its manifest")
    return wrong


def _either(url: str, root: str) -> list[str]:
    return _table(url, root) if url.endswith(".parquet") else _document(url)[1]


CHECKS: dict[str, Callable[[str, str], list[str]]] = {
    "marker": _marker,
    "datasets": _dataset,
    "plans": _plan,
    "ledger": _ledger,
    "columns": _column,
    "segments": _table,
    "catalogues": _table,
    "adopted": _either,
    "checkpoints": _checkpoint,
}


def _part(unit: Unit, root: str, whole: bool) -> Iterator[Finding]:
    """An index, the tar it names, and every clip in it."""
    name = unit.url.rpartition("/")[2].removesuffix(".parquet")
    try:
        part = parts.find(root, name)
        if part is None:
            yield Finding("parts", unit.url, "the index is gone", OURS.replace("it and its index", "its tar"))
            return
        if part.id != name:
            yield Finding("parts", unit.url, f"the index is of part {part.id}", OURS)
            return
        rows = part.rows() if whole else []
    except (Damaged, TypeError, KeyError) as error:
        yield Finding("parts", unit.url, _plain(error), OURS.replace("its index", "its tar"))
        return
    if not part.samples:
        return
    remedy = OURS if part.media.startswith(files.join(root, "parts", "")) else THEIRS
    fs, path = files.locate(part.media)
    try:
        if (size := int(files.info(part.media)["size"])) != part.bytes:
            yield Finding("parts", part.media, f"{size} bytes, {part.bytes} were committed", remedy)
            return
        for problem in _tar(part, rows, remedy == OURS) if whole else ():
            yield Finding("parts", part.media, problem, remedy)
    except FileNotFoundError:
        yield Finding("parts", part.media, "it is gone", remedy)


def _tar(part: Part, rows: list[dict[str, Any]], strict: bool) -> Iterator[str]:
    """What is wrong with a tar whose size is right; a remote one is fetched once."""
    with files.scratch() as folder:
        path = files.local_path(part.media, folder / "tar")
        with open(path, "rb") as file:
            bad = []
            for row in rows:
                file.seek(row["offset"])
                if hashlib.sha256(file.read(row["size"])).hexdigest() != row["sha256"]:
                    bad.append(row["key"])
            if bad:
                yield f"{len(bad)} of {len(rows)} clips differ from the index: {', '.join(bad[:5])}"
            try:
                walked = shards.walk(file, name=part.media, strict=strict, open_end=not strict)
                there = {(member.name, member.offset, member.size) for member in walked}
                strangers = [r["key"] for r in rows if (r["member"], r["offset"], r["size"]) not in there]
                if strangers:
                    yield f"{len(strangers)} clips are not where the index says: {', '.join(strangers[:5])}"
            except shards.Refused as error:
                yield f"it is no sound tar: {error.detail} ({error.reason})"
        if not bad and files.digest_file(path) != part.digest:
            yield "bytes beside the clips differ from what was committed"
