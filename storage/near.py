"""Which clips show the same: pairs found by shared bands of their signatures, then compared moment by moment.

Signatures are those of `storage.scores`: per clip two rows of 64-bit hashes on one time grid, looks and moves, 0 where
a moment says nothing. Whether two clips are compared follows from the two alone as long as fewer than `HOT` clips
share a band; those that more share (one camera, one title card) are compared with their neighbours and the first.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from storage import files

LOOK, MOVE = 21.0, 18.0  # mean bits of 64 that may differ; unrelated clips differ in 32
BOTH, MORE = 20.0, 12.0  # bits that both together may differ in, and those added where the whole clip is compared
UNMOVED = 8.0  # bits of the look where nothing moves: then all moments are one witness, not many
LEAST = 4  # moments that have to be compared; one second
SHARE = 0.5  # of the shorter clip's moments that have to be compared
HOT = 64  # clips on one band
VOTES = 2  # bands that have to be shared before a pair is compared
BATCH = 2048  # pairs compared in one call
SETTINGS = {"method": 1, "look": LOOK, "move": MOVE, "both": [BOTH, MORE], "unmoved": UNMOVED}
SETTINGS |= {"least": LEAST, "share": SHARE, "hot": HOT, "votes": VOTES}
FREQUENCIES = sorted(range(1, 64), key=lambda k: (k // 8 + k % 8, k))  # low ones first: those survive re-encoding


def table_of(parts: Iterable[str]) -> str:
    """The name of the table of pairs of some parts, by their ids."""
    return f"{files.digest_of(sorted(parts))[:16]}.parquet"


@dataclass(frozen=True)
class Signatures:
    """Signatures of N clips end to end: clip i has the moments ``starts[i]`` up to ``starts[i + 1]``."""

    looks: np.ndarray  # uint64
    moves: np.ndarray  # uint64
    starts: np.ndarray  # [N + 1] int64

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def owners(self) -> np.ndarray:
        """The clip of each moment."""
        return np.repeat(np.arange(len(self), dtype=np.uint32), np.diff(self.starts))

    def padded(self, clips: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Looks and moves `[len(clips), length]` of some clips, 0 beyond their ends."""
        places = self.starts[clips][:, None] + np.arange(length)
        inside = places < self.starts[clips + 1][:, None]
        places = np.where(inside, places, 0)
        return np.where(inside, self.looks[places], 0), np.where(inside, self.moves[places], 0)


def _bits(hashes: np.ndarray, frequencies: list[int]) -> np.ndarray:
    """Some bits of hashes `[N]`, packed into uint64."""
    packed = np.zeros(len(hashes), np.uint64)
    for k in frequencies:
        packed = (packed << np.uint64(1)) | ((hashes >> np.uint64(63 - k)) & np.uint64(1))
    return packed


def _bands(signatures: Signatures) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per band its values (24 bits) and the moments that have one: of looks, of moves, and of both together."""
    F, shift = FREQUENCIES, np.uint64(12)
    seen = signatures.looks != 0
    moving = np.flatnonzero(seen & (signatures.moves != 0))
    seen = np.flatnonzero(seen)
    looks, moves = signatures.looks, signatures.moves
    both = [_bits(looks[moving], F[o:24:2]) << shift | _bits(moves[moving], F[o:24:2]) for o in (0, 1)]
    found = [(values, moving) for values in (*both, _bits(moves[moving], F[:24]))]
    return [*found, *((_bits(looks[seen], F[o : o + 24]), seen) for o in (0, 24))]


def _together(values: np.ndarray, clips: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Pairs (smaller << 32 | larger) of clips that share a value, at least one of them new; each once."""
    entries = np.unique(values << np.uint64(32) | clips.astype(np.uint64))
    values, clips = entries >> np.uint64(32), (entries & np.uint64(0xFFFFFFFF)).astype(np.int64)
    begins = np.flatnonzero(np.diff(values, prepend=values[:1] + np.uint64(1)))
    counts = np.diff(begins, append=len(values))
    clips, counts = clips[np.repeat(counts > 1, counts)], counts[counts > 1]  # most values are of one clip
    begins = np.cumsum(counts) - counts
    first = np.repeat(begins, counts)
    last = first + np.repeat(counts, counts)
    hot = np.repeat(counts > HOT, counts)
    place = np.arange(len(clips))
    pairs = []

    def add(one: np.ndarray, other: np.ndarray) -> None:
        one, other = clips[one], clips[other]
        fresh = (new[one] | new[other]) & (one != other)
        pairs.append(one[fresh].astype(np.uint64) << np.uint64(32) | other[fresh].astype(np.uint64))

    for step in range(1, HOT):
        one = np.flatnonzero(((place + step) < last) & (~hot | (step == 1)))
        if not len(one):
            break
        add(one, one + step)
    away = np.flatnonzero(hot & (place > first))
    add(first[away], away)
    return np.unique(np.concatenate(pairs))


def candidates(signatures: Signatures, new: np.ndarray) -> np.ndarray:
    """Pairs of clips `[P, 2]` that share at least `VOTES` bands of any of their moments, at least one of them new."""
    owners = signatures.owners
    votes = [_together(values, owners[at], new) for values, at in _bands(signatures) if len(values)]
    if not votes:
        return np.zeros((0, 2), np.int64)
    pairs, counts = np.unique(np.concatenate(votes), return_counts=True)
    pairs = pairs[counts >= VOTES]
    return np.stack([pairs >> np.uint64(32), pairs & np.uint64(0xFFFFFFFF)], axis=1).astype(np.int64)


def _compare(signatures: Signatures, pairs: np.ndarray) -> tuple[np.ndarray, ...]:
    """Look, move (mean bits), share and shift (moments) of each pair where it fits best; look is inf where nowhere."""
    lengths = np.diff(signatures.starts)
    long = int(lengths[pairs].max())
    (a, u), (b, v) = (signatures.padded(pairs[:, side], long) for side in (0, 1))
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
        either, both = seen & ((m != 0) | (n != 0)), (m != 0) & (n != 0)
        differ = np.where(both, np.bitwise_count(m ^ n), 32) * either
        move = differ.sum(1) / np.maximum(1, np.maximum(either.sum(1), count / 4))
        share = count / np.maximum(1, shorter)
        above = look + move - BOTH - MORE * share
        fits = (count >= need) & (look <= np.where(either.sum(1) < LEAST, UNMOVED, LOOK)) & (move <= MOVE)
        better = fits & (above <= 0) & (above < lowest)
        lowest[better] = above[better]
        best[:, better] = np.stack([look, move, share, np.full(len(pairs), shift)])[:, better]
    return tuple(best)


def pairs(signatures: Signatures, new: np.ndarray) -> dict[str, np.ndarray]:
    """Near-duplicate pairs of which at least one is new: one, other (clip numbers), look, move, share, shift.

    ``shift`` is in moments: what the one shows at moment t, the other shows at t + shift.
    """
    found = candidates(signatures, new)
    lengths = np.diff(signatures.starts)
    found = found[np.argsort(lengths[found].max(1), kind="stable")] if len(found) else found
    compared = [_compare(signatures, found[i : i + BATCH]) for i in range(0, len(found), BATCH)]
    look, move, share, shift = np.concatenate(compared, axis=1) if compared else np.zeros((4, 0))
    kept = np.flatnonzero(np.isfinite(look))
    kept = kept[np.lexsort((found[kept, 1], found[kept, 0]))]
    values = {"look": look, "move": move, "share": share, "shift": shift}
    return {"one": found[kept, 0], "other": found[kept, 1]} | {k: np.round(v[kept], 4) for k, v in values.items()}
