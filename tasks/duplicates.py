"""Duplicates: which clips of a dataset show the same, byte for byte or nearly, as one table of pairs.

``near/{version}/{parts}.parquet`` is a function of the parts alone, whatever order they came in: an old clip may turn
out to repeat a new one, so a verdict per clip would have to be rewritten; pairs are only ever added. A part that is
added is compared with everything; what was compared before is taken from the dataset's last table.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from prefect import task
from prefect.cache_policies import NO_CACHE

from storage import columns, files, near, tables
from storage.bands import Signatures
from storage.datasets import Dataset
from storage.errors import InputError
from storage.ledger import Report
from storage.media import scores
from storage.parts import Part
from tasks.report import say
from tasks.spending import staged

PAIRS = pa.schema(
    [
        ("part", pa.string()),
        ("key", pa.string()),
        ("other_part", pa.string()),
        ("other", pa.string()),  # after `key`: pairs are in order of their keys
        ("kind", pa.string()),  # exact | near
        ("look", pa.float32()),  # mean bits of 64 that differ between the pictures
        ("move", pa.float32()),  # the same between what moves in them
        ("share", pa.float32()),  # of the shorter clip that was compared
        ("shift", pa.float32()),  # seconds by which the other is ahead
        ("how", pa.string()),  # what was done to one of them beside that: mirrored, cropped, both or nothing
    ]
)
SCORES = "scores"
Clip = tuple[str, str]  # part, key


def version(scored: str) -> str:
    """The version of the pairs: of the signatures and of how they are compared."""
    return f"near-{files.digest_of([scored, near.SETTINGS])[:8]}"


def url(root: str, dataset: Dataset, scored: str) -> str:
    """Where the pairs of a dataset's parts are."""
    return files.join(root, "near", version(scored), near.table_of(part.id for part in dataset.parts))


def read_pairs(root: str, dataset: Dataset, scored: str | None = None) -> list[dict[str, Any]] | None:
    """The pairs of a dataset, None where they were not looked for."""
    try:
        return tables.read(url(root, dataset, scored or scores.version())).to_pylist()
    except FileNotFoundError:
        return None


def _clips(root: str, dataset: Dataset, scored: str) -> pa.Table:
    """part, key, sha256, looks and moves of all clips, in the order of their keys."""
    whole = pa.concat_tables(files.at_once(partial(_of_part, root, scored), dataset.parts))
    return whole.take(pc.sort_indices(whole, [("key", "ascending"), ("part", "ascending")])).combine_chunks()


def _of_part(root: str, scored: str, part: Part) -> pa.Table:
    """What `_clips` has of one part; each of its objects is read once."""
    index = part.table(["key", "sha256"])
    try:
        table = columns.read(root, SCORES, scored, part, ["looks", "moves"], index["key"].to_pylist())
    except FileNotFoundError as error:
        raise InputError(
            f"part {part.id} has no scores {scored}; run `reelmill prepare`, or `reelmill select` with any threshold"
        ) from error
    table = table.append_column("sha256", index["sha256"])
    return table.append_column("part", pa.array([part.id] * part.samples, pa.string()))


def _signatures(clips: pa.Table) -> list[Signatures]:
    looks, moves = (clips[name].combine_chunks() for name in ("looks", "moves"))
    flat = [array.flatten().to_numpy(zero_copy_only=False) for array in (looks, moves)]
    return near.views(flat[0], flat[1], pc.list_value_length(looks).to_numpy().astype(np.int64), scores.VIEWS)


def _firsts(clips: pa.Table) -> np.ndarray:
    """For each clip the number of the first one with the same bytes."""
    codes = clips["sha256"].combine_chunks().dictionary_encode().indices.to_numpy()
    _, first = np.unique(codes, return_index=True)
    return first[codes]


def _known(root: str, dataset: Dataset, scored: str, clips: pa.Table) -> tuple[np.ndarray, pa.Table]:
    """Which clips have to be compared with all others, and the pairs that the dataset's last table has of the rest."""
    new, nothing = np.ones(len(clips), bool), PAIRS.empty_table()
    folder = files.join(root, "near", version(scored))
    try:
        last = files.join(folder, files.read_json(files.join(folder, f"{dataset.name}.json"))["table"])
        table, about = tables.both(last)
    except FileNotFoundError:
        return new, nothing
    new = ~pc.is_in(clips["part"], pa.array(about["parts"], pa.string())).to_numpy(zero_copy_only=False)
    exact = table.filter(pc.equal(table["kind"], "exact"))
    # A copy was not compared itself; it has to be once the clip it copies is gone.
    copies = _places(clips, exact["other_part"], exact["other"])
    new[copies[copies >= 0]] = True
    return new, table.filter(pc.equal(table["kind"], "near"))


def _places(clips: pa.Table, parts: Any, keys: Any) -> np.ndarray:
    """The numbers of some clips, -1 where they are no longer there."""
    names = pc.binary_join_element_wise(clips["part"], clips["key"], "/")
    wanted = pc.binary_join_element_wise(parts, keys, "/")
    found = pc.index_in(wanted, value_set=names.combine_chunks())
    return pc.fill_null(found, -1).to_numpy().astype(np.int64)


def compare(root: str, dataset: Dataset, scored: str) -> pa.Table:
    """All pairs of a dataset's clips; see `PAIRS`. Only clips that the last table did not have are compared."""
    clips = _clips(root, dataset, scored)
    firsts = _firsts(clips)
    alone = firsts == np.arange(len(clips))
    new, known = _known(root, dataset, scored, clips)
    # A copy says nothing that the first does not: only firsts are compared.
    places = np.flatnonzero(alone)
    found = near.pairs(_signatures(clips.take(places)), new[places])
    one, other = places[found["one"]], places[found["other"]]
    numbers = {name: found[name] for name in ("look", "move", "share")} | {"shift": found["shift"] / scores.GRID}
    made = [_table(clips, one, other, "near", numbers, np.asarray(near.HOW)[found["how"]].tolist())]
    copies = np.flatnonzero(~alone)
    same = {"look": 0.0, "move": 0.0, "share": 1.0, "shift": 0.0}
    made.append(_table(clips, firsts[copies], copies, "exact", {k: np.full(len(copies), v) for k, v in same.items()}))
    if len(known):
        old = [_places(clips, known[p], known[k]) for p, k in (("part", "key"), ("other_part", "other"))]
        stay = (np.minimum(*old) >= 0) & alone[old[0]] & alone[old[1]] & ~new[old[0]] & ~new[old[1]]
        made.append(known.filter(pa.array(stay)))
    return pa.concat_tables(made).sort_by([(n, "ascending") for n in ("key", "part", "other", "other_part")])


def _table(
    clips: pa.Table, one: Any, other: Any, kind: str, numbers: dict[str, np.ndarray], how: list[str] | None = None
) -> pa.Table:
    mine, theirs = clips.take(one), clips.take(other)
    values = [mine["part"], mine["key"], theirs["part"], theirs["key"], pa.array([kind] * len(one), pa.string())]
    values += [pa.array(numbers[name], pa.float32()) for name in ("look", "move", "share", "shift")]
    values.append(pa.array(how or [""] * len(one), pa.string()))
    return pa.table(values, schema=PAIRS)


def find_duplicates(root: str, dataset: Dataset, scored: str) -> Report:
    """Commits the pairs of a dataset; ``items`` counts the clips, ``dropped`` the pairs by kind."""
    where = url(root, dataset, scored)
    report = Report(items=dataset.clips, kept=dataset.clips)
    if not files.exists(where):
        say(f"  duplicates   comparing {dataset.clips} clips")
        about = {"parts": sorted(part.id for part in dataset.parts), "scores": scored, "settings": near.SETTINGS}
        files.publish_bytes(tables.pack(compare(root, dataset, scored), about), where, same=False)
    pointer = files.join(root, "near", version(scored), f"{dataset.name}.json")
    files.replace_json({"table": where.rsplit("/", 1)[1]}, pointer)  # where the next comparison goes on from
    kinds = tables.read(where, ["kind"])["kind"].value_counts().to_pylist()
    counts = ", ".join(f"{row['counts']} {row['values']}" for row in kinds) or "none"
    say(f"  duplicates   pairs among {dataset.clips} clips: {counts}")
    return report


def across(pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pairs with those added that copies of a clip inherit from it: only the first of some copies was compared."""
    copies: dict[Clip, list[Clip]] = {}
    for pair in pairs:
        if pair["kind"] == "exact":
            first = (pair["part"], pair["key"])
            copies.setdefault(first, [first]).append((pair["other_part"], pair["other"]))
    found: list[dict[str, Any]] = []
    for pair in pairs:
        one, other = (pair["part"], pair["key"]), (pair["other_part"], pair["other"])
        ones = copies.get(one, [one])
        others = copies.get(other, [other]) if pair["kind"] == "near" else [other]
        for (a, b), (c, d) in product(ones, others):
            if (a, b) != (c, d):
                found.append({**pair, "part": a, "key": b, "other_part": c, "other": d})
    return found


@dataclass(frozen=True)
class Repeat:
    """The clip that another one repeats."""

    part: str
    key: str
    kind: str
    look: float
    move: float
    share: float
    how: str = ""


def repeats(pairs: list[dict[str, Any]], order: Callable[[Clip], Any], usable: set[Clip]) -> dict[Clip, Repeat]:
    """Which of the ``usable`` clips repeat one that comes before them in ``order`` and repeats none itself.

    So every clip that is dropped as a repetition was compared with one that is kept, and no chain of likenesses
    drops a clip that looks like nothing else.
    """
    copies: dict[Clip, list[Clip]] = {}
    like: dict[Clip, dict[Clip, dict[str, Any]]] = {}
    for pair in pairs:
        one, other = (pair["part"], pair["key"]), (pair["other_part"], pair["other"])
        if pair["kind"] == "exact":
            copies.setdefault(one, [one]).append(other)
        else:
            like.setdefault(one, {})[other] = pair
            like.setdefault(other, {})[one] = pair
    heads: dict[Clip, Clip] = {}  # of each set of copies: the one that is kept
    for first in copies.keys() | like.keys():
        members = [clip for clip in copies.get(first, [first]) if clip in usable]
        if members:
            heads[first] = min(members, key=order)
    found: dict[Clip, Repeat] = {}
    kept: set[Clip] = set()
    for first in sorted(heads, key=lambda clip: order(heads[clip])):
        near_by = [other for other in like.get(first, {}) if other in kept]
        if near_by:
            chosen = min(near_by, key=lambda clip: order(heads[clip]))
            pair = like[first][chosen]
            look, move, share = (float(pair[name]) for name in ("look", "move", "share"))
            for clip in copies.get(first, [first]):
                if clip in usable:
                    found[clip] = Repeat(*heads[chosen], "near", look, move, share, pair["how"])
            continue
        kept.add(first)
        for clip in copies.get(first, []):
            if clip in usable and clip != heads[first]:
                found[clip] = Repeat(*heads[first], "exact", 0.0, 0.0, 1.0)
    return found


@task(task_run_name="duplicates · {dataset.name}", cache_policy=NO_CACHE)
@staged("duplicates")
def duplicates(root: str, dataset: Dataset, scored: str) -> Report:
    """Compares what was not compared before; see `find_duplicates`."""
    return find_duplicates(root, dataset, scored)
