"""A person's word on a challenger, without a server: what waits, who may answer, and what comes of it."""

import pytest
from test_tasks_gate import DATA, candidate, judged, root  # noqa: F401  fixtures

from storage import tombstones
from storage.datasets import Dataset
from storage.errors import InputError
from tasks import approval, gate, registry, tracking

LATER = Dataset("d", "v2", [], {})


@pytest.fixture
def waiting(root):  # noqa: F811
    """A champion and a better challenger that waits."""
    judged(root, candidate(root, 0, 0.5))
    return root, judged(root, candidate(root, 1, 3.0), approval=True)


def champion(root):  # noqa: F811
    return registry.champion(root.url, "m").version


def test_a_winner_waits_and_the_champion_stays(waiting):
    root, decision = waiting  # noqa: F811
    assert decision["decision"] == "waiting" and "once a person agrees" in decision["why"]
    assert champion(root) == 1 and root.events[-1][0] == gate.WAITING
    assert judged(root, candidate(root, 1, 3.0), approval=True) == decision, "it is not compared again"


def test_who_loses_or_reigns_already_is_not_asked_about(root):  # noqa: F811
    found = candidate(root, 0, 3.0)
    assert judged(root, found, approval=True)["decision"] == "waiting", "the first champion, too"
    assert judged(root, found)["decision"] == "promoted", "approval is no longer asked for"
    assert judged(root, candidate(root, 1, 0.5), approval=True)["decision"] == "refused"
    assert judged(root, found, data=LATER, approval=True)["why"] == gate.AS_IT_IS


def test_approved_it_is_champion_and_the_word_is_kept(waiting):
    root, decision = waiting  # noqa: F811
    said = approval.approve(root.url, "ann", "m", comment="looks right")
    assert said == "m version 2 is promoted" and champion(root) == 2
    kept = registry.decided(root.url, "m", 2)
    assert kept["approval"].items() >= {"approved": True, "by": "ann", "comment": "looks right"}.items()
    assert kept["why"].startswith("approved by ann: looks right") and kept["ci_low"] == decision["ci_low"]
    metrics = tracking.export(root.url, decision["run"])["metrics"]
    assert metrics["gate_promoted"] == 1
    with pytest.raises(InputError, match="no version of m waits"):
        approval.approve(root.url, "ann", "m")


def test_refused_it_stays_refused(waiting):
    root, _ = waiting  # noqa: F811
    assert approval.approve(root.url, "ann", "m", version=2, refuse=True) == "m version 2 is refused"
    assert champion(root) == 1 and registry.decided(root.url, "m", 2)["decision"] == "refused"
    again = judged(root, candidate(root, 1, 3.0), approval=True)
    assert again["decision"] == "refused" and "refused by ann" in again["why"]


def test_nobodys_word_promotes_what_was_trained_on_a_source_that_was_taken_down_since(waiting):
    root, _ = waiting  # noqa: F811
    registry.add_to_tag(root.url, "m", 2, tombstones.TAG, "5709e")
    assert approval.approve(root.url, "ann", "m") == "m version 2 is refused" and champion(root) == 1
    assert "taken down since (5709e)" in registry.decided(root.url, "m", 2)["why"]


def test_a_decision_about_another_champion_does_not_count(waiting):
    root, _ = waiting  # noqa: F811
    third = judged(root, candidate(root, 2, 5.0))
    assert third["decision"] == "promoted"
    with pytest.raises(InputError, match="compared with version 1, and the champion is 3 now"):
        approval.approve(root.url, "ann", "m")
    again = judged(root, candidate(root, 1, 3.0), approval=True)
    assert again["decision"] == "refused" and again["champion_version"] == 3


def test_of_several_that_wait_one_has_to_be_named(waiting):
    root, _ = waiting  # noqa: F811
    judged(root, candidate(root, 2, 5.0), approval=True)
    with pytest.raises(InputError, match="versions 2, 3 of m wait; name one with --version"):
        approval.approve(root.url, "ann", "m")
    with pytest.raises(InputError, match="no version 1 of m waits"):
        approval.approve(root.url, "ann", "m", version=1)
    assert approval.approve(root.url, "ann", "m", version=3) == "m version 3 is promoted"


def test_a_run_of_no_deployment_says_how_to_approve(waiting, capsys, monkeypatch):
    root, _ = waiting  # noqa: F811
    monkeypatch.setattr(approval, "gate", gate.gate.fn)
    found = candidate(root, 1, 3.0)
    decision = approval.judged(root.url, DATA, "m", found, "x", gate.Rules(), 0, True)
    assert decision["decision"] == "waiting"
    assert f"reelmill approve --root {root.url} --model m --version 2 --by NAME" in capsys.readouterr().out


def test_the_form_asks_for_a_name():
    schema = approval.Approval.model_json_schema()
    assert schema["required"] == ["approve", "by"] and all(f["description"] for f in schema["properties"].values())
    with pytest.raises(ValueError, match="by"):
        approval.Approval(approve=True, by="")
