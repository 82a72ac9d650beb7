"""What inference takes does not grow with the archive: one task run, and bounded memory for tables of any length."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cloudpickle import dumps
from prefect import Task

from bench import scale
from flows.infer import infer
from storage import checkpoints, datasets, files, tables
from tasks import pool, predict, registry, segment_tables, segments
from tasks.calibration import Calibration
from tasks.segment_tables import Made

ROWS = 3000  # of segments to a part


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Two roots, one with ten times the parts of the other."""
    return [scale.make(tmp_path_factory.mktemp("tiny"), clips, 8) for clips in (40, 400)]


def test_task_runs_do_not_grow_with_the_clips(roots, monkeypatch):
    """One of the flow, whatever there is to do, and one call of the work on a part for each of these."""
    runs, worked = [], []
    monkeypatch.setattr(
        Task, "__call__", lambda task, *given, **more: runs.append(task.name) or task.fn(*given, **more)
    )
    for name in ("submit", "map", "delay"):
        monkeypatch.setattr(Task, name, None)
    one = predict.predict_part
    monkeypatch.setattr(predict, "predict_part", lambda *given, **more: worked.append(1) or one(*given, **more))
    few, many = (infer.fn(root, scale.NAME) for root in roots)
    assert (few["parts"], many["parts"], many["predicted"], many["segments"]) == (5, 50, 400, 1200)
    assert runs == ["predict", "predict"] and len(worked) == 55


def test_what_a_worker_is_sent_does_not_grow_with_the_archive(roots, monkeypatch):
    """Parts name the few that hold clips of the same videos; each travels with its own alone."""
    sent = []
    monkeypatch.setattr(predict, "beside", lambda parts: {part.id: parts[:2] for part in parts})
    monkeypatch.setattr(predict, "made", lambda *_, **__: bool(sent))
    send = lambda work, units, **_: sent.append([dumps((work, unit)) for unit in units]) or []  # noqa: E731
    monkeypatch.setattr(pool, "run", send)
    for root in roots:
        data, champion = datasets.load(root, scale.NAME), registry.champion(root, "detector")
        predict.predict_parts(root, data.parts, checkpoints.describe(champion.checkpoint))
        (calls,) = sent
        assert len(calls) == len(data.parts) and max(map(len, calls)) < 4000
        sent.clear()


def found(root: str, count: int) -> str:
    """Segments of some parts, many to each, as inference would have found them; their version."""
    rng, data = np.random.default_rng(0), datasets.load(root, scale.NAME)
    for part in data.parts[:count]:
        keys = part.table(["key", "path"]).to_pydict()
        clip = rng.integers(0, part.samples, ROWS)
        start = np.arange(ROWS) * 2.0
        table = pa.table({
            "key": np.array(keys["key"])[clip], "path": np.array(keys["path"])[clip], "source": ["s"] * ROWS,
            "class": rng.choice(["a", "b"], ROWS), "start": start, "end": start + 1, "score": rng.uniform(size=ROWS),
            "peak": np.ones(ROWS), "frames": np.full(ROWS, 8),
        }).cast(segments.SCHEMA)  # fmt: skip
        files.publish_bytes(tables.pack(table), segments.url(root, f"v{count}", part.id))
    return f"v{count}"


def peaks(root: str, count: int) -> tuple[int, int]:
    """The most bytes of Python's and of Arrow's while the tables of some parts are written."""
    data, name = datasets.load(root, scale.NAME), found(root, count)
    before = pa.default_memory_pool()
    counting = pa.proxy_memory_pool(before)
    pa.set_memory_pool(counting)
    tracemalloc.start()
    try:
        made = segment_tables.write(root, data, Made(f"m{count}", 1, name, Calibration()))
        assert made["segments"] == count * ROWS and pq.read_metadata(made["segments_path"]).num_rows == count * ROWS
        return tracemalloc.get_traced_memory()[1], counting.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)


def test_memory_does_not_grow_with_the_segments(roots, monkeypatch):
    """Ten times the segments in the same memory; all of them would take 15 MB more."""
    monkeypatch.setattr(segment_tables, "AHEAD", 2)
    few, many = peaks(roots[1], 5), peaks(roots[1], 50)
    assert many[0] < 1.5 * few[0] + (1 << 20) and many[1] < 1.5 * few[1] + (1 << 20)
