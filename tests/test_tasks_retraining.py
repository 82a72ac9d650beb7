"""When a retraining has nothing to do, and what of its inputs makes it another one."""

from dataclasses import replace

import pytest
from test_tasks_gate import DATA, candidate, judged, root  # noqa: F401  fixtures

from models.gate import Rules
from storage import files, tombstones
from storage.datasets import Dataset
from tasks import registry, retraining
from tasks.retraining import Retraining
from tasks.rollback import rollback
from tasks.training.recipe import Recipe

GIVEN = (DATA, "m", Recipe(), Rules(), ["none"], [])


def test_what_decides_the_outcome_is_in_its_identity_and_nothing_else():
    known = retraining.identity("root", *GIVEN)
    others = [
        (Dataset("d", "v2", [], {}), *GIVEN[1:]),
        (DATA, "n", *GIVEN[2:]),
        (DATA, "m", replace(Recipe(), seed=1), *GIVEN[3:]),
        (DATA, "m", Recipe(), Rules(margin=0.01), ["none"], []),
        (DATA, "m", Recipe(), Rules(), ["none", "detection"], []),
        (DATA, "m", Recipe(), Rules(), ["none"], ["freeze", "mixup"]),
    ]
    assert len({known, *(retraining.identity("root", *given) for given in others)}) == 7
    placed = Recipe(resume=False, ranks=2, nodes=2, rendezvous="a:1", sharding="fsdp", patience=9.0)
    same = (DATA, "m", placed, Rules(), ["none"], [])
    assert retraining.identity("elsewhere", *same) == known


@pytest.fixture
def done(root):  # noqa: F811
    """A root, and a retraining there that came to a promotion and a refusal."""
    this = Retraining(root.url, DATA, f"{root.url}/retrained/m/x.json")
    first, second = judged(root, candidate(root, 0, 3.0)), judged(root, candidate(root, 1, 0.5))
    found = {"gates": {"none": first, "detection": second}, "mlflow_url": "somewhere"}
    return root, this, found


def test_what_was_judged_is_not_done_again(done, monkeypatch):
    root, this, found = done  # noqa: F811
    assert retraining.outcome(root.url, "m", this.url) is None
    assert this.kept(found) == found == retraining.outcome(root.url, "m", this.url)
    notes = []
    monkeypatch.setattr(retraining.page, "told", lambda *_, note: notes.append(note) or "page.html")
    state = retraining._nothing_to_do(root.url, DATA, "m", found)
    assert notes == [f"Nothing to do: {state.message}"] and state.data["report"] == "page.html"
    assert state.is_completed() and state.name == "NothingToDo" and "none was promoted" in state.message
    assert state.data["gates"] == found["gates"] and state.message == state.data["nothing_to_do"]


def test_what_waits_for_a_person_is_not_kept(done):
    root, this, found = done  # noqa: F811
    found["gates"]["none"] |= {"decision": "waiting"}
    this.kept(found)
    assert not files.exists(this.url)


def test_a_registry_that_knows_nothing_of_it_or_another_decision_makes_it_be_done_again(done, tmp_path_factory):
    root, this, found = done  # noqa: F811
    this.kept(found)
    assert retraining.outcome(str(tmp_path_factory.mktemp("new")), "m", this.url) is None
    version = found["gates"]["detection"]["version"]
    registry.decide(root.url, "m", version, found["gates"]["detection"] | {"dataset": "d@v0"})
    assert retraining.outcome(root.url, "m", this.url) is None


def test_what_was_refused_is_done_again_once_the_champion_was_trained_on_what_was_taken_down(done):
    root, this, found = done  # noqa: F811
    this.kept(found)
    registry.add_to_tag(root.url, "m", found["gates"]["none"]["version"], tombstones.TAG, "5709e")
    assert retraining.outcome(root.url, "m", this.url) is None
    again = judged(root, candidate(root, 1, 0.5))
    assert again["decision"] == "refused" and again["taken_down"] == "5709e"
    this.kept({"gates": {"detection": again}})
    assert retraining.outcome(root.url, "m", this.url), "once more would come to the same"


def test_after_a_rollback_it_is_not_done_again(root):  # noqa: F811
    gates = {str(seed): judged(root, candidate(root, seed, 0.5 + seed)) for seed in range(2)}
    this = Retraining(root.url, DATA, f"{root.url}/retrained/m/x.json")
    this.kept({"gates": gates})
    rollback(root.url, "m")
    assert retraining.outcome(root.url, "m", this.url) == {"gates": gates}
