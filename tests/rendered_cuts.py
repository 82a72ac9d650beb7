"""Videos of thumbnails whose shots are known by construction: textured moving scenes, joined in several ways."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

FPS = 25.0
ROWS, COLUMNS = 27, 48
Look = Callable[[int], np.ndarray]  # the frame number of a scene -> float [H, W, 3], 0 to 255


def bilinear(image: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Samples an image that repeats at every crossing of rows y and columns x."""
    y, x = y % (image.shape[0] - 1), x % (image.shape[1] - 1)
    y0, x0 = y.astype(int), x.astype(int)
    fy, fx = (y - y0)[:, None, None], (x - x0)[None, :, None]
    upper = image[y0][:, x0] * (1 - fx) + image[y0][:, x0 + 1] * fx
    lower = image[y0 + 1][:, x0] * (1 - fx) + image[y0 + 1][:, x0 + 1] * fx
    return upper * (1 - fy) + lower * fy


class Scene:
    """A texture in two colours that the camera moves over, with a few discs of their own motion before it.

    ``scale`` multiplies the size in pixels, ``pan`` is the camera's speed in thumbnail pixels a frame, ``zoom`` what
    a frame is larger than the one before.
    """

    def __init__(
        self, rng: np.random.Generator, *, scale: int = 1, pan: float = 0.25, zoom: float = 1.0, light: float = 0.0
    ) -> None:
        self.shape = (ROWS * scale, COLUMNS * scale)
        self.scale, self.zoom, self.light = scale, zoom, light
        layers = (rng.random((cells, 2 * cells, 1)) / k for k, cells in enumerate((4, 8, 18), 1))
        rows, columns = (np.linspace(0, 1, 3 * n, endpoint=False) for n in self.shape)
        mixed = sum(bilinear(g, rows * (len(g) - 1), columns * (g.shape[1] - 1)) for g in layers)
        mixed = (mixed - mixed.min()) / np.ptp(mixed)
        dark, bright = rng.uniform(0, 255, (2, 3))
        self.texture = dark + mixed * (bright - dark)
        angle = rng.uniform(0, 2 * np.pi)
        self.motion = pan * scale * np.array([np.sin(angle), np.cos(angle)])
        self.begin = rng.uniform(0, 1, 2) * self.shape
        self.discs = [
            (rng.uniform(0, 1, 2), rng.uniform(-0.02, 0.02, 2), rng.uniform(0.1, 0.25), rng.uniform(0, 255, 3))
            for _ in range(int(rng.integers(1, 4)))
        ]

    def __call__(self, number: int) -> np.ndarray:
        grown = self.zoom**number
        middle = (self.begin + self.motion * number)[:, None]
        y, x = (middle[i] + (np.arange(n) - n / 2) / grown for i, n in enumerate(self.shape))
        frame = bilinear(self.texture, y, x)
        down, right = np.mgrid[: self.shape[0], : self.shape[1]]
        for place, speed, radius, colour in self.discs:
            at = np.abs((place + speed * number + 1) % 2 - 1) * self.shape  # it comes back at the borders
            cover = np.clip(radius * self.shape[0] * grown - np.hypot(down - at[0], right - at[1]) + 0.5, 0, 1)
            frame = frame + cover[..., None] * (colour - frame)
        return frame * (1 + self.light * number)


@dataclass
class Film:
    """Frames so far, and for each boundary the numbers between which the next shot begins."""

    rng: np.random.Generator
    frames: list[np.ndarray] = field(default_factory=list)
    truth: list[tuple[int, int]] = field(default_factory=list)
    scene: Look | None = None
    number: int = 0

    def hold(self, count: int) -> "Film":
        """Shows more of the present scene."""
        assert self.scene is not None
        self.frames += [self.scene(self.number + k) for k in range(count)]
        self.number += count
        return self

    def cut(self, scene: Look, at: int = 0) -> "Film":
        """Goes on with another scene, from its frame ``at``."""
        if self.frames:
            self.truth.append((len(self.frames), len(self.frames)))
        self.scene, self.number = scene, at
        return self

    def dissolve(self, scene: Look, length: int) -> "Film":
        """Mixes ``length`` frames of the present scene with the next one's."""
        assert self.scene is not None
        begin = len(self.frames)
        for k in range(length):
            share = (k + 1) / (length + 1)
            self.frames.append((1 - share) * self.scene(self.number + k) + share * scene(k))
        self.truth.append((begin, len(self.frames)))
        self.scene, self.number = scene, length
        return self

    def fade(self, scene: Look, length: int, black: int = 4) -> "Film":
        """Fades to black and from black into the next scene, ``length`` frames each."""
        assert self.scene is not None
        begin = len(self.frames)
        self.frames += [self.scene(self.number + k) * (1 - (k + 1) / length) for k in range(length)]
        self.frames += [np.zeros_like(self.frames[0])] * black
        self.frames += [scene(k) * (k + 1) / length for k in range(length)]
        self.truth.append((begin, len(self.frames)))
        self.scene, self.number = scene, length
        return self

    def flash(self, length: int = 1) -> "Film":
        """Lights up the last frames; no shot begins there."""
        for k in range(1, length + 1):
            self.frames[-k] = 255 - (255 - self.frames[-k]) * 0.15
        return self

    def done(self) -> np.ndarray:
        """The frames with a little noise: uint8 [T, H, W, 3]."""
        frames = np.array(self.frames)
        return np.clip(frames + self.rng.normal(0, 2, frames.shape), 0, 255).astype(np.uint8)


def cuts(seed: int) -> Film:
    """Hard cuts between unlike scenes."""
    film = Film(rng := np.random.default_rng([1, seed]))
    for _ in range(6):
        film.cut(Scene(rng)).hold(int(rng.integers(28, 60)))
    return film


def dissolves(seed: int) -> Film:
    """Dissolves of 8 to 24 frames."""
    film = Film(rng := np.random.default_rng([2, seed])).cut(Scene(rng)).hold(40)
    for length in rng.permutation([8, 12, 16, 20, 24]):
        film.dissolve(Scene(rng), int(length)).hold(int(rng.integers(32, 50)))
    return film


def fades(seed: int) -> Film:
    """To black and back."""
    film = Film(rng := np.random.default_rng([3, seed])).cut(Scene(rng)).hold(40)
    for length in (6, 10, 15):
        film.fade(Scene(rng), length).hold(40)
    return film


def drifts(seed: int) -> Film:
    """One shot each of a pan, a zoom and a change of light, all slow, and hard cuts between them."""
    film = Film(rng := np.random.default_rng([4, seed]))
    for motion in ({"pan": 0.8}, {"zoom": 1.008}, {"light": 0.006}):
        film.cut(Scene(rng, **motion)).hold(80)
    return film


def flashes(seed: int) -> Film:
    """A photographer's flashes of one to three frames in one shot."""
    film = Film(rng := np.random.default_rng([5, seed])).cut(Scene(rng)).hold(40)
    for length in (1, 2, 3):
        film.flash(length).hold(40)
    return film


def repeated(seed: int) -> Film:
    """Two scenes in turn, each going on where it was left, as in a dialogue."""
    film = Film(rng := np.random.default_rng([6, seed]))
    scenes, shown = [Scene(rng), Scene(rng)], [0, 0]
    for turn in range(6):
        length = int(rng.integers(25, 45))
        film.cut(scenes[turn % 2], shown[turn % 2]).hold(length)
        shown[turn % 2] += length
    return film


def short(seed: int) -> Film:
    """Shots of 15 to 20 frames: 0.6 to 0.8 s."""
    film = Film(rng := np.random.default_rng([7, seed])).cut(Scene(rng)).hold(30)
    for _ in range(6):
        film.cut(Scene(rng)).hold(int(rng.integers(15, 21)))
    return film.cut(Scene(rng)).hold(30)


def single(seed: int) -> Film:
    """One shot."""
    return Film(rng := np.random.default_rng([8, seed])).cut(Scene(rng)).hold(150)


KINDS: dict[str, Callable[[int], Film]] = {
    f.__name__: f for f in (cuts, dissolves, fades, drifts, flashes, repeated, short, single)
}


def times(count: int) -> np.ndarray:
    """When the frames are shown, in seconds; sources do not begin at nought."""
    return 1.5 + np.arange(count) / FPS


@dataclass
class Counts:
    """Boundaries that were found, that were there, and that were invented."""

    right: int = 0
    there: int = 0
    found: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.right + other.right, self.there + other.there, self.found + other.found)

    @property
    def recall(self) -> float:
        return self.right / self.there if self.there else 1.0

    @property
    def precision(self) -> float:
        return self.right / self.found if self.found else 1.0


def judge(found: list[float], truth: list[tuple[int, int]], slack: int = 2) -> Counts:
    """Pairs each true boundary with the first found one inside it, give or take ``slack`` frames."""
    left = [round(at * FPS) for at in found]
    right = 0
    for begin, end in truth:
        inside = [at for at in left if begin - slack <= at <= end + slack]
        if inside:
            left.remove(inside[0])
            right += 1
    return Counts(right, len(truth), len(found))
