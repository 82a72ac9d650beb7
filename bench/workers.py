"""Inference by two workers against one: processes of a Dask cluster, and threads of this process with their decoders.

Of tiny clips, see `bench.scale`; each worker has one thread and has its model already. Beside it what these cores
give at most: two clusters of one worker, each with an archive of its own.
"""

import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import median

from distributed import LocalCluster

from bench.figures import Figure, against, seconds
from bench.scale import NAME, make
from storage import checkpoints, datasets
from tasks import pool, predict, registry
from tasks.calibration import Calibration

CLIPS, PART = 480, 24  # so few to a part that two workers end together
ROUNDS = 5


def run() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as folder:
        with redirect_stdout(StringIO()):
            root, other = (make(Path(folder) / name, CLIPS, PART) for name in ("one", "other"))
            threads = against(
                lambda: _inferred(root, pool.at_most(2)), lambda: _inferred(root, pool.at_most(1)), ROUNDS
            )
            together, apart = _processes(root, other)
        for title, (ratio, took) in {
            "threads of a process": threads,
            "processes of a Dask cluster": together,
        }.items():
            note = f"{CLIPS} clips, {1000 * took / CLIPS:.1f} ms a clip with two"
            yield Figure(f"inference by two / by one: {title}", ratio, note=note)
        note = "two clusters of one worker, each with an archive of its own: what these cores give"
        yield Figure("inference by two / by one: processes that share nothing", apart, note=note)
        yield Figure("two processes of a Dask cluster / two that share nothing", together[0] / apart)


def _processes(root: str, other: str) -> tuple[tuple[float, float], float]:
    """(by two of one cluster / by one, seconds by two), (by two clusters of one / by one): medians over rounds."""
    two, one, beside = (
        LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=None, silence_logs=50)
        for count in (2, 1, 1)
    )
    with two, one, beside, ThreadPoolExecutor(2) as hands:

        def by(cluster: LocalCluster, place: str = root) -> None:
            _inferred(place, pool.on(cluster.scheduler_address))

        def apart() -> None:
            list(hands.map(by, (one, beside), (root, other)))

        by(two)  # to load the model
        apart()
        rounds = [(seconds(lambda: by(two), 1), seconds(lambda: by(one), 1), seconds(apart, 1)) for _ in range(ROUNDS)]
    together = median(alone / both for both, alone, _ in rounds)
    return (together, median(both for both, *_ in rounds)), median(2 * alone / each for _, alone, each in rounds)


def _inferred(root: str, where: AbstractContextManager[None] = nullcontext()) -> None:  # noqa: B008
    """All parts from nothing: predictions and segments, committed."""
    for folder in ("columns/predictions", "segments"):
        shutil.rmtree(Path(root, folder), ignore_errors=True)
    champion = registry.champion(root, "detector")
    assert champion is not None
    checkpoint = checkpoints.describe(champion.checkpoint)
    with where:
        predict.predict_parts(root, datasets.load(root, NAME).parts, checkpoint, thresholds=Calibration())
