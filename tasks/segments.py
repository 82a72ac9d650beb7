"""Segments out of scores: when a class begins and ends in a clip, as a table beside its part's predictions."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage import datasets, files
from storage.parts import Part

THRESHOLD = 0.5
SHORTEST = 0.25  # seconds; a shorter run of frames is not a segment
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("source", pa.string()),
        ("class", pa.string()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("score", pa.float32()),
    ]
)


def find(scores: np.ndarray, times: np.ndarray, classes: list[str], threshold: float = THRESHOLD) -> list[dict]:
    """Runs of frames at or above the threshold as (class, start, end, mean score), in seconds on ``times``' clock.

    A segment reaches to the start of the first frame after it.
    """
    if not len(times):
        return []
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    found = []
    for k, name in enumerate(classes):
        edges = np.flatnonzero(np.diff(np.concatenate([[False], scores[:, k] >= threshold, [False]]).astype(int)))
        for first, last in edges.reshape(-1, 2):
            end = float(times[last]) if last < len(times) else float(times[-1]) + step
            if end - float(times[first]) >= SHORTEST:
                score = float(scores[first:last, k].mean())
                found.append({"class": name, "start": float(times[first]), "end": end, "score": score})
    return sorted(found, key=lambda s: (s["start"], s["class"]))


def url(root: str, name: str, part: str) -> str:
    """Where the segments of a part are."""
    return files.join(root, "segments", name, f"{part}.parquet")


def count(root: str, name: str, parts: list[Part], selection: str | None = None) -> int:
    """How many segments were found in the clips that are kept."""
    found = 0
    for part in parts:
        keys = pq.read_table(io.BytesIO(files.read(url(root, name, part.id))), columns=["key"])["key"]
        used = datasets.kept(root, selection, part)
        chosen = [key for key, use in zip(part.table(["key"])["key"].to_pylist(), used, strict=True) if use]
        found += pc.sum(pc.is_in(keys, pa.array(chosen, pa.string()))).as_py() or 0
    return found
