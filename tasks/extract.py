"""Features: image embeddings of frames by a frozen open_clip model, as a column beside the media."""

from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from prefect import task
from prefect.cache_policies import NO_CACHE

from models import clip
from storage import carry, columns, files
from storage.carry import Before
from storage.datasets import Dataset
from storage.errors import Damaged, InputError
from storage.ledger import Report
from storage.media.limits import Rejected
from storage.media.sandbox import mine
from storage.parts import Part
from storage.timing import during
from tasks.report import say
from tasks.spending import staged
from tasks.stage import cover

COLUMN = "features"
Rows = list[dict[str, Any]]  # of a part's index
Embedded = tuple[list[np.ndarray], list[np.ndarray]]  # times [T] since a clip's start and vectors [T, D] of each clip
TOGETHER = 64  # frames of one size that are embedded in one call; small batches are several times slower


@lru_cache(maxsize=2)
def encoder(model: str, pretrained: str | None) -> clip.FrameEncoder:
    """The towers, loaded once a process. Raises `InputError` for an unknown model and for a missing package."""
    say(f"  features     loading {model}")
    torch.set_num_threads(1)  # the pool's threads share the cores; more of them here would only get in the way
    try:
        with during("start"):
            return clip.load(model, pretrained)
    except (ValueError, ImportError) as error:
        raise InputError(str(error)) from error


def version(model: str, pretrained: str | None, fps: float) -> str:
    """The version of the column: the weights' own version and the sampling rate."""
    about = {"model": model, "weights": encoder(model, pretrained).version, "fps": fps}
    return f"{model.replace('/', '-')}-{files.digest_of(about)[:8]}"


def _frames(part: Part, rows: Rows, fps: float) -> Any:
    """Yields (place among the rows, times, frames `[T, 3, H, W]` uint8) of some clips of a part."""
    for place, (row, data) in enumerate(part.clips(rows)):
        try:
            frames, times, _ = mine().sample(data, fps)
        except Rejected as error:
            raise Damaged(f"part {part.id}: clip {row['key']} does not decode ({error.reason})") from error
        yield place, times, torch.from_numpy(frames.copy()).permute(0, 3, 1, 2)


def extract_part(
    part: Part, *, root: str, model: str, pretrained: str | None, fps: float, before: Before | None = None
) -> Report:
    """Embeds the frames of one part and commits the column; parts ``before`` may have some of its clips' features."""
    towers, name = encoder(model, pretrained), version(model, pretrained, fps)
    about = {"model": model, "pretrained": pretrained, "weights": towers.version, "fps": fps}
    return commit(root, name, part, before, lambda rows: _embedded(part, rows, towers, fps), about)


def commit(
    root: str,
    name: str,
    part: Part,
    before: Before | None,
    embed: Callable[[Rows], Embedded],
    about: dict[str, Any],
) -> Report:
    """Commits a version of the column for one part; ``embed`` is given the clips that parts ``before`` have none of."""
    rows = part.rows()
    had = carry.known(root, COLUMN, name, rows, before)
    todo = carry.missing(rows, had)
    made = _as_table(part, todo, *embed(todo)) if todo else None
    columns.write(root, COLUMN, name, part, carry.together(rows, had, made), about, rows)
    return Report(items=part.samples, kept=part.samples, decoded=len(todo))


def _embedded(part: Part, rows: Rows, towers: clip.FrameEncoder, fps: float) -> Embedded:
    """Features of some clips of a part, batched across clips of one size."""
    times: dict[int, np.ndarray] = {}
    embedded: dict[int, np.ndarray] = {}
    waiting: dict[tuple[int, ...], list[tuple[int, torch.Tensor]]] = defaultdict(list)

    def flush(group: list[tuple[int, torch.Tensor]]) -> None:
        with during("model"):
            vectors = towers.encode_frames(torch.cat([frames for _, frames in group])).numpy()
        bounds = np.cumsum([len(frames) for _, frames in group])[:-1]
        for (place, _), piece in zip(group, np.split(vectors, bounds), strict=True):
            embedded[place] = piece
        group.clear()

    for place, clip_times, frames in _frames(part, rows, fps):
        times[place] = clip_times
        group = waiting[tuple(frames.shape[1:])]
        group.append((place, frames))
        if sum(len(f) for _, f in group) >= TOGETHER:
            flush(group)
    for group in waiting.values():
        if group:
            flush(group)
    places = range(len(rows))
    return [times[i] for i in places], [embedded[i] for i in places]


def _as_table(part: Part, rows: Rows, times: list[np.ndarray], vectors: list[np.ndarray]) -> pa.Table:
    """key, times `[T]` in seconds since the clip's start and embedding `[T, D]` float32 of every clip."""
    offsets = pa.array(np.concatenate([[0], np.cumsum([len(t) for t in times])]).astype(np.int32))
    flat = np.concatenate(vectors).astype(np.float32)
    if not np.isfinite(flat).all():
        raise Damaged(f"part {part.id}: features are not finite; the model or a clip is damaged")
    matrix = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
    return pa.table(
        {
            "key": [row["key"] for row in rows],
            "times": pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(times), pa.float32())),
            "embedding": pa.ListArray.from_arrays(offsets, matrix),
        }
    )


def extract_dataset(root: str, dataset: Dataset, model: str, pretrained: str | None, fps: float) -> tuple[str, Report]:
    """Extracts the parts that lack the column; returns its version and the counts of this run."""
    name = version(model, pretrained, fps)
    return name, everywhere(root, dataset, name, extract_part, model=model, pretrained=pretrained, fps=fps)


def everywhere(root: str, dataset: Dataset, name: str, extract_one: Callable[..., Report], **how: Any) -> Report:
    """Extracts a version of the column for the parts of a dataset that lack it."""
    work = partial(extract_one, root=root, before=carry.replaced(root, dataset), **how)
    return cover("features", dataset.parts, work, lambda part: columns.has(root, COLUMN, name, part.id))


@task(task_run_name="features · {dataset.name} · {model}", cache_policy=NO_CACHE)
@staged("features")
def extract(root: str, dataset: Dataset, model: str, pretrained: str | None, fps: float) -> tuple[str, Report]:
    """Extracts the features that are missing; see `extract_dataset`."""
    return extract_dataset(root, dataset, model, pretrained, fps)
