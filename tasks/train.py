"""Start a training as a program of its own, show and log its progress, and hand back its checkpoint."""

import json
import os
import subprocess
import sys
import time
from collections import deque
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from storage import checkpoints, files
from storage.checkpoints import Checkpoint
from tasks import pool, report
from tasks.train_rank import Spec

CHECKOUT = Path(__file__).resolve().parent.parent
SIDE_BY_SIDE = 2  # trainings at a time; each has its share of the cores
TAIL = 60  # lines of a failed training that are shown
ADDED = (  # to a spec, since there were the first runs
    "selection", "volumes", "starts", "whole", "features", "fine", "rate", "momentum", "faster", "milestones",
    "multigrid", "norm_group", "precision", "compile", "auxiliary",
)  # fmt: skip
UNSET = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(Spec)}


class TrainingFailed(RuntimeError):
    """A rank ended with an error; the message holds the end of its log."""


def run_name(spec: Spec, title: str) -> str:
    """The run's name: a title for people and the digest of all that decides its outcome."""
    plain = {key: value for key, value in asdict(spec).items() if key != "root"}
    plain["parts"] = [record["id"] for record in spec.parts]
    for name in ADDED:  # so that trainings without them keep their names
        if plain[name] == UNSET[name]:
            del plain[name]
    plain["start"] = spec.start and checkpoints.describe(spec.start).digest
    if spec.starts:
        plain["starts"] = {part: checkpoints.describe(url).digest for part, url in spec.starts.items()}
    return f"{title}-{files.digest_of(plain)[:12]}"


def _environment(ranks: int) -> dict[str, str]:
    # Huge pages make the large activations of 3-D convolutions about twice as fast to come by on a CPU.
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": str(max(1, pool.workers() // (SIDE_BY_SIDE * ranks))),
        "THP_MEM_ALLOC_ENABLE": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }


def fit(spec: Spec, title: str, *, ranks: int = 1, resume: bool = True, log: Any = None) -> tuple[Checkpoint, dict]:
    """Runs a training to its end and returns the final checkpoint and figures about it.

    A finished run of the same spec is returned as it is; an interrupted one goes on from its newest checkpoint.
    Without ``resume`` both are trained anew.
    ``log(values, step)`` receives every report. Raises `TrainingFailed` with the end of the log.
    """
    name = run_name(spec, title)
    found = checkpoints.find(spec.root, name)
    if resume and found and found.final:
        report.say(f"  {title}: already trained, {name}")
        return found, {"reused": 1.0}
    with files.scratch() as folder:
        (folder / "spec.json").write_text(json.dumps(asdict(spec)))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command += ["-m", "tasks.train_rank", "--spec", str(folder / "spec.json"), "--name", name]
        command += ["--parent", str(os.getpid()), "--resume" if resume else "--no-resume"]
        process = subprocess.Popen(
            command,
            cwd=CHECKOUT,
            env=_environment(ranks),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            figures = _follow(process, title, log)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(10)
    final = checkpoints.find(spec.root, name)
    if final is None or not final.final:
        raise TrainingFailed(f"{title}: ended without a final checkpoint under checkpoints/{name}")
    return final, figures


def _follow(process: subprocess.Popen, title: str, log: Any) -> dict[str, float]:
    """Reads the reports of rank 0 until the program ends."""
    tail: deque[str] = deque(maxlen=TAIL)
    figures: dict[str, float] = {}
    spoke = 0.0
    total = 1
    assert process.stdout is not None
    with report.progress(title, 100, "percent") as state:
        state.spoke = float("inf")  # the lines below say more than a percentage
        for line in process.stdout:
            tail.append(line.rstrip())
            try:
                said = json.loads(line)
            except ValueError:
                continue
            if not isinstance(said, dict) or "event" not in said:
                continue
            if said["event"] == "start":
                total = said["steps"]
            elif said["event"] == "step":
                if log:
                    log({"loss": said["loss"], "lr": said["lr"]}, said["step"])
                figures["loss"] = said["loss"]
                if time.monotonic() - spoke > report.EVERY or said["step"] == total:
                    spoke = time.monotonic()
                    left = report.clock((total - said["step"]) / max(1e-9, said["pace"]))
                    report.say(
                        f"  {title:<28} step {said['step']}/{total} · loss {said['loss']:.4f}"
                        f" · {said['pace']:.1f} steps/s · ETA {left}"
                    )
                    _show(state, 100 * said["step"] // total)
            elif said["event"] == "end":
                figures |= {"train_seconds": said["seconds"], "wait_share": said["wait_share"]}
                figures |= {name: said[name] for name in ("step_seconds",) if name in said}
    if process.wait() != 0:
        raise TrainingFailed(
            f"{title} ended with exit code {process.returncode}; the end of its log:\n" + "\n".join(tail)
        )
    return figures


def _show(state: report.Progress, percent: int) -> None:
    state.done = percent
    if state.artifact is not None:
        report.tell(report.update_progress_artifact, state.artifact, progress=float(percent))
