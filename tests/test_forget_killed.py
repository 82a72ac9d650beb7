"""A take-down that is killed before any of its writes is completed by the next one, as if nobody had disturbed it."""

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
from storage import files, inventory, tombstones
from tasks import duplicates, select, verify
from tasks.lineage import forget
from tests.killed import child

home, step = sys.argv[1], int(sys.argv[2])
GONE = "weak/02.mp4"


def take_down(root, limit=0):
    return child(lambda: forget.forget([GONE], root), limit)


def state(root):
    # All bytes but accounts, which say how long a step took, and tombstones, which say when.
    names = [item.name for item in inventory.walk(root) if not item.name.startswith(("ledger/", "forgotten/"))]
    stones = [(one.id, one.parts, one.versions, one.contents, bool(one.proved)) for one in tombstones.read(root)]
    accounts = sorted(item.name for item in inventory.walk(root) if item.name.startswith("ledger/"))
    return {name: files.digest(files.read(f"{root}/{name}")) for name in names}, stones, accounts


shutil.copytree(f"{home}/root", f"{home}/calm")
code, writes = take_down(f"{home}/calm")
assert code == 0
wanted = state(f"{home}/calm")
done = []
for limit in range(1, writes + 1, step):
    root = f"{home}/{limit}"
    shutil.copytree(f"{home}/root", root)
    assert take_down(root, limit)[0] == -signal.SIGKILL
    assert take_down(root)[0] == 0, limit
    found = state(root)
    differ = {name for name in {*found[0], *wanted[0]} if found[0].get(name) != wanted[0].get(name)}
    assert not differ, (limit, differ)
    assert found[1:] == wanted[1:], (limit, found[1:], wanted[1:])
    shutil.rmtree(root)
    done.append(limit)
print(json.dumps([writes, done]))
"""


@pytest.mark.long
def test_a_take_down_killed_at_any_write_is_completed_by_the_next(traced, tmp_path, step=9):
    shutil.copytree(traced / "root", tmp_path / "root", ignore=shutil.ignore_patterns("mlflow"))
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(step)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=1000)
    assert done.returncode == 0, done.stderr[-3000:]
    writes, points = json.loads(done.stdout.splitlines()[-1])
    assert writes > 40 and len(points) >= 5
