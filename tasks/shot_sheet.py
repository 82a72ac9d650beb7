"""A picture of where shots were found, in the source of which most were."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from storage import files
from storage.datasets import Dataset
from storage.parts import Part
from storage.sandbox import mine
from tasks import figures
from tasks.report import say

PARTS = 8  # that a source is looked for in
MOST = 16  # shots on a sheet
FPS = 4.0  # of the frames that it is drawn from
SLACK = 0.1  # seconds; a clip that ends where a span does may be a frame longer

Found = list[tuple[dict[str, Any], Part]]


def _shots(clips: Found, span: float) -> list[float]:
    """When shots begin after the first: clips begin there, and also every ``span`` seconds in a shot."""
    starts = [row["start"] for row, _ in clips]
    return [later for sooner, later in pairwise(starts) if abs(later - sooner - span) > SLACK]


def _most_shots(parts: list[Part], span: float) -> tuple[str, Found]:
    sources: dict[str, Found] = {}
    for part in sorted(parts, key=lambda part: part.id)[:PARTS]:
        for row in part.rows():
            sources.setdefault(row["path"], []).append((row, part))
    for clips in sources.values():
        clips.sort(key=lambda clip: clip[0]["start"])
    return max(sorted(sources.items()), key=lambda item: len(_shots(item[1], span)))


def draw(dataset: Dataset, span: float, path: Path) -> str:
    """Draws the first shots of the source with most of them; returns its path in the archive."""
    source, clips = _most_shots(dataset.parts, span)
    bounds = _shots(clips, span)
    pictures, times = [], []
    for row, part in clips:
        if len(bounds) >= MOST and row["start"] >= bounds[MOST - 1]:
            break
        ((_, data),) = part.clips([row])
        frames, at, _ = mine().sample(data, FPS)
        pictures.append(frames)
        times.append(row["start"] + at - at[0])
    begin = clips[0][0]["start"]
    figures.shots_sheet(np.concatenate(pictures), np.concatenate(times), [b - begin for b in bounds[: MOST - 1]], path)
    return source


@task(task_run_name="shot sheet · {dataset.name}", cache_policy=NO_CACHE)
def shot_sheet(root: str, dataset: Dataset, span: float) -> str:
    """Publishes the picture under ROOT/figures, for whoever wants to see whether the detector fits the archive."""
    url = files.join(root, "figures", dataset.name, f"shots-{dataset.version}.png")
    if not files.exists(url):
        with files.scratch() as folder:
            source = draw(dataset, span, folder / "sheet.png")
            files.replace((folder / "sheet.png").read_bytes(), url)
        say(f"  shots        those of {source}: {url}")
    return url
