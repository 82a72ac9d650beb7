"""`reelmill serve` with a real server, worker and run; and its processes: none outlives it, however it ends."""

import os
import signal
import socket
import subprocess
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from distributed import LocalCluster
from fastapi.testclient import TestClient
from mlflow.environment_variables import MLFLOW_SERVER_ENABLE_JOB_EXECUTION
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.server.api.server import create_app
from prefect.settings import PREFECT_SERVER_METRICS_ENABLED, Settings, temporary_settings

from storage import datasets, files
from storage.errors import InputError
from storage.media import synthetic
from tasks import pool, serve, shard, tracking
from tasks.gate import PROMOTED
from tasks.listing import plan_archive
from tests.servers import prefect_tables, until

CHECKOUT = Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def carrying(name: str, value: object) -> list[psutil.Process]:
    """The processes with a variable in their environment."""
    found = psutil.process_iter(["environ"])
    return [process for process in found if (process.info["environ"] or {}).get(name) == str(value)]


# Before anything starts


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> str:
    """A root with a dataset of six clips, made without Prefect."""
    folder = tmp_path_factory.mktemp("served") / "films: #1"  # a path that YAML would not take unquoted
    root = files.open_root(str(folder))
    rows = [row for s in synthetic.scripts(0, 4, 2, 0.5) for row in synthetic.render(s, folder / "archive")]
    synthetic.write_labels(rows, folder / "labels.csv")
    where, recipe = (str(folder / "archive"), str(folder / "labels.csv")), shard.recipe(10.0, 64, "span", "exact")
    plan, listed = plan_archive(root, "demo", *where, classes=[], held_out=0.5, recipe=recipe)
    found, _ = shard.shard_archive(root, "demo", plan, recipe=recipe, failure_budget=1.0, listed=listed)
    datasets.freeze(root, "demo", found, {"recipe": recipe})
    return root


def test_a_root_that_is_none_is_one_line(tmp_path):
    with pytest.raises(InputError, match="no Reelmill root here"):
        serve.check(str(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()


def test_a_root_elsewhere_is_one_line():
    with pytest.raises(InputError, match="serve needs a local root"):
        serve.check(files.open_root("memory://elsewhere"))


def test_a_taken_port_is_one_line(root):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--mlflow-port {port}: .*in use; choose another --mlflow-port"):
            serve.check(root, **{"port": free_port(), "mlflow-port": port})


def test_settings_reach_prefect_by_these_names(monkeypatch):
    for name, value in serve.SETTINGS.items():
        monkeypatch.setenv(name, value)
    server = Settings().server
    assert server.events.expired_bucket_buffer >= timedelta(days=7)
    assert server.concurrency.lease_storage.endswith("filesystem")
    assert server.api.csrf_protection_enabled and not server.analytics_enabled
    assert not MLFLOW_SERVER_ENABLE_JOB_EXECUTION.get()


@pytest.mark.parametrize("on", [False, True])
def test_metrics_are_switched_on_by_prefects_own_name_and_off_without_it(on, monkeypatch):
    for name in serve.METRICS:
        monkeypatch.delenv(name, raising=False)
    for name, value in (serve.METRICS if on else {}).items():
        monkeypatch.setenv(name, value)
    assert Settings().server.metrics_enabled is on and not Settings().client.metrics.enabled
    with temporary_settings({PREFECT_SERVER_METRICS_ENABLED: on}):
        answer = TestClient(create_app(ignore_cache=True)).get("/api/metrics")
    assert ("python_info" in answer.text and answer.status_code == 200) is on


def test_dask_answers_with_metrics_where_serve_says(monkeypatch):
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    assert pool.dashboard("metrics") == ""
    with LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0") as cluster:
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://127.0.0.1:8786")
        assert pool.dashboard("metrics") == "http://127.0.0.1:8787/metrics", "the port that Dask takes by itself"
        monkeypatch.setenv("DASK_DASHBOARD_ADDRESS", f"http://127.0.0.1:{cluster.scheduler.http_server.port}")
        answer = httpx.get(pool.dashboard("metrics"), follow_redirects=True)
    assert answer.status_code == 200 and "dask_scheduler_tasks" in answer.text


def test_runs_and_the_ui_share_one_database(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert serve.tracking(tmp_path) == tracking._embedded(str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert serve.tracking(tmp_path) == "http://mlflow:5000"


# Processes

MODULES = {
    "parent": """
        import sys
        from pathlib import Path
        from tasks import children as processes
        processes.PATIENCE = 1
        children = processes.Children(Path("."), Path("."))
        try:
            for name in sys.argv[1:]:
                children.start(name, name)
            children.watch()
        finally:
            children.stop(first=sys.argv[1])
    """,
    # With a child in a session of its own, as a worker's runs are; both shrug off SIGTERM.
    "deaf": """
        import signal, subprocess, sys
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        subprocess.run([sys.executable, "-c", code], start_new_session=True)
    """,
    # The same, but each says when it was asked to go.
    "worker": """
        import signal, subprocess, sys
        from polite import go_when_asked
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system buries its child
        subprocess.Popen([sys.executable, "-c", "from polite import *; go_when_asked('run')"])
        go_when_asked("worker")
    """,
    "server": """
        from polite import go_when_asked
        go_when_asked("server")
    """,
    "polite": """
        import signal, time
        def go_when_asked(name):
            def go(*_):
                time.sleep(0.3 if name != "server" else 0)
                with open("order", "a") as order:
                    order.write(f"{name} ")
                raise SystemExit
            signal.signal(signal.SIGTERM, go)
            open(f"{name}.ready", "w").close()
            while True:
                signal.pause()
    """,
    "fails": """
        import time
        time.sleep(2)
        raise SystemExit("out of milk")
    """,
}


def family(folder: Path, *names: str) -> subprocess.Popen:
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text("\n".join(line[8:] for line in text.splitlines()))
    env = os.environ | {"PYTHONPATH": f"{CHECKOUT}:{folder}", "FAMILY": str(folder)}
    command = [sys.executable, "-m", "parent", *names]
    # What runs the tests in the background has Ctrl-C ignored, and a child would inherit that.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        command, cwd=folder, env=env, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=heard
    )


def test_a_killed_parent_takes_everybody_along(tmp_path):
    parent = family(tmp_path, "deaf")
    until("parent, guard, child and grandchild", lambda: len(carrying("FAMILY", tmp_path)) == 4)
    parent.kill()
    parent.communicate()
    until("nobody is left", lambda: not carrying("FAMILY", tmp_path))


def test_ctrl_c_reaches_the_parent_alone_which_ends_runs_before_the_worker_before_servers(tmp_path):
    parent = family(tmp_path, "worker", "server")
    until("everybody listens", lambda: len(list(tmp_path.glob("*.ready"))) == 3)
    os.killpg(parent.pid, signal.SIGINT)
    parent.communicate(timeout=600)
    assert (tmp_path / "order").read_text().split() == ["run", "worker", "server"]
    assert carrying("FAMILY", tmp_path) == []
    assert "KeyboardInterrupt" not in (tmp_path / "worker.log").read_text()


def test_a_child_that_ends_is_named_with_its_last_words_and_ends_the_rest(tmp_path):
    parent = family(tmp_path, "deaf", "fails")
    _, said = parent.communicate(timeout=600)
    assert parent.returncode == 1
    assert b"fails ended with code 1" in said and b"  out of milk" in said
    assert carrying("FAMILY", tmp_path) == []


# The whole of it


@pytest.fixture
def served(root, tmp_path):
    """A running `serve`: its process, a client, its ports and its PREFECT_HOME."""
    home, port, mlflow_port = tmp_path / "prefect", free_port(), free_port()
    prefect_tables(home)
    env = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    env |= {"PREFECT_HOME": str(home), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    env |= {"PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5"}
    ports = ["--port", str(port), "--mlflow-port", str(mlflow_port)]
    with open(tmp_path / "out", "w") as out:
        command = [sys.executable, "-m", "flows", "serve", "--root", root, "--metrics", *ports]
        process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=out, stderr=out)
    try:
        until("started", lambda: "Ctrl-C" in (tmp_path / "out").read_text() or process.poll() is not None, 170)
        assert process.poll() is None, (tmp_path / "out").read_text()
        with SyncPrefectClient(env["PREFECT_API_URL"]) as client:
            yield process, client, (port, mlflow_port), env
    finally:
        process.kill()
        for leftover in carrying("PREFECT_HOME", home):
            leftover.kill()


def only_on_loopback(ports: tuple[int, int], home: str) -> None:
    found = [c for process in carrying("PREFECT_HOME", home) for c in process.net_connections("inet")]
    listening = [connection.laddr for connection in found if connection.status == psutil.CONN_LISTEN]
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert set(ports) <= {address.port for address in listening}


def closed_to_other_sites(api: str) -> None:
    """Neither a plain request of a page elsewhere nor one that asks first gets through."""
    elsewhere = {"Origin": "http://elsewhere.example"}
    assert httpx.post(f"{api}/deployments/filter", json={}, headers=elsewhere).status_code == 403
    assert "access-control-allow-origin" not in httpx.get(f"{api}/version", headers=elsewhere).headers


def everything_is_deployed(client: SyncPrefectClient, root: str) -> dict[str, Any]:
    flows = {flow.id: flow.name for flow in client.read_flows()}
    found = {f"{flows[d.flow_id]}/{d.name}": d for d in client.read_deployments()}
    named = {"prepare/hourly", "retrain/nightly", "retrain/on-take-down", "infer/on-promotion", "audit/daily"}
    assert set(found) == named
    assert {d.parameters["root"] for d in found.values()} == {root}
    assert found["prepare/hourly"].parameters["archive"] == f"{root}/archive"
    assert {d.concurrency_options.collision_strategy for d in found.values()} == {"CANCEL_NEW", "ENQUEUE"}
    return found


def schedules_make_runs(client: SyncPrefectClient, deployment: Any) -> None:
    """The scheduler has put the next runs down: a cron line alone is a promise."""

    def planned() -> list[Any]:
        return [run for run in client.read_flow_runs() if run.auto_scheduled and run.deployment_id == deployment.id]

    assert until("scheduled runs", planned, 100)


def automations(client: SyncPrefectClient) -> dict[str, Any]:
    """As the server keeps them, with the identities of their triggers."""
    found = client.request("POST", "/automations/filter", json={}).json()
    assert len({automation["name"] for automation in found}) == len(found)
    return {automation["name"]: automation for automation in found}


def starting_again_changes_no_automation(client: SyncPrefectClient, env: dict[str, str]) -> None:
    before = automations(client)
    assert len(before) == 6 and all(automation["enabled"] for automation in before.values())
    again = [sys.executable, "-c", "from tasks.serve import register; register()"]
    subprocess.run(again, cwd=CHECKOUT, env=env, check=True)
    assert automations(client) == before, "one that is updated forgets the runs it watches"


def a_run_completes(client: SyncPrefectClient, deployment: Any) -> None:
    run = client.create_flow_run_from_deployment(deployment.id)

    def final() -> Any:
        state = client.read_flow_run(run.id).state
        return state if state.is_final() else None

    state = until("the run's end", final, 90)
    assert state.is_completed(), state.message
    ours = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
    (page,) = [a for a in client.read_artifacts(artifact_filter=ours) if a.key == "audit"]
    assert "# Audit of demo" in page.data


def a_promotion_starts_inference(client: SyncPrefectClient, deployment: Any, root: str) -> None:
    event = {
        "occurred": "2026-01-01T00:00:00Z",
        "event": PROMOTED,
        "resource": {"prefect.resource.id": "reelmill.model.best", "prefect.resource.name": "best"},
        "payload": {"root": root, "dataset": "films", "model": "best"},
        "id": "00000000-0000-4000-8000-000000000001",
    }
    client.request("POST", "/events", json=[event]).raise_for_status()

    def started() -> list[Any]:
        return [run for run in client.read_flow_runs() if run.deployment_id == deployment.id]

    (run,) = until("inference", started, 30)
    assert run.parameters == {"root": root, "dataset": "films", "model": "best"}


def test_serve_runs_what_is_deployed_and_leaves_nothing_behind(served, root):
    process, client, ports, env = served
    found = everything_is_deployed(client, root)
    only_on_loopback(ports, env["PREFECT_HOME"])
    closed_to_other_sites(env["PREFECT_API_URL"])
    counts = httpx.get(f"{env['PREFECT_API_URL']}/metrics")
    assert counts.status_code == 200 and "# TYPE prefect_" in counts.text
    starting_again_changes_no_automation(client, env)
    schedules_make_runs(client, found["audit/daily"])
    a_run_completes(client, found["audit/daily"])
    a_promotion_starts_inference(client, found["infer/on-promotion"], root)

    def engines() -> list[psutil.Process]:
        return [p for p in carrying("PREFECT_HOME", env["PREFECT_HOME"]) if "PREFECT__FLOW_RUN_ID" in p.environ()]

    until("a process of that run", engines, 30)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert carrying("PREFECT_HOME", env["PREFECT_HOME"]) == []
    for port in ports:
        serve.check(root, port=port)
