"""Where in a clip of several actions each of them is, proposed by a column of scores (thesis 001, section 4.2.1).

The scores are an earlier model's, or the similarity of each frame to each label's name. They are averaged over time
and cut at a threshold, and short runs are dropped. A clip's labels say what is in it, so no other class is proposed.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from storage import columns, files
from storage.errors import InputError
from storage.parts import Part

Column = Literal["predictions", "features"]
SCALE = 100.0  # of a cosine before the softmax: what CLIP's own temperature grows to
SLACK = 1e-6  # seconds, so that rounding moves no frame over an edge
ROUNDING = 1e-9  # of an averaged score: one at the threshold is on


@dataclass(frozen=True, kw_only=True)
class Proposals:
    """The column that proposes and how its scores are cut; all of it decides the version. Raises `InputError`."""

    column: Column
    version: str
    threshold: float = 0.5  # of the averaged score, itself included
    smooth: float = 0.5  # seconds that a score is averaged over, half of them on either side
    shortest: float = 0.5  # seconds; a shorter run of frames is dropped
    prompt: str = "{}"  # of a label's name, where it is compared with frames

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise InputError(f"the threshold must be in 0 to 1, not {self.threshold}")
        for name in ("smooth", "shortest"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must be seconds, 0 or more, not {getattr(self, name)}")
        if self.prompt.count("{}") != 1:
            raise InputError(f"the prompt {self.prompt!r} needs one {{}} where the label goes")

    def about(self) -> dict[str, Any]:
        """All that decides the labels, as JSON."""
        return {"method": "proposals", "source": "thesis 001 section 4.2.1", **asdict(self)}

    def name(self) -> str:
        """The version of the pseudo labels that are made with it."""
        return f"proposals-{files.digest_of(self.about())[:8]}"


def smoothed(scores: np.ndarray, times: np.ndarray, seconds: float) -> np.ndarray:
    """Scores [T, L], each the mean of those at most half of ``seconds`` away; times [T] rise, in seconds."""
    first = np.searchsorted(times, times - seconds / 2 - SLACK)
    last = np.searchsorted(times, times + seconds / 2 + SLACK, side="right")
    sums = np.concatenate([np.zeros((1, scores.shape[1])), np.cumsum(scores, 0, dtype=np.float64)])
    return (sums[last] - sums[first]) / (last - first)[:, None]


def long_runs(on: np.ndarray, step: float, shortest: float) -> np.ndarray:
    """Booleans [T] without the runs shorter than ``shortest`` seconds; each frame lasts ``step`` seconds."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], on, [False]]).astype(int)))
    kept = np.zeros(len(on), bool)
    for first, end in edges.reshape(-1, 2):
        kept[first:end] = (end - first) * step >= shortest - SLACK
    return kept


def place(
    scores: np.ndarray, at: np.ndarray, times: np.ndarray, step: float, how: Proposals
) -> tuple[np.ndarray, np.ndarray]:
    """Where each label is, booleans [T, L], and its averaged scores [T, L], at a clip's frame times [T].

    scores [S, L] are given at times [S]; between them they are interpolated, beyond them held. All in seconds.
    """
    dense = np.stack([np.interp(times, at, scores[:, k]) for k in range(scores.shape[1])], axis=1)
    mean = smoothed(dense, times, how.smooth)
    runs = [long_runs(column >= how.threshold - ROUNDING, step, how.shortest) for column in mean.T]
    return np.stack(runs, axis=1), mean


def scores_of(root: str, part: Part, names: list[list[str]], how: Proposals) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each clip of a part the times [S] since its start and the scores [S, L] of its own labels ``names``.

    Raises `InputError` where the column does not know a label, or cannot be compared with text.
    """
    known = columns.about(root, how.column, how.version, part)
    if how.column == "predictions":
        yield from _predicted(root, part, names, how, known)
    else:
        yield from _similar(root, part, names, how, known)


def _predicted(
    root: str, part: Part, names: list[list[str]], how: Proposals, known: dict[str, Any]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    from tasks.predict import read_predictions

    classes = known.get("classes")
    if classes is None:
        raise InputError(f"predictions {how.version} do not say which classes they score; use a model's own")
    if strangers := sorted({name for some in names for name in some} - set(classes)):
        raise InputError(f"predictions {how.version} know no class {', '.join(strangers[:3])}; use another version")
    starts = part.table(["start"])["start"].to_pylist()
    clips = read_predictions(root, how.version, part)
    for (_, times, scores), start, some in zip(clips, starts, names, strict=True):
        yield times - start, scores[:, [classes.index(name) for name in some]]


def _similar(
    root: str, part: Part, names: list[list[str]], how: Proposals, known: dict[str, Any]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    if "model" not in known:
        raise InputError(f"features {how.version} were made elsewhere: there is no text encoder that goes with them")
    table = columns.read(root, how.column, how.version, part, ["times", "embedding"]).combine_chunks()
    for number, some in enumerate(names):
        vectors = table["embedding"][number].values
        frames = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(vectors), -1)
        times = table["times"][number].values.to_numpy(zero_copy_only=False).astype(np.float64)
        text = _embedded(known["model"], known["pretrained"], known["weights"], how.prompt, tuple(some))
        yield times, likeness(frames, text)


def likeness(frames: np.ndarray, text: np.ndarray) -> np.ndarray:
    """The share of each label in each frame, [S, L], from unit embeddings [S, D] and [L, D]: zero-shot softmax."""
    scaled = SCALE * (frames.astype(np.float64) @ text.T.astype(np.float64))
    shares = np.exp(scaled - scaled.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


@lru_cache(maxsize=4096)
def _embedded(model: str, pretrained: str | None, weights: str, prompt: str, names: tuple[str, ...]) -> np.ndarray:
    from tasks.extract import encoder

    towers = encoder(model, pretrained)
    if towers.version != weights:
        raise InputError(f"the features were made with other weights of {model} ({weights}, now {towers.version})")
    return towers.encode_text([prompt.replace("{}", name) for name in names]).numpy()
