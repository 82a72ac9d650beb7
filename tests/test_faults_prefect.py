"""What a run tells Prefect while it works: a silent server is told later, our own mistakes are raised."""

import httpx
import pytest

from tasks import report


def test_what_cannot_be_told_to_prefect_stops_nothing_and_is_told_later(monkeypatch, capsys):
    calls, gone = [], True

    def told(*_, key="progress", **__):
        calls.append(key)
        if gone:
            raise httpx.ConnectError("refused")

    monkeypatch.setattr(report, "in_run", lambda: True)
    for name in ("create_progress_artifact", "create_table_artifact", "create_markdown_artifact"):
        monkeypatch.setattr(report, name, told)
    monkeypatch.setattr(report, "_silent_until", 0.0)
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
    monkeypatch.setattr(report, "_silent_until", 0.0)

    def mistaken(*_, **__):
        raise TypeError("an argument too many")

    monkeypatch.setattr(report, "create_table_artifact", mistaken)
    with pytest.raises(TypeError):
        report.table("parts", [], "none")
