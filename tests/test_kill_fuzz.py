"""Writers killed at any moment, two at a time on the same parts: nothing committed is lost, nothing is there twice.

After every kill every committed part verifies; at the end all are there, with the
same bytes as in a run that nobody disturbed, and garbage collection leaves no trace of the kills.
"""

import json
import os
import subprocess
import sys
import time

import pytest

from storage import datasets, files, inventory, ledger, parts
from tasks import gc

FUZZ = """
import json, os, random, signal, sys, time
import pyarrow as pa
from storage import columns, datasets, files, ledger, parts, tables
from storage.ledger import Entry

base, seed, units, kills, size = sys.argv[1], *map(int, sys.argv[2:])
calm = files.open_root(f"{base}/calm")
draw = random.Random(seed)
KEYS = {"source": "s", "path": "p", "content_id": "c", "time_base": "1/20", "split": "train", "labelled": "none"}


def name(unit):
    return files.digest_of(["unit", unit])[:16]


def work(root, order):
    # What a stage does, with made-up clips: the part, its account, a column, and a dataset of it.
    for unit in order:
        id = name(unit)
        if not parts.committed(root, id):
            with files.scratch() as folder:
                rows, media = [], []
                for number in range(3):
                    media.append(folder / str(number))
                    media[-1].write_bytes(random.Random(f"{unit} {number}").randbytes(size))
                    row = dict.fromkeys(parts.INDEX.names) | KEYS | {"key": f"{id}-{number}", "labels": []}
                    rows.append(row | {"start": 0.0, "end": 1.0, "metadata": "{}"})
                ledger.write(root, "shard", id, [Entry(f"{unit}", "kept", clips=3)])
                parts.commit(root, id, rows, media, folder)
        part = parts.find(root, id)
        if not columns.has(root, "features", "v1", part):
            keys = part.table(["key"]).column("key")
            columns.write(root, "features", "v1", part, pa.table({"key": keys}), {"unit": unit})
        datasets.freeze(root, f"d{unit}", [part], {})


def start(root, order):
    child = os.fork()
    if child:
        return child
    try:
        work(root, order)
        os._exit(0)
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)


def end(child):
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "a writer failed by itself"
    return os.WIFSIGNALED(status)


work(calm, range(1))  # everything that is imported on first use is here before the first fork
began = time.monotonic()  # what it looks like undisturbed, and how long a start and a unit take
assert os.waitpid(start(calm, range(1)), 0)[1] == 0
first = time.monotonic() - began
assert os.waitpid(start(calm, range(units)), 0)[1] == 0
pace = (time.monotonic() - began - 2 * first) / (units - 1)


def moment():
    return patience * (draw.uniform(0.2, 1.0) * first + draw.uniform(0, 0.4) * max(pace, 0.005))


def going():
    return done["kills"] < kills or done["half"] < 3


done = {"kills": 0, "rounds": 0, "half": 0, "roots": 0}
while going():
    root, before, patience = files.open_root(f"{base}/{done['roots']}"), units, 1.0
    while going():
        ahead = [unit for unit in range(units) if not files.exists(f"{root}/datasets/d{unit}/latest.json")]
        patience = 1.0 if len(ahead) < before else patience * 1.2  # a machine that has become busy gets there too
        before = len(ahead)
        orders = [random.Random(draw.random()).sample(ahead, len(ahead)) for _ in (1, 2)]
        if draw.random() < 0.5:
            orders[1] = list(orders[0])  # both at the same part
        children = [start(root, order) for order in orders]
        time.sleep(moment())
        done["kills"] += end(children[0])
        for unit in range(units):
            if (part := parts.find(root, name(unit))) is not None:
                part.verify()
                assert len(part.rows()) == 3
        time.sleep(moment() / 8)
        done["kills"] += end(children[1])
        done["rounds"] += 1
        done["half"] += 0 < len(ahead) < units
        if not ahead:
            break
    assert os.waitpid(start(root, range(units)), 0)[1] == 0
    done["roots"] += 1
print(json.dumps(done))
"""


def fuzz(base, scratch, *, seed, units, kills, size):
    """Runs the writers and their killer in a process of their own, and compares what they leave with a calm root."""
    arguments = [base, *map(str, (seed, units, kills, size))]
    env = os.environ | {"TMPDIR": str(scratch)}  # the killed leave their scratch folders
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, *arguments], capture_output=True, text=True, timeout=1000, env=env
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    wanted, litter = content(f"{base}/calm"), set()
    for number in range(said["roots"]):
        litter |= swept(f"{base}/{number}", wanted, units)
    return said, litter


def swept(root, wanted, units):
    """Checks that garbage collection leaves of a root what is wanted; the names of what it took."""
    left = content(root)
    gc.gc(root, grace_hours=0, dry_run=False, force=True)
    found = content(root)
    assert found.keys() == wanted.keys()
    for name, data in wanted.items():
        assert found[name] == data or name.startswith("ledger/"), f"{name} differs from that of a calm run"
    for unit in range(units):
        [part] = datasets.load(root, f"d{unit}").parts
        part.verify()
        assert [entry.clips for entry in ledger.read(root, "shard", part.id)] == [3]
    indexed = [parts.find(root, name.removesuffix(".parquet")) for name in files.names(f"{root}/parts", ".parquet")]
    assert len(indexed) == units and len({part.digest for part in indexed}) == units
    return left.keys() - found.keys()


def content(root):
    return {item.name: files.read(files.join(root, item.name)) for item in inventory.walk(root)}


def test_two_hundred_kills_on_a_local_disk_lose_nothing_and_double_nothing(tmp_path):
    began = time.monotonic()
    said, litter = fuzz(str(tmp_path), tmp_path, seed=0, units=16, kills=210, size=4_000)
    print(f"{said}, {time.monotonic() - began:.0f} s, {len(litter)} swept")
    assert said["kills"] >= 200, said
    assert any(name.endswith(".tmp") for name in litter), "the kills must fall into writes"


@pytest.mark.long
def test_kills_on_object_storage_lose_nothing_and_double_nothing(at, seaweed, tmp_path):
    said, _ = fuzz(at(seaweed), tmp_path, seed=1, units=8, kills=12, size=4_000)
    assert said["kills"] >= 12 and said["half"] >= 3, said
