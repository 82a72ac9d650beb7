"""`reelmill plan`: what a run would do and why, the same that the run then does, and nothing is changed by asking."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner

from flows.__main__ import main
from storage import columns, datasets, files, ledger
from storage.ledger import Entry
from storage.parts import Part
from tasks import predict, spending, tracking
from tasks.audits import contents
from tasks.plans import rates
from tasks.plans.prepare import sources
from tasks.report import clock
from tasks.training import finetune, pretrain, two_stages
from tasks.training.recipe import recipe
from tests import preparing


@pytest.fixture
def home(tmp_path, traced) -> Path:
    """A root with a champion and the archive it came from."""
    return Path(shutil.copytree(traced, tmp_path / "home"))


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}


def planned(*words: str) -> str:
    result = CliRunner().invoke(main, ["plan", *words])
    assert result.exit_code == 0, result.output
    return result.output


def prepare(home: Path, **more: Any) -> str:
    given = {"span": 3, "short_side": 64, "per_part": 4, **more}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    where = [str(home / "root"), "--archive", str(home / "archive"), "--labels", str(home / "labels.csv")]
    return planned("prepare", *where, "--name", "a", *words)


def test_a_root_that_is_none_is_planned_and_not_made(tmp_path, traced):
    found = planned("prepare", str(tmp_path / "root"), "--archive", str(traced / "archive"))
    assert "nothing was planned yet" in found and "time     not known" in found and "10 new" in found
    assert not (tmp_path / "root").exists()


def test_new_changed_gone_and_moved_sources_and_an_option_are_told_apart(home):
    before = snapshot(home)
    same = prepare(home)
    assert "10 unchanged" in same and "nothing to cut" in same
    option = prepare(home, span=2)
    assert "changed option, which rebuilds every part: span 3.0 → 2.0" in option and "with other options" in option
    assert snapshot(home) == before, "asking changes nothing"
    archive = home / "archive" / "weak"
    shutil.copy(archive / "00.mp4", home / "spare.mp4")
    (archive / "00.mp4").write_bytes((archive / "01.mp4").read_bytes() + b"\0" * 64)
    with (home / "labels.csv").open() as file:
        rows = [line for line in file if not line.startswith("dense/05")]
    (home / "labels.csv").write_text("".join(rows))
    (home / "archive" / "dense" / "05.mp4").unlink()
    shutil.copy(home / "spare.mp4", archive / "other.mp4")
    found = prepare(home)
    assert "changed: weak/00.mp4" in found and "gone: dense/05.mp4" in found and "new: weak/other.mp4" in found
    assert "why      sources: " in found and "s a second of video, measured over" in found
    dataset, done = preparing.prepare(str(home / "root"), str(home / "archive"), str(home / "labels.csv"), units=6)
    assert f"{done.decoded} sources are cut" in found, "what was announced is what was done"


def test_plans_of_two_listings():
    row = {"split": "train", "labels": None, "attempt": 0}
    then = [{**row, "path": p, "identity": i} for p, i in (("a", "1"), ("b", "2"), ("c", "3"), ("d", "4"))]
    now = [
        {**row, "path": "a", "identity": "1"},
        {**row, "path": "b", "identity": "9"},
        {**row, "path": "z", "identity": "3"},
        {**row, "path": "d", "identity": "4", "labels": "[]"},
    ]
    found = sources(now, then)
    assert {kind: paths for kind, paths in found.items() if paths} == {
        "unchanged": ["a"], "changed": ["b"], "moved": ["z"], "relabelled": ["d"],
    }  # fmt: skip


def test_inference_names_what_is_missing_and_takes_its_time_from_the_last_one(home):
    root = home / "root"
    before = snapshot(home)
    assert "nothing to do" in planned("infer", str(root), "--dataset", "a")
    assert snapshot(home) == before
    data = datasets.load(str(root), "a")
    part = max(data.parts, key=lambda p: p.samples)
    (taken,) = (root / "columns" / "predictions").rglob(f"{part.id}.parquet")
    taken.unlink()
    found = planned("infer", str(root), "--dataset", "a")
    assert f"1 of {len(data.parts)} parts, {part.samples} of {data.clips} clips" in found
    assert "not known: no run under this root has measured predictions" in found
    took = Entry("predict", "kept", clips=part.samples, seconds=part.samples * 30.0)
    ledger.write(files.absolute(str(root)), contents.STAGES, "infer-a", [took])
    assert f"about {part.samples * 30 // 60}:{part.samples * 30 % 60:02d}" in planned(
        "infer", str(root), "--dataset", "a"
    )


def test_inference_does_what_was_announced_and_the_next_plan_has_its_rate(home, monkeypatch):
    root = files.open_root(str(home / "root"))
    data = datasets.load(root, "a")

    def lost(parts: list[Part]) -> None:
        for part in parts:
            for found in (home / "root" / "columns" / "predictions").rglob(f"{part.id}.parquet"):
                found.unlink()

    lost(data.parts[1:])
    clips = sum(part.samples for part in data.parts[1:])
    found = planned("infer", root, "--dataset", "a")
    monkeypatch.setattr(spending, "_spent", {})
    done = predict.predict.fn(root, "a", "detector", [])
    rates.keep(root, "infer", "a")
    assert f"{len(data.parts) - 1} of {len(data.parts)} parts, {clips} of {data.clips} clips" in found
    assert done["predicted"] == clips and done["left"] == 0
    assert "nothing to do" in planned("infer", root, "--dataset", "a")
    (took,) = [entry for entry in ledger.read(root, contents.STAGES, "infer-a") if entry.item == "predict"]
    assert took.clips == clips and took.seconds == spending.spent()["predict"].seconds > 0
    lost(data.parts)
    about = f"about {clock(data.clips * took.seconds / clips)} (m:ss) at {clips / took.seconds:.3g} clips/s"
    assert f"{about}, measured over {clips} clips" in planned("infer", root, "--dataset", "a")


def test_what_inference_would_take_over_from_replaced_parts_is_no_work(home):
    """A source that goes leaves its neighbours in a part of another name, whose predictions are carried."""
    root, path = str(home / "root"), next((home / "archive" / "dense").glob("*.mp4"))
    rows = [line for line in (home / "labels.csv").read_text().splitlines(True) if f"dense/{path.name}" not in line]
    (home / "labels.csv").write_text("".join(rows))
    path.unlink()
    before = datasets.load(root, "a")
    made, _ = preparing.prepare(root, str(home / "archive"), str(home / "labels.csv"), units=4)
    (home / "root" / "datasets" / "a" / f"{made.version}.json").unlink()  # to say what it follows on
    about = {"recipe": preparing.RECIPE, "before": before.version}
    data = datasets.freeze(root, "a", made.parts, about, before=made.version)
    new = [part for part in data.parts if part.id not in {old.id for old in before.parts}]
    taken = sum(part.samples for part in new)
    assert taken, "the archive gave no part of another name"
    found = planned("infer", root, "--dataset", "a")
    assert f"0 of {data.clips} clips" in found and f"{taken} more are taken over" in found


def test_a_retraining_says_what_it_trains_and_that_its_time_is_not_known(home):
    before = snapshot(home / "root" / "parts") | snapshot(home / "root" / "checkpoints")
    names = {p.relative_to(home) for p in home.rglob("*")}
    found = planned("retrain", str(home / "root"), "--dataset", "a", "--pretrain-steps", "7")
    assert "2 × " not in found and "pretrain of 7 steps × 2" in found and "4 trainings" in found
    assert "no retraining of detector is kept" in found and "time     not known" in found
    assert snapshot(home / "root" / "parts") | snapshot(home / "root" / "checkpoints") == before
    assert {p.relative_to(home) for p in home.rglob("*")} == names


@pytest.fixture
def measured(home, monkeypatch):
    """Tracks the trainings of a retraining as it does, each so many seconds a step; nothing is trained."""
    root = files.open_root(str(home / "root"))
    data = datasets.load(root, "a")

    def measure(seconds: dict[str, float], system: str, **more: Any) -> None:
        made = recipe("short", system=system, pretrain_steps=3, finetune_steps=2, **more)
        kept = SimpleNamespace(url="", digest="", final=True)

        def fit(spec: Any, title: str, **_: Any) -> tuple[Any, dict[str, float]]:
            pace = seconds[title.partition("-")[0]]
            return kept, {"train_seconds": 0.5 * pace * spec.steps, "step_seconds": pace}  # it went on half-way

        monkeypatch.setattr(pretrain, "fit", fit)
        monkeypatch.setattr(pretrain, "losses", lambda _: [])
        parent = tracking.start(root, "retrain a", {}, {})
        if "pretrain" in seconds:
            spec = pretrain.spec_for(root, data, "classification", made)
            pretrain.tracked_fit(root, spec, "pretrain-classification", data, made, parent)
        tuned = finetune.spec_for(root, data, None, made)
        stages = two_stages.streams(tuned, None) if "coarse" in seconds else {}
        for stage, spec in {**stages, "finetune": tuned}.items():
            pretrain.tracked_fit(root, spec, f"{stage}-classification", data, made, parent)

    return measure


def retraining(home: Path, *words: str) -> str:
    given = ["--dataset", "a", "--pretraining", "classification", "--pretrain-steps", "100", "--finetune-steps", "40"]
    return planned("retrain", str(home / "root"), *given, *words)


def test_a_retraining_that_was_measured_gives_the_next_one_its_time(home, measured):
    measured({"pretrain": 0.5, "finetune": 1.5}, "x3d")
    found = retraining(home)
    assert "2 trainings: pretrain of 100 steps, finetune of 40 steps; 140 steps" in found
    assert "about 1:50 (m:ss) one after another (pretrain 0.5 s a step, finetune 1.5 s a step" in found
    assert "about 3:40" in retraining(home, "--pretraining", "classification,detection")
    for other in (("--frames", "8"), ("--pixels", "32"), ("--size", "M"), ("--batch", "4")):
        assert "time     not known: no " in retraining(home, *other), other
    measured({"pretrain": 0.5, "finetune": 3.0}, "x3d", pixels=32)
    assert "about 2:50" in retraining(home, "--pixels", "32") and "about 1:50" in retraining(home)


def test_the_streams_that_are_trained_alone_first_are_part_of_the_plan(home, measured):
    said = retraining(home, "--system", "coarse_fine")
    assert "4 trainings: pretrain of 100 steps, coarse of 40 steps, fine of 40 steps, finetune of 40 steps" in said
    assert "no pretrain or coarse or fine or finetune of coarse_fine has been measured here" in said
    measured({"pretrain": 0.5, "coarse": 0.25, "fine": 0.75, "finetune": 2.0}, "coarse_fine")
    said = retraining(home, "--system", "coarse_fine")
    assert "about 2:50 (m:ss)" in said and "fine 0.75 s a step" in said
    assert "no finetune of x3d" in retraining(home), "a stream alone is none of it"


def test_a_system_on_features_is_measured_by_the_length_that_it_is_given(home, measured):
    root = files.open_root(str(home / "root"))
    for part in datasets.load(root, "a").parts:
        vectors = pa.FixedSizeListArray.from_arrays(pa.array([0.0] * 4 * part.samples, pa.float32()), 4)
        lists = pa.ListArray.from_arrays(pa.array(range(part.samples + 1), pa.int32()), vectors)
        times = pa.array([[row["start"]] for row in part.rows()], pa.list_(pa.float64()))
        table = pa.table({"key": part.table(["key"])["key"].combine_chunks(), "times": times, "embedding": lists})
        columns.write(root, "features", "only", part, table, {"model": "m"})
    measured({"finetune": 0.5}, "tgm", features="only")
    assert "about 0:20 (m:ss)" in retraining(home, "--system", "tgm", "--features", "only")
    assert "not known" in retraining(home, "--system", "tgm", "--features", "only", "--whole", "64")
