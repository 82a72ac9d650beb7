"""The audit: what it measures by hand-made cases, and what beyond which limit becomes an event."""

import itertools
import shutil
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pyarrow as pa
import pytest
import yaml

from storage import columns, datasets, files, ledger
from storage.ledger import Entry
from storage.timing import Spent, shares
from tasks import gc, report, spending
from tasks.audits import audit, contents, embeddings, limits
from tasks.audits.limits import Limits
from tasks.plans import rates
from tests import made_parts
from tests.preparing import CHECKOUT


@pytest.fixture
def root(tmp_path, traced):
    return files.open_root(str(shutil.copytree(traced / "root", tmp_path / "root")))


@pytest.fixture
def emitted(monkeypatch):
    emit = MagicMock()
    monkeypatch.setattr(limits, "emit_event", emit)
    return emit


def unit(rng, shape):
    x = rng.normal(size=shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_alignment_is_the_mean_over_pairs_of_one_clip_and_uniformity_over_any():
    rng = np.random.default_rng(0)
    clips = [unit(rng, (n, 5)) for n in (3, 1, 4)]
    pairs = [((a - b) ** 2).sum() for x in clips for a, b in itertools.combinations(x, 2)]
    found = embeddings.alignment(np.concatenate(clips), np.array([3, 1, 4]))
    assert found == pytest.approx(np.mean(pairs), rel=1e-5)
    assert embeddings.alignment(clips[1], np.array([1])) is None
    whole = np.concatenate(clips)
    any_ = [np.exp(-2 * ((a - b) ** 2).sum()) for a, b in itertools.combinations(whole, 2)]
    assert embeddings.uniformity(whole) == pytest.approx(np.log(np.mean(any_)), rel=1e-5)


def test_the_modality_gap_is_between_the_means_and_says_why_there_is_none(tmp_path, monkeypatch):
    root = files.open_root(str(tmp_path / "root"))
    part = made_parts.commit(root, "p1")
    data = datasets.freeze(root, "films", [part], {})
    x = unit(np.random.default_rng(1), (6, 4))
    inner = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1) * 3), 4)  # not of unit length, as a backbone's
    lists = pa.ListArray.from_arrays(pa.array([0, 2, 4, 6], pa.int32()), inner)
    table = pa.table({"key": list(made_parts.KEYS), "embedding": lists})
    columns.write(root, "features", "towers", part, table, {"model": "m", "pretrained": None, "weights": "w"})
    columns.write(root, "features", "backbone", part, table, {"checkpoint": "c"})
    texts = unit(np.random.default_rng(2), (2, 4))
    tower = SimpleNamespace(encode_text=lambda names: SimpleNamespace(numpy=lambda: texts[: len(names)]))
    monkeypatch.setattr("tasks.extract.encoder", lambda *_: tower)
    found = embeddings.embedding_health(root, data, ["a", "b"])
    assert found["towers"]["modality_gap"] == pytest.approx(np.linalg.norm(x.mean(0) - texts.mean(0)), rel=1e-4)
    assert "no text tower" in found["backbone"]["modality_gap"]
    assert "--text" in embeddings.embedding_health(root, data)["towers"]["modality_gap"]


def facts(**changed):
    found = {
        "freshness": {"age_hours": 1.0, "clips": 90},
        "funnel": {"quarantined": 0, "dropped": 0, "listed": 100, "pieces": 100},
        "predictions": {"champion": 1, "clips_without_predictions": 0, "clips": 10},
        "label_drift": 0.1,
        "orphaned": {"bytes": 0},
        "growth": {"since": "v0", "clips": 0},
        "features": {"towers": healthy()},
        "columns": {"features": {"stale": {"old": 0}}},
        "cost": {"bytes": {"parts": 1}, "seconds": {"cutting": 1.0}},
    }
    return found | changed


def healthy(**changed):
    return {"alignment": 0.5, "uniformity": -1.0, "modality_gap": "not measured"} | changed


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"freshness": {"age_hours": 49.0, "clips": 90}}, "stale"),
        ({"funnel": {"quarantined": 6, "dropped": 0, "listed": 100, "pieces": 100}}, "quarantined"),
        ({"funnel": {"quarantined": 0, "dropped": 21, "listed": 100, "pieces": 100}}, "dropped"),
        ({"growth": {"since": "v0", "clips": -11}}, "shrunk"),
        ({"growth": {"since": "v0", "clips": 46}}, "grew"),
        ({"features": {"towers": healthy(), "other": healthy(uniformity=-0.01)}}, "embedding-health"),
        ({"features": {"towers": healthy(alignment=2.1)}}, "embedding-health"),
        ({"features": {"towers": healthy(modality_gap=1.6)}}, "embedding-health"),
        ({"columns": {"features": {"stale": {"a": 1 << 29, "b": (1 << 29) + 1}}}}, "stale-columns"),
        ({"cost": {"bytes": {"parts": 1 << 40, "columns": 1}, "seconds": {}}}, "cost"),
        ({"cost": {"bytes": {}, "seconds": {"trainings": 3.7e6}}}, "cost"),
        ({"predictions": {"champion": 1, "clips_without_predictions": 1, "clips": 10}}, "predictions-behind"),
        ({"label_drift": 0.31}, "label-drift"),
        ({"orphaned": {"bytes": (1 << 30) + 1}}, "orphaned"),
    ],
)
def test_each_limit_has_its_finding(changed, name):
    assert [finding.name for finding in limits.findings(facts(**changed), Limits())] == [name]


def test_nothing_is_found_at_the_limits_nor_where_nothing_was_measured():
    at = {
        "freshness": {"age_hours": 48.0, "clips": 90},
        "funnel": {"quarantined": 5, "dropped": 20, "listed": 100, "pieces": 100},
        "label_drift": 0.3,
        "growth": {"since": "v0", "clips": -10},
        "features": {"towers": healthy(alignment=2.0, uniformity=-0.05, modality_gap=1.5)},
        "columns": {"features": {"stale": {"a": 1 << 30}}},
        "cost": {"bytes": {"parts": 1 << 40}, "seconds": {"trainings": 3.6e6}},
    }
    assert limits.findings(facts(**at), Limits()) == []
    for came in (45, 90):  # as many as there were; the first of all
        assert limits.findings(facts(growth={"since": "v0", "clips": came}), Limits()) == []
    unknown = {"freshness": {"age_hours": None, "clips": 0}, "label_drift": None, "predictions": {"champion": None}}
    unknown |= {
        "growth": {"since": "none before it"},
        "features": {},
        "columns": {},
        "cost": {"bytes": {}, "seconds": {}},
    }
    nothing = {"quarantined": 0, "dropped": 0, "listed": 0, "pieces": 0}
    assert limits.findings(facts(**unknown, funnel=nothing), Limits()) == []


def test_every_finding_for_people_has_its_event_in_an_automation():
    watched = yaml.safe_load((CHECKOUT / "automations.yaml").read_text())["automations"][-1]["trigger"]["expect"]
    assert watched == [limits.EVENT + name for name in limits.FOR_PEOPLE]


def test_an_audit_tells_what_is_beyond_on_top_and_as_events(root, emitted, monkeypatch):
    pages = []
    monkeypatch.setattr(report, "markdown", lambda key, text, description="": pages.append(text))
    data = datasets.load(root, "a")
    lost = data.parts[0]
    name = audit.gather(root, "a", "detector")["predictions"]["version"]
    files.remove(columns.url(root, "predictions", name, lost.id))
    ledger.write(root, contents.STAGES, "prepare-a", [Entry("features", "kept", clips=9, seconds=4.5)])
    old = f"parts/{'0' * 16}.tar"
    files.replace(b"x" * 500, files.join(root, old))
    monkeypatch.setattr(gc, "_aged", lambda *_: lambda put: True)
    found = audit.examine.fn(root, "a", "detector", Limits(orphaned=499))
    assert {one["name"] for one in found["beyond"]} == {"predictions-behind", "orphaned"}
    assert found["orphaned"]["bytes"] >= 500 and found["cost"]["bytes"]["parts"] > 500
    assert found["cost"]["seconds"]["prepare: features"] == 4.5 and found["cost"]["seconds"]["cutting"] > 0
    (page,) = pages
    assert page.index("predictions-behind") < page.index("| freshness: version |")
    headings = ["## Beyond limits", "## What went in", "## What came out", "## What was dropped", "## All figures"]
    assert sorted(headings, key=page.index) == headings and f"{data.clips} clips of" in page
    assert f"{lost.samples} of {data.clips} clips" in page
    calls = {call.args[0]: call.kwargs for call in emitted.call_args_list}
    assert set(calls) == {"reelmill.audit.predictions-behind", "reelmill.audit.orphaned"}
    sent = calls["reelmill.audit.predictions-behind"]
    assert sent["resource"]["prefect.resource.id"] == "reelmill.dataset.a"
    assert sent["payload"]["value"] == lost.samples and sent["payload"]["root"] == root


def test_times_of_stages_are_kept_for_the_next_plan_and_shown_as_shares(tmp_path, monkeypatch):
    root = files.open_root(str(tmp_path / "root"))
    took = {"score": Spent(3.0, 2, 30), "features": Spent(1.0, 2, 30), "idle": Spent(0.001, 0, 0)}
    monkeypatch.setattr(spending, "spent", lambda: took)
    assert shares({name: one.seconds for name, one in took.items()}) == "score 75 %, features 25 %"
    rates.keep(root, "prepare", "films")
    assert rates.of_stage(root, "prepare", "films", "score") == rates.Rate(10.0, 30)
    assert rates.of_stage(root, "prepare", "films", "idle") is None
    monkeypatch.setattr(spending, "spent", lambda: {"score": Spent(0.1, 0, 0)})
    rates.keep(root, "prepare", "films")
    assert rates.of_stage(root, "prepare", "films", "score") == rates.Rate(10.0, 30), "nothing was done"
    monkeypatch.setattr(spending, "spent", lambda: {"score": Spent(2.0, 1, 2)})
    rates.keep(root, "prepare", "films")
    assert rates.of_stage(root, "prepare", "films", "score") == rates.Rate(10.0, 30), "too little to say more"
    monkeypatch.setattr(spending, "spent", lambda: {"score": Spent(2.0, 1, 3)})
    rates.keep(root, "prepare", "films")
    assert rates.of_stage(root, "prepare", "films", "score") == rates.Rate(1.5, 3)


def test_a_stage_is_timed_whatever_ends_it():
    with pytest.raises(ValueError), report.progress("timed", 2) as state:
        state.items = 5
        state.advance()
        raise ValueError
    took = spending.spent()["timed"]
    assert took.units == 1 and took.items == 5 and took.seconds > 0


def test_balance_says_how_even_labels_are_and_which_classes_a_split_lacks():
    found = contents.balance({"train": {"a": 5, "b": 5, "c": 5}, "heldout": {"a": 9, "b": 1}, "unlabelled": {}})
    assert found["train"] == {"evenness": 1.0, "rarest": "a 5", "most": "c 5", "missing": []}
    assert found["heldout"] == {"evenness": 0.296, "rarest": "b 1", "most": "a 9", "missing": ["c"]}
    assert contents.balance({"train": {"a": 2}})["train"]["evenness"] == 1.0 and "unlabelled" not in found


def test_an_audit_counts_what_was_planted(root, monkeypatch):
    monkeypatch.setattr(gc, "_aged", lambda *_: lambda put: True)
    before = audit.gather(root, "a", "detector")
    data = datasets.load(root, "a")
    part = data.parts[0]
    name = part.id
    entries = ledger.read(root, "shard", name)
    planted = [Entry("x.mp4", "quarantined", "timeout"), Entry("y.mp4", "dropped", "too_short")]
    ledger.write(root, "shard", name, [*entries, *planted])
    files.replace(b"x" * 700, files.join(root, f"parts/{'0' * 16}.tar"))
    shutil.copytree(f"{root}/columns/pseudo_labels", f"{root}/columns/planted")
    files.remove(columns.url(root, "predictions", before["predictions"]["version"], part.id))
    now = audit.gather(root, "a", "detector")
    assert now["losses"]["by_reason"] == {
        **before["losses"]["by_reason"],
        "quarantined: timeout": 1,
        "dropped: too_short": 1,
    }
    assert now["funnel"]["dropped"] == before["funnel"]["dropped"] + 1 and now["funnel"]["quarantined"] == 1
    assert now["predictions"]["clips_without_predictions"] == part.samples
    assert now["orphaned"]["bytes"] >= before["orphaned"]["bytes"] + 700
    assert now["columns"].keys() - before["columns"].keys() == {"planted"}
    assert now["cost"]["bytes"]["parts"] == before["cost"]["bytes"]["parts"] + 700
    assert set(now) == {
        "freshness", "growth", "losses", "funnel", "labels", "label_balance", "label_drift", "features", "columns",
        "predictions", "orphaned", "cost",
    }  # fmt: skip
