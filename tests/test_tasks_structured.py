"""Logs as lines of JSON: what is said has its run, flow, step, item and reason, and no credentials."""

import json
from collections import Counter

import pytest

from tasks import report, telling
from tasks.telling import STRUCTURED, say

SECRET = "canary+Alpha/Bravo01"


@pytest.fixture
def structured(monkeypatch, capsys):
    monkeypatch.setenv(STRUCTURED, "json")
    return lambda: [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_line_says_what_it_is_about(structured, monkeypatch):
    run = type("Run", (), {"id": "1234", "flow_name": "prepare"})
    monkeypatch.setattr(telling, "flow_run", run)
    with report.progress("shard", 3) as state:
        state.advance(3)
    say("prepare again\n  list         10 files")
    first, second, third = structured()
    assert (first["run"], first["flow"], first["step"]) == ("1234", "prepare", "shard")
    assert first["message"].startswith("3/3 parts") and first["time"].endswith("+00:00") and first["level"] == "INFO"
    assert (second["step"], second["message"]) == ("", "prepare again")
    assert (third["step"], third["message"], third["item"], third["reason"]) == ("list", "10 files", "", "")


def test_files_that_were_lost_for_one_reason_are_one_line_with_its_reason(structured):
    bad = [("truncated", f"{n}.mp4") for n in range(9)]
    (line,) = report.alike(Counter(truncated=9), bad)
    say(f"  quarantined  {line}", **line.fields)
    (found,) = structured()
    assert (found["step"], found["reason"], found["item"], found["count"]) == ("quarantined", "truncated", "0.mp4", 9)
    assert found["items"] == ["0.mp4", "1.mp4", "2.mp4"] and "6 more like it" in found["message"]


def test_no_credentials_are_in_any_field(structured, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    (line,) = report.alike(Counter(timeout=1), [("timeout", f"s3://k:{SECRET}@b/x.mp4")])
    say(f"  store        {SECRET}", item=f"https://user:{SECRET}@host/x", cause=OSError(SECRET), reason=SECRET)
    say(f"  quarantined  {line}", **line.fields)
    found = structured()
    assert len(found) == 2 and SECRET not in json.dumps(found) and "***" in found[0]["item"]


def test_without_the_setting_lines_are_plain(monkeypatch, capsys):
    monkeypatch.delenv(STRUCTURED, raising=False)
    say("  shard        3 parts", reason="x")
    assert capsys.readouterr().out == "  shard        3 parts\n"


def test_the_setting_is_one_that_prefect_knows():
    """Its own records, which the console shows, are JSON by the same one."""
    from prefect.logging.configuration import DEFAULT_LOGGING_SETTINGS_PATH, load_logging_config

    found = load_logging_config(DEFAULT_LOGGING_SETTINGS_PATH)
    assert "json" in found["formatters"] and "formatter" in found["handlers"]["console"]
