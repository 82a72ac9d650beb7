"""What an adopted shard says of its clips: the labels and metadata beside each video, and an index over a tar that
stays where it is.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from storage import files, parts, tables
from storage.errors import InputError
from storage.labels import Labels, split_of
from storage.parts import Part
from storage.reading import VIDEOS
from storage.secrets import without_credentials
from storage.shards import Member, Sample
from storage.stores import UNKNOWN, ask

TARS = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")  # all but the first are refused by name
SIDECARS = ("json", "cls", "label", "txt")
LABEL_KEYS = ("label", "class", "class_name", "category")
LARGEST_SIDECAR = 1 << 20  # bytes
DEEPEST = 64  # lists and objects within each other in a .json
SPLITS = {
    "train": "train", "heldout": "heldout", "held_out": "heldout", "val": "heldout", "valid": "heldout",
    "validation": "heldout", "test": "heldout", "unlabelled": "unlabelled",
}  # fmt: skip


class BadSidecar(ValueError):
    """What lies beside a video cannot be understood."""


@dataclass(frozen=True)
class Shard:
    """A tar to adopt. ``stamp`` changes when its bytes may have changed."""

    url: str
    stamp: str

    @property
    def id(self) -> str:
        return self.url


def find(patterns: list[str]) -> list[Shard]:
    """The shards of URLs, globs, folders and ``{000..012}`` ranges, sorted; raises `InputError` for none."""
    from braceexpand import braceexpand

    found: dict[str, Shard] = {}
    for pattern in patterns:
        some = [shard for url in braceexpand(pattern) for shard in _matching(files.absolute(url))]
        if not some:
            raise InputError(f"{pattern}: no shards there; give tars, a folder of tars or a glob")
        found |= {shard.url: shard for shard in some}
    if not found:
        raise InputError("--shards is empty; give tars, a folder of tars or a glob")
    return [found[url] for url in sorted(found)]


def _matching(url: str) -> Iterator[Shard]:
    fs, path = files.locate(url)
    local = isinstance(fs, LocalFileSystem)
    if ask(fs, "isfile", path):
        matched = {path: ask(fs, "info", path)}
    elif ask(fs, "isdir", path):
        everything = ask(fs, "find", path, detail=True, size=UNKNOWN)
        matched = {p: i for p, i in everything.items() if p.endswith(TARS)}
    else:
        matched = {p: i for p, i in ask(fs, "glob", path, detail=True, size=UNKNOWN).items() if i["type"] == "file"}
    for where, info in matched.items():
        yield Shard(where if local else fs.unstrip_protocol(where), files.stamp(info))


def videos(sample: Sample, kinds: tuple[str, ...] = VIDEOS) -> list[tuple[Member, dict[str, Member]]]:
    """The videos of a sample, each with its sidecars by kind: those of its own stem, else those of the key alone.

    ``kinds`` are the extensions of videos: by default those of clips that are read where they are.
    """
    found = []
    for extension, member in sample.members.items():
        stem, _, last = extension.rpartition(".")
        if last.lower() not in kinds:
            continue
        beside: dict[str, Member] = {}
        for wanted in dict.fromkeys(("", stem)):
            for other, side in sample.members.items():
                before, _, kind = other.rpartition(".")
                if before == wanted and kind.lower() in SIDECARS:
                    beside[kind.lower()] = side
        found.append((member, beside))
    return found


def describe(beside: dict[str, bytes], text: str) -> tuple[Labels | None, dict[str, Any]]:
    """Labels (None: nothing is said) and metadata of a video from its sidecars.

    ``text`` says what a .txt is: ``caption`` or ``label``. Raises `BadSidecar`.
    """
    metadata: dict[str, Any] = {}
    rows: list[tuple[float | None, float | None, str]] = []
    said, split = False, ""
    if "json" in beside:
        metadata = _json(beside["json"])
        given = [metadata.pop(key) for key in LABEL_KEYS if key in metadata]
        for value in (*given, *([metadata.pop("labels")] if "labels" in metadata else ())):
            said, found = True, _label_rows(value)
            rows += found
        named = metadata.pop("split", "")
        if named and (not isinstance(named, str) or named not in SPLITS):
            raise BadSidecar(f"split {named!r} is none of {', '.join(SPLITS)}")
        split = SPLITS.get(named, "")
    for kind in ("label", "txt", "cls"):
        if kind in beside:
            value = _text(beside[kind], kind)
            if kind == "txt" and text == "caption":
                metadata.setdefault("caption", value)
            elif kind == "cls" and rows:
                metadata.setdefault("cls", value)  # the number of a class that has a name
            elif value:
                said = True
                rows.append((None, None, value))
    rows = list(dict.fromkeys(rows))
    if len({start is None for start, _, _ in rows}) > 1:
        raise BadSidecar("labels with and without times")
    return (Labels(tuple(sorted(rows, key=str)), split) if said else None), without_credentials(metadata)


def _text(data: bytes, kind: str) -> str:
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BadSidecar(f".{kind} is not UTF-8") from error


def _json(data: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise BadSidecar("a key comes twice in .json")
        return dict(pairs)

    def number(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise BadSidecar(f"{text[:80]} in .json")
        return value

    try:
        found = json.loads(data, object_pairs_hook=once, parse_constant=number, parse_float=number)
        _bearable(found)
    except BadSidecar:
        raise
    except (ValueError, RecursionError) as error:
        raise BadSidecar(f".json is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise BadSidecar(".json is no object")
    return found


def _bearable(found: Any) -> None:
    """Refuses what JSON may say and what works with it cannot: deep nesting, and halves of characters."""
    waiting = [(found, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > DEEPEST:
            raise BadSidecar(f"more than {DEEPEST} lists and objects within each other in .json")
        if isinstance(value, str):
            value.encode()
        elif isinstance(value, dict):
            waiting += [(one, depth + 1) for pair in value.items() for one in pair]
        elif isinstance(value, list):
            waiting += [(one, depth + 1) for one in value]


def _label_rows(value: Any) -> list[tuple[float | None, float | None, str]]:
    """A name, a number, a segment, or a list of these."""
    if value is None:
        return []
    if isinstance(value, list):
        return [row for entry in value for row in _label_rows(entry)]
    if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
        return [(None, None, str(value).strip())]
    if isinstance(value, dict):
        names = [value[key] for key in LABEL_KEYS if key in value]
        start: Any = value.get("start")
        end: Any = value.get("end")
        if len(names) == 1 and isinstance(names[0], str | int) and not isinstance(names[0], bool):
            if start is None and end is None:
                return [(None, None, str(names[0]))]
            if _seconds(start) and _seconds(end) and 0 <= start < end:
                return [(float(start), float(end), str(names[0]))]
            raise BadSidecar(f"a segment needs 0 <= start < end, got {repr(start)[:80]} to {repr(end)[:80]}")
    raise BadSidecar(f"{str(value)[:80]!r} is no label; give a name, or start, end and label")


def _seconds(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float is as large as
        return False


def examined_url(root: str, id: str) -> str:
    """Where it is kept what a shard holds and says of itself."""
    return files.join(root, "adopted", f"{id}.parquet")


def keep(root: str, id: str, rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """Keeps what a shard holds and says of itself, before anybody else's labels: other labels decode nothing."""
    table = pa.Table.from_pylist(rows, schema=parts.INDEX)
    files.publish_bytes(tables.pack(table, about), examined_url(root, id), same=False)


def examined(root: str, id: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What `keep` kept: index rows whose split and labels are those beside the clips, and facts of the shard."""
    table, about = tables.both(examined_url(root, id))
    return table.drop_columns(["identity"]).to_pylist(), about


def named(member: str) -> tuple[str, str]:
    """What a list of labels may call a member: its name, and that without its extension."""
    return member, member.rpartition(".")[0]


def labelled(row: dict[str, Any], given: dict[str, Labels], split: str, held_out: float) -> dict[str, Any]:
    """A row of `examined` with labels that are given for it, else its own, and with the split that follows."""
    said = next((given[name] for name in named(row["member"]) if name in given), None)
    if said is None and row["labelled"] != "none":
        said = Labels(tuple((label["start"], label["end"], label["label"]) for label in row["labels"]), row["split"])
    return row | about_labels(said) | {"split": split_of(row["source"], said, held_out) if split == "auto" else split}


def about_labels(said: Labels | None) -> dict[str, Any]:
    """What an index row has of labels and of the split that they name."""
    labels = [{"start": start, "end": end, "label": label} for start, end, label in (said.rows if said else ())]
    return {"labelled": said.kind if said else "none", "labels": labels, "split": said.split if said else ""}


def commit(root: str, media: str, size: int, digest: str, rows: list[dict[str, Any]]) -> Part:
    """Commits an index over clips of a tar elsewhere, all of one split and one kind of labels; returns its part.

    The id follows from the tar and the rows: a tar that changed, or other labels, make another part.
    """
    rows = sorted(rows, key=lambda row: row["offset"])
    part = files.digest_of({"schema": files.SCHEMA, "adopted": media, "digest": digest, "rows": rows})[:16]
    facts = {"id": part, "media": media, "samples": len(rows), "bytes": size, "digest": digest}
    facts |= {"split": rows[0]["split"], "labelled": rows[0]["labelled"]}
    index = parts.part_urls(root, part)[1]
    files.publish_bytes(tables.pack(pa.Table.from_pylist(rows, schema=parts.INDEX), facts), index, same=False)
    found = parts.find(root, part)
    assert found is not None, index
    return found
