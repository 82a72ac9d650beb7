"""What the time of a stage went into, what a run is called while it works, and what one that fails leaves behind."""

import inspect
import pickle
import threading
import time
from collections import Counter
from types import SimpleNamespace
from uuid import uuid4

import pytest

from storage import files, timing
from storage.errors import BudgetExceeded, InputError
from storage.ledger import Report
from storage.timing import Spent, during
from tasks import failure, naming, report, spending, stage, summary, telling
from tasks.audits import contents
from tasks.pages import page
from tasks.plans import rates
from tasks.spending import Measured, Meter, Work


@pytest.mark.seconds
def test_the_outermost_mark_counts_and_only_for_the_thread_that_collects():
    def beside() -> None:
        with during("model"):
            time.sleep(0.02)

    other = threading.Thread(target=beside)
    with timing.collected() as into:
        other.start()
        with during("write"), during("read"):
            time.sleep(0.02)
        with timing.collected() as inner, during("decode"):
            time.sleep(0.01)
        other.join()
    with during("list"):
        pass
    assert set(into) == {"write"} and 0.015 < into["write"] < 1 and set(inner) == {"decode"}


def test_all_seconds_of_a_stage_are_told_once():
    meter = Meter(Spent(), {"a", "b"}, busy=12.0, done=Counter(decode=6.0, model=4.0), pooled=8.0)
    found = meter.split(10.0, Counter(list=1.5))
    assert found == Counter(decode=3.0, model=2.0, other=1.5, wait=2.0, list=1.5) and found.total() == 10.0
    assert Meter(Spent()).split(3.0, Counter()) == Counter(other=3.0)


def slow(unit: str) -> Report:
    with during("decode"):
        time.sleep(0.06)
    with during("model"):
        time.sleep(0.02)
    return Report(items=3)


@pytest.mark.seconds
def test_a_stage_says_what_its_workers_did_and_that_its_parts_can_be_sent_elsewhere(monkeypatch):
    monkeypatch.setattr(spending, "_spent", {})
    done: set[str] = set()

    def work(unit: str) -> Report:
        done.add(unit)
        return slow(unit)

    total = stage.cover("planted", ["a", "b", "c"], work, done.__contains__, width=2)
    took = spending.spent()["planted"]
    assert total.items == took.items == 9 and took.into.total() == pytest.approx(took.seconds, rel=0.05)
    assert 2 < took.into["decode"] / took.into["model"] < 4.5
    assert took.into["wait"] > 0.02, "of two workers one had nothing to do while the other made the third"
    made = pickle.loads(pickle.dumps(Measured(slow)))("a")
    assert isinstance(made, Work) and made.seconds >= made.into.total() > 0.07


def test_a_stage_within_a_stage_is_not_counted_twice(monkeypatch):
    monkeypatch.setattr(spending, "_spent", {})
    with spending.measuring("outer"):
        time.sleep(0.02)
        with spending.measuring("inner"):
            time.sleep(0.05)
    took = spending.spent()
    assert took["inner"].seconds >= 0.05 > took["outer"].seconds >= 0.02


def test_stages_side_by_side_have_their_time_in_equal_parts(monkeypatch):
    """Two trainings at once are half of a run each, not all of it twice; a stage within another pauses that one."""
    monkeypatch.setattr(spending, "_spent", {})
    monkeypatch.setattr(spending, "_clocks", {})
    now = [100.0]
    monkeypatch.setattr(spending.time, "perf_counter", lambda: now[0])
    clock, one, two = spending.Clock(), Spent(), Spent()
    clock.turn(None, one)
    now[0] += 10
    clock.turn(None, two)
    now[0] += 20
    clock.turn(one, None)
    now[0] += 5
    clock.turn(two, None)
    now[0] += 7
    clock.turn(None, one)
    assert (one.wall, two.wall) == (20.0, 15.0)
    with spending.measuring("outer"):
        now[0] += 4
        with spending.measuring("inner"):
            now[0] += 6
        now[0] += 1
    took = spending.spent()
    assert {name: (stage.wall, stage.seconds) for name, stage in took.items()} == {"outer": (5, 5), "inner": (6, 6)}
    rows = timing.rows({"pretrain": Spent(60.0, wall=30.0), "finetune": Spent(60.0, wall=30.0), "gate": Spent(60.0)})
    assert [(row["stage"], row["share"], row["seconds"]) for row in rows] == [
        ("gate", "50 %", "60.0"), ("pretrain", "25 %", "60.0"), ("finetune", "25 %", "60.0")
    ]  # fmt: skip


def test_threads_of_a_run_share_its_clock(monkeypatch):
    monkeypatch.setattr(spending, "_spent", {})
    monkeypatch.setattr(spending, "_clocks", {})
    together = threading.Barrier(3)

    def train(name: str) -> None:
        with spending.measuring(name):
            together.wait()
            time.sleep(0.1)
            together.wait()

    threads = [threading.Thread(target=train, args=(name,)) for name in ("a", "b")]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    together.wait()
    together.wait()
    for thread in threads:
        thread.join()
    whole, took = time.perf_counter() - began, spending.spent()
    assert sum(one.part for one in took.values()) <= whole < sum(one.seconds for one in took.values()) + 0.2
    assert all(one.part < one.seconds for one in took.values())


def test_stores_are_marked_by_what_is_asked_of_them(tmp_path):
    with timing.collected() as into:
        files.replace(b"x" * 1000, str(tmp_path / "a"))
        files.read(str(tmp_path / "a"))
        files.exists(str(tmp_path / "a"))
    assert set(into) == {"write", "read", "list"} and min(into.values()) > 0


def test_what_time_went_into_is_kept_and_read_again(tmp_path, monkeypatch):
    root = files.open_root(str(tmp_path / "root"))
    took = {"predict": Spent(4.0, 2, 30, Counter(model=3.0, decode=1.0)), "tables": Spent(1.0, 1, 30)}
    monkeypatch.setattr(spending, "spent", lambda: took)
    rates.keep(root, "infer", "films")
    found = contents.times(root, "infer", "films")
    assert list(found) == ["predict", "tables"] and found["predict"].into == Counter(model=3.0, decode=1.0)
    assert timing.rows(found) == [
        {"stage": "predict", "share": "80 %", "seconds": "4.0", "within the stage": "model 75 %, decode 25 %"},
        {"stage": "tables", "share": "20 %", "seconds": "1.0", "within the stage": "not measured"},
    ]


# Names


class Server:
    """What a Prefect server would be told of one run."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.tags: set[str] = {"nightly"}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def set_flow_run_name(self, run, name):
        self.names.append(name)

    def read_flow_run(self, run):
        return SimpleNamespace(tags=sorted(self.tags))

    def update_flow_run(self, run, name, tags):
        self.names.append(name)
        self.tags = set(tags)


@pytest.fixture
def server(monkeypatch):
    found = Server()
    given = {"root": "r", "name": "films", "seed": 0}
    monkeypatch.setattr(naming, "get_client", lambda **_: found)
    monkeypatch.setattr(
        naming, "flow_run", SimpleNamespace(id=str(uuid4()), flow_name="prepare", parameters=given)
    )  # fmt: skip
    monkeypatch.setattr(telling, "_silent_until", 0.0)
    monkeypatch.setattr(report, "EVERY", 0.0)
    return found


def test_a_run_says_in_its_name_how_far_it_is(server):
    with report.progress("shard", 4) as state:
        state.advance(1)
        with report.progress("within", 2) as inner:
            inner.advance(1)
        state.advance(3)
    assert server.names == ["prepare · films · shard 1 of 4 parts", "prepare · films · shard 4 of 4 parts"]


def test_inference_is_named_by_its_champion_and_the_clips_that_are_done(server):
    naming.entitle("infer · champion v7", "films", "champion v7", "")
    with report.progress("predict", 2) as state:
        state.of, state.had, state.items = 9880, 1000, 204
        state.advance()
    assert server.names == ["infer · champion v7", "infer · champion v7 · 1,204 of 9,880 clips"]
    assert server.tags == {"nightly", "films", "champion v7"}, "those that the run had stay"


def test_a_run_over_tables_is_named_by_them_and_its_page_says_what_came_of_each(server, artifacts, monkeypatch):
    monkeypatch.setattr(naming.flow_run, "flow_name", "ablate")
    monkeypatch.setattr(naming.flow_run, "parameters", {"root": "r", "table": ["3.3a", "4.4a"]})
    assert naming.title() == "ablate · 3.3a, 4.4a"
    tables = {"3.3a": "1 of 2 claims hold", "4.4a": "2 of 2 claims hold"}
    found = [
        {"table": one, "holds": holds, "figure": f"r/{one}.png", "mlflow": f"http://host/{one}", "seconds": seconds}
        for (one, holds), seconds in zip(tables.items(), (30.0, 90.0), strict=True)
    ]
    assert summary.ablated(found) == found
    assert all(f"table {one}: {holds}" in artifacts["ablate"] for one, holds in tables.items())
    assert "r/3.3a.png" in artifacts["ablate"] and "http://host/4.4a" in artifacts["ablate"]
    assert "table 4.4a: 90 s, 75 %" in artifacts["ablate"]
    assert "## Where the time went" in artifacts["ablate"] and server.names == ["ablate · 3.3a, 4.4a · done"]


def test_names_and_tags_hold_no_credentials(server, monkeypatch):
    monkeypatch.setenv("REEL_TOKEN", "planted-secret-4712")
    naming.rename("prepare · planted-secret-4712", "s3://user:planted-secret-4712@host/")
    assert server.names and "planted-secret" not in server.names[0] + "".join(server.tags)


# Failures


@failure.accounted
def prepare(root: str, name: str = "a", seed: int = 0) -> None:
    """Fails as it is told."""
    raise FAULTS[seed]


FAULTS = [BudgetExceeded("21 of 30 files <script>alert(1)</script> are quarantined"), InputError("no --labels")]


@pytest.fixture
def artifacts(monkeypatch):
    made = {}
    monkeypatch.setattr(report, "markdown", lambda key, text, description="": made.update({key: text}))
    return made


def test_a_run_that_fails_says_why_what_was_lost_and_what_to_do(traced, tmp_path, artifacts):
    import shutil

    root = str(shutil.copytree(traced / "root", tmp_path / "root"))
    with pytest.raises(BudgetExceeded):
        prepare(root)
    text = artifacts["prepare-failed"]
    assert "BudgetExceeded: 21 of 30 files" in text and "<script>" not in text and "duplicate" in text
    assert "only what is missing is done" in text and "reports/prepare-a-failed.html" in text
    made = (tmp_path / "root" / "reports" / "prepare-a-failed.html").read_text()
    assert 'role="alert"' in made and "21 of 30 files" in made and "<script>alert" not in made
    page.told(root, "prepare", "a")
    assert not (tmp_path / "root" / "reports" / "prepare-a-failed.html").exists(), "the next run mended it"


def test_a_wrong_option_has_no_page_and_no_failure_is_hidden_by_telling_it(tmp_path, artifacts, capsys):
    root = files.open_root(str(tmp_path / "root"))
    with pytest.raises(InputError):
        prepare(root, seed=1)
    assert "no --labels" in artifacts["prepare-failed"] and not files.names(files.join(root, "reports"))
    with pytest.raises(BudgetExceeded):
        prepare(str(tmp_path / "gone"))
    assert "could not be told" in capsys.readouterr().out


def test_every_flow_tells_of_its_failure_and_keeps_its_options():
    from flows import ablate, audit, demo, infer, retrain
    from flows import prepare as prepares

    for flow in (ablate.ablate, audit.audit, demo.demo, infer.infer, prepares.prepare, retrain.retrain):
        source = inspect.getsource(inspect.getmodule(flow))
        assert "@accounted\n@explained\n" in source and "root" in inspect.signature(flow.fn).parameters
        assert flow.fn.__wrapped__ and flow.description
