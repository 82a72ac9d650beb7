"""The gate on a real registry: who becomes champion, who does not, and what is kept of the decision."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models.gate import Rules
from models.metrics import FrameScores
from storage import checkpoints, files, tombstones
from storage.datasets import Dataset
from storage.errors import InputError
from tasks import gate, registry, tracking
from tasks.evaluate import Evaluation
from tasks.rollback import rollback

DATA = Dataset("d", "v1", [], {})
RULES = Rules()


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A root whose evaluations are looked up by the digest of the weights; events are collected."""
    url = files.open_root(str(tmp_path))
    known: dict[str, Evaluation] = {}
    events: list[tuple[str, dict]] = []
    monkeypatch.setattr(gate, "evaluate_checkpoint", lambda root, data, checkpoint, title: known[checkpoint.digest])
    monkeypatch.setattr(gate, "emit_event", lambda event, resource, payload: events.append((event, payload)))
    return SimpleNamespace(url=url, known=known, events=events)


def candidate(root, seed: int, gain: float | list[float], videos: int = 30, costs: dict | None = None) -> dict:
    """A candidate whose scores follow the truth by ``gain``; the truth is the same for all."""
    truth, noise = np.random.default_rng(0), np.random.default_rng(seed + 1)
    held = {}
    for i in range(videos):
        targets = truth.uniform(size=(40, 3)) < 0.25
        held[f"v{i}"] = (np.multiply(gain, targets) + noise.normal(size=targets.shape), targets)
    checkpoint = checkpoints.save(
        root.url,
        f"run{seed}-{np.mean(gain)}",
        1,
        {"w": torch.full((1,), seed + np.mean(gain))},
        {},
        {"system": "x3d"},
        True,
    )
    named = [{"class": name} for name in ("run", "jump", "sit")]
    evaluation = Evaluation(costs or {}, named, [], [], "content", "c", checkpoint.digest, FrameScores(3, held), [])
    root.known[checkpoint.digest] = evaluation
    run = tracking.start(root.url, f"r{seed}", {}, {})
    return {"evaluation": evaluation, "checkpoint": checkpoint, "run": run, "model_uri": f"runs:/{run}/model"}


def judged(
    root, found: dict, title: str = "x", data: Dataset = DATA, rules: Rules = RULES, approval: bool = False
) -> dict:
    return gate.gate.fn(root.url, data, "m", found, title, rules, 0, approval)


def test_the_first_model_is_promoted(root):
    decision = judged(root, candidate(root, 0, 1.0))
    assert decision["decision"] == "promoted" and decision["why"] == "there was no champion"
    assert registry.champion(root.url, "m").version == decision["version"]


def test_a_better_challenger_is_promoted(root):
    judged(root, candidate(root, 0, 0.5))
    decision = judged(root, candidate(root, 1, 3.0))
    assert decision["decision"] == "promoted" and decision["ci_low"] > 0
    assert registry.champion(root.url, "m").version == decision["version"]


def test_a_worse_challenger_is_refused(root):
    first = judged(root, candidate(root, 0, 3.0))
    decision = judged(root, candidate(root, 1, 0.5))
    assert decision["decision"] == "refused" and decision["ci_high"] < 0
    assert registry.champion(root.url, "m").version == first["version"]


def test_an_equal_challenger_is_refused(root):
    first = judged(root, candidate(root, 0, 1.0))
    assert judged(root, candidate(root, 7, 1.0))["decision"] == "refused"
    assert registry.champion(root.url, "m").version == first["version"]


def test_a_champion_that_was_trained_on_what_was_taken_down_is_followed_by_an_equal_one(root):
    """Also by one that was refused before the take-down, on the same data; not by one that is surely worse."""
    first = judged(root, candidate(root, 0, 1.0))
    equal, worse = candidate(root, 7, 1.0), candidate(root, 8, 0.3)
    assert judged(root, equal)["decision"] == judged(root, worse)["decision"] == "refused"
    registry.add_to_tag(root.url, "m", first["version"], tombstones.TAG, "5709e")
    refused = judged(root, worse, rules=Rules(successor_drop=0.1))
    assert refused["decision"] == "refused" and refused["ci_high"] < -0.1 and refused["taken_down"] == "5709e"
    assert judged(root, equal, rules=Rules(successor_drop=0.0, margin=0.1))["decision"] == "refused"
    strange = judged(root, candidate(root, 9, 1.0, videos=29))
    assert "not comparable" in strange["why"] and registry.stands(strange, registry.champion(root.url, "m"))
    decision = judged(root, equal, data=Dataset("d", "v2", [], {}), rules=Rules(successor_drop=0.1))
    assert decision["decision"] == "promoted" and decision["ci_low"] < 0
    assert "above the margin -0.1" in decision["why"] and "taken down since (5709e)" in decision["why"]
    assert registry.champion(root.url, "m").version == decision["version"]
    assert judged(root, equal, data=Dataset("d", "v2", [], {})) == decision, "which stands"


def test_a_decision_from_before_a_take_down_does_not_stand(root):
    first = judged(root, candidate(root, 0, 1.0))
    equal = candidate(root, 7, 1.0)
    judged(root, equal)
    registry.add_to_tag(root.url, "m", first["version"], tombstones.TAG, "5709e")
    assert judged(root, equal, rules=Rules(successor_drop=0.1))["decision"] == "promoted"


def test_what_was_trained_on_a_source_that_was_taken_down_meanwhile_is_refused_and_tagged(root):
    first = judged(root, candidate(root, 0, 0.5))
    stones = [tombstones.Tombstone([n * 48], [], "", "", "", parts={part: ""}) for n, part in (("1", "p"), ("2", "q"))]
    for stone in stones:
        tombstones.write(root.url, stone)
    for number, (part, expected) in enumerate((("p", "refused"), ("r", "promoted"))):
        better = candidate(root, 1 + number, 3.0 + 3 * number)
        about = {"system": "x3d", "spec": {"parts": [{"id": part}]}}
        saved = checkpoints.save(root.url, part, 1, {"w": torch.full((1,), -1.0 - number)}, {}, about, True)
        decision = judged(root, better | {"checkpoint": saved})
        assert decision["decision"] == expected, decision["why"]
        tags = registry.versions(root.url, "m")[decision["version"]]
        assert tags.get(tombstones.TAG) == (stones[0].id if part == "p" else None)
    assert registry.champion(root.url, "m").version == decision["version"] != first["version"]


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
    assert registry.champion(root.url, "m").version == first["version"]


def test_a_better_challenger_that_loses_a_class_is_refused_by_its_name(root):
    first = judged(root, candidate(root, 0, [0.5, 0.5, 3.0]))
    lame = candidate(root, 1, [5.0, 5.0, 0.5])
    decision = judged(root, lame)
    assert decision["decision"] == "refused" and decision["ci_low"] > 0 and "surely worse on sit (-" in decision["why"]
    assert "run" not in decision["why"] and {row["class"] for row in decision["classes"]} == {"run", "jump", "sit"}
    assert "| sit |" in gate.as_markdown("m", decision)
    assert registry.champion(root.url, "m").version == first["version"]
    allowed = judged(root, lame, data=Dataset("d", "v2", [], {}), rules=Rules(class_drop=1.0))
    assert allowed["decision"] == "promoted"


def test_a_better_challenger_that_is_too_slow_is_refused(root):
    judged(root, candidate(root, 0, 0.5, costs={"latency_ms": 10.0, "gmacs": 1.0}))
    slow = candidate(root, 1, 3.0, costs={"latency_ms": 31.0, "gmacs": 1.0})
    decision = judged(root, slow, rules=Rules(slower=3.0, costlier=3.0))
    assert decision["decision"] == "refused" and "3.10 times the champion's latency of 10 ms" in decision["why"]
    assert decision["champion_latency_ms"] == 10 and decision["rules"]["slower"] == 3


@pytest.mark.parametrize(("room", "broken"), [(registry, "decide"), (tracking, "log_metrics")])
def test_the_alias_goes_back_where_the_decision_cannot_be_told(root, monkeypatch, room, broken):
    first = judged(root, candidate(root, 0, 0.5))
    better = candidate(root, 1, 3.0)

    def lost(*_):
        raise ConnectionError("no server")

    with monkeypatch.context() as patch:
        patch.setattr(room, broken, lost)
        with pytest.raises(ConnectionError):
            judged(root, better)
    assert registry.champion(root.url, "m").version == first["version"] and len(root.events) == 1
    decision = judged(root, better)
    assert decision["decision"] == "promoted" and registry.champion(root.url, "m").version == decision["version"]


def test_a_champion_that_is_judged_anew_keeps_its_reign_where_that_cannot_be_told(root, monkeypatch):
    first, second = (judged(root, candidate(root, seed, 0.5 + seed)) for seed in range(2))
    tags = registry.versions(root.url, "m")[second["version"]]
    with monkeypatch.context() as patch:
        patch.setattr(gate, "emit_event", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            judged(root, candidate(root, 1, 1.5), data=Dataset("d", "v2", [], {}))
    assert registry.versions(root.url, "m")[second["version"]] == tags
    assert registry.reigns(root.url, "m") == [second["version"], first["version"]]


def test_a_champion_is_rolled_back_and_stays_so(root):
    first, second, third = (judged(root, candidate(root, seed, 0.5 + seed)) for seed in range(3))
    assert [d["decision"] for d in (first, second, third)] == ["promoted"] * 3
    assert "version 2 again, after version 3" in rollback(root.url, "m", why="it sees ghosts")
    assert "version 1 again, after version 2" in rollback(root.url, "m")
    with pytest.raises(InputError, match="--to"):
        rollback(root.url, "m")
    again = judged(root, candidate(root, 2, 2.5), data=Dataset("d", "v2", [], {}))
    assert again["decision"] == "refused" and "it sees ghosts" in again["why"]
    assert "version 3 again, after version 1" in rollback(root.url, "m", to=3)
    with pytest.raises(InputError, match="is the champion"):
        rollback(root.url, "m", to=3)
    with pytest.raises(InputError, match="no version 9; it has 1, 2, 3"):
        rollback(root.url, "m", to=9)
    with pytest.raises(InputError, match="nothing to roll back"):
        rollback(root.url, "other")


def test_a_rollback_passes_over_what_was_trained_on_a_source_that_was_taken_down(root):
    first, second, _ = (judged(root, candidate(root, seed, 0.5 + seed)) for seed in range(3))
    registry.add_to_tag(root.url, "m", second["version"], tombstones.TAG, "5709e")
    assert "version 1 again, after version 3" in rollback(root.url, "m")
    with pytest.raises(InputError, match="no champion before it to go back to; name one with --to"):
        rollback(root.url, "m")
    assert "version 2 again" in rollback(root.url, "m", to=2) and first["version"] == 1


def test_every_number_is_kept_and_announced(root):
    judged(root, candidate(root, 0, 0.5))
    found = candidate(root, 1, 3.0)
    decision = judged(root, found)
    assert registry.decided(root.url, "m", decision["version"]) == decision
    metrics = tracking.export(root.url, found["run"])["metrics"]
    assert metrics["gate_ci_low"] == decision["ci_low"] and metrics["gate_promoted"] == 1
    assert [event for event, _ in root.events] == [gate.PROMOTED] * 2
    payload = root.events[-1][1]
    assert payload["root"] == root.url and payload["model"] == "m" and payload["dataset"] == "d"
    assert payload["gate"] == decision, "every number is in the event, too"
    numbers = ("ci_high", "champion", "challenger", "p_worse", "videos", "samples", "held_out", "leaks")
    assert {name: metrics[f"gate_{name}"] for name in numbers} == {name: decision[name] for name in numbers}


def test_the_evaluation_set_has_a_digest_of_frames_and_truth(root):
    frames = candidate(root, 0, 0.5)["evaluation"].frames
    first = judged(root, candidate(root, 1, 0.5))
    second = judged(root, candidate(root, 2, 3.0))
    assert first["evaluation_set"] == second["evaluation_set"] == gate.evaluation_set(frames)
    scores, targets = frames.videos["v3"]
    for other in ({**frames.videos, "v3": (scores, ~targets)}, {"v0": frames.videos["v0"]}):
        assert gate.evaluation_set(FrameScores(3, other)) != first["evaluation_set"]
    assert (
        gate.evaluation_set(FrameScores(3, {**frames.videos, "v3": (scores + 1, targets)})) == first["evaluation_set"]
    )


def test_videos_that_the_champion_was_trained_on_count_for_neither(root, monkeypatch):
    """It knows most of them by heart; on the others the challenger is better."""
    champion, better = candidate(root, 0, 0.5), candidate(root, 1, 3.0)
    known = {f"v{i}" for i in range(24)}
    learned = {v: (s + 9 * t if v in known else s, t) for v, (s, t) in champion["evaluation"].frames.videos.items()}
    champion["evaluation"].frames = FrameScores(3, learned)
    judged(root, champion)
    fooled = judged(root, better)
    monkeypatch.setattr(gate, "trained_on", lambda root, data, version: (known if version == "d@v1" else set(), ""))
    decision = judged(root, better, data=Dataset("d", "v2", [], {}))
    assert (fooled["decision"], decision["decision"]) == ("refused", "promoted")
    assert decision["videos"] == 6 and decision["known_to_champion"] == 24 and decision["held_out"] == 30
    assert decision["evaluation_set"] != fooled["evaluation_set"]


def test_registering_twice_keeps_the_version(root):
    found = candidate(root, 0, 1.0)
    tags = {"checkpoint": found["checkpoint"].url, "checkpoint_digest": found["checkpoint"].digest}
    versions = {registry.register(root.url, "m", found["model_uri"], found["run"], tags) for _ in range(3)}
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
        assert registry.champion("r", "m") is None
    else:
        with pytest.raises(MlflowException):
            registry.champion("r", "m")
