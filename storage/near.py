"""Which clips show the same: pairs that share bands of their signatures, compared moment by moment.

Signatures are those of `storage.media.scores`: per clip and view two rows of 64-bit hashes on one time grid, looks and
moves, 0 where a moment says nothing. The first view is the picture, the others are its middle. A clip is compared
with every other one as it is and mirrored, and so is each middle of it: what was cropped from a clip is its middle.

Whether two clips are compared follows from the two alone as long as fewer than `bands.HOT` clips share a band; those
that more share (one camera, one title card) are compared with their neighbours and the first.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np

from storage import bands, files
from storage.bands import Index, Signatures

LOOK, MOVE = 21.0, 18.0  # mean bits of 64 that may differ; unrelated clips differ in 32
BOTH, MORE = 20.0, 12.0  # bits that both together may differ in, and those added where the whole clip is compared
CLOSER = 4.0  # bits fewer that both may differ in where a middle is compared: more of them are tried
UNMOVED = 8.0  # bits of the look where nothing moves: then all moments are one witness, not many
LEAST = 4  # moments that have to be compared; one second
SHARE = 0.5  # of the shorter clip's moments that have to be compared
BATCH = 2048  # pairs compared in one call
THREADS = 2
SETTINGS = {"method": 2, "look": LOOK, "move": MOVE, "both": [BOTH, MORE, CLOSER], "unmoved": UNMOVED}
SETTINGS |= {"least": LEAST, "share": SHARE, "hot": bands.HOT, "votes": bands.VOTES}
HOW = ("", "mirrored", "cropped", "cropped, mirrored")  # what was done to one of two clips, as far as it is known
# Mirrored left to right, a wave of an odd number of half periods across the picture has the other sign.
MIRROR = np.uint64(sum(1 << (63 - k) for k in range(64) if k % 2))


def table_of(parts: Iterable[str]) -> str:
    """The name of the table of pairs of some parts, by their ids."""
    return f"{files.digest_of(sorted(parts))[:16]}.parquet"


class Compared(NamedTuple):
    """Numbers of P pairs; ``look`` is inf where a pair does not fit."""

    look: np.ndarray  # mean bits
    move: np.ndarray  # mean bits
    share: np.ndarray
    shift: np.ndarray  # moments


def views(looks: np.ndarray, moves: np.ndarray, lengths: np.ndarray, count: int) -> list[Signatures]:
    """Signatures of clips of ``lengths`` hashes, ``count`` views of each end to end, as one `Signatures` per view."""
    moments = lengths // count
    starts = np.concatenate([[0], np.cumsum(moments)])
    inside = np.arange(starts[-1]) - np.repeat(starts[:-1], moments)
    found = []
    for view in range(count):
        at = inside + np.repeat(starts[:-1] * count + view * moments, moments)
        found.append(Signatures(looks[at], moves[at], starts))
    return found


def mirrored(signatures: Signatures) -> Signatures:
    """The signatures of the same clips, mirrored left to right."""
    looks, moves = (np.where(hashes, hashes ^ MIRROR, hashes) for hashes in (signatures.looks, signatures.moves))
    return Signatures(looks, moves, signatures.starts)


def _compare(asking: Signatures, whole: Signatures, both: float, pairs: np.ndarray) -> Compared:
    """Pairs (clip of ``asking``, clip of ``whole``) where they fit best; together ``both`` bits may differ."""
    long = int(np.diff(whole.starts)[pairs].max())
    (a, u), (b, v) = asking.padded(pairs[:, 0], long), whole.padded(pairs[:, 1], long)
    shorter = np.minimum((a != 0).sum(1), (b != 0).sum(1))
    need = np.maximum(LEAST, np.ceil(SHARE * shorter))
    best = np.full((4, len(pairs)), np.inf)
    lowest = np.full(len(pairs), np.inf)  # of what differs above what may
    for shift in sorted(range(LEAST - long, long - LEAST + 1), key=abs):
        mine, other = slice(max(0, -shift), long - max(0, shift)), slice(max(0, shift), long + min(0, shift))
        x, y, m, n = a[:, mine], b[:, other], u[:, mine], v[:, other]
        seen = (x != 0) & (y != 0)
        count = seen.sum(1)
        look = (np.bitwise_count(x ^ y) * seen).sum(1) / np.maximum(1, count)
        either, each = seen & ((m != 0) | (n != 0)), (m != 0) & (n != 0)
        differ = np.where(each, np.bitwise_count(m ^ n), 32) * either
        move = differ.sum(1) / np.maximum(1, np.maximum(either.sum(1), count / 4))
        share = count / np.maximum(1, shorter)
        above = look + move - both - MORE * share
        fits = (count >= need) & (look <= np.where(either.sum(1) < LEAST, UNMOVED, LOOK)) & (move <= MOVE)
        better = fits & (above <= 0) & (above < lowest)
        lowest[better] = above[better]
        best[:, better] = np.stack([look, move, share, np.full(len(pairs), shift)])[:, better]
    return Compared(*best)


def _fitting(asking: Signatures, whole: Signatures, both: float, found: np.ndarray) -> dict[str, np.ndarray]:
    """Those of some pairs that fit, with their numbers; ``one`` is the smaller clip number."""
    found = found[np.argsort(np.diff(whole.starts)[found].max(1), kind="stable")] if len(found) else found
    batches = [found[i : i + BATCH] for i in range(0, len(found), BATCH)]
    with ThreadPoolExecutor(THREADS) as threads:
        compared = list(threads.map(partial(_compare, asking, whole, both), batches))
    numbers = Compared(
        *(np.concatenate(values) for values in zip(*compared, strict=True)) if compared else np.zeros((4, 0))
    )
    fits = np.isfinite(numbers.look)
    turned = found[fits, 0] > found[fits, 1]
    values = {name: np.round(array[fits], 4) for name, array in numbers._asdict().items()}
    values["shift"] = np.where(turned, -values["shift"], values["shift"])
    return {"one": found[fits].min(1), "other": found[fits].max(1)} | values


def pairs(of: list[Signatures], new: np.ndarray) -> dict[str, np.ndarray]:
    """Near-duplicate pairs of which at least one is new: one, other (clip numbers), look, move, share, shift, how.

    ``of`` are views of the same clips, the whole picture first. ``shift`` is in moments: what the one shows at moment
    t, the other shows at t + shift. ``how`` is a number in `HOW`, the first that fits.
    """
    whole = of[0]
    index = Index(whole, new)
    made = []
    for view, signatures in enumerate(of):
        for flip in (False, True):
            asking = mirrored(signatures) if flip else signatures
            found = index.ask(asking, mutual=view == 0)
            fitting = _fitting(asking, whole, BOTH - CLOSER if view else BOTH, found)
            made.append(fitting | {"how": np.full(len(fitting["one"]), 2 * bool(view) + flip)})
    together = {name: np.concatenate([found[name] for found in made]) for name in made[0]}
    order = np.lexsort((together["look"] + together["move"], together["how"], together["other"], together["one"]))
    together = {name: values[order] for name, values in together.items()}
    first = np.ones(len(order), bool)
    first[1:] = (np.diff(together["one"]) != 0) | (np.diff(together["other"]) != 0)
    return {name: values[first] for name, values in together.items()}
