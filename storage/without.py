"""Parts and plans without some of their sources: what stays is copied byte for byte, and nothing is decoded."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from storage import adoption, carry, columns, datasets, files, ledger, lineage, parts, plans, tables
from storage.errors import Conflict, Damaged
from storage.ledger import Entry
from storage.parts import Part
from storage.tars import Tar

VOLUMES = "volume_labels"  # of parts that are made from other parts, whose clips may have been mixed: they go whole
ANEW = (datasets.SELECTION, VOLUMES)  # columns that do not follow from the rows of a clip alone


def is_ours(root: str, part: Part) -> bool:
    """Whether the media of a part are below the root, and not those of a shard that was adopted where it is."""
    return part.media.startswith(files.join(root, "parts", ""))


def plan(table: pa.Table, recipe: dict[str, Any], gone: Iterable[str]) -> tuple[pa.Table, dict[str, str]]:
    """A plan without some identities, and by which part each part that had one is replaced; "" where nothing is left.

    The new parts have the names that planning the archive without these sources would give them.
    """
    lost = pc.is_in(table["identity"], pa.array(list(gone), pa.string()))
    ids = [id for id in pc.unique(table.filter(lost)["part"]).to_pylist() if id]
    rest = table.filter(pc.invert(lost))
    renamed = {}
    for id in ids:
        facts = [plans.member(row).facts() for row in rest.filter(pc.equal(rest["part"], id)).to_pylist()]
        renamed[id] = plans.part_id(recipe, facts) if facts else ""
    for name in ("part", "was"):
        values = [renamed.get(value, value) for value in rest[name].to_pylist()]
        rest = rest.set_column(rest.column_names.index(name), name, pa.array(values, pa.string()))
    return rest.sort_by([(name, "ascending") for name in ("part", "identity", "start", "path")]), renamed


def replan(root: str, name: str, gone: Iterable[str]) -> None:
    """Makes a plan without some identities the newest of its name; nothing where the newest has none of them.

    Raises `Conflict` where another run plans at the same time.
    """
    before = plans.latest(root, name)
    table, about = tables.both(plans.url(root, name, before))
    rest, renamed = plan(table, about["recipe"], gone)
    if len(rest) == len(table):
        return
    with files.scratch() as folder:
        tables.write(folder / "plan", rest.cast(plans.PLAN).to_batches(), plans.PLAN, about)
        if plans.save(root, name, folder / "plan", before) != files.digest_file(folder / "plan")[:16]:
            raise Conflict(f"dataset {name}: another run plans it at the same time; run again, nothing is lost")


def fallback(part: str, keys: Iterable[str]) -> str:
    """The name of what replaces a part that no newest plan has."""
    return files.digest_of({"schema": files.SCHEMA, "part": part, "without": sorted(keys)})[:16]


def make(root: str, part: Part, id: str, keys: set[str], accounts: list[Entry]) -> Part:
    """Commits a part without some clips, with its account and its columns; one that is there already stays."""
    table = part.table()
    rows = table.filter(pc.invert(pc.is_in(table["key"], pa.array(keys, pa.string())))).to_pylist()
    if not is_ours(root, part) and part.samples:
        said = [
            {name: value for name, value in row.items() if name != "identity"} for row in rows
        ]  # as `adopt` has them
        made = adoption.commit(root, part.media, part.bytes, part.digest, said) if rows else None
    elif (made := parts.find(root, id)) is None:
        ledger.write(root, "shard", id, accounts)
        with files.scratch() as folder, Tar(folder / "tar") as tar:
            for number, (row, data) in enumerate(part.clips(rows)):
                media = folder / str(number)
                media.write_bytes(data)
                tar.add([row], [media], give=True)
            made = parts.commit_tar(root, id, tar, ledger.digest(accounts))
    if made is None:
        return Part("", "", "", 0, 0, "")
    if made.samples:
        _columns(root, part, made, rows)
    return made


def _columns(root: str, part: Part, made: Part, rows: list[dict[str, Any]]) -> None:
    """Gives a part the columns and segments that the part before had of its clips; segments before predictions."""
    keys = [row["key"] for row in rows]
    known = lineage.made_of(root, [part.id])
    for column, version in sorted(known, key=lambda one: one[0] != "segments"):
        if column in ANEW:
            continue
        table, about = tables.both(lineage.beside(root, column, version, part.id))
        few = carry.of_keys(table, keys)
        if column == "segments":
            files.publish_bytes(tables.pack(few, about), lineage.beside(root, column, version, made.id), same=False)
        else:
            columns.write(root, column, version, made, few, about, rows)


def accounts(root: str, part: str, gone: Iterable[str]) -> list[Entry]:
    """What was done with the sources of a part, without some, by their paths."""
    lost = set(gone)
    try:
        entries = ledger.read(root, "shard", part)
    except FileNotFoundError:
        return []
    return [entry for entry in entries if entry.item.partition("#t=")[0] not in lost]


def sound(root: str, id: str) -> tuple[Part, pa.Table] | None:
    """A committed part and its index. Raises `Damaged` that says to repair first."""
    try:
        return parts.whole(root, id)
    except Damaged as error:
        raise Damaged(f"{error}; run `reelmill repair` first") from error
