"""What a take-down is about: the sources that words name, the parts that have them, and how to find what is left."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc

from storage import files, lineage, tombstones, without
from storage.errors import Damaged, InputError
from storage.lineage import Sought
from storage.search import Pattern, Search, pattern, windows
from storage.tombstones import Tombstone
from tasks.report import say

WINDOWS = 2048  # of the bytes of a source that are looked for
FEWEST, MOST = 8, 256  # of a clip
SHORTEST = 4  # bytes of a name that can be looked for
BASE = 8  # letters of a file's name alone that are enough to look for, where no other source has it
PREFIX = 20  # letters of a content id that every key begins with


@dataclass
class Scope:
    """The tombstones of some sources, how to find them, their names that the root still has, and their clips."""

    stones: list[Tombstone]
    patterns: dict[str, set[Pattern]]  # by tombstone
    names: list[str]
    clips: Sought
    of: dict[str, Sought]  # by tombstone

    @property
    def touched(self) -> dict[str, list[str]]:
        """The keys of the clips by part."""
        return {part: sorted(set(keys)) for part, keys in self.clips.by_part().items()}


def find(root: str, words: list[str], reason: str, when: str, who: str) -> Scope:
    """The sources that words name, below the root or on tombstones. Raises `InputError` for what names none or many."""
    clips, planned = lineage.clips(root), lineage.planned(root, all_plans=True)
    known = tombstones.read(root)
    stones: dict[str, Tombstone] = {}
    patterns: dict[str, set[Pattern]] = {}
    of: dict[str, Sought] = {}
    for word in words:
        found = _one(root, word, clips, planned, known)
        made = Tombstone(found.values("identity"), found.values("content_id"), reason, when, who)
        for stone in known:
            if _same(stone, made) or (not made.identities and not made.contents and _said(root, stone, word)):
                made = tombstones.joined(stone, made)
        stones[made.id], of[made.id] = made, found
        mine = {*_names(found, clips, planned), *_digests(root, found), *tombstones.known(root, made)}
        patterns[made.id] = mine | patterns.get(made.id, set())
    whole = Sought(*(pa.concat_tables([getattr(one, name) for one in of.values()]) for name in ("clips", "planned")))
    if waiting := [stone.id for stone in known if not stone.proved and stone.id not in stones]:
        first = f"{tombstones.FOLDER}/{waiting[0]}.json"
        say(f"  not proved   {len(waiting)} take-downs before this one were not completed, see {first}")
    names = sorted({*whole.values("path"), *whole.values("source")})
    _say_twins(whole, clips)
    return Scope(list(stones.values()), patterns, names, whole, of)


def _say_twins(found: Sought, clips: pa.Table) -> None:
    """Names other sources that gave the same clips, byte for byte: the search will find them."""
    same = clips.filter(pc.is_in(clips["sha256"], found.clips["sha256"].combine_chunks()))
    others = sorted({*same["path"].to_pylist()} - {*found.values("path")})
    if others:
        say(f"  the same     {len(others)} other sources gave the same clips: {', '.join(others[:3])}; forget them too")


def _one(root: str, word: str, clips: pa.Table, planned: pa.Table, known: list[Tombstone]) -> Sought:
    """One source's rows; none where a run before has removed them all."""
    owner = clips.filter(pc.equal(clips["key"], word))
    if len(owner):
        raise InputError(f"{word} is a clip; a take-down is of its source, {owner['path'][0].as_py()}")
    try:
        found = lineage.find(word, clips, planned)
    except InputError:
        old = [stone for stone in known if _said(root, stone, word)]
        if not old:
            raise
        return Sought(*(_rows(table, old) for table in (clips, planned)))
    contents, identities = found.values("content_id"), found.values("identity")
    if max(len(contents), 0 if contents else len(identities)) > 1:
        each = ", ".join(one[:16] for one in contents or identities)
        raise InputError(f"{word} names {max(len(contents), len(identities))} sources ({each}); give one of these ids")
    return found


def _rows(table: pa.Table, stones: list[Tombstone]) -> pa.Table:
    """The rows of a table that are of sources on tombstones."""
    ids = pa.array([one for stone in stones for one in stone.identities], pa.string())
    contents = pa.array([one for stone in stones for one in stone.contents], pa.string())
    return table.filter(pc.or_(pc.is_in(table["identity"], ids), pc.is_in(table["content_id"], contents)))


def _same(stone: Tombstone, made: Tombstone) -> bool:
    """Whether both are of one content; two may share a fingerprint, so it decides only where nothing else is known."""
    if stone.contents and made.contents:
        return bool({*stone.contents} & {*made.contents})
    return bool({*stone.identities} & {*made.identities})


def _said(root: str, stone: Tombstone, word: str) -> bool:
    """Whether a word names a source that was taken down: by its content, or by a name that it had."""
    if len(word) >= lineage.LEAST and any(one.startswith(word) for one in (*stone.identities, *stone.contents)):
        return True
    search = Search(one for one in tombstones.known(root, stone) if one.kind == "name")
    whole = [name.encode() for name in (word, files.absolute(word))]
    return any(hit.length == len(name) for name in whole for hit in search.found(name))


def _names(found: Sought, clips: pa.Table, planned: pa.Table) -> Iterator[Pattern]:
    """The names of a source, in all spellings that Reelmill writes; of an adopted clip the URL alone says which."""
    own = found.clips.filter(pc.not_equal(pc.fill_null(found.clips["identity"], ""), ""))
    paths = {*own["path"].to_pylist(), *found.planned["path"].to_pylist()}
    bases = Counter(path.rpartition("/")[2] for path in _paths(clips, planned))
    alone = {base for path in paths if len(base := path.rpartition("/")[2]) >= BASE and bases[base] == 1}
    for name in sorted({*paths, *alone, *found.values("source")}):
        for spelling in sorted({name, json.dumps(name)[1:-1], quote(name)}):
            if len(spelling.encode()) >= SHORTEST:
                yield pattern("name", spelling.encode())


def _paths(*tables: pa.Table) -> Iterable[str]:
    return {path for table in tables for path in table["path"].to_pylist()}


def _digests(root: str, found: Sought) -> Iterator[Pattern]:
    """The digests of a source, of its clips, and windows of their bytes that no other clip of their parts has."""
    for content in found.values("content_id"):
        yield from (pattern("digest", text.encode()) for text in (content, content[:PREFIX]))
    yield from (pattern("digest", identity[:32].encode()) for identity in found.values("identity"))
    most = max(FEWEST, min(MOST, WINDOWS // max(1, len(found.clips))))
    for id, keys in found.by_part().items():
        whole = without.sound(root, id)
        rows = whole[1].to_pylist() if whole else []
        mine, others = [row for row in rows if row["key"] in keys], [row for row in rows if row["key"] not in keys]
        for row in mine:
            yield pattern("digest", row["sha256"].encode())
            yield pattern("digest", bytes.fromhex(row["sha256"]))
        try:
            assert whole is not None
            cut = {pattern("bytes", window) for _, data in whole[0].clips(mine) for window in windows(data, most)}
            search = Search(cut)
            for _, data in whole[0].clips(others):  # headers and the like, which say nothing of a source
                cut -= search.found(data)
            yield from cut
        except Damaged as error:  # what cannot be read is removed all the same
            say(f"  not read     {error}")
