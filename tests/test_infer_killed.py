"""Inference that is killed before any of its writes is completed by the next run, with the bytes of a quiet one."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.preparing import CHECKOUT

KILLED = """
import json, shutil, signal, sys
from flows.__main__ import quiet
quiet()
from storage import files, inventory
from tasks import predict
from tests.killed import child

home, step = sys.argv[1], int(sys.argv[2])


def infer(root, limit=0):
    return child(lambda: predict.predict.fn(root, "a", "detector", []), limit)


def state(root):
    folders = ("columns/predictions/", "segments/", "tables/")
    names = [item.name for item in inventory.walk(root) if item.name.startswith(folders)]
    return {name: files.digest(files.read(f"{root}/{name}")) for name in names if "/." not in name}


shutil.copytree(f"{home}/root", f"{home}/calm")
code, writes = infer(f"{home}/calm")
assert code == 0
wanted, done = state(f"{home}/calm"), []
for limit in range(1, writes + 1, step):
    root = f"{home}/{limit}"
    shutil.copytree(f"{home}/root", root)
    assert infer(root, limit)[0] == -signal.SIGKILL
    assert infer(root)[0] == 0, limit
    assert state(root) == wanted, limit
    done.append(limit)
print(json.dumps([writes, done, len(wanted)]))
"""


@pytest.mark.long
def test_inference_killed_at_any_write_is_completed_by_the_next(traced, tmp_path):
    shutil.copytree(traced / "root", tmp_path / "root")
    for name in ("columns/predictions", "segments", "tables"):
        shutil.rmtree(tmp_path / "root" / name)
    command = [sys.executable, "-c", KILLED, str(tmp_path), "3"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=1000)
    assert done.returncode == 0, done.stderr[-3000:]
    writes, points, objects = json.loads(done.stdout.splitlines()[-1])
    assert writes >= 8 and len(points) >= 3 and objects >= 4
