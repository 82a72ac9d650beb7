"""Public annotations and the official protocol: label files out of them, submissions out of predictions, scores."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from models.metrics import MODES, FrameScores, charades_frames, frame_map, frames_of, labels_at
from storage import annotations, columns, datasets, files, submissions, versions
from storage.annotations import Format
from storage.errors import InputError
from tasks import evaluate, predict

FRAMES = 25  # of each video, at k/25 of its length
CLASSES = Field(description="List of classes, a number and a name per line, e.g. Charades_v1_classes.txt.")


def convert(
    file: Annotated[str, Field(description="Annotations as published: CSV, or JSON for multithumos.")],
    out: Annotated[str, Field(description="Labels to write: path,start,end,label,split, for `prepare --labels`.")],
    format: Annotated[
        Format, Field(description="Whose format it is; charades.json of feature-based work is multithumos.")
    ],
    classes: Annotated[str | None, CLASSES] = None,
    path: Annotated[
        str | None, Field(description="Where videos are in the archive; default {id}.mp4, for kinetics with its span.")
    ] = None,
    split: Annotated[
        Literal["as-given", "train", "heldout"], Field(description="Split of all videos, or what the file says.")
    ] = "as-given",
) -> str:
    """Turn annotations of Charades, MultiTHUMOS or Kinetics into labels for `reelmill prepare`."""
    counts: Counter[str] = Counter()
    rows = annotations.label_rows(
        annotations.read(file, format),
        format,
        path=path,
        classes=annotations.read_classes(classes) if classes else None,
        split="" if split == "as-given" else split,
        counts=counts,
    )
    _write(rows, out)
    left_out = ", ".join(f"{n} {what}" for what, n in counts.items() if what not in ("videos", "rows") and n)
    return f"{counts['videos']} videos, {counts['rows']} rows in {out}" + (
        f"; left out: {left_out}" if left_out else ""
    )


def _write(rows: Iterator[dict[str, Any]], out: str) -> None:
    """A CSV, complete or not at all, without more of it in memory than a row until it is put into place."""
    import csv

    with files.scratch() as folder:
        made = Path(folder) / "labels.csv"
        with made.open("w", newline="", encoding="utf-8") as target:
            writer = csv.DictWriter(target, ["path", "start", "end", "label", "split"], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        files.replace(made.read_bytes(), files.absolute(out))


def measure(
    submission: Annotated[str, Field(description="Lines of id, frame and a score per class.")],
    file: Annotated[str, Field(description="The annotations, e.g. Charades_v1_test.csv.")],
    format: Annotated[Literal["charades", "multithumos"], Field(description="Whose format they are in.")] = "charades",
    num_classes: Annotated[int, Field(description="Scores per line, where no list of classes says it.", ge=1)] = 157,
    classes: Annotated[str | None, CLASSES] = None,
) -> str:
    """Score a submission by the Charades localisation protocol: 25 frames a video, in three modes.

    Its columns are in the order of the list of classes, as `submission` writes them; without one the first is class 0.
    """
    listed = sorted(annotations.read_classes(classes)) if classes else list(range(num_classes))
    num_classes, places = len(listed), {number: place for place, number in enumerate(listed)}
    videos = list(annotations.read(file, format))
    truth = {video.id: video for video in videos if video.split != "train"}
    if not truth:
        raise InputError(f"{file}: all {len(videos)} videos are for training; there is nothing to score")
    found, missing, others = submissions.gather(submission, truth, FRAMES, num_classes)
    if len(found) * FRAMES == missing:
        raise InputError(f"{submission} and {file} have no video in common")
    held = {id: (found[id], _truth(file, video, places)) for id, video in truth.items()}
    result = frame_map(*FrameScores(num_classes, held).arrays()[:2])
    lines = ["| mode | percent |", "|---|---|", *(f"| {mode} | {100 * getattr(result, mode):.4f} |" for mode in MODES)]
    notes = f"{len(truth)} videos, {result.frames} frames, {len(result.excluded)} classes without a positive frame"
    if len(truth) < len(videos):
        notes += f"; {len(videos) - len(truth)} training videos left out"
    if missing or others:
        notes += f"; {missing} frames missing, {others} lines of other videos"
    return "\n".join([*lines, "", notes])


def _truth(file: str, video: annotations.Video, places: dict[int, int]) -> np.ndarray:
    """What is on in a video's 25 frames, [25, K]; ``places`` has the column of each class's number."""
    if strangers := sorted({number for *_, number in video.actions} - set(places)):
        raise InputError(
            f"{file}, video {video.id}: class {strangers[0]} is none of {min(places)} … {max(places)}; "
            "give --classes, set --num-classes or mend the file"
        )
    actions = np.array([(start, end, places[number]) for start, end, number in video.actions]).reshape(-1, 3)
    try:
        segments = actions[:, 0], actions[:, 1], actions[:, 2].astype(int)
        return labels_at(charades_frames(video.duration or 0.0, FRAMES), segments, len(places))
    except ValueError as error:
        raise InputError(f"{file}, video {video.id}: {error}") from error


def submit(
    root: Annotated[str, Field(description="Folder or URL that `infer` has written predictions to.")],
    out: Annotated[str, Field(description="File to write: lines of id, frame and a score per class.")],
    dataset: Annotated[str, Field(description="Name of the dataset.")] = "archive",
    version: Annotated[str | None, Field(description="Version of the predictions; else the newest.")] = None,
    classes: Annotated[str | None, CLASSES] = None,
) -> str:
    """Write the scores of the held-out videos at 25 frames each as a Charades submission.

    Columns are in the order of the list of classes, or of the classes' names; a class that the model does not know
    scores 0. A video's id is the name of its file.
    """
    root = files.existing_root(root)
    data = datasets.load(root, dataset)
    parts = evaluate.held_out(data)
    name = version or versions.newest(root, predict.COLUMN, parts)
    if name is None or not all(columns.has(root, predict.COLUMN, name, part.id) for part in parts):
        raise InputError(
            f"the held-out parts of {dataset} have no predictions {name or ''}; run `reelmill infer` first"
        )
    known: list[str] = columns.about(root, predict.COLUMN, name, parts[0])["classes"]
    listed = annotations.read_classes(classes) if classes else None
    wanted = [listed[number] for number in sorted(listed)] if listed else sorted(known)
    if strangers := sorted(set(known) - set(wanted)):
        raise InputError(f"{classes} does not list classes of the model: {', '.join(strangers[:3])}")
    videos = evaluate.scored_videos(root, parts, name, known, data.selection)
    ids = Counter(Path(video[0]).stem for video in videos)
    if double := [id for id, count in ids.items() if count > 1]:
        raise InputError(f"{len(double)} held-out videos share a file name ({', '.join(double[:3])}); rename them")

    def scored() -> Iterator[tuple[str, np.ndarray]]:
        for video in videos:
            scores = np.zeros((FRAMES, len(wanted)), np.float32)
            scores[:, [wanted.index(name) for name in known]] = frames_of(video, len(known), "charades_25")[0]
            yield Path(video[0]).stem, scores

    lines = submissions.write(out, scored())
    unknown = len(wanted) - len(known)
    return f"{lines} lines of {len(wanted)} scores in {out}" + (f"; {unknown} classes score 0" if unknown else "")
