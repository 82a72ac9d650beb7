"""Random clips with labels for each of their frames, and the printed formula that mixes them."""

from fractions import Fraction

import torch


def ints(*values):
    return torch.tensor(values)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(B=4, T=8, W=12, dtype=torch.float32, seed=0):
    """A random video [B, 3, T, 5, W] and one-hot labels [B, T, 6] that change from frame to frame."""
    video = torch.randint(0, 256, (B, 3, T, 5, W), generator=seeded(seed)).to(dtype)
    labels = torch.eye(6)[torch.randint(0, 6, (B, T), generator=seeded(seed + 1))]
    return video, labels


def pair(**options):
    return *batch(**options), *batch(**options, seed=7)


def same(got, expected):
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(got, expected, strict=True))


def reference_alpha(T, r, n1, n2):
    """The printed formula, in exact fractions, for positions with an overlap."""
    if n2 + r >= n1:
        values = [Fraction(n1 - t, n1 - r) for t in range(T)]
    else:
        values = [Fraction(abs(n2 + 2 * r - 2 * t), n2) for t in range(T)]
    return [min(max(v, Fraction(0)), Fraction(1)) for v in values]
