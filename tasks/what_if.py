"""What thresholds would keep and drop, from the stored scores alone: nothing is decoded, nothing is changed."""

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from storage import datasets, files
from storage.datasets import Dataset
from storage.errors import RootError
from storage.media import scores
from storage.parts import Part
from tasks import figures
from tasks.select import judge, scored
from tasks.thresholds import (
    JUDGED,
    MAX_BLACK,
    MAX_STATIC,
    MIN_DURATION,
    MIN_MOTION,
    MIN_SHARPNESS,
    NEAR_DUPLICATES,
    RULES,
    Thresholds,
    check,
)

STEPS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)  # shares of clips a sweep drops, about

NONE = "(no label)"


@dataclass
class Outcome:
    """What thresholds would do to a dataset."""

    clips: Counter = field(default_factory=Counter)  # by reason; "" is kept
    seconds: Counter = field(default_factory=Counter)
    classes: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))
    gained: int = 0  # kept, and not in the present selection
    lost: int = 0  # in the present selection, and dropped
    values: dict[str, np.ndarray] = field(default_factory=dict)  # each score of every clip

    @property
    def total(self) -> int:
        return sum(self.clips.values())


@dataclass(frozen=True)
class Looked:
    """What is stored of one part's clips, in order."""

    scores: pa.Table
    classes: list[list[str]]
    kept: list[bool]  # in the present selection


def outcome(root: str, dataset: Dataset, version: str, thresholds: Thresholds) -> Outcome:
    """Applies thresholds to the stored scores. Raises `InputError` where scores or duplicates are missing."""
    check(thresholds)
    stored = list(files.at_once(lambda part: _looked(root, dataset, version, part), dataset.parts))
    judged = judge(root, dataset, version, thresholds, [one.scores for one in stored])
    found = Outcome()
    for one, looked in zip(judged, stored, strict=True):
        durations = one.scores["duration"].to_pylist()
        rows = zip(one.reasons(thresholds), durations, looked.classes, looked.kept, strict=True)
        for reason, seconds, classes, used in rows:
            found.clips[reason] += 1
            found.seconds[reason] += seconds
            found.gained += not reason and not used
            found.lost += bool(reason) and used
            for name in classes:
                found.classes[name][reason] += 1
    found.values = {name: np.concatenate([one.scores[name].to_numpy() for one in stored]) for name in JUDGED}
    return found


def _looked(root: str, dataset: Dataset, version: str, part: Part) -> Looked:
    """Reads each of a part's objects once."""
    index = part.table(["key", "labels"])
    keys = index["key"].to_pylist()
    classes = [sorted({label["label"] for label in of} or {NONE}) for of in index["labels"].to_pylist()]
    table = scored(root, part, version, JUDGED, keys)
    return Looked(table, classes, datasets.kept(root, dataset.selection, part, keys))


def sweep(values: np.ndarray, least: bool) -> list[tuple[float, int]]:
    """(threshold, clips it alone would keep) at thresholds spread over the values."""
    points = np.quantile(values, STEPS if least else [1 - s for s in STEPS])
    points = np.unique((np.floor if least else np.ceil)(points * 1e4) / 1e4)
    return [(float(p), int((values >= p).sum() if least else (values <= p).sum())) for p in points]


def _lines(found: Outcome, thresholds: Thresholds) -> list[str]:
    """The outcome as people read it."""
    lines = ["reason            clips    seconds"]
    for reason in sorted(found.clips, key=lambda r: (r != "", -found.clips[r])):
        lines.append(f"{reason or 'kept':<16} {found.clips[reason]:>6} {found.seconds[reason]:>10.1f}")
    lines += ["", f"against the present selection: {found.gained} clips more, {found.lost} fewer", ""]
    width = max([len(name) for name in found.classes] + [5])
    lines.append(f"{'class':<{width}}   kept   dropped")
    for name in sorted(found.classes):
        counts = found.classes[name]
        reasons = ", ".join(f"{n} {reason}" for reason, n in counts.most_common() if reason)
        dropped = counts.total() - counts[""]
        lines.append(f"{name:<{width}} {counts['']:>6} {dropped:>9}{'  ' + reasons if reasons else ''}")
    for _, score, threshold, least in RULES:
        flag = "--" + threshold.replace("_", "-")
        points = " ".join(f"{point:g}:{kept}" for point, kept in sweep(found.values[score], least))
        lines += ["", f"{flag} (now {getattr(thresholds, threshold):g}), threshold:clips it alone keeps", f"  {points}"]
    return lines


def draw(found: Outcome, thresholds: Thresholds, title: str, path: Path) -> Path:
    """Draws a histogram of each score with its threshold and what that alone would drop."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 6.2), layout="constrained")
    grid = figure.subplots(2, 3).reshape(-1)
    for axes, (reason, score, threshold, least) in zip(grid, RULES, strict=False):
        values, at = found.values[score], getattr(thresholds, threshold)
        out = values < at if least else values > at
        edges = np.histogram_bin_edges(np.append(values, at) if at < 1e6 else values, bins=40)
        axes.hist([values[~out], values[out]], bins=edges, stacked=True, color=["#2b6cb0", "#dd6b20"])
        axes.axvline(at, color="black", lw=1.4, ls="--")
        axes.set(title=f"{score}  ({threshold} {at:g}: {int(out.sum())} {reason})", ylabel="clips")
        axes.title.set_fontsize(9)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    last = grid[len(RULES)]
    reasons = [r for r in sorted(found.clips, key=lambda r: (r != "", -found.clips[r]))]
    shown = [found.clips[r] for r in reasons]
    bars = last.barh([r or "kept" for r in reasons], shown, color=["#dd6b20" if r else "#2b6cb0" for r in reasons])
    last.bar_label(bars, padding=3, fontsize=9)
    last.invert_yaxis()
    last.set(title="all thresholds together", xlabel="clips")
    last.title.set_fontsize(9)
    last.margins(x=0.15)
    figure.suptitle(title, fontsize=11)
    return figures.save(figure, path)


def what_if(
    root: Annotated[str, Field(description="Folder or URL that `prepare` has written to.")],
    dataset: Annotated[str, Field(description="Name of the dataset.")] = "archive",
    min_motion: Annotated[float | None, MIN_MOTION] = None,
    min_sharpness: Annotated[float | None, MIN_SHARPNESS] = None,
    max_black: Annotated[float | None, MAX_BLACK] = None,
    max_static: Annotated[float | None, MAX_STATIC] = None,
    min_duration: Annotated[float | None, MIN_DURATION] = None,
    near_duplicates: Annotated[Literal["keep", "drop"] | None, NEAR_DUPLICATES] = None,
) -> str:
    """Show what thresholds would keep and drop, by reason and class, from the stored scores alone.

    What is not given is as in the dataset's present selection. Writes one picture under ROOT/figures, nothing else.
    """
    root = files.existing_root(root)
    found = datasets.load(root, dataset)
    present = Thresholds(**found.about.get("thresholds", {}))
    given = dict(
        min_motion=min_motion, min_sharpness=min_sharpness, max_black=max_black, max_static=max_static,
        min_duration=min_duration, near_duplicates=near_duplicates,
    )  # fmt: skip
    changed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    thresholds = replace(present, **changed)
    result = outcome(root, found, scores.version(), thresholds)
    title = f"{dataset} {found.version}: {result.clips['']} of {result.total} clips kept"
    name = files.digest_of([found.version, scores.version(), asdict(thresholds)])[:8]
    url = files.join(root, "figures", dataset, f"what-if-{name}.png")
    picture = f"picture: {url}"
    with files.scratch() as folder:
        drawn = draw(result, thresholds, title, folder / "figure.png").read_bytes()
        try:
            files.replace(drawn, url)
        except RootError as error:  # who may only read is answered all the same
            picture = f"no picture: {error}"
    return "\n".join([title, "", *_lines(result, thresholds), "", picture])
