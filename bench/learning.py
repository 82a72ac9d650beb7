"""Whether detection pretraining is ahead: the whole demo, an archive a seed, about six minutes each."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

from bench.figures import Figure

SEEDS = tuple(int(seed) for seed in os.environ.get("SEEDS", "0,1,2,3,11").split(","))


def run() -> Iterator[Figure]:
    ahead, above = [], []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as root:
            command = [sys.executable, "-m", "flows", "demo", "--root", root, "--seed", str(seed)]
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            found = {
                kind: 100 * value for kind, value in json.loads(Path(root, "summary.json").read_text())["map"].items()
            }
        none, classified, detected = (found[f"{k}_pretraining"] for k in ("no", "classification", "detection"))
        ahead.append(detected - classified)
        above.append(min(detected, classified) - none)
        note = f"none {none:.1f}, classification {classified:.1f}, detection {detected:.1f}"
        yield Figure(f"seed {seed}: detection over classification", ahead[-1], unit="mAP points", note=note)
    yield Figure("mean of the seeds", mean(ahead), unit="mAP points", note="held-out videos, every frame")
    yield Figure("the worse of both over none, least of the seeds", min(above), unit="mAP points")
