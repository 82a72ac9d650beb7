"""Where clips come from and where they are: the indexes of parts, plans and names of columns; no tar is opened."""

from collections.abc import Iterable
from dataclasses import dataclass

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from storage import columns, datasets, files, parts, plans, tables
from storage.datasets import Dataset
from storage.errors import Damaged, InputError
from storage.parts import INDEX

LEAST = 8  # characters of an identity that are enough to name a source
CLOSE = 3  # names that are shown where none was found
FIELDS = ("key", "source", "path", "identity", "content_id", "start", "end", "split", "labelled", "sha256")
CLIPS = pa.schema([("part", pa.string()), *(INDEX.field(name) for name in FIELDS)])
PLANNED = pa.schema([(name, pa.string()) for name in ("part", "path", "source", "identity", "content_id", "plan")])


@dataclass(frozen=True)
class Sought:
    """What a word names: rows of `CLIPS`, and rows of `PLANNED` of the same sources, which may have given no clip."""

    clips: pa.Table
    planned: pa.Table

    @property
    def keys(self) -> list[str]:
        return self.clips["key"].to_pylist()

    def by_part(self) -> dict[str, list[str]]:
        """The keys of the clips by the part they are in."""
        found: dict[str, list[str]] = {}
        for part, key in zip(self.clips["part"].to_pylist(), self.clips["key"].to_pylist(), strict=True):
            found.setdefault(part, []).append(key)
        return found

    def values(self, name: str) -> list[str]:
        """What the rows of both tables have in a field, in order, without repetitions and blanks."""
        both = pa.chunked_array([*self.clips[name].chunks, *self.planned[name].chunks], pa.string())
        return [value for value in pc.unique(both).to_pylist() if value]


def clips(root: str, ids: Iterable[str] | None = None) -> pa.Table:
    """The clips of some parts, of all that are committed unless ``ids`` are given, from their indexes; see `CLIPS`."""
    if ids is None:
        ids = [name.removesuffix(".parquet") for name in files.names(files.join(root, "parts"), ".parquet")]
    return pa.concat_tables([CLIPS.empty_table(), *files.at_once(lambda id: _of_part(root, id), ids)])


def _of_part(root: str, id: str) -> pa.Table:
    found = parts.whole(root, id)
    if found is None:
        return CLIPS.empty_table()
    table = found[1].select(list(FIELDS))
    return table.add_column(0, CLIPS.field("part"), pa.array([id] * len(table), pa.string())).cast(CLIPS)


def planned(root: str, *, all_plans: bool = False) -> pa.Table:
    """The sources that the newest plan of every dataset names, or all plans that there are; see `PLANNED`."""
    urls = []
    for name in files.names(files.join(root, "plans")):
        for file in files.names(files.join(root, "plans", name), ".parquet"):
            if all_plans or file == f"{plans.latest(root, name)}.parquet":
                urls.append(files.join(root, "plans", name, file))
    return pa.concat_tables([PLANNED.empty_table(), *files.at_once(_of_plan, urls)])


def _of_plan(url: str) -> pa.Table:
    try:
        table = tables.read(url).select(["part", "path", "url", "identity", "content_id"])
    except (FileNotFoundError, KeyError):  # gone meanwhile, or of an older schema
        return PLANNED.empty_table()
    table = table.rename_columns(["part", "path", "source", "identity", "content_id"])
    return table.append_column("plan", pa.array([url] * len(table), pa.string())).cast(PLANNED)


def find(word: str, clips: pa.Table, planned: pa.Table) -> Sought:
    """What a word names: a path or URL of a source, its identity or content id (or their first letters), or a clip.

    Copies and windows of a source are found with it. Raises `InputError` with names that are like the word.
    """
    alone = clips.filter(pc.equal(clips["key"], word))
    if len(alone):
        wanted = pc.starts_with(clips["key"], word)  # volumes made from a clip have its key before their own
        return Sought(clips.filter(wanted), PLANNED.empty_table())
    found = Sought(clips.filter(_named(clips, word)), planned.filter(_named(planned, word)))
    if not len(found.clips) and not len(found.planned):
        raise InputError(f"{word}: no source and no clip of that name{_like(word, clips, planned)}")
    # Twice: a copy is known by its identity alone, and a volume by the content that the first clips have.
    return same(same(found, clips, planned), clips, planned)


def same(found: Sought, clips: pa.Table, planned: pa.Table) -> Sought:
    """The rows with an identity or a content of those that were found."""
    identities, contents = (pa.array(found.values(name), pa.string()) for name in ("identity", "content_id"))
    some = [
        table.filter(pc.or_(pc.is_in(table["identity"], identities), pc.is_in(table["content_id"], contents)))
        for table in (clips, planned)
    ]
    return Sought(*some)


def _named(table: pa.Table, word: str) -> pa.ChunkedArray:
    found = pc.or_(pc.equal(table["path"], word), pc.is_in(table["source"], pa.array([word, files.absolute(word)])))
    if len(word) >= LEAST:
        for name in ("identity", "content_id"):
            found = pc.or_(found, pc.fill_null(pc.starts_with(table[name], word), False))
    return found


def _like(word: str, clips: pa.Table, planned: pa.Table) -> str:
    """The names that are nearest to a word, as the end of a sentence."""
    names = pa.table({"name": pc.unique(pa.chunked_array([*clips["path"].chunks, *planned["path"].chunks]))})
    query = "SELECT name FROM names ORDER BY jaro_winkler_similarity(name, ?) DESC, name LIMIT ?"
    with duckdb.connect() as db:
        near = [name for (name,) in db.register("names", names).execute(query, [word, CLOSE]).fetchall()]
    return f"; the most like it are {', '.join(near)}" if near else "; this root has no sources"


def versions(root: str) -> list[tuple[Dataset, bool]]:
    """All versions of all datasets that can be read, and whether ``latest`` points to each."""
    found = []
    for name in datasets.names(root):
        latest = datasets.latest(root, name)
        for file in files.names(files.join(root, "datasets", name), ".json"):
            if (version := file.removesuffix(".json")) != "latest":
                try:
                    found.append((datasets.load(root, name, version), version == latest))
                except (Damaged, InputError):  # which `verify` says
                    continue
    return found


def made_of(root: str, ids: Iterable[str]) -> dict[tuple[str, str], list[str]]:
    """The versions of columns, and of segments, that some parts have: (column, version) to parts."""
    wanted = [(c, v) for c in files.names(files.join(root, "columns")) for v in columns.versions(root, c)]
    wanted += [("segments", v) for v in files.names(files.join(root, "segments"))]
    asked = [(column, version, id) for column, version in wanted for id in ids]
    found: dict[tuple[str, str], list[str]] = {}
    for (column, version, id), there in zip(asked, files.at_once(lambda one: _there(root, *one), asked), strict=True):
        if there:
            found.setdefault((column, version), []).append(id)
    return found


def beside(root: str, column: str, version: str, part: str) -> str:
    """Where a column of a part is, or its segments."""
    if column == "segments":
        return files.join(root, "segments", version, f"{part}.parquet")
    return columns.url(root, column, version, part)


def _there(root: str, column: str, version: str, part: str) -> bool:
    return files.exists(beside(root, column, version, part))


def committed_tars(root: str) -> dict[str, int]:
    """The tars below a root that an index names, with the bytes that it says they have."""
    ids = [name.removesuffix(".parquet") for name in files.names(files.join(root, "parts"), ".parquet")]
    known = [part for part in files.at_once(lambda id: parts.find(root, id), ids) if part and part.samples]
    base = root.rstrip("/") + "/"
    return {part.media.removeprefix(base): part.bytes for part in known if part.media.startswith(base)}
