"""Are embeddings healthy: alignment and uniformity (Wang & Isola 2020), the modality gap (Liang et al. 2022)."""

from typing import Any

import numpy as np
import pyarrow as pa

from storage import columns
from storage.datasets import Dataset
from storage.errors import InputError

SAMPLE = 2000  # vectors that uniformity is measured on


def embedding_health(root: str, dataset: Dataset, names: list[str] | None = None) -> dict[str, Any]:
    """By version of the features: coverage, alignment, uniformity and the modality gap.

    Alignment is the mean d² of all pairs of frames of one clip, 0 (alike) to 4; uniformity log mean exp(-2 d²) of any
    frames; both on the unit sphere, lower is better. With class ``names`` the text tower is loaded for the gap: the
    distance of the mean frame from the mean name.
    """
    found: dict[str, Any] = {}
    for name in columns.versions(root, "features"):
        parts = [part for part in dataset.parts if columns.has(root, "features", name, part.id)]
        tables = [columns.read(root, "features", name, part, ["embedding"]).combine_chunks() for part in parts]
        vectors, lengths = _vectors(tables)
        if not len(vectors):
            continue
        about = columns.about(root, "features", name, parts[0])
        found[name] = {
            "parts": f"{len(parts)} of {len(dataset.parts)}",
            "frames": len(vectors),
            "alignment": alignment(vectors, lengths),
            "uniformity": uniformity(vectors),
            "modality_gap": _gap(vectors, about, names),
        }
    return found


def _vectors(tables: list[pa.Table]) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors `[N, D]` of all frames, and how many each clip has."""
    vectors, lengths = [], []
    for table in tables:
        lists = table["embedding"].combine_chunks()
        flat = lists.flatten()
        x = flat.flatten().to_numpy().reshape(-1, flat.type.list_size).astype(np.float32)
        vectors.append(x / np.maximum(1e-12, np.linalg.norm(x, axis=1, keepdims=True)))
        lengths.append(lists.value_lengths().to_numpy())
    if not vectors:
        return np.zeros((0, 1), np.float32), np.zeros(0, int)
    return np.concatenate(vectors), np.concatenate(lengths)


def alignment(vectors: np.ndarray, lengths: np.ndarray) -> float | None:
    """Mean squared distance over all pairs of frames of one clip; None where no clip has two."""
    total, pairs, begin = 0.0, 0.0, 0
    for length in lengths:
        x, begin = vectors[begin : begin + length].astype(np.float64), begin + length
        n = length * (length - 1) / 2
        total += length * float((x * x).sum()) - float((x.sum(0) ** 2).sum())  # the sum of d² over pairs
        pairs += n
    return max(0.0, total / pairs) if pairs else None


def uniformity(vectors: np.ndarray) -> float | None:
    """Log of the mean of exp(-2 d²) over pairs of up to `SAMPLE` vectors; None for a single one."""
    x = vectors[np.linspace(0, len(vectors) - 1, min(SAMPLE, len(vectors))).astype(int)]
    squared = np.maximum(0, 2 - 2 * (x @ x.T))[np.triu_indices(len(x), 1)]
    return float(np.log(np.exp(-2 * squared).mean())) if len(squared) else None


def _gap(vectors: np.ndarray, about: dict[str, Any], names: list[str] | None) -> float | str:
    """The distance between the mean of the frames and that of the class names, or why there is none."""
    if "weights" not in about or "model" not in about:
        return "none: these features have no text tower"
    if names is None:
        return "not measured: --text loads the text tower"
    if not names:
        return "none: no clip has a label to embed"
    from tasks.extract import encoder

    try:
        towers = encoder(about["model"], about.get("pretrained"))
    except (InputError, OSError) as error:  # weights that are not on this machine
        return f"not measured: the text tower cannot be loaded ({type(error).__name__})"
    texts = towers.encode_text(names).numpy()
    return float(np.linalg.norm(vectors.mean(0) - texts.mean(0)))
