"""High dynamic range made into standard range: what a screen of BT.709 shows of a picture mastered for more light.

One fixed transform, the same for every frame and file, so that no clip depends on another or on what its metadata
claim of the mastering screen:

1. the signal becomes light, relative to the white of a page at 203 cd/m2 (BT.2408): PQ by SMPTE ST 2084, HLG by
   ARIB STD-B67 on a screen of 1000 cd/m2;
2. the primaries of BT.2020 become those of BT.709; what lies outside of them is clipped;
3. light up to `KNEE` of white stays as it is, what is brighter is compressed and never reaches the limit; the three
   channels are scaled as one, which keeps the hue;
4. light becomes the signal of a screen of gamma 2.4 (BT.1886).
"""

from functools import cache

import numpy as np

WHITE, SCREEN = 203.0, 1000.0  # cd/m2
KNEE = 0.7
STEPS = 65_536
LUMA = (0.2627, 0.6780, 0.0593)  # BT.2020
TO_709 = ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187))


@cache
def _light(transfer: str) -> np.ndarray:
    """Light of each of 65,536 codes: of PQ as shares of `WHITE`, of HLG as shares of the scene's brightest."""
    signal = np.linspace(0, 1, STEPS)
    if transfer == "pq":
        root = signal ** (32 / 2523)
        light = (np.maximum(root - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * root)) ** (16384 / 2610)
        return (light * 10_000 / WHITE).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12).astype(np.float32)


@cache
def _power(exponent: float) -> np.ndarray:
    """x ** (2 * ``exponent``) of 65,536 steps: a table that is asked by square roots is fine where it is dark."""
    return (np.linspace(0, 1, STEPS) ** (2 * exponent)).astype(np.float32)


@cache
def _signal() -> np.ndarray:
    return np.round(255 * _power(1 / 2.4).astype(np.float64)).astype(np.uint8)


def _step(light: np.ndarray) -> np.ndarray:
    return np.round(np.sqrt(np.minimum(light, 1)) * np.float32(STEPS - 1)).astype(np.uint16)


def tone_map(codes: np.ndarray, transfer: str, wide: bool = True) -> np.ndarray:
    """RGB codes of full range `[H, W, 3]` uint16 in ``transfer`` ("pq" or "hlg") -> `[H, W, 3]` uint8 of BT.709.

    ``wide`` says that the primaries are those of BT.2020. All steps are single operations on float32 or look-ups, so
    the same frame gives the same bytes on every machine.
    """
    red, green, blue = (_light(transfer)[codes[..., channel]] for channel in range(3))
    if transfer == "hlg":
        luma = red * np.float32(LUMA[0]) + green * np.float32(LUMA[1]) + blue * np.float32(LUMA[2])
        gain = _power(0.2)[_step(luma)] * np.float32(SCREEN / WHITE)
        red, green, blue = red * gain, green * gain, blue * gain
    if wide:
        rows = [[np.float32(value) for value in row] for row in TO_709]
        red, green, blue = (r * red + g * green + b * blue for r, g, b in rows)
    light = np.maximum(np.stack([red, green, blue], -1), 0)
    top = light.max(-1, keepdims=True)
    over = np.maximum(top - np.float32(KNEE), 0)
    room = np.float32(1 - KNEE)
    shown = np.minimum(top, np.float32(KNEE)) + room * over / (over + room)
    return _signal()[_step(light * (shown / np.maximum(top, np.float32(1e-9))))]
