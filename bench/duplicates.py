"""Searching for near-duplicates among made-up signatures: biased bits, rooms that share a look, planted copies."""

import time
from collections.abc import Iterator

import numpy as np

from bench.figures import Figure, peak
from storage import near
from storage.bands import Signatures

SIZES = (10_000, 30_000, 100_000)  # clips of ten seconds
MOMENTS = 40
ROOM = 20  # clips that one camera made, of a tenth of all
ONE = np.uint64(1 << 63)  # every hash has it


def noise(rng: np.random.Generator, shape: tuple[int, int], shares: np.ndarray) -> np.ndarray:
    """Words whose bit k is 1 with probability ``shares[k]``."""
    made = np.zeros(shape, np.uint64)
    for k, share in enumerate(shares[:63]):
        made |= (rng.random(shape, np.float32) < share).astype(np.uint64) << np.uint64(k)
    return made


def walk(rng: np.random.Generator, first: np.ndarray, share: float) -> np.ndarray:
    steps = noise(rng, (len(first), MOMENTS - 1), np.full(63, share))
    return np.bitwise_xor.accumulate(np.concatenate([first, steps], axis=1), axis=1)


def view(rng: np.random.Generator, clips: int) -> tuple[np.ndarray, np.ndarray]:
    """Looks and moves `[clips, MOMENTS]`; the first tenth are of rooms."""
    base = noise(rng, (clips, 1), rng.beta(8, 8, 63))
    rooms = clips // 10
    base[:rooms] = base[np.arange(rooms) % (rooms // ROOM)] ^ noise(rng, (rooms, 1), np.full(63, 0.02))
    return walk(rng, base, 0.01), walk(rng, noise(rng, (clips, 1), rng.beta(8, 8, 63)), 0.06)


def archive(clips: int) -> tuple[list[Signatures], int]:
    """Three views of clips, and how many copies with a tenth of their bits altered are at the end, some mirrored."""
    rng = np.random.default_rng(clips)
    copies, first, made = clips // 50, clips // 10, []
    for number in range(3):
        pair = view(rng, clips)
        for hashes in pair:
            if number:
                hashes[:, 1::2] = 0
            else:
                hashes[-copies:] = hashes[first : first + copies] ^ noise(rng, (copies, MOMENTS), np.full(63, 0.1))
                hashes[-copies::2] ^= near.MIRROR
            hashes[hashes != 0] |= ONE
        starts = np.arange(0, clips * MOMENTS + 1, MOMENTS)
        made.append(Signatures(pair[0].reshape(-1), pair[1].reshape(-1), starts))
    return made, copies


def run(sizes: tuple[int, ...] = SIZES) -> Iterator[Figure]:
    for clips in sizes:
        views, copies = archive(clips)
        for title, new in (("all", np.ones(clips, bool)), ("a hundredth", np.arange(clips) >= clips - clips // 100)):
            began, busy = time.perf_counter(), time.process_time()
            found = near.pairs(views, new)
            took, busy = time.perf_counter() - began, time.process_time() - busy
            there = min(copies, int(new.sum()))
            right = int((found["other"] - found["one"] == clips - copies - clips // 10).sum())
            note = (
                f"{right} of {there} copies, {len(found['one']) - right} others; {busy:.0f} s of CPU; {peak():.0f} MB"
            )
            yield Figure(f"near-duplicates, {title} of {clips:,} clips new", took, unit="s", note=note)
