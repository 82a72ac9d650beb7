"""Runs on a real server, which is on PostgreSQL where that is installed: they race, wait for a person, come late, die.

One server serves all tests of this file. Retrainings run in forks of one process, as a command line or as what a
worker starts; only what takes long and is no part of it (exporting the model, drawing) is left out.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import UUID, uuid4

import asyncpg
import psutil
import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
from prefect.events.schemas.automations import AutomationCore
from prefect.events.schemas.deployment_triggers import DeploymentEventTrigger
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Pending, Running, Scheduled
from test_tasks_dead_runs import HOLDS
from test_tasks_forget import left, pieces_of

from storage import checkpoints, datasets, files, lineage, tombstones
from tasks import label, registry, retraining, serve, slots, tracking
from tasks.lineage import forget, trace
from tests import lamps, traced
from tests.forked import forks
from tests.preparing import CHECKOUT, prepare
from tests.servers import CREDENTIALS, end_with_us, free_ports, postgres, postgres_programs, prefect_server, until

pytestmark = [pytest.mark.timeout(900), pytest.mark.long]
IMPORTS = """
import flows.retrain, tasks.checks, tasks.silence, prefect.engine, prefect.flow_engine, prefect.task_engine
import mlflow.store.tracking.sqlalchemy_store, mlflow.store.model_registry.sqlalchemy_store
"""
QUICK = """
from tasks.training import finetune
finetune._log_model = lambda root, run, checkpoint: f"runs:/{run}/model"
finetune.draw = lambda *_: []
"""
COMMAND = QUICK + "from flows.__main__ import main; main()"
RACE = (
    QUICK
    + """
import json, os
from flows.__main__ import main
runs = []
for _ in range(2):
    if not (run := os.fork()):
        main()
    runs.append(run)
print(json.dumps({run: os.waitstatus_to_exitcode(os.waitpid(run, 0)[1]) for run in runs}), flush=True)
"""
)
ENGINE = (
    QUICK
    + """
import os, runpy, sys
os.environ["PREFECT__FLOW_RUN_ID"] = sys.argv[1]
runpy.run_module("prefect.engine", run_name="__main__")
"""
)
REGISTER = """
import sys
from pathlib import Path
from tasks import serve
serve.GPUS = Path(sys.argv[1])
serve.register()
"""
DEPLOYMENTS = {one["name"]: one for one in yaml.safe_load((CHECKOUT / "prefect.yaml").read_text())["deployments"]}
QUICKLY = {"root": "", "dataset": "", "pretraining": ["detection"], "pretrain_steps": 1, "finetune_steps": 1}
QUICKLY |= {"successor_drop": 1.0, "class_drop": 1.0}  # so that whoever is trained for a step may follow
WORDS = ["--dataset", "a", "--pretraining", "none", "--finetune-steps", "2"]


@pytest.fixture(scope="module")
def database():
    """The URL of PostgreSQL's database; empty where it is not installed."""
    if programs := postgres_programs():
        with postgres(programs) as url:
            yield url
    else:
        yield ""


@pytest.fixture(scope="module")
def served(database, tmp_path_factory):
    """A server, a client, what its processes have in their environment, and how to start it again."""
    home, port = tmp_path_factory.mktemp("prefect"), free_ports(1)
    env = os.environ | serve.SETTINGS | {"PREFECT_HOME": str(home), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    env |= {"PREFECT_SERVER_DATABASE_CONNECTION_URL": database} if database else {}
    env |= {"PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_LOGGING_LEVEL": "WARNING"}
    one = SimpleNamespace(env=env, start=lambda: prefect_server(port, home, env), home=home)
    one.process = one.start()
    with SyncPrefectClient(env["PREFECT_API_URL"]) as client:
        one.client = client
        yield one
    one.process.kill()
    one.process.wait()


@pytest.fixture(scope="module")
def run(served, tmp_path_factory):
    """Starts a program; the server knows the work pool and the automations, and that there is one GPU."""
    gpus = tmp_path_factory.mktemp("gpus")
    (gpus / "0000:01:00.0").mkdir()
    with forks(IMPORTS, served.env) as runs:
        assert runs.run(str(gpus), program=REGISTER).communicate() == ""
        yield runs.run


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lamps")
    lamps.render(folder, train=3, held_out=5, weak=0)
    prepare(str(folder / "root"), str(folder / "archive"), str(folder / "labels.csv"))
    tracking.client(str(folder / "root"))
    return str(folder / "root")


def deploy(served, name, entrypoint, parameters, strategy=None):
    module, _, function = entrypoint.rpartition(".")
    return served.client.create_deployment(
        served.client.create_flow_from_name(function),
        name,
        entrypoint=entrypoint,
        parameters=parameters,
        work_pool_name=serve.POOL,
        pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(CHECKOUT)}}],
        concurrency_limit=1 if strategy else None,
        concurrency_options=ConcurrencyOptions(collision_strategy=strategy) if strategy else None,
        job_variables=DEPLOYMENTS["nightly"]["work_pool"]["job_variables"],
        tags=["reelmill"],
    )


def state(served, run):
    return served.client.read_flow_run(run).state


@pytest.mark.skipif(not postgres_programs(), reason="PostgreSQL is not installed: apt-get install postgresql")
def test_what_the_server_knows_is_in_postgresql(served, run, database):
    async def pools():
        connection = await asyncpg.connect(database.replace("+asyncpg", ""))
        try:
            return await connection.fetch("select name from work_pool")
        finally:
            await connection.close()

    assert [row["name"] for row in asyncio.run(pools())] == [serve.POOL]
    assert not list(served.home.glob("*.db"))


# One recipe on one dataset


def test_two_that_race_train_once_and_a_third_finds_nothing_to_do(served, run, root):
    said = run("retrain", "--root", root, *WORDS, program=RACE).communicate()
    codes = json.loads(said.splitlines()[-1])
    assert sorted(codes.values()) == [0, 1], said
    winner, loser = (next(pid for pid, code in codes.items() if code == wanted) for wanted in (0, 1))
    assert f"claimed by process {winner} on " in said and f"claimed by process {loser}" not in said
    for once in ("takes a slot of gpu", "step 2/2", "promoted, there was no champion"):
        assert said.count(once) == 1, said
    (training,) = files.names(f"{root}/checkpoints")
    assert checkpoints.find(root, training).final and files.names(f"{root}/claims/train-{training}") == []
    limit = served.client.read_global_concurrency_limit_by_name(slots.GPU)
    assert (limit.limit, limit.active_slots) == (1, 0)
    runs = {r.state.name: r for r in served.client.read_flow_runs() if r.name.startswith("retrain · a")}
    assert set(runs) == {"Completed", "Cancelled"} and "claimed by" in runs["Cancelled"].state.message
    third = run("retrain", "--root", root, *WORDS, program=COMMAND)
    out = third.communicate()
    assert third.returncode == 0 and "nothing to do: a@" in out and "none was promoted" in out, out
    (last,) = [r for r in served.client.read_flow_runs() if r.state.name == "NothingToDo"]
    assert "--no-resume trains it anew" in last.state.message


def test_a_run_that_waits_for_a_person_ends_its_process_and_another_one_goes_on(served, run, root):
    given = {"root": root, "dataset": "a", "pretraining": ["none"], "finetune_steps": 2, "model": "asked"}
    where = deploy(served, "asking", "flows.retrain.retrain", given | {"approval": True})
    flow_run = served.client.create_flow_run_from_deployment(where)

    def process():
        served.client.set_flow_run_state(flow_run.id, Pending(), force=True)
        one = run(str(flow_run.id), program=ENGINE)
        out = one.communicate()
        assert one.returncode == 0, out
        return out

    first = process()
    assert state(served, flow_run.id).name == "Suspended", first
    assert registry.champion(root, "asked") is None
    (waiting,) = registry.versions(root, "asked")
    assert registry.decided(root, "asked", waiting)["asked"] == str(flow_run.id)
    wrong = served.client.request("POST", f"/flow_runs/{flow_run.id}/resume", json={"run_input": {"approve": True}})
    assert wrong.json()["status"] == "REJECT" and state(served, flow_run.id).name == "Suspended", "nobody signed"
    words = ["approve", "--root", root, "--model", "asked", "--by", "ann", "--comment", "seen"]
    said = run(*words, program=COMMAND).communicate()
    assert f"run {flow_run.id} goes on with that" in said, said
    assert state(served, flow_run.id).name == "Resuming"
    again = process()
    assert state(served, flow_run.id).is_completed(), again
    assert "already trained" in again and "approved by ann: seen" in again
    assert registry.champion(root, "asked").version == waiting
    found = tracking.client(root).search_runs(
        [tracking._experiment(root)], f"tags.`prefect.flow_run_id` = '{flow_run.id}'"
    )
    states = [(one.info.status, one.data.tags["mlflow.runName"]) for one in found]
    assert sorted(states) == [("FINISHED", "finetune-none"), ("FINISHED", "retrain a")], "the one run went on"


def test_a_retraining_that_was_killed_is_ended_on_the_server_by_the_next(served, run, root):
    """One that lives is not, nor one that has ended; of one that the server does not know nothing is said."""
    where = deploy(served, "killed", "tests.served_flows.works", {"folder": "none", "seconds": 0})
    alive, done = (
        served.client.create_flow_run_from_deployment(where, state=kind()).id for kind in (Running, Completed)
    )
    for flow_run in (done, uuid4()):
        tracking.start(root, "retrain", {}, {retraining.CLAIM: "retrain-c", "prefect.flow_run_id": str(flow_run)})
    with temporary_settings({PREFECT_API_URL: served.env["PREFECT_API_URL"]}):
        holder = run(root, str(alive), program=HOLDS)
        runs = holder.stdout.readline().split()
        assert len(retraining.end_dead(root, "retrain-other")) == 2 and state(served, alive).is_running()
        holder.kill()
        holder.wait()
        assert set(retraining.end_dead(root, "retrain-other")) == set(runs)
    assert state(served, alive).is_crashed() and state(served, alive).message == retraining.GONE
    assert state(served, done).is_completed()


# A take-down

TAKEN_DOWN = "weak/01.mp4"
WITH = "import json, os, sys; os.environ.update(json.loads(sys.argv.pop(1)))\n"


def test_a_take_down_on_object_storage_ends_with_a_champion_that_never_saw_the_source(
    served, run, place, tmp_path, monkeypatch
):
    """It tags the model and schedules a retraining, which runs on what is left; no byte of the source is anywhere."""
    root = place("seaweed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    env = json.dumps({name: os.environ[name] for name in (*CREDENTIALS, "AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI")})
    where = deploy(served, "on-take-down", "flows.retrain.retrain", QUICKLY)
    watch(served, where)
    lamps.render(tmp_path, train=3, held_out=5, weak=3)
    old, _ = prepare(root, str(tmp_path / "archive"), str(tmp_path / "labels.csv"), units=4)
    tracking.client(root).create_experiment(tracking.EXPERIMENT, artifact_location=(tmp_path / "artifacts").as_uri())
    label.label_dataset(root, old)
    assert traced.champion(root, old) == 1
    (row,) = [row for row in lineage.clips(root).to_pylist() if row["path"] == TAKEN_DOWN]
    clips = {row["key"]: (row["path"], media, {}) for part in old.parts for row, media in part.clips()}
    names, pieces = [TAKEN_DOWN, row["identity"], row["content_id"], row["sha256"]], pieces_of(clips, TAKEN_DOWN)
    assert left(root, names[:1], pieces[:1])

    said = run(env, "forget", TAKEN_DOWN, "--root", root, program=WITH + COMMAND).communicate()
    assert "proved: " in said and f"{forget.EVENT} was emitted for detector" in said, said
    (stone,) = tombstones.read(root)
    assert registry.versions(root, "detector")[1][tombstones.TAG] == stone.id
    asked = until("a retraining is scheduled", lambda: [r for r in served.client.read_flow_runs()
                                                        if r.deployment_id == where])  # fmt: skip
    assert len(asked) == 1 and asked[0].state.is_scheduled()
    assert asked[0].parameters.items() >= {"root": root, "dataset": "a", "model": "detector"}.items()

    served.client.set_flow_run_state(asked[0].id, Pending(), force=True)
    process = run(env, str(asked[0].id), program=WITH + ENGINE)
    out = process.communicate()
    assert process.returncode == 0 and state(served, asked[0].id).is_completed(), out
    data, champion = datasets.load(root, "a"), registry.champion(root, "detector")
    assert data.version != old.version and champion.version != 1 and not champion.taken_down, out
    assert registry.decided(root, "detector", champion.version)["taken_down"] == stone.id
    rows, tree = trace.of_model(root, "models:/detector@champion")
    assert set(rows["dataset"].to_pylist()) == {f"a@{data.version}"} and not [r for r in tree if "forgotten" in r]
    assert set(rows["path"].to_pylist()) == {*(f"dense/{n:02d}.mp4" for n in range(3)), "weak/00.mp4", "weak/02.mp4"}
    assert left(root, names, pieces) == []
    again = run(env, "forget", TAKEN_DOWN, "--root", root, program=WITH + COMMAND).communicate()
    assert "proved: " in again and forget.EVENT not in again, again


def watch(served, where):
    """Has the trigger of prefect.yaml start a deployment, as `prefect deploy` does."""
    found = DeploymentEventTrigger.model_validate(DEPLOYMENTS["on-take-down"]["triggers"][0])
    found.set_deployment_id(where)
    served.client.create_automation(found.as_automation())


# A worker


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("works")


@pytest.fixture(scope="module")
def works(served, run, folder):
    """A deployment that cancels what comes while one of it runs, as those of prefect.yaml do."""
    given = {"folder": str(folder), "seconds": 600}
    return deploy(served, "works", "tests.served_flows.works", given, ConcurrencyLimitStrategy.CANCEL_NEW)


@pytest.fixture(scope="module")
def worker(served, works, folder):
    """Starts a worker, unless there is one."""
    started = []

    def start():
        if started:
            return started[0]
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", serve.POOL, "--type", "process"]
        with open(folder / "worker.log", "ab") as log:
            options = {"cwd": CHECKOUT, "env": served.env, "stdout": log, "stderr": log, "preexec_fn": end_with_us}
            started.append(subprocess.Popen(command, **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def engines(flow_run):
    """The processes of a run."""
    found = psutil.process_iter(["environ"])
    return [p for p in found if (p.info["environ"] or {}).get("PREFECT__FLOW_RUN_ID") == str(flow_run)]


def test_late_runs_end_as_one_and_a_server_that_is_killed_meanwhile_loses_none(served, works, worker, folder):
    late = []
    for hours in range(4, 0, -1):
        then = Scheduled(scheduled_time=datetime.now(UTC) - timedelta(hours=hours))
        late.append(served.client.create_flow_run_from_deployment(works, state=then).id)
    worker()
    (began,) = until("one begins", lambda: list(folder.glob("*.began")))
    until("the others are cancelled", lambda: sum(state(served, r).is_cancelled() for r in late) == 3)
    runs = UUID(began.stem)
    assert runs in late and state(served, runs).is_running()
    served.process.kill()
    served.process.wait()
    time.sleep(3)
    served.process = served.start()
    (folder / "enough").touch()
    until("it ends well", lambda: state(served, runs).is_completed())
    done = int(began.with_suffix(".done").read_text())
    assert done >= 3 and len(list(folder.glob("*.began"))) == 1
    until("its tasks are told", lambda: len(completed(served, runs)) == done)
    (folder / "enough").unlink()


def completed(served, runs):
    found = served.client.request("POST", "/task_runs/filter", json={"flow_runs": {"id": {"any_": [str(runs)]}}}).json()
    return [task for task in found if task["state_type"] == "COMPLETED"]


def test_a_run_that_was_killed_with_its_worker_is_found_and_its_place_is_free(served, works, worker):
    """The automation that `reelmill serve` registers, with less patience."""
    for spec in yaml.safe_load((CHECKOUT / "automations.yaml").read_text())["automations"][:1]:
        spec |= {"name": "soon", "trigger": spec["trigger"] | {"within": 12}}
        served.client.create_automation(AutomationCore.model_validate(spec))
    flow_run = served.client.create_flow_run_from_deployment(works).id
    process = worker()
    until("it runs", lambda: state(served, flow_run).is_running())
    found = until("its process", lambda: engines(flow_run))
    until("it gave a sign of life", lambda: heartbeats(served, flow_run))
    process.send_signal(signal.SIGKILL)
    for one in found:
        one.kill()
    until("it is found", lambda: state(served, flow_run).is_crashed())
    assert "No heartbeat" in state(served, flow_run).message
    name = f"deployment:{works}"
    try:
        assert served.client.read_global_concurrency_limit_by_name(name).active_slots == 0
    except ObjectNotFound:
        pytest.fail(name)


def heartbeats(served, flow_run):
    wanted = {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": {"id": [f"prefect.flow-run.{flow_run}"]}}
    return served.client.request("POST", "/events/filter", json={"filter": wanted}).json()["events"]
