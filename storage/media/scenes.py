"""What is rendered: textured shapes that act on a textured background, before a camera that may wander.

Every class is a *motion* against the background: position, size, colour, angle and texture are drawn alike for all
classes, so one frame says nothing. A scene is a function of its style and of the state of a random generator.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

CLASSES = ("left", "right", "up", "down", "spin", "grow", "shrink", "blink")
SIZES = ((96, 72), (112, 112), (128, 96), (72, 96), (160, 120))  # width, height
FRAME_RATES = (12, 15, 16, 20, 24)
SHAPES = ("square", "triangle", "bar", "cross")
PATCH = 24  # texture samples across an actor


@dataclass(frozen=True)
class Segment:
    """An action between two times in seconds; the ends lie between frames, so no rounding can move a frame out."""

    start: float
    end: float
    label: str


@dataclass
class Actor:
    """What is drawn and how it moves: ``timeline`` holds (first frame, last frame + 1, class)."""

    shape: str
    texture: np.ndarray  # [PATCH, PATCH, 3] uint8
    x: float  # centre, share of the width
    y: float  # centre, share of the height
    size: float  # half the extent, share of the shorter side
    angle: float
    rate: float  # each class scales it to its own unit; see `advance`
    turn: int  # direction of a spin
    timeline: list[tuple[int, int, str]] = field(default_factory=list)
    phase: float = 0.0
    visible: bool = True

    def advance(self, label: str | None, seconds: float) -> None:
        """Moves the state on by one frame of ``seconds`` under the action ``label`` (None: stands still)."""
        self.visible = True
        step = self.rate * seconds
        if label in ("left", "right"):
            self.x = (self.x + (step if label == "right" else -step)) % 1.0
        elif label in ("up", "down"):
            self.y = (self.y + (step if label == "down" else -step)) % 1.0
        elif label == "spin":
            self.angle += self.turn * 2.6 * np.pi * step
        elif label in ("grow", "shrink"):
            self.size *= np.exp(2.4 * step if label == "grow" else -2.4 * step)
            self.size = SMALLEST if self.size > LARGEST else LARGEST if self.size < SMALLEST else self.size
        elif label == "blink":
            self.phase += 7.0 * step
            self.visible = int(self.phase) % 2 == 0


SMALLEST, LARGEST = 0.16, 0.40
SWAY = 0.12  # share of the shorter side; at its fastest less than half of what the slowest action moves


def texture_of(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """A smooth random colour field `[height, width, 3]` float in 0..255, made by bilinear growth of a coarse grid."""
    coarse = rng.uniform(0, 255, (cells + 1, cells + 1, 3))
    rows, columns = np.linspace(0, cells - 1e-6, height), np.linspace(0, cells - 1e-6, width)
    r, c = rows.astype(int), columns.astype(int)
    fr, fc = (rows - r)[:, None, None], (columns - c)[None, :, None]
    top = coarse[r][:, c] * (1 - fc) + coarse[r][:, c + 1] * fc
    bottom = coarse[r + 1][:, c] * (1 - fc) + coarse[r + 1][:, c + 1] * fc
    return top * (1 - fr) + bottom * fr


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Where the unit shape covers the plane; u and v run over -1..1 across it."""
    if shape == "square":
        return np.maximum(abs(u), abs(v)) < 0.85
    if shape == "triangle":
        return (v > -0.8) & (abs(u) < 0.5 * (0.9 - v))
    if shape == "bar":
        return (abs(u) < 0.95) & (abs(v) < 0.45)
    return np.minimum(abs(u), abs(v)) < 0.35


def _paint(frame: np.ndarray, actor: Actor, across: float = 0.0, down: float = 0.0) -> None:
    """Draws the actor, some pixels off its place, into `[H, W, 3]` uint8.

    It is wrapped around the borders, so that motion never has to turn back.
    """
    H, W, _ = frame.shape
    half = actor.size * min(H, W)
    reach = int(np.ceil(half * 1.45))
    cx, cy = actor.x * W + across, actor.y * H + down
    columns = np.arange(int(cx) - reach, int(cx) + reach + 1)
    rows = np.arange(int(cy) - reach, int(cy) + reach + 1)
    dx, dy = (columns - cx)[None, :] / half, (rows - cy)[:, None] / half
    cos, sin = np.cos(actor.angle), np.sin(actor.angle)
    u, v = cos * dx + sin * dy, -sin * dx + cos * dy
    mask = _inside(actor.shape, u, v) & (abs(u) < 1) & (abs(v) < 1)
    inside_rows, inside_columns = np.nonzero(mask)
    texels = actor.texture[
        ((v[mask] + 1) * PATCH / 2).astype(int),
        ((u[mask] + 1) * PATCH / 2).astype(int),
    ]
    frame[rows[inside_rows] % H, columns[inside_columns] % W] = texels


def _actor(rng: np.random.Generator) -> Actor:
    texture = texture_of(rng, PATCH, PATCH, 1) * 0.2 + rng.uniform(140, 200, 3)
    texture[:, PATCH // 2 :] -= 60  # two halves, so that a turning shape looks different at every angle
    return Actor(
        shape=str(rng.choice(SHAPES)),
        texture=texture.astype(np.uint8),
        x=rng.uniform(),
        y=rng.uniform(),
        size=float(np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST)))),
        angle=rng.uniform(0, 2 * np.pi),
        rate=rng.uniform(0.35, 0.65),
        turn=int(rng.choice((-1, 1))),
    )


@dataclass(frozen=True)
class Style:
    """What kind of video is drawn; pairs are ranges in seconds that are drawn from uniformly."""

    seconds: tuple[float, float]
    actors: int = 1
    opening: tuple[float, float] = (0.0, 1.5)  # before an actor's first action
    action: tuple[float, float] | None = None  # None: one action all through
    gap: tuple[float, float] = (0.7, 2.2)  # between an actor's actions
    distractors: int = 0  # shapes that sway all through, which is no class
    camera: float = 0.0  # how far the camera wanders from its place, share of the shorter side
    shake: float = 0.0  # how far at most every frame is off that, each for itself, as in a hand


STYLES = {
    "weak": Style((2.4, 3.2)),
    "dense": Style((8.0, 12.0), actors=2, action=(1.2, 3.2)),
    # Mostly nothing happens, and what happens is short: where one looks closely has to be chosen.
    "long": Style((24.0, 40.0), 2, (0.0, 6.0), (0.6, 1.4), (3.0, 9.0), distractors=1, camera=0.08),
    # As short and nearly as rare, before a camera that rests: learned in minutes.
    "sparse": Style((14.0, 20.0), 2, (0.0, 2.0), (0.6, 1.4), (1.5, 5.0)),
    # Shorter and rarer, in a hand that shakes: one or two frames do not tell a motion from the hand's.
    "brief": Style((14.0, 20.0), 1, (0.0, 4.0), (0.5, 1.0), (2.5, 7.0), shake=0.07),
}


@dataclass
class Sway:
    """A path around a place and back, slow against any action: a sine across and another one down."""

    reach: float
    periods: tuple[float, float]  # seconds
    phases: tuple[float, float]

    @classmethod
    def draw(cls, rng: np.random.Generator, reach: float) -> "Sway":
        x, y, a, b = rng.uniform((5.0, 5.0, 0.0, 0.0), (9.0, 9.0, 2 * np.pi, 2 * np.pi))
        return cls(reach, (x, y), (a, b))

    def at(self, seconds: float) -> tuple[float, float]:
        """How far from the place, across and down, after some seconds."""
        x, y = (
            self.reach * np.sin(2 * np.pi * seconds / period + phase)
            for period, phase in zip(self.periods, self.phases, strict=True)
        )
        return float(x), float(y)


@dataclass(frozen=True)
class Scene:
    """A video before it is drawn; ``background`` is larger than the picture by the margin that the camera needs."""

    width: int
    height: int
    fps: int
    frames: int
    actors: list[Actor]
    background: np.ndarray  # [H + 2 margin, W + 2 margin, 3] uint8
    distractors: list[tuple[Actor, Sway]] = field(default_factory=list)
    camera: Sway | None = None
    margin: int = 0
    shake: np.ndarray | None = None  # [frames, 2] across and down, shares of the shorter side

    def segments(self) -> list[Segment]:
        spans = [span for actor in self.actors for span in actor.timeline]
        return [
            Segment(max(0.0, (first - 0.5) / self.fps), (last - 0.5) / self.fps, label)
            for first, last, label in sorted(spans)
        ]

    def draw(self) -> Iterator[np.ndarray]:
        """Yields the frames `[H, W, 3]` uint8 in order."""
        short = min(self.width, self.height)
        for t in range(self.frames):
            x, y = self.camera.at(t / self.fps) if self.camera else (0.0, 0.0)
            if self.shake is not None:
                x, y = x + self.shake[t, 0], y + self.shake[t, 1]
            across, down = round(x * short), round(y * short)
            top, left = self.margin - down, self.margin - across
            frame = self.background[top : top + self.height, left : left + self.width].copy()
            for actor, sway in self.distractors:
                aside, below = sway.at(t / self.fps)
                _paint(frame, actor, across + aside * short, down + below * short)
            for actor in self.actors:
                label = next((name for a, b, name in actor.timeline if a <= t < b), None)
                actor.advance(label, 1 / self.fps)
                if actor.visible:
                    _paint(frame, actor, across, down)
            yield frame


def stage(style: Style, label: str, rng: np.random.Generator) -> Scene:
    """Sets a scene: size, rate, background, actors and what each does when; ``label`` where it is one action."""
    width, height = SIZES[rng.integers(len(SIZES))]
    fps = int(rng.choice(FRAME_RATES))
    frames = int(rng.uniform(*style.seconds) * fps)
    margin = int(np.ceil((style.camera + style.shake) * min(width, height)))
    background = texture_of(rng, height + 2 * margin, width + 2 * margin, 3) * 0.2 + rng.uniform(20, 70, 3)
    actors = [_actor(rng) for _ in range(style.actors)]
    for actor in actors:
        if style.action is None:
            actor.timeline = [(0, frames, label)]
        else:
            _timetable(actor, style, frames, fps, rng)
    distractors = [(_actor(rng), Sway.draw(rng, SWAY)) for _ in range(style.distractors)]
    camera = Sway.draw(rng, style.camera) if style.camera else None
    shake = rng.uniform(-style.shake, style.shake, (frames, 2)) if style.shake else None
    return Scene(width, height, fps, frames, actors, background.astype(np.uint8), distractors, camera, margin, shake)


def _timetable(actor: Actor, style: Style, frames: int, fps: int, rng: np.random.Generator) -> None:
    """Alternates still gaps and actions until the video ends."""
    assert style.action
    t = int(rng.uniform(*style.opening) * fps)
    while t < frames - fps:
        last = min(frames, t + int(rng.uniform(*style.action) * fps))
        actor.timeline.append((t, last, str(rng.choice(CLASSES))))
        t = last + int(rng.uniform(*style.gap) * fps)
