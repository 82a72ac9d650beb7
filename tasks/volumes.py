"""Volume augmentation as a stage: a contact sheet to look at, and, on demand, augmented volumes as parts.

Training augments online (tasks/train_rank.py); materialised volumes serve who trains elsewhere.
"""

from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from prefect import task
from prefect.cache_policies import NO_CACHE

from models.augment import Mode, augment
from storage import columns, files, ledger, parts
from storage.datasets import Dataset
from storage.ledger import Entry, Report
from storage.media.encoder import Encoder
from storage.parts import Part
from tasks import figures, report
from tasks.spending import staged
from tasks.stage import cover
from tasks.training.loader import Clips, window
from tasks.training.pretrain import classes_of

COLUMN = "volume_labels"
SHEET_MODES: tuple[Mode, ...] = ("none", "freeze", "mixup", "cutmix", "joint_single", "joint")
SHEET_SIZE = 96
FPS, FRAMES, PIXELS = 8.0, 16, 112  # of a volume


def _batch(clips: Clips, indices: list[int], length: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng((seed, 11))
    drawn = [window(clips.clip(i), length, rng) for i in indices]
    return torch.stack([v for v, _ in drawn]), torch.stack([label for _, label in drawn])


def _weak(root: str, dataset: Dataset) -> list[Part]:
    """The weakly labelled training parts of which a clip is selected."""
    return [part for part in dataset.select(split="train", labelled="video") if any(dataset.kept(root, part))]


def draw_sheet(
    root: str,
    dataset: Dataset,
    labels: str,
    path: Path,
    *,
    fps: float,
    length: int,
    per_mode: int = 2,
    seed: int = 0,
) -> Path | None:
    """Draws ``per_mode`` augmented clips of every mode with their label curves; None without weak parts."""
    chosen = _weak(root, dataset)
    if not chosen:
        return None
    chosen = sorted(chosen, key=lambda part: part.id)[: 4 * per_mode]
    classes = classes_of(chosen, partial(dataset.kept, root))
    clips = Clips(root, chosen, classes, fps, SHEET_SIZE, labels, dataset.selection)
    picks = np.random.default_rng(seed).permutation(len(clips))[: 4 * per_mode].tolist()
    video, truth = _batch(clips, picks, length, seed)
    rows: list[tuple[str, np.ndarray, np.ndarray]] = []
    for mode in SHEET_MODES:
        mixed, soft = augment(video, truth, torch.Generator().manual_seed(seed), mode=mode)
        for i in range(min(per_mode, len(mixed))):
            rows.append((mode, mixed[i].permute(1, 2, 3, 0).numpy(), soft[i].numpy()))
    return figures.contact_sheet(rows, classes, path)


def _settings(mode: str, fps: float, length: int, size: int, seed: int) -> dict[str, Any]:
    return {"step": "volumes", "mode": mode, "fps": fps, "frames": length, "size": size, "seed": seed}


def volume_id(part: Part, settings: dict[str, Any]) -> str:
    """The id of the part that holds the volumes made from a part with these settings."""
    return files.digest_of({"from": part.digest, **settings})[:16]


def materialise_part(part: Part, *, root: str, labels: str, classes: list[str], settings: dict[str, Any]) -> Report:
    """Writes one augmented volume per clip of a part as a part of its own, with its label curves as a column."""
    length, fps = settings["frames"], settings["fps"]
    clips = Clips(root, [part], classes, fps, settings["size"], labels, settings.get("selection"))
    seed = int(files.digest_of([part.id, settings])[:8], 16)
    video, truth = _batch(clips, list(range(len(clips))), length, seed)
    video, truth = augment(video, truth, torch.Generator().manual_seed(seed), mode=settings["mode"])
    made = volume_id(part, settings)
    rows, media = [], []
    with files.scratch() as folder:
        for i, item in enumerate(clips.items):
            path = folder / f"{i}.mp4"
            with Encoder(path, settings["size"], settings["size"], Fraction(fps).limit_denominator(1000)) as encoder:
                for t, frame in enumerate(video[i].permute(1, 2, 3, 0).numpy()):
                    encoder.write(np.ascontiguousarray(frame), Fraction(t) / Fraction(fps).limit_denominator(1000))
            media.append(path)
            span = {
                "start": 0.0,
                "end": length / fps,
                "start_pts": 0,
                "end_pts": length,
                "time_base": f"1/{fps:g}",
            }
            shape = {"frames": length, "fps": fps, "width": settings["size"], "height": settings["size"]}
            kept = {name: item.row[name] for name in ("source", "path", "content_id", "split")}
            key = f"{item.row['key']}-{made[:8]}"
            rows.append(
                {
                    **kept,
                    **span,
                    **shape,
                    "key": key,
                    "duration": length / fps,
                    "labelled": "volume",
                    "labels": [],
                }
            )
        ledger.write(root, "volumes", made, [Entry(item.row["key"], "kept", clips=1) for item in clips.items])
        committed = parts.commit(root, made, rows, media, folder)
    table = pa.table(
        {
            "key": [row["key"] for row in rows],
            "classes": [classes] * len(rows),
            "labels": pa.array([curve.tolist() for curve in truth.numpy()], pa.list_(pa.list_(pa.float32()))),
        }
    )
    columns.write(root, COLUMN, settings["mode"], committed, table, settings)
    return Report(items=len(rows), kept=len(rows), decoded=len(rows))


@task(task_run_name="volumes · {dataset.name}", cache_policy=NO_CACHE)
@staged("volumes")
def volumes(root: str, dataset: Dataset, labels: str, mode: str, materialise: bool, seed: int) -> dict[str, Any]:
    """Draws the contact sheet and, if asked, materialises the weak training parts as volumes."""
    sheet = _publish_sheet(root, dataset, labels, FPS, FRAMES, seed)
    made = Report()
    if materialise:
        chosen = _weak(root, dataset)
        settings = _settings(mode, FPS, FRAMES, PIXELS, seed)
        if dataset.selection is not None:
            settings["selection"] = dataset.selection
        classes = classes_of(chosen, partial(dataset.kept, root))
        work = partial(materialise_part, root=root, labels=labels, classes=classes, settings=settings)

        def done(part: Part) -> bool:
            return columns.has(root, COLUMN, mode, volume_id(part, settings))

        made = cover("volumes", chosen, work, done)
    return {"sheet": sheet, "materialised": made.kept}


def _publish_sheet(root: str, dataset: Dataset, labels: str, fps: float, length: int, seed: int) -> str | None:
    url = files.join(root, "figures", dataset.name, f"volumes-{dataset.version}.png")
    if files.exists(url):
        return url
    with files.scratch() as folder:
        path = draw_sheet(root, dataset, labels, folder / "sheet.png", fps=fps, length=length, seed=seed)
        if path is None:
            return None
        files.replace(path.read_bytes(), url)
    report.say(f"  volumes      contact sheet {url}")
    return url
