"""What thresholds would keep and drop, from the stored scores alone: nothing is decoded, nothing is changed."""

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from storage import datasets, files, scores
from storage.datasets import Dataset
from tasks.duplicates import Clip, Repeat
from tasks.select import RULES, Thresholds, check, repetitions, scored, verdicts

STEPS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)  # shares of clips a sweep drops, about


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


def outcome(root: str, dataset: Dataset, version: str, thresholds: Thresholds) -> Outcome:
    """Applies thresholds to the stored scores. Raises `InputError` where scores or duplicates are missing."""
    check(thresholds)
    repeated: dict[Clip, Repeat] = repetitions(root, dataset, version, thresholds)
    found = Outcome()
    values = defaultdict(list)
    for part in dataset.parts:
        labels = part.table(["labels"])["labels"].to_pylist()
        present = dataset.kept(root, part)
        rows = scored(root, part, version)
        for (row, reason, _), of, used in zip(verdicts(part, rows, thresholds, repeated), labels, present, strict=True):
            found.clips[reason] += 1
            found.seconds[reason] += row["duration"]
            found.gained += not reason and not used
            found.lost += bool(reason) and used
            for name in sorted({label["label"] for label in of} or {"(no label)"}):
                found.classes[name][reason] += 1
            for _, score, *_ in RULES:
                values[score].append(row[score])
    found.values = {score: np.asarray(numbers, float) for score, numbers in values.items()}
    return found


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
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return path


def what_if(
    root: Annotated[str, Field(description="Folder or URL that `prepare` has written to.")],
    dataset: Annotated[str, Field(description="Name of the dataset.")] = "archive",
    min_motion: Annotated[
        float | None, Field(description="Least change of luma in a quarter of a second, as a share of its range.", ge=0)
    ] = None,
    min_sharpness: Annotated[
        float | None, Field(description="Least variance of the Laplacian over the variance of luma.", ge=0)
    ] = None,
    max_black: Annotated[float | None, Field(description="Largest share of black frames.", ge=0, le=1)] = None,
    max_static: Annotated[
        float | None, Field(description="Largest share of frames that repeat the one before.", ge=0, le=1)
    ] = None,
    min_duration: Annotated[float | None, Field(description="Least seconds of a clip.", ge=0)] = None,
    near_duplicates: Annotated[
        Literal["keep", "drop"] | None, Field(description="Whether clips that show what another one shows go.")
    ] = None,
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
    with files.scratch() as folder:
        files.replace(draw(result, thresholds, title, folder / "figure.png").read_bytes(), url)
    return "\n".join([title, "", *_lines(result, thresholds), "", f"picture: {url}"])
