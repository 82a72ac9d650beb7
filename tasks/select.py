"""Thresholds, applied late: from stored scores to the clips that a dataset uses. Decodes nothing, rebuilds nothing."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Literal

import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import Field

from storage import columns, datasets, files, ledger
from storage.datasets import SELECTION, Dataset
from storage.errors import Conflict, InputError
from storage.ledger import Entry, Report
from storage.media import scores
from storage.parts import Part
from tasks.duplicates import Clip, Repeat, find_duplicates, read_pairs, repeats, version
from tasks.report import say
from tasks.score import COLUMN as SCORES
from tasks.score import SHOWN, score_dataset
from tasks.spending import staged
from tasks.stage import cover
from tasks.thresholds import (
    MAX_BLACK,
    MAX_STATIC,
    MIN_DURATION,
    MIN_MOTION,
    MIN_SHARPNESS,
    NEAR_DUPLICATES,
    Thresholds,
    broken,
    check,
)

SCHEMA = pa.schema([("key", pa.string()), ("kept", pa.bool_()), ("reason", pa.string()), ("of", pa.string())])
USES = {"heldout": 0, "train": 1}  # of two that show the same, the held-out one stays: the training copy is the leak
LABELLED = {"segments": 0, "video": 1}


@dataclass(frozen=True, eq=False)
class Judged:
    """A part with the scores of its clips and with those of them that repeat another clip, by key."""

    part: Part
    scores: pa.Table
    repeated: dict[str, Repeat]

    @property
    def id(self) -> str:
        return self.part.id

    def reasons(self, thresholds: Thresholds) -> list[str]:
        """For each clip the reason why it is dropped, or nothing."""
        keys = self.scores["key"].to_pylist()
        found = zip(keys, broken(self.scores, thresholds), strict=True)
        return [reason or ("near_duplicate" if key in self.repeated else "") for key, reason in found]


def scored(
    root: str, part: Part, version: str, fields: Iterable[str] = SHOWN, keys: list[str] | None = None
) -> pa.Table:
    """The scores of a part's clips; InputError where the part was not scored."""
    try:
        return columns.read(root, SCORES, version, part, list(fields), keys)
    except FileNotFoundError as error:
        raise InputError(
            f"part {part.id} has no scores {version}; run `reelmill prepare`, or `reelmill select` with any threshold"
        ) from error


def judge(root: str, dataset: Dataset, version: str, thresholds: Thresholds, found: Iterable[pa.Table]) -> list[Judged]:
    """The parts of a dataset with their tables of scores, which ``found`` has in order, and what repeats.

    A repetition passes every other threshold and repeats a clip that does too. Of two that show the same the
    held-out one is kept, then the one with more labels, then the first by key.
    """
    tables = dict(zip((part.id for part in dataset.parts), found, strict=True))
    repeated: dict[str, dict[str, Repeat]] = {}
    for (part, key), repeat in _repetitions(root, dataset, version, thresholds, tables).items():
        repeated.setdefault(part, {})[key] = repeat
    return [Judged(part, tables[part.id], repeated.get(part.id, {})) for part in dataset.parts]


def _repetitions(
    root: str, dataset: Dataset, version: str, thresholds: Thresholds, tables: dict[str, pa.Table]
) -> dict[Clip, Repeat]:
    if thresholds.near_duplicates == "keep":
        return {}
    pairs = read_pairs(root, dataset, version)
    if pairs is None:
        raise InputError(
            f"dataset {dataset.name} was not searched for duplicates; run `reelmill select --near-duplicates drop`"
        )
    concerned = {pair[name] for pair in pairs for name in ("part", "other_part")}
    usable: set[Clip] = set()
    rank: dict[str, tuple[int, int]] = {}
    for part in dataset.parts:
        if part.id in concerned:
            rank[part.id] = (USES.get(part.split, 2), LABELLED.get(part.labelled, 2))
            table = tables[part.id]
            judged = zip(table["key"].to_pylist(), broken(table, thresholds), strict=True)
            usable |= {(part.id, key) for key, reason in judged if not reason}
    return repeats(pairs, lambda clip: (*rank[clip[0]], clip[1], clip[0]), usable)


def selection_version(root: str, dataset: Dataset, version_: str, thresholds: Thresholds) -> str:
    """The version of the selection column: scores, thresholds and, if they count, the duplicates it was made from."""
    among = sorted(part.id for part in dataset.parts) if thresholds.near_duplicates == "drop" else None
    found = [version_, asdict(thresholds), version(version_) if among else None, among]
    return f"select-{files.digest_of(found)[:12]}"


def select_part(judged: Judged, *, root: str, version: str, name: str, thresholds: Thresholds) -> Report:
    """Writes the account of one part and commits its selection."""
    entries: list[Entry] = []
    made: list[dict[str, object]] = []
    for row, reason in zip(judged.scores.to_pylist(), judged.reasons(thresholds), strict=True):
        numbers = {score: float(row[score]) for score in SHOWN}
        of = how = ""
        if reason == "near_duplicate":
            repeat = judged.repeated[row["key"]]
            of, how = repeat.key, f" ({repeat.how})" if repeat.how else ""
            numbers |= {"look": repeat.look, "move": repeat.move, "share": repeat.share}
        verdict = "dropped" if reason else "kept"
        detail = f"shows what {of} shows{how}" if of else ""
        entries.append(
            Entry(
                row["key"], verdict, reason, detail, clips=int(not reason), duration=row["duration"],
                scores=numbers, thresholds=thresholds.numbers,
            )
        )  # fmt: skip
        made.append({"key": row["key"], "kept": not reason, "reason": reason, "of": of})
    ledger.write(root, "select", f"{judged.id}-{name}", entries)
    about = {"scores": version, "thresholds": asdict(thresholds)}
    columns.write(root, SELECTION, name, judged.part, pa.Table.from_pylist(made, schema=SCHEMA), about)
    return ledger.tally(entries)


def select_dataset(
    root: str, dataset: Dataset, version: str, thresholds: Thresholds, before: str | None = None
) -> tuple[Dataset, Report]:
    """Freezes the dataset with the clips that keep to the thresholds; returns it and the counts over all its clips.

    ``before`` is what ``latest`` pointed to when that was decided; see `datasets.freeze`.

    Raises `InputError` where scores or duplicates are missing and where no clip would be left.
    """
    check(thresholds)
    about = {key: value for key, value in dataset.about.items() if key not in ("thresholds", "scores")}
    if thresholds.off:
        chosen = datasets.freeze(root, dataset.name, dataset.parts, about, before=before)
        return chosen, Report(dataset.clips, dataset.clips)
    name = selection_version(root, dataset, version, thresholds)
    found = files.at_once(lambda part: scored(root, part, version), dataset.parts)
    judged = judge(root, dataset, version, thresholds, found)
    total = count(judged, thresholds)
    if not total.kept:
        reasons = ", ".join(f"{n} {reason}" for reason, n in total.dropped.most_common())
        raise InputError(f"dataset {dataset.name}: these thresholds drop all {total.items} clips ({reasons})")
    work = partial(select_part, root=root, version=version, name=name, thresholds=thresholds)
    # What it does is wait for the store, so more at a time than there are cores.
    cover("select", judged, work, lambda one: columns.has(root, SELECTION, name, one.id), width=files.AT_ONCE)
    about |= {"thresholds": asdict(thresholds), "scores": version}
    lost = ", ".join(f"{n} {reason}" for reason, n in total.dropped.most_common()) or "none"
    say(f"  select       {total.kept} of {total.items} clips kept, dropped: {lost}")
    return datasets.freeze(root, dataset.name, dataset.parts, about, name, before=before), total


def count(judged: list[Judged], thresholds: Thresholds) -> Report:
    """What the thresholds would keep and drop; ``seconds`` is the duration of what is kept."""
    total = Report()
    reasons: Counter = Counter()
    for one in judged:
        found = one.reasons(thresholds)
        reasons.update(found)
        durations = one.scores["duration"].to_pylist()
        total.seconds += sum(s for s, reason in zip(durations, found, strict=True) if not reason)
    total.items, total.kept = reasons.total(), reasons.pop("", 0)
    total.dropped = reasons
    return total


@task(task_run_name="select · {dataset.name}", cache_policy=NO_CACHE)
@staged("select")
def select(root: str, dataset: Dataset, version: str, thresholds: Thresholds) -> tuple[Dataset, Report]:
    """Selects the clips that keep to the thresholds; see `select_dataset`."""
    chosen, total = select_dataset(root, dataset, version, thresholds, dataset.about.get("before"))
    if [part.id for part in chosen.parts] != [part.id for part in dataset.parts]:
        say(f"  select       another run was first with version {chosen.version}; this one goes on with that")
    return chosen, total


def choose(
    root: Annotated[str, Field(description="Folder or URL that `prepare` has written to.")],
    dataset: Annotated[str, Field(description="Name of the dataset.")] = "archive",
    min_motion: Annotated[float, MIN_MOTION] = 0.0,
    min_sharpness: Annotated[float, MIN_SHARPNESS] = 0.0,
    max_black: Annotated[float, MAX_BLACK] = 1.0,
    max_static: Annotated[float, MAX_STATIC] = 1.0,
    min_duration: Annotated[float, MIN_DURATION] = 0.0,
    near_duplicates: Annotated[Literal["keep", "drop"], NEAR_DUPLICATES] = "keep",
) -> str:
    """Apply thresholds to the stored scores and freeze the dataset with the clips that pass.

    Media, features and predictions stay as they are; clips that were never scored are scored first. The defaults
    select every clip again.
    """
    root = files.existing_root(root)
    found = datasets.load(root, dataset)
    thresholds = Thresholds(min_motion, min_sharpness, max_black, max_static, min_duration, near_duplicates)
    check(thresholds)
    version = scores.version()
    if not thresholds.off:
        score_dataset(root, found)
        if near_duplicates == "drop":
            find_duplicates(root, found, version)
    chosen, total = select_dataset(root, found, version, thresholds, found.version)
    if [part.id for part in chosen.parts] != [part.id for part in found.parts]:
        raise Conflict(f"dataset {dataset} has moved on to version {chosen.version} meanwhile; select again")
    return f"dataset {dataset} {chosen.version}: {total.kept} of {total.items} clips"
