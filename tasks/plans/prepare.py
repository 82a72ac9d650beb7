"""What `prepare` would do: its own planning, into a scratch folder, compared with the newest plan and the parts."""

import json
import math
from collections import Counter
from typing import Any

import pyarrow.parquet as pq

from storage import datasets, files, parts, plans, tables
from storage.conditions import MARKER
from storage.inventory import in_units
from storage.secrets import printable, refuse_credentials
from tasks import checks, pool
from tasks.listing import between, planned
from tasks.plans import rates
from tasks.report import clock
from tasks.shard import recipe

FIELDS = ["part", "path", "size", "identity", "split", "labels", "start", "end", "facts", "attempt", "was"]
SHOWN = 5


def prepare(
    root: str, archive: str, labels: str | None, name: str, classes: list[str], span: float, short_side: int,
    splitting: Any, cutting: Any, per_part: int, part_bytes: int, held_out: float, modified_from: str | None,
    modified_to: str | None, model: str, pretrained: str | None, feature_fps: float, **_: Any,
) -> str:  # fmt: skip
    """Say which sources are new, changed or gone and which parts they rebuild; changes nothing.

    The archive is listed, and new files are fingerprinted and their headers read, as `reelmill prepare` does it. Exact
    are sources, parts and bytes; seconds are those that the headers say, clips and the time follow from them.
    """
    checks.check_root(root)
    datasets.check_name(name)
    for option, url in (("--root", root), ("--archive", archive), ("--labels", labels)):
        refuse_credentials(url or "", option)
    root = files.absolute(root)
    if files.exists(files.join(root, MARKER)):
        root = files.existing_root(root)
    cut = recipe(span, short_side, splitting, cutting)
    limits = plans.Limits(units=per_part * 3 // 2, bytes=part_bytes)
    options: dict[str, Any] = {"classes": classes, "held_out": held_out, "recipe": cut, "limits": limits}
    with planned(root, name, archive, labels, **options, dates=between(modified_from, modified_to)) as made:
        now = pq.read_table(made.path, columns=FIELDS).to_pylist()
        then, old = _before(root, name, made.before)
        lost = made.report.dropped + made.report.quarantined
    lines = [f"prepare · {name} · {archive}"]
    changes = sources(now, then)
    counts = ", ".join(f"{len(changes[kind]):,} {kind}" for kind in changes)
    lines.append(f"sources  {made.report.items:,} files: {counts}")
    lines += [f"  {kind}: {_some(paths)}" for kind, paths in changes.items() if paths and kind != "unchanged"]
    lines += [f"  left out: {n:,} {reason}" for reason, n in lost.most_common()]
    ids = sorted({row["part"] for row in now if row["part"]})
    there = dict(zip(ids, files.at_once(lambda id: parts.committed(root, id), ids), strict=True))
    todo = [row for row in now if row["part"] and not there[row["part"]]]
    lines += _columns(root, name, {"model": model, "pretrained": pretrained, "fps": feature_fps})
    dropped = {row["part"] for row in then if row["part"]} - set(ids)
    if not todo:
        nothing = f"nothing to cut: all {len(ids)} parts are there"
        return "\n".join([*lines, nothing + (f"; {len(dropped)} leave the dataset" if dropped else "")])
    lines.append(f"why      {_why(cut, old, changes, made.before)}")
    return "\n".join(lines + _work(root, name, todo, len(ids), cut, old))


def sources(now: list[dict[str, Any]], then: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The paths of two plans by what became of them; a source with other labels or another split is relabelled."""
    new, old = _facts(now), _facts(then)
    places = {facts[0] for path, facts in old.items() if path not in new}
    found: dict[str, list[str]] = {
        kind: [] for kind in ("new", "changed", "moved", "relabelled", "asked again", "gone", "unchanged")
    }
    for path, (identity, said, attempt) in sorted(new.items()):
        if path not in old:
            kind = "moved" if identity in places else "new"
        elif identity != old[path][0]:
            kind = "changed"
        elif said != old[path][1]:
            kind = "relabelled"
        else:
            kind = "asked again" if attempt != old[path][2] else "unchanged"
        found[kind].append(path)
    moved = {new[path][0] for path in found["moved"]}
    found["gone"] = sorted(path for path in old.keys() - new.keys() if old[path][0] not in moved)
    return found


def _facts(rows: list[dict[str, Any]]) -> dict[str, tuple[str, tuple[str, str | None], int]]:
    return {row["path"]: (row["identity"], (row["split"], row["labels"]), row["attempt"]) for row in rows}


def _before(root: str, name: str, digest: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of the newest plan and its recipe."""
    if not digest:
        return [], {}
    try:
        table, about = tables.both(plans.url(root, name, digest))
        return table.select(FIELDS).to_pylist(), about["recipe"]
    except (FileNotFoundError, KeyError):
        return [], {}


def _why(cut: dict[str, Any], old: dict[str, Any], changes: dict[str, list[str]], before: str) -> str:
    if not before:
        return "nothing was planned yet"
    if cut != old:
        names = sorted(name for name in cut.keys() | old.keys() if cut.get(name) != old.get(name))
        said = ", ".join(f"{name} {old.get(name, 'unset')} → {cut.get(name, 'unset')}" for name in names)
        return f"changed option, which rebuilds every part: {said}"
    said = ", ".join(f"{len(paths):,} {kind}" for kind, paths in changes.items() if paths and kind != "unchanged")
    return f"sources: {said}" if said else "missing: planned before, but not committed"


def _work(
    root: str, name: str, todo: list[dict[str, Any]], all_: int, cut: dict[str, Any], old: dict[str, Any]
) -> list[str]:
    decode = [row for row in todo if not row["was"]]
    video = sum(seconds(row) for row in decode)
    clips = sum(max(1, math.ceil(seconds(row) / cut["span"])) for row in decode)
    ids = {row["part"] for row in todo}
    lines = [
        f"work     {len(ids):,} of {all_:,} parts; {len(decode):,} sources are cut, {len(todo) - len(decode):,} are "
        "taken over",
        f"         {in_units(sum(row['size'] for row in decode if not row['start']))}, {clock(video)} (m:ss) of video, "
        f"about {clips:,} clips before shots",
    ]
    if not (measured := rates.of_cutting(root, name)):
        return [*lines, "time     not known: no source of this dataset was cut under this root yet"]
    workers = pool.workers()
    took = video * measured["rate"] / workers
    other = ", with other options" if old and cut != old else ""
    note = f"{measured['rate']:.3g} s a second of video, measured over {clock(measured['video'])}{other}"
    lines.append(f"time     about {clock(took)} (m:ss) to cut on {workers} cores ({note})")
    for stage in ("score", "features"):
        rate = rates.of_stage(root, "prepare", name, stage)
        lines.append(
            f"         {stage}: {f'about {clock(clips / rate.clips_a_second)}' if rate else 'not measured yet'}"
        )
    return lines


def seconds(row: dict[str, Any]) -> float:
    """The seconds of video that a row of a plan stands for, as far as its header says."""
    known = float(json.loads(row["facts"] or "{}").get("duration") or 0.0)
    return max(0.0, (row["end"] if row["end"] is not None else known) - row["start"])


def _columns(root: str, name: str, wanted: dict[str, Any]) -> list[str]:
    """What the newest dataset version lacks already, and whether its features are of the model that is asked for."""
    if not datasets.latest(root, name):
        return []
    from storage.versions import survey

    data = datasets.load(root, name)
    listed = [entry for entry in survey(root, [data]) if entry.column == "features" and name in entry.covers]
    fitting = [entry for entry in listed if all(entry.about.get(key) == value for key, value in wanted.items())]
    have = max((entry.covers[name][0] for entry in fitting), default=0)
    if have == len(data.parts):
        return []
    why = "missing column" if fitting or not listed else "new model: the features there are of another"
    missing = Counter(part.split for part in data.parts)
    clips = data.clips if not have else sum(p.samples for p in data.parts if p.id not in fitting[0].parts)
    return [f"features {why}: {len(data.parts) - have} of {missing.total()} parts, {clips:,} clips"]


def _some(paths: list[str]) -> str:
    shown = ", ".join(map(printable, paths[:SHOWN]))
    return f"{shown} and {len(paths) - SHOWN:,} more like it" if len(paths) > SHOWN else shown
