"""A whole ablation on a tiny archive: rendered, trained and measured once, found again, and gone on with when killed.

Everything is real but the processes: trainings run in this one, and Prefect's tasks are called as functions.
"""

import csv
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from flows import ablate as flow
from flows.__main__ import main
from storage import checkpoints, files
from tasks import summary, tracking, train_rank
from tasks.ablations import tables
from tasks.ablations.rows import MAP, Network, Row, Table, above
from tasks.ablations.runs import budget_of
from tasks.training import pretrain
from tasks.training.train import run_name

MIXED = (Network(pretraining="freeze"), Network(pretraining="mixup"))
ROWS = (
    Row("cls.", (Network(),), {MAP: "1.00"}),
    Row("freeze", MIXED[:1], {MAP: "+1.00"}, to="cls."),
    Row("ensemble", MIXED, {MAP: "3.00"}),
)
TINY = Table("0", "tiny", "dense", "cls.", ROWS, above("ensemble", "freeze", "cls."), "A note.")
GIVEN = {"weak": 8, "dense": 6, "pretrain_steps": 2, "finetune_steps": 2}


class Done:
    """A future of what was done at once."""

    def __init__(self, value):
        self.value, self.state = value, SimpleNamespace(is_completed=lambda: True)

    def wait(self):
        return self

    def result(self):
        return self.value


def now(task):
    """A task that is run at once, on the results of the futures it is given."""

    def submit(*given):
        plain = [[f.result() for f in one] if isinstance(one, list) else one for one in given]
        return Done(task.fn(*plain))

    return SimpleNamespace(submit=submit)


@pytest.fixture
def trained(monkeypatch):
    """Runs without processes and Prefect; returns the titles of what was trained, in order."""
    titles = []
    monkeypatch.setattr(train_rank, "_say", lambda rank, report: None)
    monkeypatch.setitem(tables.TABLES, "0", TINY)
    monkeypatch.setattr(flow, "train", now(flow.train))
    monkeypatch.setattr(flow, "measure", now(flow.measure))
    monkeypatch.setattr(flow, "archive", flow.archive.fn)
    monkeypatch.setattr(flow, "ablation", flow.ablation.fn)
    monkeypatch.setattr(summary, "task_runs", lambda: 0)
    torch.set_num_threads(1)  # more of them wait for each other on a busy machine

    def fit(spec, title, **_):
        name = run_name(spec, title)
        found = checkpoints.find(spec.root, name)
        if not (found and found.final):
            if len(titles) == killed.get("after"):
                raise KeyboardInterrupt
            titles.append(title)
            train_rank.run(spec, name)
        return checkpoints.find(spec.root, name), {}

    killed = {}
    monkeypatch.setattr(pretrain, "fit", fit)
    return SimpleNamespace(titles=titles, killed=killed)


def run(root, out=None):
    return flow.ablate.fn(["0"], str(root), [4, 5], **GIVEN, out=out)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A root for the tests of this file, which follow each other in it."""
    return tmp_path_factory.mktemp("ablation")


def test_a_killed_run_goes_on(place, trained):
    trained.killed["after"] = 4
    with pytest.raises(KeyboardInterrupt):
        run(place / "root")
    assert len(trained.titles) == 4
    trained.killed.clear()
    (found,) = run(place / "root", str(place / "docs" / "results.md"))
    assert len(trained.titles) == 2 * 6 and found["table"] == "0"  # six a seed: three pretrained, three tuned
    first = trained.titles[:6]
    assert sorted(trained.titles[6:]) == sorted(first) and len(set(first)) == 6


def test_a_second_run_trains_nothing_and_says_the_same(place, trained):
    before = (place / "docs" / "results.md").read_bytes()
    run(place / "root", str(place / "docs" / "results.md"))
    assert trained.titles == [] and (place / "docs" / "results.md").read_bytes() == before


def test_the_document_names_the_command_and_shows_the_figure(place):
    text = (place / "docs" / "results.md").read_text()
    assert "`reelmill ablate --table 0 --seeds 4,5 --weak 8 --dense 6 --pretrain-steps 2 --finetune-steps 2`" in text
    assert "![Table 0](results-0.png)" in text and "| ensemble |" in text and "A note." in text
    assert (place / "docs" / "results-0.png").read_bytes()[:4] == b"\x89PNG"


def test_every_row_and_seed_is_a_run_below_the_table(place):
    root = files.open_root(str(place / "root"))
    client = tracking.client(root)
    runs = client.search_runs([client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id])
    (parent,) = [one for one in runs if one.info.run_name == "ablate 0"]
    children = [one for one in runs if one.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    rows = {one.info.run_name: one for one in children if " · seed " in one.info.run_name}
    assert set(rows) == {f"{row.name} · seed {seed}" for row in ROWS for seed in (4, 5)}
    assert all(one.info.status == "FINISHED" for one in (parent, *children))
    metrics = rows["ensemble · seed 4"].data.metrics
    assert {MAP, f"{MAP}_single", f"{MAP}_boundary", "gmacs", "params_m", "latency_ms", "peak_memory_mb"} <= set(
        metrics
    )
    assert "claims_that_hold" in parent.data.metrics
    kept = {one.path for one in client.list_artifacts(parent.info.run_id, "table")}
    assert kept == {f"table/table.{kind}" for kind in ("md", "csv", "png")}


def test_the_table_has_the_measured_scores(place):
    root = files.open_root(str(place / "root"))
    rows = list(csv.DictReader(files.read(files.join(root, "tables", "0", "table.csv")).decode().splitlines()))
    ours = {row["row"]: row for row in rows if row["measure"] == MAP}
    kept = [files.read_json(files.join(root, "ablation", name)) for name in files.names(files.join(root, "ablation"))]
    scores = sorted(f"{100 * one[MAP]:.3f}" for one in kept)
    assert sorted(ours[name][f"seed {seed}"] for name in ours for seed in (4, 5)) == scores
    assert float(ours["ensemble"]["params_m"]) == pytest.approx(2 * float(ours["freeze"]["params_m"]))
    assert ours["freeze"]["thesis"] == "2.00"


def test_each_seed_has_an_archive_of_its_own(place):
    archives = place / "root" / "archives"
    names = sorted(path.name for path in archives.iterdir())
    assert names == ["dense-4-8-6", "dense-5-8-6"]
    first, second = ((archives / name / "labels.csv").read_text() for name in names)
    assert first != second and not list(archives.rglob("broken")) and not list(archives.rglob("real"))


def test_both_styles_pretrain_on_the_same_parts(place):
    root, size = files.open_root(str(place / "root")), budget_of("quick", weak=8, dense=6, sparse=6)
    weak = [flow.archive.fn(root, style, 4, size).select(labelled="video") for style in ("dense", "sparse")]
    assert [part.id for part in weak[0]] == [part.id for part in weak[1]] != []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--table", "4.2"], "--table 4.2: there are 3.3a"),
        (["--table", "4.2a", "--seeds", "1,1"], "--seeds 1,1: name one or more, each once"),
        (["--table", "4.2a", "--root", "s3://bucket/x"], "give --root a path"),
    ],
)
def test_what_can_be_mended_is_said_before_anything_starts(words, said, tmp_path):
    done = CliRunner().invoke(main, ["ablate", "--root", str(tmp_path / "r"), *words])
    assert done.exit_code == 2 and said in done.stderr and not (tmp_path / "r").exists()


def test_a_seed_is_a_number(tmp_path):
    done = CliRunner().invoke(main, ["ablate", "--table", "4.2a", "--seeds", "one"])
    assert done.exit_code == 2 and "give numbers, separated by commas" in done.stderr


def test_help_lists_the_tables():
    text = " ".join(CliRunner().invoke(main, ["ablate", "--help"]).output.split())
    assert "4.4c Windows of Volume CutMix" in text and "3.3e Pooling type (Coarse only)" in text
