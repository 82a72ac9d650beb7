"""Start a training as a program of its own, show and log its progress, and hand back its checkpoint."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import MISSING, asdict, fields

from storage import checkpoints, files
from storage.checkpoints import Checkpoint
from tasks import report
from tasks.training import join, launch
from tasks.training.launch import TrainingFailed
from tasks.training.spec import Placement, Spec

HERE = Placement()
Log = Callable[[dict[str, float], int], None]
ADDED = (  # to a spec, since there were the first runs
    "selection", "volumes", "starts", "whole", "features", "fine", "rate", "momentum", "faster", "milestones",
    "multigrid", "norm_group", "precision", "compile", "auxiliary", "accumulate", "clip", "ema",
)  # fmt: skip
UNSET = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(Spec)}


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


def fit(
    spec: Spec, title: str, *, placement: Placement = HERE, resume: bool = True, log: Log | None = None
) -> tuple[Checkpoint, dict[str, float]]:
    """Runs a training to its end and returns the final checkpoint and figures about it.

    A finished run of the same spec is returned as it is; an interrupted one goes on from its newest checkpoint.
    Without ``resume`` both are trained anew.
    ``log(values, step)`` receives the loss of every step. Raises `TrainingFailed` with the end of the log.
    """
    placement.check(spec.batch, spec.accumulate, spec.multigrid)
    name = run_name(spec, title)
    found = checkpoints.find(spec.root, name)
    if resume and found and found.final:
        report.say(f"  {title}: already trained, {name}")
        return found, {"reused": 1.0}
    with files.scratch() as folder:
        (folder / "spec.json").write_text(json.dumps(asdict(spec)))
        more = ["--parent", str(os.getpid()), "--resume" if resume else "--no-resume"]
        words = launch.command(str(folder / "spec.json"), name, placement, *more)
        with join.announced(spec, name, placement), launch.running(words, title, placement) as started:
            figures = _follow(started, title, log)
    final = checkpoints.find(spec.root, name)
    if final is None or not final.final:
        raise TrainingFailed(f"{title}: ended without a final checkpoint under checkpoints/{name}")
    return final, figures


def losses(checkpoint: Checkpoint) -> list[float]:
    """The loss of every step up to a checkpoint, from the run's first one; none of a run that did not keep them."""
    found = checkpoints.load_state(checkpoint.url).get("losses")
    return [] if found is None else found.tolist()


def _follow(started: launch.Running, title: str, log: Log | None) -> dict[str, float]:
    """Reads the reports of the first rank until the program ends."""
    figures: dict[str, float] = {}
    spoke = ready = 0.0
    total = 1
    with report.progress(title, 100, "percent") as state:
        state.spoke = float("inf")  # the lines below say more than a percentage
        for said in started.reports():
            if said["event"] in ("start", "step") and log:
                for step, loss in enumerate(said["losses"], start=said["step"] - len(said["losses"]) + 1):
                    log({"loss": loss}, step)
            if said["event"] == "start":
                total = said["steps"]
                ready = time.monotonic() - state.began
            elif said["event"] == "step":
                if log:
                    log({"lr": said["lr"]}, said["step"])
                figures["loss"] = said["loss"]
                if time.monotonic() - spoke > report.EVERY or said["step"] == total:
                    spoke = time.monotonic()
                    left = report.clock((total - said["step"]) / max(1e-9, said["pace"]))
                    report.say(
                        f"  {title:<28} step {said['step']}/{total} · loss {said['loss']:.4f}"
                        f" · {said['pace']:.1f} steps/s · ETA {left}"
                    )
                    _show(state, 100 * said["step"] // total, left)
            elif said["event"] == "end":
                figures |= {"train_seconds": said["seconds"], "wait_share": said["wait_share"]}
                state.items = said["step"]
                state.meter.done += Counter({**said["into"], "start": ready})
                figures |= {name: said[name] for name in ("step_seconds",) if name in said}
    return figures


def _show(state: report.Progress, percent: int, left: str) -> None:
    state.done = percent
    state.show(f"{percent} %, {left} left", float(percent))
