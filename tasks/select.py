"""Thresholds, applied late: from stored scores to the clips that a dataset uses. Decodes nothing, rebuilds nothing."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any, Literal

import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import Field

from storage import columns, datasets, files, ledger, scores
from storage.datasets import SELECTION, Dataset
from storage.errors import Conflict, InputError
from storage.ledger import Entry, Report
from storage.parts import Part
from tasks.duplicates import Clip, Repeat, find_duplicates, read_pairs, repeats, version
from tasks.report import say
from tasks.score import COLUMN as SCORES
from tasks.score import score_dataset
from tasks.stage import cover

RULES = (  # reason, score, threshold, whether a clip has to be at least at it; the first that a clip breaks is named
    ("too_short", "duration", "min_duration", True),
    ("black", "black", "max_black", False),
    ("static", "motion", "min_motion", True),
    ("repeated_frames", "static", "max_static", False),
    ("blurred", "sharpness", "min_sharpness", True),
)
REASONS = (*(rule[0] for rule in RULES), "near_duplicate")
SHOWN = ("duration", *scores.NAMES)  # scores in the ledger
SCHEMA = pa.schema([("key", pa.string()), ("kept", pa.bool_()), ("reason", pa.string()), ("of", pa.string())])
USES = {"heldout": 0, "train": 1}  # of two that show the same, the held-out one stays: the training copy is the leak
LABELLED = {"segments": 0, "video": 1}


@dataclass(frozen=True)
class Thresholds:
    """What a clip has to be; the defaults drop nothing. Scores are those of `storage.scores.Scores`."""

    min_motion: float = 0.0  # share of the luma range, in a quarter of a second
    min_sharpness: float = 0.0
    max_black: float = 1.0  # share of frames
    max_static: float = 1.0  # share of frames
    min_duration: float = 0.0  # seconds
    near_duplicates: Literal["keep", "drop"] = "keep"

    @property
    def off(self) -> bool:
        return self == Thresholds()

    @property
    def numbers(self) -> dict[str, float]:
        """The thresholds as the ledger has them."""
        values = asdict(self)
        return values | {"near_duplicates": float(self.near_duplicates == "keep")}


def check(thresholds: Thresholds) -> None:
    for name, value in asdict(thresholds).items():
        flag = "--" + name.replace("_", "-")
        if name == "near_duplicates":
            if value not in ("keep", "drop"):
                raise InputError(f"{flag} {value}: choose keep or drop")
        elif not 0 <= value < float("inf"):
            raise InputError(f"{flag} {value}: must be a number from 0 on")
        elif name.startswith("max_") and value > 1:
            raise InputError(f"{flag} {value}: is a share of frames, from 0 to 1")


def broken(row: dict[str, Any], thresholds: Thresholds) -> str:
    """The reason why a clip of these scores is dropped, or nothing."""
    limits = asdict(thresholds)
    for reason, score, threshold, least in RULES:
        if row[score] < limits[threshold] if least else row[score] > limits[threshold]:
            return reason
    return ""


def scored(root: str, part: Part, version: str, fields: tuple[str, ...] = SHOWN) -> list[dict[str, Any]]:
    """The scores of a part's clips; InputError where the part was not scored."""
    try:
        return columns.read(root, SCORES, version, part, list(fields)).to_pylist()
    except FileNotFoundError as error:
        raise InputError(f"part {part.id} has no scores {version}; run `reelmill select` or prepare again") from error


def repetitions(
    root: str, dataset: Dataset, version: str, thresholds: Thresholds, pairs: list[dict[str, Any]] | None = None
) -> dict[Clip, Repeat]:
    """The clips that pass every other threshold and repeat one that does too, with what they repeat.

    Of two that show the same the held-out one is kept, then the one with more labels, then the first by key.
    """
    if thresholds.near_duplicates == "keep":
        return {}
    pairs = read_pairs(root, dataset, version) if pairs is None else pairs
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
            rows = scored(root, part, version)
            usable |= {(part.id, row["key"]) for row in rows if not broken(row, thresholds)}
    return repeats(pairs, lambda clip: (*rank[clip[0]], clip[1], clip[0]), usable)


def verdicts(
    part: Part, rows: list[dict[str, Any]], thresholds: Thresholds, repeated: dict[Clip, Repeat]
) -> Iterator[tuple[dict[str, Any], str, Repeat | None]]:
    """Yields (scores, reason or nothing, what is repeated) of each clip of a part."""
    for row in rows:
        repeat = repeated.get((part.id, row["key"]))
        yield row, broken(row, thresholds) or ("near_duplicate" if repeat else ""), repeat


def selection_version(root: str, dataset: Dataset, version_: str, thresholds: Thresholds) -> str:
    """The version of the selection column: scores, thresholds and, if they count, the duplicates it was made from."""
    among = sorted(part.id for part in dataset.parts) if thresholds.near_duplicates == "drop" else None
    found = [version_, asdict(thresholds), version(version_) if among else None, among]
    return f"select-{files.digest_of(found)[:12]}"


def select_part(
    part: Part, *, root: str, version: str, name: str, thresholds: Thresholds, repeated: dict[Clip, Repeat]
) -> Report:
    """Writes the account of one part and commits its selection."""
    entries: list[Entry] = []
    made: list[dict[str, Any]] = []
    for row, reason, repeat in verdicts(part, scored(root, part, version), thresholds, repeated):
        numbers = {score: float(row[score]) for score in SHOWN}
        of = ""
        if reason == "near_duplicate" and repeat is not None:
            of = repeat.key
            numbers |= {"look": repeat.look, "move": repeat.move, "share": repeat.share}
        verdict = "dropped" if reason else "kept"
        detail = f"shows what {of} shows" if of else ""
        entries.append(
            Entry(
                row["key"], verdict, reason, detail, clips=int(not reason), duration=row["duration"],
                scores=numbers, thresholds=thresholds.numbers,
            )
        )  # fmt: skip
        made.append({"key": row["key"], "kept": not reason, "reason": reason, "of": of})
    ledger.write(root, "select", f"{part.id}-{name}", entries)
    about = {"scores": version, "thresholds": asdict(thresholds)}
    columns.write(root, SELECTION, name, part, pa.Table.from_pylist(made, schema=SCHEMA), about)
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
    repeated = repetitions(root, dataset, version, thresholds)
    total = count(root, dataset, version, thresholds, repeated)
    if not total.kept:
        reasons = ", ".join(f"{n} {reason}" for reason, n in total.dropped.most_common())
        raise InputError(f"dataset {dataset.name}: these thresholds drop all {total.items} clips ({reasons})")
    work = partial(select_part, root=root, version=version, name=name, thresholds=thresholds, repeated=repeated)
    cover("select", dataset.parts, work, lambda part: columns.has(root, SELECTION, name, part.id))
    about |= {"thresholds": asdict(thresholds), "scores": version}
    lost = ", ".join(f"{n} {reason}" for reason, n in total.dropped.most_common()) or "none"
    say(f"  select       {total.kept} of {total.items} clips kept, dropped: {lost}")
    return datasets.freeze(root, dataset.name, dataset.parts, about, name, before=before), total


def count(root: str, dataset: Dataset, version: str, thresholds: Thresholds, repeated: dict[Clip, Repeat]) -> Report:
    """What the thresholds would keep and drop; ``seconds`` is the duration of what is kept."""
    total = Report()
    reasons: Counter = Counter()
    for part in dataset.parts:
        for row, reason, _ in verdicts(part, scored(root, part, version), thresholds, repeated):
            total.items += 1
            reasons[reason] += 1
            total.seconds += 0.0 if reason else row["duration"]
    total.kept = reasons.pop("", 0)
    total.dropped = reasons
    return total


@task(task_run_name="select · {dataset.name}", cache_policy=NO_CACHE)
def select(root: str, dataset: Dataset, version: str, thresholds: Thresholds) -> tuple[Dataset, Report]:
    """Selects the clips that keep to the thresholds; see `select_dataset`."""
    chosen, total = select_dataset(root, dataset, version, thresholds, dataset.about.get("before"))
    if [part.id for part in chosen.parts] != [part.id for part in dataset.parts]:
        say(f"  select       another run was first with version {chosen.version}; this one goes on with that")
    return chosen, total


def choose(
    root: Annotated[str, Field(description="Folder or URL that `prepare` has written to.")],
    dataset: Annotated[str, Field(description="Name of the dataset.")] = "archive",
    min_motion: Annotated[
        float,
        Field(
            description="Least change of luma in a quarter of a second, as a share of its range; 0.002 finds stills.",
            ge=0,
        ),
    ] = 0.0,
    min_sharpness: Annotated[
        float, Field(description="Least variance of the Laplacian over the variance of luma.", ge=0)
    ] = 0.0,
    max_black: Annotated[float, Field(description="Largest share of black frames.", ge=0, le=1)] = 1.0,
    max_static: Annotated[
        float, Field(description="Largest share of frames that repeat the one before.", ge=0, le=1)
    ] = 1.0,
    min_duration: Annotated[float, Field(description="Least seconds of a clip.", ge=0)] = 0.0,
    near_duplicates: Annotated[
        Literal["keep", "drop"], Field(description="Whether to drop clips that show what another one shows.")
    ] = "keep",
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
