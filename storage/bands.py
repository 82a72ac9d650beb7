"""Which clips may show the same: an index of bands, pieces of the hashes of their moments, sorted to be asked.

Two clips that share `VOTES` bands are worth a comparison. Asking is by blocks of clips, so what it takes of memory
follows from the index alone, not from how many pairs there are to look at.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

HOT = 64  # clips on one band
VOTES = 2  # bands that have to be shared before a pair is compared
BLOCK = 100_000  # moments that are asked about in one go
FREQUENCIES = sorted(range(1, 64), key=lambda k: (k // 8 + k % 8, k))  # low ones first: those survive re-encoding
LOW = np.uint64(0xFFFFFFFF)
SHIFT = np.uint64(32)


@dataclass(frozen=True)
class Signatures:
    """Signatures of N clips end to end: clip i has the moments ``starts[i]`` up to ``starts[i + 1]``."""

    looks: np.ndarray  # uint64
    moves: np.ndarray  # uint64
    starts: np.ndarray  # [N + 1] int64

    def __len__(self) -> int:
        return len(self.starts) - 1

    def padded(self, clips: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Looks and moves `[len(clips), length]` of some clips, 0 beyond their ends."""
        places = self.starts[clips][:, None] + np.arange(length)
        inside = places < self.starts[clips + 1][:, None]
        places = np.where(inside, places, 0)
        return np.where(inside, self.looks[places], 0), np.where(inside, self.moves[places], 0)

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Looks, moves and clip of each moment, of some clips at a time."""
        first = 0
        while first < len(self):
            last = max(first + 1, int(np.searchsorted(self.starts, self.starts[first] + BLOCK, "right")) - 1)
            some = slice(self.starts[first], self.starts[last])
            lengths = np.diff(self.starts[first : last + 1])
            yield self.looks[some], self.moves[some], np.repeat(np.arange(first, last, dtype=np.uint64), lengths)
            first = last


def _bits(hashes: np.ndarray, frequencies: list[int]) -> np.ndarray:
    """Some bits of hashes `[N]`, packed into uint64."""
    packed = np.zeros(len(hashes), np.uint64)
    for k in frequencies:
        packed = (packed << np.uint64(1)) | ((hashes >> np.uint64(63 - k)) & np.uint64(1))
    return packed


def _once(values: np.ndarray, times: int = 1) -> np.ndarray:
    """The values that come at least so many times, sorted, each once; for 64-bit numbers faster than `np.unique`."""
    values = np.sort(values)
    begins = np.flatnonzero(np.diff(values, prepend=values[:1] + np.uint64(1)))
    counts = np.diff(begins, append=len(values))
    return values[begins[counts >= times]]


def entries(looks: np.ndarray, moves: np.ndarray, clips: np.ndarray) -> list[np.ndarray]:
    """Per band (value of 24 bits << 32 | clip), sorted, each once: of looks, of moves, and of both together."""
    F, half = FREQUENCIES, np.uint64(12)
    seen = np.flatnonzero(looks)
    moving = seen[moves[seen] != 0]
    look, move = looks[moving], moves[moving]
    found = [(_bits(look, F[o:24:2]) << half | _bits(move, F[o:24:2]), moving) for o in (0, 1)]
    found += [(_bits(move, F[:24]), moving), *((_bits(looks[seen], F[o : o + 24]), seen) for o in (0, 24))]
    return [_once(values << SHIFT | clips[at]) for values, at in found]


class Index:
    """The bands of clips, to ask which of them others share; only pairs with a ``new`` clip are told."""

    def __init__(self, signatures: Signatures, new: np.ndarray) -> None:
        self.new = new
        pieces = [entries(*block) for block in signatures.blocks()]
        self.bands = [np.sort(np.concatenate(band)) for band in zip(*pieces, strict=True)]
        self.fresh = [band[new[band & LOW]] for band in self.bands]

    def ask(self, asking: Signatures, mutual: bool) -> np.ndarray:
        """Pairs `[P, 2]` of (clip of ``asking``, clip of the index) that share `VOTES` bands, sorted, each once.

        ``mutual`` says that each side would find the other: then the smaller number comes first.
        """
        found = [np.zeros(0, np.uint64)]
        for looks, moves, clips in asking.blocks():
            if mutual:  # the new ones find the old ones
                looks = np.where(self.new[clips], looks, 0)
            block = looks, moves, clips
            shared = [self._shared(band, asked, mutual) for band, asked in enumerate(entries(*block))]
            found.append(_once(np.concatenate(shared), VOTES))
        pairs = _once(np.concatenate(found))
        return np.stack([pairs >> SHIFT, pairs & LOW], axis=1).astype(np.int64)

    def _shared(self, band: int, asked: np.ndarray, mutual: bool) -> np.ndarray:
        """Pairs (one << 32 | other) that share a value of a band, each once."""
        keys, fresh = self.bands[band], self.fresh[band]
        old = np.flatnonzero(~self.new[asked & LOW])
        asked = np.delete(asked, old[_between(fresh, asked[old])[1] == 0])
        clips = asked & LOW
        first, counts = _between(keys, asked)
        last = first + counts
        hot = counts > HOT
        pairs = [self._neighbours(keys, asked[hot], first[hot], last[hot])]
        some = ~hot & self.new[clips]
        pairs.append(_all_of(clips[some], keys, first[some], counts[some]))
        some = ~hot & ~self.new[clips]
        pairs.append(_all_of(clips[some], fresh, *_between(fresh, asked[some])))
        found = np.concatenate(pairs)
        one, other = found >> SHIFT, found & LOW
        found = found[(one != other) & (self.new[one] | self.new[other])]
        if mutual:
            one, other = found >> SHIFT, found & LOW
            found = np.minimum(one, other) << SHIFT | np.maximum(one, other)
        return _once(found)

    def _neighbours(self, keys: np.ndarray, asked: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """The pairs of clips on a hot value: with those next to them, and with the first."""
        here = np.searchsorted(keys, asked)
        places = [first, *(np.clip(here + step, first, last - 1) for step in (-1, 0, 1))]
        leads = keys[first] == asked
        ones = [(asked & LOW) << SHIFT | keys[place] & LOW for place in places]
        return np.concatenate([*ones, _all_of(asked[leads] & LOW, keys, first[leads], (last - first)[leads])])


def _between(keys: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where in sorted keys the entries with the values of others begin, and how many there are."""
    first = np.searchsorted(keys, asked & ~LOW)
    return first, np.searchsorted(keys, asked | LOW, "right") - first


def _all_of(clips: np.ndarray, keys: np.ndarray, first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Pairs of each clip with the clips of ``counts`` keys from ``first`` on."""
    place = np.arange(counts.sum()) + np.repeat(first - np.cumsum(counts) + counts, counts)
    return np.repeat(clips, counts) << SHIFT | keys[place] & LOW
