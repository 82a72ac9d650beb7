"""What a run tells Prefect while it works: a silent server is told later, our own mistakes are raised."""

from collections import Counter
from types import SimpleNamespace
from uuid import uuid4

import httpx
import pytest

from tasks import naming, report, telling


def test_what_cannot_be_told_to_prefect_stops_nothing_and_is_told_later(monkeypatch, capsys):
    calls, gone = [], True

    def told(*_, key="progress", **__):
        calls.append(key)
        if gone:
            raise httpx.ConnectError("refused")

    monkeypatch.setattr(report, "in_run", lambda: True)
    for name in ("create_progress_artifact", "create_table_artifact", "create_markdown_artifact"):
        monkeypatch.setattr(report, name, told)
    monkeypatch.setattr(telling, "_silent_until", 0.0)
    with report.progress("shard", 2) as state:
        state.advance(2)
    report.table("parts", [], "none")
    report.markdown("prepare", "page")
    assert calls == ["progress-shard"] and report.left() == 2, "a server that is silent is left alone for a while"
    assert report.catch_up(again=True) == 2 and capsys.readouterr().out.count("the work goes on") == 2
    gone = False
    assert report.catch_up(again=True) == 0 and calls == ["progress-shard", "parts", "parts", "prepare"]


def test_our_own_mistakes_are_not_taken_for_a_silent_server(monkeypatch):
    monkeypatch.setattr(report, "in_run", lambda: True)
    monkeypatch.setattr(telling, "_silent_until", 0.0)

    def mistaken(*_, **__):
        raise TypeError("an argument too many")

    monkeypatch.setattr(report, "create_table_artifact", mistaken)
    with pytest.raises(TypeError):
        report.table("parts", [], "none")


def test_thousands_of_files_with_one_fault_are_one_line():
    counts = Counter({"truncated": 5000, "not_video": 1})
    items = [("truncated", f"{n}.mp4") for n in range(1000)] + [("not_video", "a\x1b[2J.txt")]
    assert report.alike(counts, items) == [
        "5,000 truncated: 0.mp4, 1.mp4, 2.mp4 and 4,997 more like it, all in the ledger",
        "1 not_video: a\N{REPLACEMENT CHARACTER}[2J.txt",
    ]


def test_a_progress_artifact_says_the_time_left_and_then_the_time_taken(monkeypatch):
    said = []
    monkeypatch.setattr(report, "in_run", lambda: True)
    monkeypatch.setattr(telling, "_silent_until", 0.0)
    monkeypatch.setattr(report, "EVERY", 0.0)
    monkeypatch.setattr(report, "create_progress_artifact", lambda *_, **__: uuid4())
    monkeypatch.setattr(report, "update_progress_artifact", lambda _, **words: said.append(words))
    with report.progress("shard", 4) as state:
        state.advance()
        state.advance(3)
    assert said[0]["progress"] == 25.0 and "1 of 4 parts" in said[0]["description"] and "ETA" in said[0]["description"]
    assert said[-1]["progress"] == 100.0 and "4 parts in 0:00" in said[-1]["description"]


def test_a_run_is_renamed_and_a_lost_server_fails_nothing(monkeypatch, capsys):
    names, gone = [], False

    class Client:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def set_flow_run_name(self, run, name):
            if gone:
                raise httpx.ConnectError("refused")
            names.append(name)

    monkeypatch.setattr(naming, "get_client", lambda **_: Client())
    monkeypatch.setattr(telling, "_silent_until", 0.0)
    naming.rename("outside of a run")
    monkeypatch.setattr(naming, "flow_run", SimpleNamespace(id=str(uuid4()), parameters={}))
    naming.rename("infer · champion v7 · 1,204 of 9,880 clips")
    gone = True
    naming.rename("again")
    assert names == ["infer · champion v7 · 1,204 of 9,880 clips"]
    assert "the work goes on" in capsys.readouterr().out
