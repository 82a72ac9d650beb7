"""Segments out of scores: when a class begins and ends in a clip, as a table beside its part's predictions.

A class begins where its score reaches a high threshold and goes on while it is above a low one. What of it touches an
end of its clip may go on in the next one, so it is kept whatever it is: `tasks.segment_tables` joins it.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage import datasets, files, tables
from storage.parts import Part
from tasks.calibration import SHORTEST, Calibration, runs

METHOD = 2  # goes up when what is found changes
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("path", pa.string()),
        ("source", pa.string()),
        ("class", pa.string()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("score", pa.float32()),  # mean
        ("peak", pa.float32()),
        ("frames", pa.int32()),
    ]
)


def version(predictions: str, calibration: Calibration) -> str:
    """The version of the segments that a version of the predictions has with these thresholds."""
    return f"{predictions}-{files.digest_of([METHOD, SHORTEST, calibration.plain()])[:6]}"


def find(scores: np.ndarray, times: np.ndarray, classes: list[str], calibration: Calibration) -> list[dict[str, Any]]:
    """Pieces of segments in a clip, by start and class, in seconds on ``times``' clock: scores `[T, K]`, times `[T]`.

    A piece reaches to the start of the first frame after it.
    """
    if not len(times):
        return []
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    ends = np.append(times[1:], times[-1] + step)
    found = []
    pairs = [calibration.of(name) for name in classes]
    for k, first, last in spans(scores >= np.array([pair.low for pair in pairs], scores.dtype)):
        start, end, peak = float(times[first]), float(ends[last - 1]), float(scores[first:last, k].max())
        inside = first > 0 and last < len(times)
        if inside and (peak < pairs[k].high or end - start < SHORTEST):
            continue
        score = float(scores[first:last, k].mean())
        piece = {"class": classes[k], "start": start, "end": end, "score": score, "peak": peak}
        found.append(piece | {"frames": last - first})
    return sorted(found, key=lambda s: (s["start"], s["class"]))


def spans(on: np.ndarray) -> list[tuple[int, int, int]]:
    """(class, first frame, frame after the last) of each run of true values in `[T, K]`, by class and time."""
    rows = np.zeros((on.shape[1], len(on) + 1), bool)  # all classes one after the other, apart by a frame without any
    rows[:, :-1] = on.T
    first, after = runs(rows.reshape(-1)).T
    k, begin = np.divmod(first, len(on) + 1)
    return list(zip(k.tolist(), begin.tolist(), (begin + after - first).tolist(), strict=True))


def url(root: str, name: str, part: str) -> str:
    """Where the segments of a part are."""
    return files.join(root, "segments", name, f"{part}.parquet")


def has(root: str, name: str, part: str) -> bool:
    """Whether the segments of a part were found."""
    return files.exists(url(root, name, part))


def write(
    root: str,
    name: str,
    part: Part,
    rows: list[dict[str, Any]],
    clips: list[tuple[str, np.ndarray, np.ndarray]],
    about: dict[str, Any],
    calibration: Calibration,
) -> None:
    """Finds the segments of a part's clips, given with its index rows, and commits them."""
    found = [
        {"key": key, "path": row["path"], "source": row["source"], **piece}
        for row, (key, clock, scores) in zip(rows, clips, strict=True)
        for piece in find(scores, clock, about["classes"], calibration)
    ]
    made = about | {"thresholds": calibration.plain()}
    packed = tables.pack(pa.Table.from_pylist(found, schema=SCHEMA), made)
    files.publish_bytes(packed, url(root, name, part.id), same=False)


def read(root: str, name: str, part: Part, selection: str | None = None) -> pa.Table:
    """The pieces of segments in the clips of a part that are kept."""
    table = tables.read(url(root, name, part.id))
    if selection is None:
        return table
    used = datasets.kept(root, selection, part)
    chosen = [key for key, use in zip(part.table(["key"])["key"].to_pylist(), used, strict=True) if use]
    return table.filter(pc.is_in(table["key"], pa.array(chosen, pa.string())))
