"""A picture of where shots were found, in the source of which most were."""

from itertools import pairwise
from pathlib import Path

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from storage import files
from storage.datasets import Dataset
from storage.media.sandbox import mine
from storage.parts import Part
from tasks import figures
from tasks.report import say
from tasks.spending import staged
from tasks.training.videos import Clip, videos

PARTS = 8  # that a source is looked for in
MOST = 16  # shots on a sheet
FPS = 4.0  # of the frames that it is drawn from
SLACK = 0.1  # seconds; a clip that ends where a span does may be a frame longer


def _shots(clips: list[Clip], span: float) -> list[float]:
    """When shots begin after the first: clips begin there, and also every ``span`` seconds in a shot."""
    starts = [row["start"] for _, row in clips]
    return [later for sooner, later in pairwise(starts) if abs(later - sooner - span) > SLACK]


def _most_shots(parts: list[Part], span: float) -> tuple[str, list[Clip]]:
    found = videos(sorted(parts, key=lambda part: part.id)[:PARTS])
    return max(found.items(), key=lambda item: len(_shots(item[1], span)))


def draw(dataset: Dataset, span: float, path: Path) -> str:
    """Draws the first shots of the source with most of them; returns its path in the archive."""
    source, clips = _most_shots(dataset.parts, span)
    bounds = _shots(clips, span)
    pictures, times = [], []
    for part, row in clips:
        if len(bounds) >= MOST and row["start"] >= bounds[MOST - 1]:
            break
        ((_, data),) = part.clips([row])
        frames, at, _ = mine().sample(data, FPS)
        pictures.append(frames)
        times.append(row["start"] + at - at[0])
    begin = clips[0][1]["start"]
    figures.shots_sheet(np.concatenate(pictures), np.concatenate(times), [b - begin for b in bounds[: MOST - 1]], path)
    return source


@task(task_run_name="shot sheet · {dataset.name}", cache_policy=NO_CACHE)
@staged("shot sheet")
def shot_sheet(root: str, dataset: Dataset, span: float) -> str:
    """Publishes the picture under ROOT/figures, for whoever wants to see whether the detector fits the archive."""
    url = files.join(root, "figures", dataset.name, f"shots-{dataset.version}.png")
    if not files.exists(url):
        with files.scratch() as folder:
            source = draw(dataset, span, folder / "sheet.png")
            files.replace((folder / "sheet.png").read_bytes(), url)
        say(f"  shots        those of {source}: {url}")
    return url
