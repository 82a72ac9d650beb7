"""Prefect's server is silent: killed, stopped, or not there at the start; and many runs that ask it at once."""

import os
import shutil
import signal
import subprocess
import sys
import time

import httpx
import pytest

from storage import datasets
from tests.preparing import CHECKOUT, prepare
from tests.servers import end_with_us, free_ports, prefect_server


class Prefect:
    """A server on SQLite with a home of its own; another one where a test has killed it."""

    def __init__(self, home):
        self.home, self.port = home, free_ports(1)
        self.env = os.environ | {
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
        }
        self.process = prefect_server(self.port, home)

    def run(self, *words: str, program: str = "") -> subprocess.Popen:
        command = [sys.executable, *(["-c", program] if program else ["-m", "flows"]), *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=CHECKOUT, env=self.env, preexec_fn=end_with_us, **pipes)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    holder = [Prefect(tmp_path_factory.mktemp("prefect"))]
    yield holder
    holder[0].process.kill()
    holder[0].process.wait()


@pytest.fixture
def prefect(kept, tmp_path):
    if kept[0].process.poll() is not None:
        kept[0] = Prefect(tmp_path)
    yield kept[0]
    kept[0].process.send_signal(signal.SIGCONT)


@pytest.fixture(scope="module")
def few(archive, tmp_path_factory):
    """Four videos, two with segments."""
    folder = tmp_path_factory.mktemp("few")
    for path in sorted((archive / "archive").rglob("*0.mp4"))[:4]:
        shutil.copy(path, folder)
    return folder


AT_ONCE = """
import os, sys, threading
from flows.__main__ import main, quiet
quiet()
import flows.audit, tasks.checks, tasks.silence, prefect.flow_engine, prefect.task_engine
import mlflow.store.tracking.sqlalchemy_store, mlflow.store.model_registry.sqlalchemy_store
assert threading.active_count() == 1
runs = []
for _ in range(4):
    if not (run := os.fork()):
        main(["audit", "--root", sys.argv[1], "--dataset", "a"])
    runs.append(run)
print([os.waitstatus_to_exitcode(os.waitpid(run, 0)[1]) for run in runs], flush=True)
"""


@pytest.mark.timeout(600)
def test_runs_that_start_at_once_all_end_well(prefect, few, tmp_path):
    """One Prefect server on SQLite, and MLflow's database on SQLite that none of them finds made."""
    root = str(tmp_path / "root")
    prepare(root, str(few))
    said, _ = prefect.run(root, program=AT_ONCE).communicate(timeout=560)
    assert said.splitlines()[-1] == str([0] * 4), said[-3000:]
    runs = httpx.post(f"{prefect.env['PREFECT_API_URL']}/flow_runs/filter", json={}).json()
    assert [run["state_type"] for run in runs if run["name"] == "audit · a"] == ["COMPLETED"] * 4


UPSTREAM = """
from prefect import flow, task
from storage.errors import InputError
from tasks import tracking
from tasks.summary import measured, settled

tracking.end = lambda *told: print("ended:", *told, flush=True)

@task
def first():
    raise InputError("what was wrong at first")

@task
def second(found):
    return found

@flow
def both():
    one, other = first.submit(), second.submit(7)
    two = second.submit(one)
    print("good:", *measured(dict(two=two, other=other)), flush=True)
    settled("root", "run", one, two) if {whole} else two.result()

try:
    both()
except Exception as error:
    print("raised:", error, flush=True)
"""


@pytest.mark.parametrize(("whole", "told"), [(True, "what was wrong at first"), (False, "PENDING")])
def test_of_tasks_that_wait_for_each_other_the_first_that_failed_is_named(prefect, whole, told):
    said, _ = prefect.run(program=UPSTREAM.format(whole=whole)).communicate(timeout=120)
    lines = said.splitlines()
    assert told in [line for line in lines if line.startswith("raised:")][0], said[-2000:]
    assert "good: other" in lines and ("ended: root run FAILED" in lines) == whole


HASTY = "from tasks import silence; silence.AFTER, silence.BEFORE = 6.0, 4.0; from flows.__main__ import main; main()"


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_server_that_never_comes_back_holds_no_run_whose_work_is_done(prefect, few, tmp_path, number):
    """Everything is committed, one line says so and what Prefect was not told, and the code is 0."""
    root = tmp_path / "root"
    words = ["prepare", "--root", str(root), "--archive", str(few), "--per-part", "4"]
    run = prefect.run(*words, program="" if number == signal.SIGKILL else HASTY)
    said = []
    for line in run.stdout:
        said.append(line)
        if "parts to do" in line and prefect.process.poll() is None:
            prefect.process.send_signal(number)
    code, ended = run.wait(), time.time()
    last = max(path.stat().st_mtime for path in root.rglob("*") if path.is_file())
    text = "".join(said)
    assert code == 0 and ended - last < 60, text
    lines = [line for line in said if line.startswith("reelmill:")]
    assert len(lines) == 1 and "the work is done and committed (dataset archive, version" in lines[0], text
    assert "it was not told the end of this run and" in lines[0] and "Traceback" not in text and "--- Error" not in text
    data = datasets.load(str(root), "archive")
    assert data.version in lines[0]
    for part in data.parts:
        part.verify()
    assert list((root / "columns" / "features").rglob("*.parquet"))
    print(f"{ended - last:.1f} s between the last write and the end")


def test_a_server_that_is_stopped_before_the_run_starts_begins_nothing(prefect, few, tmp_path):
    prefect.process.send_signal(signal.SIGSTOP)
    run = prefect.run("prepare", "--root", str(tmp_path / "root"), "--archive", str(few), program=HASTY)
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 2, said
    assert "does not answer, so nothing was begun; start it, or unset PREFECT_API_URL" in said.splitlines()[-1]
    assert not (tmp_path / "root" / "parts").exists()
