"""Prefect's server is silent: away for a while, for ever, or from the start; and many runs that ask it at once."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import httpx
import pytest
import yaml

from storage import datasets, files
from tests.forked import forks
from tests.preparing import CHECKOUT, prepare
from tests.servers import free_ports, prefect_server

IMPORTS = """
import flows.audit, flows.prepare, tasks.checks, tasks.silence, prefect.flow_engine, prefect.task_engine
import mlflow.store.tracking.sqlalchemy_store, mlflow.store.model_registry.sqlalchemy_store
"""
DEPLOYED = (CHECKOUT / "prefect.yaml").read_text()
COMMAND = "from flows.__main__ import main; main()"


class Prefect:
    """A server on SQLite, and forks of a process whose runs it is told of."""

    def __init__(self, home: Path) -> None:
        self.home, self.port = home, free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.start()

    def start(self) -> None:
        self.process = prefect_server(self.port, self.home)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    made = Prefect(tmp_path_factory.mktemp("prefect"))
    env = os.environ | {"PREFECT_HOME": str(made.home), "PREFECT_API_URL": made.url}
    with forks(IMPORTS, env) as runs:
        made.run = runs.run
        yield made
    made.kill()


@pytest.fixture
def prefect(kept):
    """The server, which answers: one that a test has killed is there again, with what it knew."""
    if kept.process.poll() is not None:
        kept.start()
    yield kept
    kept.process.send_signal(signal.SIGCONT)


@pytest.fixture(scope="module")
def few(archive, tmp_path_factory):
    """Four videos, two with segments."""
    folder = tmp_path_factory.mktemp("few")
    for path in sorted((archive / "archive").rglob("*0.mp4"))[:4]:
        shutil.copy(path, folder)
    return folder


AT_ONCE = """
import os, sys
from flows.__main__ import main
from tasks import silence, telling
# A server that shares two cores with all other tests may take longer than people would wait.
telling.HASTE, silence.ANSWER, silence.BEFORE, silence.AFTER = 60.0, 30.0, 240.0, 240.0
runs = []
for _ in range(3):
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
    said = prefect.run(root, program=AT_ONCE).communicate()
    assert said.splitlines()[-1] == str([0] * 3), said[-3000:]
    runs = httpx.post(f"{prefect.url}/flow_runs/filter", json={}).json()
    assert [run["state_type"] for run in runs if run["name"].startswith("audit · a")] == ["COMPLETED"] * 3


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
    said = prefect.run(program=UPSTREAM.format(whole=whole)).communicate()
    lines = said.splitlines()
    assert told in [line for line in lines if line.startswith("raised:")][0], said[-2000:]
    assert "good: other" in lines and ("ended: root run FAILED" in lines) == whole


AWAY = """
import sys
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


def test_a_server_that_is_away_for_a_while_fails_nothing(prefect, few, tmp_path):
    """Killed while parts are made, back after some seconds."""
    root = files.open_root(str(tmp_path / "root"))
    run = prefect.run(root, str(few), program=AWAY)
    said = []
    for line in run.stdout:
        said.append(line)
        if "parts to do" in line and not any("parts to do" in earlier for earlier in said[:-1]):
            prefect.kill()
            time.sleep(3)
            prefect.start()
    assert run.wait() == 0, "".join(said[-30:])
    assert any("parts to do" in line for line in said)
    version = next(line.split()[-1] for line in said if line.startswith("ended with"))
    data = datasets.load(root, "a", version)
    assert data.parts and sum(part.samples for part in data.parts) == data.clips
    for part in data.parts:
        part.verify()


ENDS = """
import sys, time
from pathlib import Path
from prefect import flow
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

@flow
def ends():
    print("works", flush=True)
    while not Path(sys.argv[1]).exists():
        time.sleep(0.1)
    print("is done", flush=True)

with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: int(sys.argv[2])}):
    ends()
"""


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_run_that_ends_while_the_server_is_away_is_told_when_it_is_back(prefect, tmp_path):
    """With the retries of prefect.yaml, as the process of a worker has them; Prefect's own are over after 75 s."""
    (env,) = {json.dumps(one["work_pool"]["job_variables"]["env"]) for one in yaml.safe_load(DEPLOYED)["deployments"]}
    run = prefect.run(str(tmp_path / "enough"), json.loads(env)["PREFECT_CLIENT_MAX_RETRIES"], program=ENDS)
    lines = iter(run.stdout)
    assert next(line for line in lines if "works" in line)
    prefect.kill()
    (tmp_path / "enough").touch()
    assert next(line for line in lines if "is done" in line)
    time.sleep(80)
    prefect.start()
    said = "".join(lines)
    assert run.wait() == 0, said
    (known,) = httpx.post(f"{prefect.url}/flow_runs/filter", json={"flows": {"name": {"any_": ["ends"]}}}).json()
    assert known["state_type"] == "COMPLETED"


HASTY = f"from tasks import silence; silence.AFTER, silence.BEFORE = 6.0, 4.0; {COMMAND}"


def test_a_server_that_is_stopped_before_the_run_starts_begins_nothing(prefect, few, tmp_path):
    prefect.process.send_signal(signal.SIGSTOP)
    run = prefect.run("prepare", "--root", str(tmp_path / "root"), "--archive", str(few), program=HASTY)
    said = run.communicate()
    assert run.returncode == 2, said
    assert "does not answer, so nothing was begun; start it, or unset PREFECT_API_URL" in said.splitlines()[-1]
    assert not (tmp_path / "root" / "parts").exists()


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_server_that_never_comes_back_holds_no_run_whose_work_is_done(prefect, few, tmp_path, number):
    """Everything is committed, one line says so and what Prefect was not told, and the code is 0."""
    root = tmp_path / "root"
    run = prefect.run("prepare", "--root", str(root), "--archive", str(few), "--per-part", "4", program=HASTY)
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
