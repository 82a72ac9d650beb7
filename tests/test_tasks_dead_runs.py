"""Runs whose processes were killed: the next retraining ends them in MLflow and in Prefect, and no living one."""

import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import State, StateType

from storage import claims, files
from storage.datasets import Dataset
from tasks import retraining, tracking
from tasks.training.recipe import Recipe

CHECKOUT = Path(__file__).parent.parent
HOLDS = """
import sys, time
from storage import claims
from tasks import tracking
from tasks.retraining import CLAIM
root, flow = sys.argv[1:]
with claims.claimed(root, "retrain-a") as other, claims.claimed(root, "train-b") as another:
    assert not other and not another
    parent = tracking.start(root, "retrain", {}, {CLAIM: "retrain-a", "prefect.flow_run_id": flow})
    child = tracking.resume_or_start(root, "train", "b", {}, {}, parent)
    print(parent, child, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return files.open_root(str(tmp_path / "root"))


@pytest.fixture
def holder(root):
    """A process in the middle of a retraining and a training, the ids of their runs, and that of its flow run."""
    flow = str(uuid4())
    words = [sys.executable, "-c", HOLDS, root, flow]
    with subprocess.Popen(words, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as process:
        yield process, process.stdout.readline().split(), flow
        process.kill()


def status(root, run):
    return tracking.client(root).get_run(run).info.status


def test_runs_of_a_killed_process_are_ended_and_those_of_a_living_one_are_not(root, holder, monkeypatch):
    process, (parent, child), flow = holder
    crashed = []
    monkeypatch.setattr(retraining, "_crash", crashed.append)
    assert retraining.end_dead(root, "retrain-other") == []
    assert [status(root, run) for run in (parent, child)] == ["RUNNING", "RUNNING"]
    process.kill()
    process.wait()
    unmarked = tracking.start(root, "an ablation", {}, {})
    assert set(retraining.end_dead(root, "retrain-other")) == {parent, child}
    assert [status(root, run) for run in (parent, child, unmarked)] == ["KILLED", "KILLED", "RUNNING"]
    assert "process is gone" in tracking.export(root, parent)["tags"]["failure"]
    assert crashed == [flow]
    assert retraining.end_dead(root, "retrain-other") == []


def test_the_next_run_of_the_same_retraining_ends_the_one_before(root, monkeypatch):
    monkeypatch.setattr(retraining, "_crash", lambda _: None)
    with claims.claimed(root, "retrain-a") as other:
        assert not other
        dead = tracking.start(root, "retrain", {}, {retraining.CLAIM: "retrain-a"})
        assert retraining.end_dead(root, "retrain-b") == []  # as another process sees it
        assert retraining.end_dead(root, "retrain-a") == [dead]


def test_a_retraining_begins_with_that_and_a_training_that_goes_on_has_not_failed(root, monkeypatch):
    monkeypatch.setattr(retraining, "_crash", lambda _: None)
    monkeypatch.setattr(retraining.drift, "show", lambda *_: ({}, {}))
    dead = tracking.resume_or_start(root, "train", "b", {}, {retraining.CLAIM: "train-b"}, None)
    dataset = Dataset("a", "0" * 16, [], {})
    with claims.claimed(root, "retrain-a"):
        run = retraining.begin(root, dataset, "detector", Recipe(), "retrain-a")
    assert (status(root, dead), status(root, run)) == ("KILLED", "RUNNING")
    assert tracking.resume_or_start(root, "train", "b", {}, {}, None) == dead and status(root, dead) == "RUNNING"
    assert "failure" not in tracking.export(root, dead)["tags"]


class Server:
    """What a Prefect server knows of a run."""

    def __init__(self, kind):
        self.state, self.set = State(type=kind), []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def read_flow_run(self, _):
        return self

    def set_flow_run_state(self, _, state, force):
        self.set.append((state.type, force))


@pytest.mark.parametrize(
    ("kind", "told"),
    [(StateType.RUNNING, True), (StateType.PENDING, True), (StateType.COMPLETED, False), (StateType.PAUSED, False)],
)
def test_prefect_is_told_of_a_run_that_it_takes_for_running(monkeypatch, kind, told):
    server = Server(kind)
    monkeypatch.setattr(retraining, "get_client", lambda sync_client: server)
    retraining._crash(str(uuid4()))
    assert server.set == ([(StateType.CRASHED, True)] if told else [])
