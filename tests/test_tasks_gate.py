"""The gate on a real registry: who becomes champion, who does not, and what is kept of the decision."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models.metrics import FrameScores
from storage import checkpoints, files
from storage.datasets import Dataset
from tasks import gate, tracking
from tasks.evaluate import Evaluation

DATA = Dataset("d", "v1", [], {})


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A root whose evaluations are looked up by the digest of the weights; events are collected."""
    url = files.open_root(str(tmp_path))
    known: dict[str, Evaluation] = {}
    events: list[tuple[str, dict]] = []
    monkeypatch.setattr(gate, "evaluate_checkpoint", lambda root, data, checkpoint, title: known[checkpoint.digest])
    monkeypatch.setattr(gate, "emit_event", lambda event, resource, payload: events.append((event, payload)))
    return SimpleNamespace(url=url, known=known, events=events)


def candidate(root, seed: int, gain: float, videos: int = 30) -> dict:
    """A candidate whose scores follow the truth by ``gain``; the truth is the same for all."""
    truth, noise = np.random.default_rng(0), np.random.default_rng(seed + 1)
    held = {}
    for i in range(videos):
        targets = truth.uniform(size=(40, 3)) < 0.25
        held[f"v{i}"] = (gain * targets + noise.normal(size=targets.shape), targets)
    checkpoint = checkpoints.save(
        root.url, f"run{seed}-{gain}", 1, {"w": torch.full((1,), seed + gain)}, {}, {"system": "x3d"}, True
    )
    evaluation = Evaluation({}, [], [], [], "content", "c", checkpoint.digest, FrameScores(3, held), [])
    root.known[checkpoint.digest] = evaluation
    run = tracking.start(root.url, f"r{seed}", {}, {})
    return {"evaluation": evaluation, "checkpoint": checkpoint, "run": run, "model_uri": f"runs:/{run}/model"}


def judged(root, found: dict, title: str = "x", data: Dataset = DATA) -> dict:
    return gate.gate.fn(root.url, data, "m", found, title, 0.0, 0)


def test_the_first_model_is_promoted(root):
    decision = judged(root, candidate(root, 0, 1.0))
    assert decision["decision"] == "promoted" and decision["why"] == "there was no champion"
    assert tracking.champion(root.url, "m").version == decision["version"]


def test_a_better_challenger_is_promoted(root):
    judged(root, candidate(root, 0, 0.5))
    decision = judged(root, candidate(root, 1, 3.0))
    assert decision["decision"] == "promoted" and decision["ci_low"] > 0
    assert tracking.champion(root.url, "m").version == decision["version"]


def test_a_worse_challenger_is_refused(root):
    first = judged(root, candidate(root, 0, 3.0))
    decision = judged(root, candidate(root, 1, 0.5))
    assert decision["decision"] == "refused" and decision["ci_high"] < 0
    assert tracking.champion(root.url, "m").version == first["version"]


def test_an_equal_challenger_is_refused(root):
    first = judged(root, candidate(root, 0, 1.0))
    assert judged(root, candidate(root, 7, 1.0))["decision"] == "refused"
    assert tracking.champion(root.url, "m").version == first["version"]


def test_a_decision_stands(root):
    judged(root, candidate(root, 0, 3.0))
    weak = candidate(root, 1, 0.5)
    first, events = judged(root, weak), len(root.events)
    assert judged(root, weak) == first and len(root.events) == events


def test_another_dataset_version_is_judged_anew(root):
    judged(root, candidate(root, 0, 3.0))
    weak = candidate(root, 1, 0.5)
    judged(root, weak)
    again = judged(root, weak, data=Dataset("d", "v2", [], {}))
    assert again["dataset"] == "d@v2"


def test_a_champion_of_other_videos_cannot_be_compared(root):
    first = judged(root, candidate(root, 0, 1.0))
    decision = judged(root, candidate(root, 1, 3.0, videos=29))
    assert decision["decision"] == "refused" and "not comparable" in decision["why"]
    assert tracking.champion(root.url, "m").version == first["version"]


def test_every_number_is_kept_and_announced(root):
    judged(root, candidate(root, 0, 0.5))
    found = candidate(root, 1, 3.0)
    decision = judged(root, found)
    assert tracking.decided(root.url, "m", decision["version"]) == decision
    metrics = tracking.export(root.url, found["run"])["metrics"]
    assert metrics["gate_ci_low"] == decision["ci_low"] and metrics["gate_promoted"] == 1
    assert [event for event, _ in root.events] == [gate.PROMOTED] * 2
    assert root.events[-1][1]["root"] == root.url and root.events[-1][1]["model"] == "m"


def test_registering_twice_keeps_the_version(root):
    found = candidate(root, 0, 1.0)
    tags = {"checkpoint": found["checkpoint"].url, "checkpoint_digest": found["checkpoint"].digest}
    versions = {tracking.register(root.url, "m", found["model_uri"], found["run"], tags) for _ in range(3)}
    assert versions == {1}


def test_tracking_needs_a_server_for_a_remote_root(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    from storage.errors import InputError

    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI"):
        tracking.client("memory://somewhere")


@pytest.mark.parametrize(("code", "none"), [("RESOURCE_DOES_NOT_EXIST", True), ("INTERNAL_ERROR", False)])
def test_a_server_that_fails_has_not_said_that_there_is_no_champion(monkeypatch, code, none):
    from mlflow.exceptions import MlflowException
    from mlflow.protos import databricks_pb2

    def answer(*_):
        raise MlflowException("no", error_code=getattr(databricks_pb2, code))

    monkeypatch.setattr(tracking, "client", lambda root: SimpleNamespace(get_model_version_by_alias=answer))
    if none:
        assert tracking.champion("r", "m") is None
    else:
        with pytest.raises(MlflowException):
            tracking.champion("r", "m")
