"""Planning an archive of a hundred thousand files again when nothing has changed."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.figures import Figure, seconds
from storage import files

FILES = 100_000
PROGRAM = """
import json, sys, time, io, contextlib
from bench.figures import peak
from tasks import listing, shard
base = peak()
archive, root = json.loads(sys.argv[1])
recipe = shard.recipe(10.0, 256, "span", "exact")
listing._probe = lambda chunk, window: [({"problem": "not_video"}, "") for _ in chunk]  # noise has no header
began = time.perf_counter()
with contextlib.redirect_stdout(io.StringIO()):
    plan, report = listing.plan_archive(root, "a", archive, None, classes=[], held_out=0.3, recipe=recipe)
print(json.dumps([time.perf_counter() - began, base, peak(), report.kept, plan]))
"""


def run() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as name:
        archive = Path(name) / "archive"
        for number in range(FILES):
            folder = archive / f"{number // 1000:03d}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:06d}.mp4").write_bytes(os.urandom(16) + number.to_bytes(4, "big"))
        root = files.open_root(str(Path(name) / "root"))
        first, again = _plan(str(archive), root), _plan(str(archive), root)
        assert first[3] == again[3] == FILES and first[4] == again[4]
        walk = seconds(lambda: sum(len(names) for _, _, names in os.walk(archive)), 3)
        yield Figure("planning 100,000 new files", first[0], unit="s", note="fingerprints included, headers not")
        yield Figure("planning them unchanged", again[0], unit="s", note=f"os.walk alone {walk:.2f} s")
        yield Figure("files in the plan", again[3], unit="", note="the second time, from what the first wrote")
        yield Figure("memory for it", again[2] - again[1], unit="MB", note=f"over the {again[1]:.0f} MB of the imports")


def _plan(archive: str, root: str) -> list[float]:
    command = [sys.executable, "-c", PROGRAM, json.dumps([archive, root])]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])
