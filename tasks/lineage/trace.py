"""Lineage both ways: from a model to the sources it was trained on, and from a source to all that came of it."""

import difflib
import io
import re
import sys
from collections.abc import Iterable
from json import dumps
from typing import TYPE_CHECKING, Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from pydantic import Field

from storage import columns, datasets, files, lineage, tables, tombstones
from storage.errors import InputError
from storage.lineage import Sought
from tasks.lineage import ancestry
from tasks.lineage.ancestry import Training

if TYPE_CHECKING:
    from tasks.registry import ModelVersion

SHOWN = 4  # names that a line of the tree has
MODEL = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>.+)|/(?P<version>\d+))")
CAME_FROM = ("part", "key", "start", "end", "split", "path", "source", "identity", "content_id")
OF_MODEL = pa.schema(
    [(name, pa.string()) for name in ("model", "training", "run", "dataset", "columns")]
    + [lineage.CLIPS.field(name) for name in CAME_FROM]
)
OF_SOURCE = pa.schema(
    [(name, pa.string()) for name in ("kind", "name", "version", "part", "key", "detail")] + [("rows", pa.int64())]
)


def trace(
    what: Annotated[str, Field(description="models:/NAME@champion, models:/NAME/VERSION, or a source or a clip.")],
    root: Annotated[str, Field(description="Folder or URL that `prepare` has written to.")],
    json: Annotated[bool, Field(description="Print the whole list as JSON, a line for each row.")] = False,
    csv: Annotated[bool, Field(description="Print the whole list as CSV.")] = False,
    parquet: Annotated[str | None, Field(description="File or URL to write the whole list to, as Parquet.")] = None,
) -> str | None:
    """Follow a model back to its sources, or a source forward to all that was made of it.

    WHAT is models:/NAME@champion or models:/NAME/VERSION, the path or URL of a source, its identity or content id (8
    letters are enough), or the key of a clip. Read are indexes, plans and lists; no media.
    """
    root = files.existing_root(root)
    rows, tree = of_model(root, what) if what.startswith("models:") else of_source(root, what)
    if parquet:
        files.replace(tables.pack(rows), files.absolute(parquet))
        return "\n".join([*tree, f"{len(rows)} rows in {parquet}"])
    if not json and not csv:
        return "\n".join(tree)
    if csv:
        out = io.BytesIO()
        pyarrow.csv.write_csv(rows, out)
        sys.stdout.write(out.getvalue().decode())
    else:
        sys.stdout.writelines(dumps(row, ensure_ascii=False) + "\n" for row in rows.to_pylist())
    return None


def _some(names: Iterable[str]) -> str:
    known = list(names)
    return ", ".join(known[:SHOWN]) + (f" and {len(known) - SHOWN} more" if len(known) > SHOWN else "")


def named_model(root: str, word: str) -> "ModelVersion":
    """The model version that ``models:/NAME@alias`` or ``models:/NAME/VERSION`` names. Raises `InputError`."""
    found = MODEL.fullmatch(word)
    if found is None:
        raise InputError(f"{word}: write models:/NAME@champion or models:/NAME/VERSION")
    known = ancestry.models(root)
    name, version = found["name"], found["version"]
    of_name = {one.version: one for one in known if one.name == name}
    if not of_name:
        names = sorted({one.name for one in known})
        like = difflib.get_close_matches(name, names, cutoff=0.4) or names
        raise InputError(f"no model {name!r}; " + (f"there are {_some(like)}" if like else "none is registered"))
    if version is None:
        from tasks import registry

        holder = registry.champion(root, name, found["alias"])
        if holder is None:
            raise InputError(f"{name} has no alias {found['alias']!r}; it has versions {_some(map(str, of_name))}")
        return holder
    if int(version) not in of_name:
        raise InputError(f"{name} has no version {version}; it has {_some(map(str, of_name))}")
    return of_name[int(version)]


def of_model(root: str, word: str) -> tuple[pa.Table, list[str]]:
    """The clips that a model version was trained on, a row for each training that had it, and a short tree."""
    from tasks import registry, tracking

    model = named_model(root, word)
    best = registry.champion(root, model.name)
    title = f"{model.name} version {model.version}" + (", champion" if best and best.version == model.version else "")
    lines = [f"{title} · {model.tags.get('system', 'unknown system')} · checkpoint {model.checkpoint}"]
    lines.append(f"  run        {model.run} · {tracking.run_url(root, model.run)}")
    lines += [f"  forgotten  {model.tags[tombstones.TAG]}"] if tombstones.TAG in model.tags else []
    known = list(ancestry.trainings(root, model.checkpoint))
    clips = lineage.clips(root, sorted({part for training in known for part in training.parts}))
    made = []
    for training in known:
        run, tags = tracking.training(root, training.name) or ("", {})
        dataset = tags.get("dataset") or model.tags.get("dataset", "")
        table = _had(root, training, clips)
        first = {"model": f"{model.name}/{model.version}", "training": training.name, "run": run, "dataset": dataset}
        first["columns"] = ",".join(f"{column}:{version}" for column, version in sorted(training.columns.items()))
        for place, (name, value) in enumerate(first.items()):
            table = table.add_column(place, name, pa.array([value] * len(table), pa.string()))
        made.append(table.select(OF_MODEL.names).cast(OF_MODEL))
        lines += _branch(root, training, run, dataset, made[-1])
    rows = pa.concat_tables([OF_MODEL.empty_table(), *made])
    names = pc.unique(rows["path"]).to_pylist()
    lines.append(f"  sources    {len(names)}: {_some(names)}" if names else "  sources    none is there any more")
    return rows, lines


def _had(root: str, training: Training, clips: pa.Table) -> pa.Table:
    """The clips of a training, without those that its selection had dropped."""
    mine = clips.filter(pc.is_in(clips["part"], pa.array(training.parts, pa.string())))
    if datasets.SELECTION not in training.columns:
        return mine
    keys = Sought(mine, lineage.PLANNED.empty_table()).by_part()
    used = [key for some in ancestry.selected(root, training, keys).values() for key in some]
    return mine.filter(pc.is_in(mine["key"], pa.array(used, pa.string())))


def _branch(root: str, training: Training, run: str, dataset: str, table: pa.Table) -> list[str]:
    """A training as lines of the tree."""
    if not training.parts:
        return [f"  {training.objective:<10} {training.name}" + (f" · run {run}" if run else "")]
    name, _, version = dataset.partition("@")
    there = bool(version) and files.exists(files.join(root, "datasets", name, f"{version}.json"))
    since = "" if there else ", which is gone"
    if follower := tombstones.followers(tombstones.read(root)).get(dataset):
        since = f", of which a source was taken down; {name}@{follower} followed"
    lines = [f"  trained    {training.name} · {training.objective}" + (f" · run {run}" if run else "")]
    lines.append(f"    dataset  {dataset or 'not known'}{since}")
    for column, made in sorted(training.columns.items()):
        lines.append(f"    column   {column} {made} · digest {columns.digest(root, column, made, training.parts)}")
    counts = {row["values"]: row["counts"] for row in table["part"].value_counts().to_pylist()}
    gone = len(training.parts) - len(counts)
    more = f"; {gone} of them have no clip now" if gone else ""
    lines.append(f"    parts    {len(training.parts)}: {_some(training.parts)}{more}")
    sources = pc.unique(table["path"]).to_pylist()
    lines.append(f"    clips    {len(table)} of {len(sources)} sources: {_some(sources)}")
    return lines


def of_source(root: str, word: str) -> tuple[pa.Table, list[str]]:
    """All that came of a source, or of one clip, as rows of `OF_SOURCE`, and a short tree."""
    clips, planned = lineage.clips(root), lineage.planned(root)
    found = lineage.find(word, clips, planned)
    rows = [*_itself(found), *_in_datasets(root, found), *_made_of(root, found), *_models(root, found)]
    rows += _measured(root, found)
    table = pa.Table.from_pylist([dict.fromkeys(OF_SOURCE.names) | row for row in rows], schema=OF_SOURCE)
    return table, _tree(word, found, rows)


def _itself(found: Sought) -> Iterable[dict[str, Any]]:
    sources = {(row["path"], row["source"]): row for row in (*found.planned.to_pylist(), *found.clips.to_pylist())}
    for (path, url), row in sorted(sources.items()):
        yield {"kind": "source", "name": path, "version": row["identity"], "detail": url, "rows": 1}
    for row in found.clips.to_pylist():
        detail = f"{row['start']:g} to {row['end']:g} s, {row['split']}"
        kind = "volume" if row["labelled"] == "volume" else "clip"
        yield {"kind": kind, "name": row["path"], "part": row["part"], "key": row["key"], "detail": detail, "rows": 1}


def _in_datasets(root: str, found: Sought) -> Iterable[dict[str, Any]]:
    mine = found.by_part()
    for data, latest in lineage.versions(root):
        for part in data.parts:
            if part.id in mine:
                detail = "latest" if latest else ""
                some = {"kind": "dataset", "name": data.name, "version": data.version, "part": part.id}
                yield {**some, "detail": detail, "rows": len(mine[part.id])}


def _made_of(root: str, found: Sought) -> Iterable[dict[str, Any]]:
    """A row for each clip in each version of a column, and for each segment found in it."""
    mine = found.by_part()
    by_digest = {one.tags.get("checkpoint_digest"): one for one in ancestry.models(root)}
    for (column, version), ids in lineage.made_of(root, sorted(mine)).items():
        for id in ids:
            table, about = tables.both(lineage.beside(root, column, version, id))
            model = by_digest.get(about.get("model"))
            detail = f"by {model.name} version {model.version}" if model else ""
            some = {"kind": "column", "name": column, "version": version, "part": id, "detail": detail}
            there = table["key"].to_pylist()
            for key in mine[id]:
                if column == "segments":
                    yield {**some, "kind": "segments", "key": key, "rows": there.count(key)}
                elif key in there:
                    kept = column != datasets.SELECTION or table["kept"][there.index(key)].as_py()
                    yield {**some, "key": key, "detail": detail if kept else "dropped", "rows": 1}


def _models(root: str, found: Sought) -> Iterable[dict[str, Any]]:
    for use in ancestry.trained_on(root, found.by_part()):
        version = str(use.model.version)
        for part, keys in use.keys.items():
            some = {"kind": "model", "name": use.model.name, "version": version, "part": part}
            yield {**some, "detail": use.training.name, "rows": len(keys)}


def _measured(root: str, found: Sought) -> Iterable[dict[str, Any]]:
    """The model versions that were judged on a dataset version in which the source is held out."""
    held = set(found.clips.filter(pc.equal(found.clips["split"], "heldout"))["part"].to_pylist())
    for data, _ in lineage.versions(root) if held else ():
        rows = sum(len(keys) for part, keys in found.by_part().items() if part in held & {one.id for one in data.parts})
        for model in ancestry.models(root) if rows else ():
            if model.tags.get("dataset") == f"{data.name}@{data.version}":
                some = {"kind": "measured", "name": model.name, "version": str(model.version)}
                yield {**some, "detail": f"held out in {model.tags['dataset']}", "rows": rows}


def _tree(word: str, found: Sought, rows: list[dict[str, Any]]) -> list[str]:
    """The rows as lines, a line for each name and version of a kind."""
    contents = ", ".join(value[:16] for value in found.values("content_id")) or "not cut"
    lines = [f"{word} · content {contents}"]
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        name, version = (row["part"], "") if row["kind"] in ("clip", "volume") else (row["name"], row.get("version"))
        groups.setdefault((row["kind"], name, version or ""), []).append(row)
    for (kind, name, version), some in groups.items():
        said = _some(dict.fromkeys(row["detail"] for row in some if row["detail"]))
        if kind in ("clip", "volume"):
            name, said = f"part {name}", f"{len(some)} {kind}s: {_some(row['key'] for row in some)}"
        elif kind != "source":
            said = f"{sum(row['rows'] for row in some)} rows" + (f" · {said}" if said else "")
        lines.append(f"  {kind:<10} {' '.join(filter(None, (name, version)))} · {said}")
    return lines
