"""Inference by two workers against one: processes of a Dask cluster, and threads of this process with their decoders.

Of tiny clips, see `bench.scale`; each worker has one thread and has its model already.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path

from distributed import LocalCluster

from bench.figures import Figure, against
from bench.scale import NAME, make
from storage import checkpoints, datasets
from tasks import pool, predict, registry
from tasks.calibration import Calibration

CLIPS, PART = 480, 24  # so few to a part that two workers end together
ROUNDS = 3


def run() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as folder:
        with redirect_stdout(StringIO()):
            root = make(Path(folder), CLIPS, PART)
            threads = against(
                lambda: _inferred(root, pool.at_most(2)), lambda: _inferred(root, pool.at_most(1)), ROUNDS
            )
            processes = _processes(root)
        for title, (ratio, seconds) in {
            "threads of a process": threads,
            "processes of a Dask cluster": processes,
        }.items():
            note = f"{CLIPS} clips, {1000 * seconds / CLIPS:.1f} ms a clip with two"
            yield Figure(f"inference by two / by one: {title}", ratio, note=note)


def _processes(root: str) -> tuple[float, float]:
    one, two = (
        LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=None, silence_logs=50) for count in (1, 2)
    )
    with one, two:
        addresses = [cluster.scheduler_address for cluster in (two, one)]
        calls = (lambda at=address: _inferred(root, pool.on(at)) for address in addresses)
        return against(*calls, ROUNDS)


def _inferred(root: str, where: AbstractContextManager[None] = nullcontext()) -> None:  # noqa: B008
    """All parts from nothing: predictions and segments, committed."""
    for folder in ("columns/predictions", "segments"):
        shutil.rmtree(Path(root, folder), ignore_errors=True)
    champion = registry.champion(root, "detector")
    assert champion is not None
    checkpoint = checkpoints.describe(champion.checkpoint)
    with where:
        predict.predict_parts(root, datasets.load(root, NAME).parts, checkpoint, thresholds=Calibration())
