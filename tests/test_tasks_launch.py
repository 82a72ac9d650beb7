"""A training as processes: one that fails or hangs ends in bounded time with the end of its log, here and in MLflow."""

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from storage import datasets, files
from storage.errors import InputError
from tasks import tracking
from tasks.training import launch, pretrain, train
from tasks.training.launch import TrainingFailed
from tasks.training.recipe import Recipe, recipe
from tasks.training.spec import Placement
from tests.ranks import spec_on

SCRIPT = """
import json, subprocess, sys, time
print("begins", flush=True)
rank = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "tasks.train_rank"])
print(json.dumps({"event": "step", "pid": rank.pid}), flush=True)
time.sleep(600)
"""


def reports(code, **given):
    with launch.running([sys.executable, "-c", code], "a title", Placement(**given)) as started:
        yield from started.reports()


def test_a_program_that_fails_is_told_with_the_end_of_its_log():
    failed = {"event": "failed", "message": "loss is nan at step 3", "clips": {"3": ["one", "two"]}}
    code = f"print('some words'); print('''{json.dumps(failed)}'''); import sys; sys.exit(3)"
    with pytest.raises(TrainingFailed) as caught:
        list(reports(code))
    said = str(caught.value)
    assert said.startswith("a title ended with exit code 3: loss is nan at step 3\nthe end of its log:\nsome words")
    assert caught.value.clips == {"3": ["one", "two"]}


@pytest.mark.seconds
def test_a_program_that_falls_silent_is_ended():
    began = time.monotonic()
    with pytest.raises(TrainingFailed, match="a title said nothing for 1 s and was ended; its ranks: pid") as caught:
        for said in reports(SCRIPT, patience=1.0):
            pid = said["pid"]
            os.kill(pid, signal.SIGSTOP)
    assert f"pid {pid} stopped" in str(caught.value) and "begins" in str(caught.value)
    assert time.monotonic() - began < 60
    with pytest.raises(ProcessLookupError):
        while time.monotonic() - began < 60:
            os.kill(pid, 0)
            time.sleep(0.05)


@pytest.mark.seconds
@pytest.mark.long
def test_a_rank_that_is_stopped_ends_its_training(tmp_path, monkeypatch):
    """Two real ranks, of which one gets no more time: the other one says where it waits."""
    vectors = {"system": "tgm", "options": {"size": "TINY", "width": 12}, "features": "v"}
    spec = spec_on(tmp_path, **vectors, steps=1_000_000, frames=16)
    (tmp_path / "spec.json").write_text(json.dumps(vars(spec)))
    (tmp_path / "noise.py").write_text(NOISE)
    placement = Placement(ranks=2, patience=200.0)
    words = launch.command(str(tmp_path / "spec.json"), "stopped", placement, "--parent", str(os.getpid()))
    words[words.index("tasks.train_rank")] = "noise"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(launch, "_is_rank", lambda process: "noise" in process.cmdline())
    with (
        pytest.raises(TrainingFailed, match="said nothing for 3 s and was ended; its ranks: pid") as caught,
        launch.running(words, "stopped", placement) as started,
    ):
        for said in started.reports():
            if said["event"] == "step" and started.patience > 3:
                first, second = started._ranks()
                os.kill(max(first.pid, second.pid), signal.SIGSTOP)
                started.patience, began = 3.0, time.monotonic()
    assert time.monotonic() - began < 60
    assert "stopped" in str(caught.value).split("the end of its log")[0]
    assert "tasks/training/train_step.py" in str(caught.value) or "tasks/training/parallel.py" in str(caught.value)
    assert not [rank for rank in (first, second) if rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE]


NOISE = """
from tasks import train_rank
from tests.ranks import Vectors
train_rank.samples_of = lambda spec: Vectors()
if __name__ == "__main__":
    train_rank.main()
"""


def test_a_failed_training_is_told_to_mlflow(tmp_path, monkeypatch):
    """With its reason, the end of its log and the clips that led there."""
    root = files.open_root(str(tmp_path))
    spec = spec_on(root)
    data = datasets.freeze(root, "a", [], {})
    clips = {"3": ["one", "two"]}

    def fit(spec, title, *, placement, resume, log):
        log({"loss": 0.5, "lr": 0.1}, 1)
        raise TrainingFailed("t failed: loss is nan\nthe end of its log:\nlast words", clips)

    monkeypatch.setattr(pretrain, "fit", fit)
    with pytest.raises(TrainingFailed):
        pretrain.tracked_fit(root, spec, "t", data, Recipe(), tracking.start(root, "parent", {}, {}))
    client = tracking.client(root)
    (run,) = client.search_runs(
        [tracking._experiment(root)], f"tags.`reelmill.training` = '{train.run_name(spec, 't')}'"
    )
    assert run.info.status == "FAILED" and run.data.tags["failure"] == "t failed: loss is nan"
    folder = Path(client.download_artifacts(run.info.run_id, "failure", str(tmp_path)))
    assert (folder / "log.txt").read_text().endswith("last words")
    assert json.loads((folder / "clips.json").read_text()) == clips


def test_a_loss_is_told_to_mlflow_once_a_step(tmp_path):
    """A training that goes on tells of all steps before it, too."""
    root = files.open_root(str(tmp_path))
    run = tracking.start(root, "r", {}, {})
    for steps in ((1, 2, 3), (1, 2, 3, 4)):
        buffer = tracking.MetricBuffer(root, run, {"loss"})
        for step in steps:
            buffer.add({"loss": float(step)}, step)
        buffer.flush()
    told = tracking.client(root).get_metric_history(run, "loss")
    assert sorted(metric.step for metric in told) == [1, 2, 3, 4]


def test_nodes_meet_where_it_is_said():
    placement = Placement(nodes=2, rendezvous="127.0.0.1:29400")
    words = launch.command("spec.json", "name", placement)
    assert {"--nnodes=2", "--rdzv-endpoint=127.0.0.1:29400", "--rdzv-id=name", "--local-addr=127.0.0.1"} <= set(words)
    assert "--standalone" in launch.command("spec.json", "name", Placement())
    with pytest.raises(InputError, match="--nodes 2: say with --rendezvous HOST:PORT"):
        recipe(nodes=2)
    with pytest.raises(InputError, match="--rendezvous nowhere: no HOST:PORT"):
        launch.command("spec.json", "name", replace(placement, rendezvous="nowhere"))
    assert recipe(nodes=2, rendezvous="h:1", ranks=4, patience=9.0).placement == Placement(
        ranks=4, nodes=2, rendezvous="h:1", patience=9.0
    )
    torch.set_num_threads(1)
