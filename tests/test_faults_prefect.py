"""Prefect's server goes away while a stage works, and comes back: the run ends well, with all its parts."""

import os
import subprocess
import sys
import time

import httpx
import pytest

from storage import datasets, files
from tasks import report
from tests.preparing import CHECKOUT
from tests.servers import end_with_us, free_ports, prefect_server

PROGRAM = """
import sys
from flows.__main__ import quiet
quiet()
from prefect import flow
from tasks import shard
from tasks.listing import list_archive

@flow
def small(root: str, archive: str) -> None:
    cut = shard.recipe(3.0, 64, "span", "exact")
    plan, listed = list_archive(root, "a", archive, None, [], 0.3, 4, 1 << 30, cut)
    data, report = shard.shard(root, "a", plan, cut, 1.0, listed)
    print("ended with", data.version, flush=True)

small(*sys.argv[1:])
"""


def test_a_server_that_is_away_for_a_while_fails_nothing(archive, tmp_path):
    """Killed while parts are made, back after some seconds."""
    port, root = free_ports(1), files.open_root(str(tmp_path / "root"))
    running = prefect_server(port, tmp_path)
    env = os.environ | {"PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    command = [sys.executable, "-c", PROGRAM, root, str(archive / "archive")]
    run = subprocess.Popen(
        command, cwd=CHECKOUT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=end_with_us,
    )  # fmt: skip
    said = []
    for line in run.stdout:
        said.append(line)
        if "parts to do" in line and not any("parts to do" in earlier for earlier in said[:-1]):
            running.kill()
            running.wait()
            time.sleep(5)
            running = prefect_server(port, tmp_path)
    assert run.wait() == 0, "".join(said[-30:])
    running.kill()
    running.wait()
    assert any("parts to do" in line for line in said)
    version = next(line.split()[-1] for line in said if line.startswith("ended with"))
    data = datasets.load(root, "a", version)
    assert data.parts and sum(part.samples for part in data.parts) == data.clips
    for part in data.parts:
        part.verify()


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
