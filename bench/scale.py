"""What grows with an archive in inference: task runs, memory and orchestration, at 100 and at 10,000 tiny clips.

The real flow with an untrained X3D TINY, in processes of its own. The clips are a few files under many names, each a
source of its own.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa

from bench.figures import Figure, peak
from storage import checkpoints, datasets, files, parts, plans, tables
from storage.media.encoder import Encoder
from tasks import calibration, pool, predict, registry, segment_tables, tracking, train_rank
from tasks.calibration import Calibration, Pair
from tasks.pages import page
from tasks.training.spec import Spec

FEW, MANY = 100, 10_000  # clips
PART = 64  # clips, as `prepare` has them at this size
KINDS, FRAMES, FPS, SIDE = 8, 16, 8, 32
NAME, CLASSES = "tiny", ["a", "b", "c"]


def run() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as folder:
        few, many = (_measured(Path(folder) / str(clips), clips) for clips in (FEW, MANY))
    assert many["predicted"] == MANY and many["segments"] > 0
    yield Figure(
        "task runs of inference", many["task_runs"], unit="", note=f"{MANY:,} clips; {few['task_runs']} at {FEW}"
    )
    note = f"{MANY:,} clips, one thread, {1000 * many['worked'] / MANY:.1f} ms a clip"
    yield Figure("share of a stage's time that is work on its parts", many["worked"] / many["stage"], note=note)
    fixed = few["wall"] - few["worked"]
    grows = (many["wall"] - many["worked"] - fixed) / (many["wall"] - fixed)
    note = f"{many['wall']:.0f} s at {MANY:,} clips; to start and to write the page takes {fixed:.1f} s at any number"
    yield Figure("share of a flow's time, its start apart, that is work on parts", 1 - grows, note=note)
    yield Figure("share of all of a flow's time that is work on parts", many["worked"] / many["wall"])
    made = many["worked"] + many["products"]
    note = f"{many['products']:.1f} s are page, tables and registry, {many['wall'] - made:.1f} s Prefect and all else"
    yield Figure("share of all of a flow's time that is not orchestration", made / many["wall"], note=note)
    note = f"{few['peak']:.0f} MB at {FEW} clips, {many['peak']:.0f} MB at {MANY:,}"
    yield Figure("peak memory at few clips / at many", few["peak"] / many["peak"], note=note)


def _measured(folder: Path, clips: int) -> dict[str, Any]:
    make(folder, clips)
    command = [sys.executable, "-m", "bench.scale", str(folder / "root")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    shutil.rmtree(folder)
    return json.loads(done.stdout.splitlines()[-1])


def make(folder: Path, clips: int, per_part: int = PART) -> str:
    """A root with a dataset of tiny clips and a champion that finds segments in them; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    root = files.open_root(str(folder / "root"))
    kinds = [_clip(folder / f"{kind}.mp4", kind) for kind in range(KINDS)]
    found, planned = [], []
    for first in range(0, clips, per_part):
        rows = [_row(n) for n in range(first, min(first + per_part, clips))]
        with files.scratch() as place:
            media = [shutil.copy(kinds[n % KINDS], place / f"{n}.mp4") for n in range(first, first + len(rows))]
            found.append(parts.commit(root, f"part{first:08d}", rows, media, place))
        planned += [_source(row, found[-1].id) for row in rows]
    tables.write(folder / "plan", pa.Table.from_pylist(planned, plans.PLAN).to_batches(), plans.PLAN, {"recipe": {}})
    plans.save(root, NAME, folder / "plan", "")
    datasets.freeze(root, NAME, found, {"recipe": {}})
    _champion(root)
    return root


def _clip(path: Path, kind: int) -> Path:
    rng = np.random.default_rng(kind)
    with Encoder(path, SIDE, SIDE, Fraction(FPS)) as encoder:
        for t in range(FRAMES):
            frame = np.full((SIDE, SIDE, 3), 40, np.uint8)
            y, x = rng.integers(0, SIDE - 8, 2)
            frame[y : y + 8, x : x + 8] = rng.integers(60, 255, 3)
            encoder.write(frame, Fraction(t, FPS))
    return path


def _row(n: int) -> dict[str, Any]:
    return {
        "key": f"{n:010d}-000000000", "offset": 0, "size": 0, "sha256": "", "source": f"/archive/{n:06d}.mp4",
        "path": f"{n:06d}.mp4", "content_id": f"{n:064x}", "start": 0.0, "end": FRAMES / FPS, "start_pts": 0,
        "end_pts": FRAMES, "time_base": f"1/{FPS}", "duration": FRAMES / FPS, "frames": FRAMES, "fps": float(FPS),
        "width": SIDE, "height": SIDE, "split": "train", "labelled": "none", "labels": [],
    }  # fmt: skip


def _source(row: dict[str, Any], part: str) -> dict[str, Any]:
    empty = dict.fromkeys(plans.PLAN.names)
    day = time.strftime("%Y-%m-%d", time.gmtime(1_780_000_000 + 86_400 * (int(row["key"][:10]) % 50)))
    known = {"part": part, "path": row["path"], "url": row["source"], "stamp": f"1:{day} 00:00:00+00:00"}
    return empty | known | {"metadata": "{}", "start": 0.0, "attempt": 0, "split": "train"}


def _champion(root: str) -> None:
    spec = Spec(root=root, parts=[], classes=CLASSES, objective="dense", options={"size": "TINY"}, size=24)
    made = checkpoints.save(
        root, "untrained", 1, train_rank.build(spec).state_dict(), {}, train_rank._about(spec), True
    )
    loose = calibration.save(made.url, Calibration(others=Pair(0.0, 0.0)))
    tags = {"checkpoint": made.url, "checkpoint_digest": made.digest, "system": "x3d", calibration.TAG: loose}
    run = tracking.start(root, "untrained", {}, {})
    registry.promote(root, "detector", registry.register(root, "detector", f"runs:/{run}/model", run, tags))
    tracking.end(root, run)


def _inferred(root: str) -> dict[str, Any]:
    """Runs the flow over a root on one thread: what it says, its seconds, those of its work on parts, peak MB.

    ``products`` are the seconds of what a run makes besides: tables, page, and to ask the registry.
    """
    from flows.infer import infer

    work, stage, flow = Watch(predict.predict_part), Watch(predict.cover), Watch(infer.fn)
    products = [Watch(segment_tables.write), Watch(page.told), Watch(registry.champion)]
    written, told, champion = products
    with (
        patch.multiple(predict, predict_part=work, cover=stage),
        patch.object(segment_tables, "write", written),
        patch.object(page, "told", told),
        patch.object(predict, "registry", SimpleNamespace(champion=champion)),
        patch.object(infer, "fn", flow),
        pool.at_most(1),
    ):
        found = infer(root, NAME)
    made = sum(watch.seconds for watch in products)
    return {
        **found, "worked": work.seconds, "products": made, "stage": stage.seconds, "wall": flow.seconds, "peak": peak()
    }  # fmt: skip


class Watch:
    """A function, and how many seconds its calls took together."""

    def __init__(self, function: Callable[..., Any]) -> None:
        wraps(function)(self)
        self.function, self.seconds = function, 0.0

    def __call__(self, *given: Any, **more: Any) -> Any:
        began = time.perf_counter()
        try:
            return self.function(*given, **more)
        finally:
            self.seconds += time.perf_counter() - began


if __name__ == "__main__":
    print(json.dumps(_inferred(sys.argv[1]), default=str))
