"""`reelmill repair` of what one `prepare` alone does not make, and of what is sound again by the time it would go."""

import shutil
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from storage import adoption, checkpoints, columns, datasets, files, ledger, records, tables
from storage.remedies import Remedies
from tasks import repair
from tasks.verify import examine
from tests.made_parts import commit, flip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A root with a part, its predictions and segments, two checkpoints of a run, and what an adopted shard said."""
    root = files.open_root(str(tmp_path_factory.mktemp("rest") / "root"))
    part = commit(root)
    datasets.freeze(root, "d", [part], {})
    keys = pa.table({"key": part.table(["key"])["key"]})
    columns.write(root, "predictions", "m1", part, keys, {})
    files.publish_bytes(tables.pack(keys, {}), f"{root}/segments/m1/{part.id}.parquet")
    for step in (1, 2):
        tensors = {"w": torch.full((4,), float(step))}
        checkpoints.save(root, "run", step, tensors, {"step": step}, {"spec": {}}, final=False)
    files.publish_bytes(tables.pack(keys, {}), adoption.examined_url(root, "ab12"))
    files.replace_json(records.seal({"parts": [part.id]}), f"{root}/adopted/ab12-cd34.json")
    ledger.write(root, "adopt", "ab12", [])
    assert examine(root, None, 1.0, 0)[0] == []
    return root


@pytest.fixture
def root(made, tmp_path):
    return str(shutil.copytree(made, tmp_path / "root"))


def _one(root, pattern):
    (found,) = Path(root).glob(pattern)
    return str(found)


HARM = [
    ("segments/m1/*.parquet", "segments", "`reelmill infer`", ["segments/m1/p1"]),
    ("adopted/ab12.parquet", "adopted", "`reelmill adopt` of its shard", ["adopted/ab12.parquet"]),
    ("adopted/ab12-cd34.json", "adopted", "`reelmill adopt` of its shard", ["adopted/ab12-cd34"]),
    ("ledger/adopt/ab12.parquet", "ledger", "`reelmill adopt` of its shard", ["ledger/adopt/ab12", "adopted/ab12.p"]),
    ("checkpoints/run/*2/weights.safetensors", "checkpoints", "the next training", ["step_00000002"]),
    ("checkpoints/run/*2/state.pt", "checkpoints", "the next training", ["step_00000002"]),
    ("checkpoints/run/*2/manifest.json", "checkpoints", "the next training", ["step_00000002"]),
]


@pytest.mark.parametrize("pattern, kind, said, goes", HARM, ids=[pattern for pattern, *_ in HARM])
def test_what_is_damaged_is_named_and_goes_and_the_rest_stays(root, capsys, pattern, kind, said, goes):
    """After that nothing is damaged, and what has to be run is said."""
    victim = _one(root, pattern)
    flip(victim, Path(victim).stat().st_size // 2)
    (found,) = examine(root, None, 1.0, 0)[0]
    assert found.kind == kind and found.url.rpartition("/")[0] == victim.rpartition("/")[0]
    before = {path for path in Path(root).rglob("*") if path.is_file()}
    assert "1 of 1 findings can be mended" in repair.repair(root, dry_run=False)
    assert said in capsys.readouterr().out
    gone = {str(path) for path in before if not path.exists()}
    assert victim in gone and all(any(name in url for url in gone) for name in goes)
    assert all(any(name in url for name in goes) for url in gone), "nothing else"
    assert examine(root, None, 1.0, 0)[0] == []


@pytest.mark.parametrize(
    ("column", "version", "said"),
    [
        ("features", "x3d-0123-conv5", "`reelmill features`"),
        ("features", "conse-a054", "`reelmill prepare`"),
        ("pseudo_labels", "proposals-77", "`reelmill label`"),
        ("fine", "x3d-0123-77", "`reelmill retrain --fine-features`"),
    ],
)
def test_a_damaged_column_says_which_command_makes_it_again(root, column, version, said):
    part = datasets.load(root, "d").parts[0]
    keys = pa.table({"key": part.table(["key"])["key"]})
    for name in (version, "mine"):
        about = {"file": "t.csv", "digest": "0"} if name == "mine" else {"made": "by us"}
        columns.write(root, column, name, part, keys, about)
        files.publish_bytes(tables.pack(keys, about), f"{root}/columns/{column}/{name}/p9.parquet")  # stays sound
        flip(_one(root, f"columns/{column}/{name}/{part.id}.parquet"), 40)
    found = [one for one in examine(root, None, 1.0, 0)[0] if part.id in one.url and f"columns/{column}" in one.url]
    theirs, ours = sorted((Remedies(root).of(one) for one in found), key=lambda one: one.possible)
    assert ours.possible and said in ours.said and ours.remove == (ours.finding.url,) and version in ours.finding.url
    assert not theirs.possible and "came from a table" in theirs.said


def test_training_goes_on_from_the_checkpoint_before(root):
    victim = _one(root, "checkpoints/run/*2/weights.safetensors")
    flip(victim, 70)
    repair.repair(root, dry_run=False)
    left = checkpoints.find(root, "run")
    assert left.step == 1 and checkpoints.load_weights(left.url)["w"].tolist() == [1.0] * 4


def test_a_champion_is_never_removed(root):
    victim = _one(root, "checkpoints/run/*2/weights.safetensors")
    flip(victim, 70)
    (found,) = examine(root, None, 1.0, 0)[0]
    remedy = Remedies(root, champion=victim.rpartition("/")[0]).of(found)
    assert not remedy.possible and not remedy.remove and "champion" in remedy.said


@pytest.mark.parametrize("pattern, kind, said, goes", HARM, ids=[pattern for pattern, *_ in HARM])
def test_what_is_sound_again_by_then_stays(root, monkeypatch, pattern, kind, said, goes):
    """Another run may have made it again between the look and the removal."""
    victim = Path(_one(root, pattern))
    good = victim.read_bytes()
    flip(victim, len(good) // 2)
    stale = repair.remedies(root, None, "detector")
    victim.write_bytes(good)
    monkeypatch.setattr(repair, "remedies", lambda *_: stale)
    before = {path: path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}
    assert "any more" in repair.repair(root, dry_run=False)
    assert {path: path.read_bytes() for path in Path(root).rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("pattern", ["parts/p2.tar", "parts/p2.parquet"])
def test_a_part_that_is_there_again_by_then_stays(root, monkeypatch, pattern):
    """Its tar, or its index, differs when it is looked at, and is right again when it would be removed."""
    commit(root, "p2")  # that no plan and no dataset names, so it may go
    victim = Path(_one(root, pattern))
    good = victim.read_bytes()
    flip(victim, len(good) // 2)
    stale = repair.remedies(root, None, "detector")
    assert stale and all(one.possible and one.finding.part == "p2" for one in stale)
    victim.write_bytes(good)
    monkeypatch.setattr(repair, "remedies", lambda *_: stale)
    assert "any more" in repair.repair(root, dry_run=False)
    assert Path(root, "parts/p2.tar").exists() and Path(root, "parts/p2.parquet").exists()


def test_the_sources_of_a_part_are_looked_at_once(root, monkeypatch):
    """Whatever the number of findings about it."""
    known = Remedies(root)
    asked = []
    draft = type("Draft", (), {"id": "p1"})()
    monkeypatch.setattr("storage.plans.members", lambda draft: asked.append(draft.id) or [])
    known.plans["d"] = [draft]
    flip(f"{root}/parts/p1.tar", 600)
    findings = examine(root, None, 1.0, 0)[0]
    for finding in findings * 3:
        assert known.of(finding).possible
    assert findings and asked == ["p1"]
