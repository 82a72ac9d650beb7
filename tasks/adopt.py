"""Adopt shards that somebody else made: index the clips where they are, and list them as a dataset."""

import json
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from storage import adoption, datasets, files, ledger, parts, records, shards, tombstones
from storage.adoption import BadSidecar, Shard
from storage.errors import BudgetExceeded, Conflict, Damaged, InputError, StoreError
from storage.labels import Labels, read_labels
from storage.ledger import Entry, Report
from storage.media.limits import Rejected
from storage.media.sandbox import mine
from storage.secrets import refuse_credentials
from tasks.report import say
from tasks.stage import cover

STEP = "adopt"
BUDGET_FROM = 20  # bad samples; below that a share says little
LARGEST = 1 << 30  # bytes of a clip
FIRST_FRAME = 1e-6  # frames per second: one frame is kept, all are decoded and counted
NOT_IN_PLACE = {b"\x1aE\xdf\xa3": "Matroska or WebM", b"RIFF": "AVI"}


def _id(shard: Shard, options: dict[str, Any]) -> str:
    """The name of what is kept of a shard as it is now; labels and splits given for it have no part in that."""
    read = {name: options[name] for name in ("text", "open_end")}
    return files.digest_of({"schema": files.SCHEMA, "url": shard.url, "stamp": shard.stamp, "options": read})[:16]


def _marker(root: str, shard: Shard, options: dict[str, Any]) -> str:
    """Where it is written which parts a shard, as it is now, became with these options and labels."""
    given = {name: options[name] for name in ("split", "held_out", "labels")}
    return files.join(root, "adopted", f"{_id(shard, options)}-{files.digest_of(given)[:16]}.json")


def _probe(data: bytes) -> dict[str, Any]:
    """Decodes a clip in the sandbox: its frames, size, rate and seconds. Raises `Rejected`."""
    try:
        frames, _, times = mine().sample(data, FIRST_FRAME)
    except Rejected as rejected:
        if rejected.reason != "decoder_crash":
            kind = NOT_IN_PLACE.get(data[:4])
            if kind and rejected.reason == "decode_error":
                detail = f"{kind} clips are not read in place; unpack them and run `reelmill prepare`"
                raise Rejected("unsupported_container", detail) from rejected
            raise
        frames, _, times = mine().sample(data, FIRST_FRAME)
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.04
    duration = float(times[-1] - times[0]) + step
    if not (np.diff(times) > 0).all() or not 0 < duration < 1e6:
        raise Rejected("bad_timestamps", f"{len(times)} frames in {duration:g} s")
    shape = {"frames": len(times), "fps": len(times) / duration, "height": frames.shape[1], "width": frames.shape[2]}
    ends = {"start": 0.0, "end": duration, "duration": duration, "start_pts": 0, "end_pts": round(duration * 1e6)}
    return {**shape, **ends, "time_base": "1/1000000"}


def _row(
    shard: Shard, member: shards.Member, data: bytes, said: Labels | None, metadata: dict[str, Any]
) -> dict[str, Any]:
    """The index row of a clip as its shard describes it; raises `Rejected`."""
    content = files.digest(data)
    source = f"{shard.url}#{member.name}"
    return {
        "key": f"{content[:20]}-{files.digest(source.encode())[:12]}",
        "offset": member.offset,
        "size": member.size,
        "sha256": content,
        "source": source,
        "path": member.name.rpartition(".")[0],
        "content_id": content,
        **_probe(data),
        **adoption.about_labels(said),
        "member": member.name,
        "metadata": json.dumps(metadata, sort_keys=True),
    }


def _examine(
    shard: Shard, path: str, options: dict[str, Any], gone: dict[str, str]
) -> tuple[list[Entry], list[dict[str, Any]]]:
    """Every sample of a tar, kept or not and why, and the rows of the kept; raises `shards.Refused`.

    ``gone`` are the contents that were taken down, with their tombstones.
    """
    entries: list[Entry] = []
    rows: list[dict[str, Any]] = []

    def refuse(item: str, reason: str, detail: str = "", verdict: str = "quarantined", error: str = "") -> None:
        entries.append(Entry(f"{shard.url}#{item}", verdict, reason, detail, error=error))

    with open(path, "rb") as file:
        members = list(shards.walk(file, name=shard.url, strict=False, open_end=options["open_end"]))

        def content(member: shards.Member) -> bytes:
            file.seek(member.offset)
            return file.read(member.size)

        for sample in shards.group(members):
            if sample.flaw:
                for member in sample.members.values():
                    refuse(member.name, sample.flaw, shards.FLAWS[sample.flaw])
                continue
            found = adoption.videos(sample)
            if not found:
                refuse(sample.key, "no_video", f"only {', '.join(sorted(sample.members))}", "dropped")
            for member, beside in found:
                try:
                    if member.size > LARGEST:
                        raise Rejected("too_large", f"{member.size} bytes, at most {LARGEST} are read")
                    if large := [m.name for m in beside.values() if m.size > adoption.LARGEST_SIDECAR]:
                        raise BadSidecar(f"{large[0]} is larger than {adoption.LARGEST_SIDECAR} bytes")
                    said, metadata = adoption.describe({k: content(m) for k, m in beside.items()}, options["text"])
                    row = _row(shard, member, content(member), said, metadata)
                except BadSidecar as error:
                    refuse(member.name, "bad_sidecar", str(error), error="BadSidecar")
                except Rejected as error:
                    refuse(member.name, error.reason, error.detail, error=error.kind)
                else:
                    if stone := gone.get(row["content_id"]):
                        entries.append(Entry(f"forgotten source {stone}", "dropped", tombstones.REASON))
                        continue
                    rows.append(row)
                    item, seconds = f"{shard.url}#{member.name}", row["duration"]
                    entries.append(Entry(item, "kept", content_id=row["content_id"], clips=1, duration=seconds))
    return entries, rows


def examine_shard(shard: Shard, *, root: str, options: dict[str, Any]) -> Report:
    """Decodes the clips of one tar and keeps what it says of them; a damaged one is written down as refused."""
    id = _id(shard, options)
    facts: dict[str, Any] = {"shard": shard.url, "stamp": shard.stamp, "size": 0, "digest": "", "refused": ""}
    rows: list[dict[str, Any]] = []
    gone = {content: stone.id for stone in tombstones.read(root) for content in stone.contents}
    with files.scratch() as folder:
        path = files.local_path(shard.url, folder / "shard.tar")
        try:
            entries, rows = _examine(shard, path, options, gone)
            facts |= {"size": Path(path).stat().st_size, "digest": files.digest_file(path)}
        except shards.Refused as error:
            facts["refused"] = str(error)
            entries = [Entry(shard.url, "quarantined", error.reason, error.detail, error="Refused")]
    if files.stamp(files.info(shard.url)) != shard.stamp:
        raise StoreError(f"{shard.url} changed while it was read; adopt it again when it is whole")
    ledger.write(root, STEP, id, entries)
    adoption.keep(root, id, rows, facts)
    done = ledger.tally(entries)
    done.decoded, done.bytes = len(entries), facts["size"]
    return done


def label_shard(shard: Shard, *, root: str, options: dict[str, Any], given: dict[str, Labels]) -> dict[str, Any]:
    """Commits the parts of a shard that was examined, with labels; decodes nothing. Returns what its marker says."""
    marker = _marker(root, shard, options)
    with suppress(FileNotFoundError):
        record = _record(marker)
        if all(parts.committed(root, part) for part in record["parts"]):  # gc may have taken those of no dataset
            return record
    rows, facts = adoption.examined(root, _id(shard, options))
    rows = [adoption.labelled(row, given, options["split"], options["held_out"]) for row in rows]
    made = []
    for kind in sorted({(row["split"], row["labelled"]) for row in rows}):
        chosen = [row for row in rows if (row["split"], row["labelled"]) == kind]
        made.append(adoption.commit(root, shard.url, facts["size"], facts["digest"], chosen).id)
    record = {name: facts[name] for name in ("shard", "stamp", "digest", "refused")} | {"parts": made}
    files.replace_json(records.seal(record), marker)
    return record


def _record(marker: str) -> dict[str, Any]:
    found: dict[str, Any] = files.read_json(marker)
    if not records.fits(found):
        raise Damaged(f"{marker} differs from the digest in it; remove it and adopt again")
    return found


def _members(root: str, found: list[dict[str, Any]]) -> dict[str, parts.Part]:
    """The parts of adopted shards; raises `Damaged` where one is gone."""
    names = [(name, record["shard"]) for record in found for name in record["parts"]]
    members = {}
    for (name, shard), part in zip(names, files.at_once(lambda one: parts.find(root, one[0]), names), strict=True):
        if part is None:
            raise Damaged(f"part {name} of {shard} is gone; remove {root}/adopted and adopt again")
        members[name] = part
    return members


def _account(root: str, found: list[Shard], ids: list[str], given: dict[str, Labels], url: str) -> Report:
    """The counts over what was examined; raises `InputError` for labels of members that no shard has."""
    total, unknown, like = Report(), set(given), ""
    for shard, entries in zip(found, files.at_once(partial(ledger.read, root, STEP), ids), strict=True):
        total += ledger.tally(entries)
        prefix = f"{shard.url}#"
        unknown.difference_update(*(adoption.named(entry.item.removeprefix(prefix)) for entry in entries))
        like = like or next((entry.item.removeprefix(prefix) for entry in entries if entry.verdict == "kept"), "")
    if unknown:
        some = ", ".join(sorted(unknown)[:3])
        raise InputError(f"{url} names {len(unknown)} members that no shard has ({some}); they have such as {like}")
    return total


def adopt_shards(
    root: str,
    name: str,
    found: list[Shard],
    *,
    labels: str | None,
    options: dict[str, Any],
    failure_budget: float,
    add: bool,
) -> tuple[datasets.Dataset, Report]:
    """Adopts what is not adopted yet and freezes the dataset; returns it with the counts over all shards.

    Raises `BudgetExceeded` where too many samples were quarantined, and `Damaged`, which names them, where shards
    were refused: the good ones are committed by then, and listed in the dataset.
    """
    given = read_labels(labels) if labels else {}
    options = {**options, "labels": files.digest_of(sorted((k, v.rows, v.split) for k, v in given.items()))}
    ids = [_id(shard, options) for shard in found]
    where = {shard.url: adoption.examined_url(root, id) for shard, id in zip(found, ids, strict=True)}
    work = partial(examine_shard, root=root, options=options)
    done = cover(STEP, found, work, lambda shard: files.exists(where[shard.url]), unit="shards")
    total = _account(root, found, ids, given, labels or "")
    total.decoded, total.bytes = done.decoded, done.bytes
    bad = total.quarantined.total()
    reasons = ", ".join(f"{count} {reason}" for reason, count in total.quarantined.most_common())
    if bad >= BUDGET_FROM and bad > failure_budget * total.items:
        raise BudgetExceeded(
            f"{bad} of {total.items} samples are quarantined ({reasons}), more than --failure-budget "
            f"{failure_budget:g}; see the ledger under {root}/ledger/{STEP}"
        )
    found_records = list(files.at_once(partial(label_shard, root=root, options=options, given=given), found))
    members = _members(root, found_records)
    latest = datasets.latest(root, name)
    if add and latest:
        before = datasets.load(root, name, latest)
        ids = sorted({*before.about.get("adopted", ()), *ids})
        members |= {part.id: part for part in before.parts}
    refused = [record["refused"] for record in found_records if record["refused"]]
    say(f"  {STEP:<12} {total.items} samples: {total.kept} kept, {total.dropped.total()} dropped, {bad} quarantined")
    if not members:
        raise InputError(f"nothing to adopt: {'; '.join(refused[:3]) or reasons or 'no shard holds a video'}")
    dataset = datasets.freeze(root, name, list(members.values()), {"adopted": ids}, before=latest)
    if not members.keys() <= {part.id for part in dataset.parts}:
        raise Conflict(
            f"dataset {name} has moved on to version {dataset.version} meanwhile; adopt again, nothing is lost"
        )
    if refused:
        more = f"; and {len(refused) - 3} more" if len(refused) > 3 else ""
        raise Damaged(
            f"{len(refused)} of {len(found)} shards were refused, the others adopted: {'; '.join(refused[:3])}{more}"
        )
    return dataset, total


def adopt(
    root: Annotated[str, Field(description="Folder or URL that the index is written under.")],
    shards: Annotated[list[str], Field(description="WebDataset tars: URLs, globs, folders, {000..012} ranges.")],
    name: Annotated[str, Field(description="Name of the dataset.")] = "adopted",
    labels: Annotated[
        str | None, Field(description="CSV, Parquet or JSON lines; path is a member's name, with or without extension.")
    ] = None,
    split: Annotated[
        Literal["auto", "train", "heldout", "unlabelled"],
        Field(description="Split of all clips; auto: as the sidecars say, else by a hash as in `prepare`."),
    ] = "auto",
    held_out: Annotated[float, Field(description="Share of segment-labelled clips held out.", ge=0, le=1)] = 0.3,
    text: Annotated[Literal["caption", "label"], Field(description="What a .txt beside a video is.")] = "caption",
    open_end: Annotated[bool, Field(description="Accept tars without end blocks, which may have been cut.")] = False,
    add: Annotated[bool, Field(description="Keep what the dataset already lists.")] = False,
    failure_budget: Annotated[
        float, Field(description="Share of quarantined samples that fails the run.", ge=0, le=1)
    ] = 0.05,
) -> str:
    """Make a dataset of WebDataset tars that exist: media stay where they are, every clip is decoded once and indexed.

    Nothing is extracted or unpickled. A second run decodes only shards that are new or changed; other labels or splits
    decode nothing.
    """
    for option, url in (("--root", root), ("--labels", labels or ""), *(("--shards", url) for url in shards)):
        refuse_credentials(url, option)
    found = adoption.find(shards)
    root = files.open_root(root)
    if not add and name in datasets.names(root) and "adopted" not in datasets.load(root, name).about:
        raise InputError(f"dataset {name} was not adopted but prepared; give another --name, or --add to it")
    options = {"split": split, "held_out": held_out, "text": text, "open_end": open_end}
    dataset, total = adopt_shards(
        root, name, found, labels=labels, options=options, failure_budget=failure_budget, add=add
    )
    lost = ", ".join(f"{n} {reason}" for reason, n in total.quarantined.most_common()) or "none"
    return (
        f"dataset {name} {dataset.version}: {dataset.clips} clips in {len(dataset.parts)} parts over {len(found)} "
        f"shards; quarantined: {lost}"
    )
