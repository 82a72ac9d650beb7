"""Lineage both ways, and a take-down, among a hundred thousand clips of twenty-five thousand sources."""

import contextlib
import io
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa

from bench.figures import Figure, cpu, seconds
from storage import checkpoints, columns, datasets, files, ledger, parts, plans, tables
from storage.ledger import Entry
from storage.search import Search, pattern
from tasks import registry, tracking
from tasks.lineage import forget, trace
from tasks.train_rank import Spec

CLIPS, PER_PART, PER_SOURCE, SIZE = 100_000, 1000, 4, 2000
BLANK = {
    "start": 0.0, "end": 1.0, "start_pts": 0, "end_pts": 1, "time_base": "1/1", "duration": 1.0, "frames": 1,
    "fps": 1.0, "width": 2, "height": 2, "split": "train", "labelled": "video", "labels": [], "metadata": "{}",
}  # fmt: skip
COLUMNS = ("scores", "features", "pseudo_labels", "predictions")


def run() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as name:
        root = files.open_root(name)
        dataset = made(root)
        registered(root, dataset)
        some = parts.Part.table(dataset.parts[50], ["path"])["path"][500].as_py()
        took = seconds(lambda: trace.of_source(root, some), 3)
        note = f"{len(trace.of_source(root, some)[0])} rows; 100,000 clips, {len(COLUMNS)} columns"
        yield Figure("trace of a source", took, unit="s", note=note)
        took = seconds(lambda: trace.of_model(root, "models:/detector@champion"), 3)
        yield Figure("trace of a champion", took, unit="s", note="100,000 rows")
        with contextlib.redirect_stdout(io.StringIO()):
            before = cpu()
            took = seconds(lambda: forget.forget([some], root, search="indexes"), 1)
        yield Figure(
            "take-down of a source, tars of others by their indexes", took, unit="s", note=f"CPU {cpu() - before:.1f} s"
        )
        data = np.random.default_rng(0).bytes(64 << 20)
        search = Search(pattern("bytes", data[-64 * k : -64 * (k - 1)]) for k in range(2, 2050))
        yield Figure("search for 2,048 patterns", 64 * 1.048576 / seconds(lambda: search.found(data), 3), unit="MB/s")


def made(root: str) -> datasets.Dataset:
    """A root of parts, a plan that has their names, accounts and columns."""
    rng = np.random.default_rng(0)
    found, planned = [], []
    recipe = {"span": 1.0}
    for number in range(CLIPS // PER_PART):
        members, rows, media = [], [], []
        for source in range(PER_PART // PER_SOURCE):
            path = f"{number:03d}/{source:03d}.mp4"
            content = files.digest(path.encode())
            identity = content[:32]
            url = f"/archive/{path}"
            members.append(dict.fromkeys(plans.PLAN.names) | {
                "path": path, "url": url, "offset": -1, "size": 1, "stamp": "1", "identity": identity,
                "content_id": content, "split": "train", "metadata": "{}", "start": 0.0,
                "facts": "{}", "attempt": 0, "was": "",
            })  # fmt: skip
            for clip in range(PER_SOURCE):
                of = {"source": url, "path": path, "identity": identity, "content_id": content}
                rows.append(BLANK | of | {"key": f"{content[:20]}-{clip * 1000:09d}"})
        id = plans.part_id(recipe, [plans.member(row | {"part": ""}).facts() for row in members])
        planned += [row | {"part": id} for row in members]
        with files.scratch() as folder:
            for place in range(PER_PART):
                media.append(Path(folder) / str(place))
                media[-1].write_bytes(rng.bytes(SIZE))
            found.append(parts.commit(root, id, rows, media, folder))
        ledger.write(root, "shard", id, [Entry(row["path"], "kept", clips=PER_SOURCE) for row in members])
        keys = pa.array([row["key"] for row in rows])
        for column in COLUMNS:
            columns.write(
                root, column, "v1", found[-1], pa.table({"key": keys, "value": rng.normal(size=len(keys))}), {}, rows
            )
    table = pa.Table.from_pylist(planned, schema=plans.PLAN).sort_by([("part", "ascending"), ("identity", "ascending")])
    with files.scratch() as folder:
        tables.write(folder / "plan", table.to_batches(), plans.PLAN, {"recipe": recipe})
        plans.save(root, "a", folder / "plan", "")
    return datasets.freeze(root, "a", found, {"recipe": recipe})


def registered(root: str, dataset: datasets.Dataset) -> None:
    """A champion that was trained on all parts."""
    spec = Spec(root=root, parts=[asdict(part) for part in dataset.parts], classes=["a"], objective="dense")
    about = {"system": "x3d", "options": {}, "classes": ["a"], "spec": asdict(spec)}
    made = checkpoints.save(root, "finetune-0", 1, {}, {}, about, True)
    parent = tracking.start(root, "retrain", {}, {})
    run = tracking.resume_or_start(root, "finetune", "finetune-0", {}, {"dataset": f"a@{dataset.version}"}, parent)
    tags = {"checkpoint": made.url, "checkpoint_digest": made.digest, "dataset": f"a@{dataset.version}"}
    registry.promote(root, "detector", registry.register(root, "detector", f"runs:/{run}/model", run, tags))
