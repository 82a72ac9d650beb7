"""`verify` and `gc --dry-run` on a root of 2,000 small objects: requests to the store and seconds of CPU.

python -m bench.upkeep
"""

import io
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from storage import columns, datasets, files, ledger, parts, plans, stores, tables
from storage.ledger import Entry
from storage.parts import Part
from tasks import gc, verify

PARTS, VERSIONS, STALE = 300, 20, 40  # parts, versions of the dataset, parts that nothing names
COLUMNS = ("features", "scores", "pseudo_labels")


def commit(root: str, number: int, folder: Path) -> Part:
    """A part of four clips with its ledger and columns: seven objects with the segments."""
    id = files.digest_of(["part", number])[:16]
    rows, media = [], []
    for clip in range(4):
        media.append(folder / f"{number}-{clip}")
        media[-1].write_bytes(np.random.default_rng((number, clip)).bytes(4000))
        row: dict[str, Any] = dict.fromkeys(parts.INDEX.names)
        row |= {"source": "s", "path": "p", "content_id": "c", "time_base": "1/20", "split": "train"}
        row |= {"key": f"{id}-{clip}", "labels": [], "metadata": "{}", "start": 0.0, "end": 1.0, "labelled": "none"}
        rows.append(row)
    part = parts.commit(root, id, rows, media, folder)
    ledger.write(root, "shard", id, [Entry("p", "kept")])
    for name in COLUMNS:
        columns.write(root, name, "v1", part, pa.table({"key": [row["key"] for row in rows]}), {})
    files.publish_bytes(tables.pack(pa.table({"key": ["k"]}), {}), f"{root}/segments/s1/{id}.parquet")
    return part


def furnish(root: str) -> None:
    """Fills a root: a dataset that grew in steps, its newest plan, and parts that nothing names, all two days old."""
    with files.scratch() as folder:
        made = [commit(root, number, folder) for number in range(PARTS)]
    used = made[STALE:]
    for step in range(1, VERSIONS + 1):
        datasets.freeze(root, "d", used[: len(used) * step // VERSIONS], {})
    plan = tables.pack(pa.Table.from_pylist([{"part": part.id, "path": part.id} for part in used], schema=plans.PLAN))
    name = files.digest(plan)[:16]
    files.publish_bytes(plan, f"{root}/plans/d/{name}.parquet")
    files.replace_json({"plan": name}, f"{root}/plans/d/latest.json")
    empty = pa.table({"key": pa.array([], pa.string())})
    for number in range(3):  # volumes, so that gc has to ask what they were made from
        with files.scratch() as folder:
            volume = parts.commit(root, files.digest_of(["volume", number])[:16], [], [], folder)
        columns.write(root, "volume_labels", f"mode{number}", volume, empty, {"mode": number})
    for path in Path(root).rglob("*"):
        os.utime(path, (time.time(), path.stat().st_mtime - 2 * 86400))


def measured(call: Callable[[], Any]) -> tuple[Counter, float]:
    """The requests by method and the seconds of CPU of a call."""
    requests: Counter = Counter()
    told = stores.answered

    def counted(what: str) -> Any:
        requests[what.split()[0]] += 1
        return told(what)

    stores.answered = counted  # every request goes through it
    began = time.process_time()
    try:
        with redirect_stdout(io.StringIO()):
            call()
    finally:
        stores.answered = told
    return requests, time.process_time() - began


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = files.open_root(f"{folder}/root")
        furnish(root)
        count = sum(len(names) for _, _, names in os.walk(root))
        for name, call in (("verify", lambda: verify.verify(root)), ("gc --dry-run", lambda: gc.gc(root))):
            requests, seconds = measured(call)
            said = ", ".join(f"{n} {method}" for method, n in requests.most_common())
            print(f"{name:<13} {count} objects: {requests.total()} requests ({said}), {seconds:.2f} s of CPU")


if __name__ == "__main__":
    main()
