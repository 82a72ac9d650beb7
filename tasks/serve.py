"""One command for all that runs beside the flows: Prefect server, deployments, automations, worker, MLflow UI.

Everything listens on loopback alone. A guard waits at the end of a pipe and kills what is left when this process is
gone, however it went; what belongs to it is known by a mark in the environment, whoever its parent is by then.
"""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Annotated
from urllib.request import ProxyHandler, build_opener

import psutil
import yaml
from click import echo
from pydantic import Field

from storage import files
from storage.errors import InputError

HOST = "127.0.0.1"  # neither server asks for a password, so nobody else may reach them
DEMO, POOL, MARK = "var/demo", "reelmill", "REELMILL_SERVED_BY"  # root and pool as in prefect.yaml
CHECKOUT = Path(__file__).resolve().parent.parent
PATIENCE = 20  # seconds for a process to end
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SETTINGS = {
    "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",  # a page of another site must not drive the server
    # In memory, a run that was killed together with the server would keep the place of its deployment.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # A run that died a minute before the server did must still be found when the server is back, so for a week.
    "PREFECT_SERVER_EVENTS_EXPIRED_BUCKET_BUFFER": "P7D",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",  # into the logs
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes for what is not used here
    "PWD": str(CHECKOUT),  # prefect.yaml reads it
}


class Children:
    """Processes under one mark, with a log each; they end together."""

    def __init__(self, logs: Path) -> None:
        self.logs, mark, self.running = logs, uuid.uuid4().hex, dict[str, subprocess.Popen]()
        self.env = os.environ | {MARK: mark}
        self.guard = self.start("guard", "tasks.serve", mark, stdin=subprocess.PIPE)

    def start(self, name: str, *words: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen:
        """Starts ``python -m WORDS`` in a session of its own: Ctrl-C is for this process, which ends them in order."""
        command = [sys.executable, "-m", *words]
        with open(self.logs / f"{name}.log", "ab") as log:
            self.running[name] = subprocess.Popen(
                command, env=self.env, cwd=CHECKOUT, stdin=stdin, stdout=log, stderr=log, start_new_session=True
            )
        return self.running[name]

    def watch(self, name: str = "", url: str = "") -> None:
        """Waits until a child answers, or for ever; where one ends by itself, leaves with the end of its log."""
        for second in itertools.count(1):
            with suppress(OSError):
                if url and build_opener(ProxyHandler({})).open(url, timeout=5):
                    return echo(f"  {name:<12} answers")
            for dead, process in self.running.items():
                if process.poll() is not None:
                    log = self.logs / f"{dead}.log"
                    last = log.read_text(errors="replace").splitlines()[-15:]
                    said = f"reelmill: {dead} ended with code {process.returncode}; the end of {log}:"
                    raise SystemExit("\n  ".join([said, *last]))
            if url and second % 5 == 0:
                echo(f"  {name:<12} starting, {second} s")
            time.sleep(1)

    def stop(self) -> None:
        """Ends the worker and its runs first, which still tell the server; then the rest. The guard kills who stays."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        alive = {name: psutil.Process(child.pid) for name, child in self.running.items() if child.poll() is None}
        runs = [alive["worker"], *alive.pop("worker").children()] if "worker" in alive else []
        for group in (runs, list(alive.values())):
            for process in group:
                with suppress(psutil.NoSuchProcess):
                    process.terminate()
            psutil.wait_procs(group, timeout=PATIENCE)
        self.guard.communicate()


def guard(mark: str) -> None:
    """Waits for the end of the process that started this one, then kills all that carry its mark."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()
    marked = True
    while marked:
        others = (process for process in psutil.process_iter(["environ"]) if process.pid != os.getpid())
        marked = [process for process in others if (process.info["environ"] or {}).get(MARK) == mark]
        for process in marked:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def register() -> None:
    """Makes the work pool if it is missing; creates the automations, or brings those of the same name up to date."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.events.schemas.automations import AutomationCore

    with get_client(sync_client=True) as client:
        if POOL not in [pool.name for pool in client.read_work_pools()]:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        for spec in yaml.safe_load((CHECKOUT / "automations.yaml").read_text())["automations"]:
            wanted = AutomationCore.model_validate(spec)
            known = client.read_automations_by_name(wanted.name)
            if not known:
                client.create_automation(wanted)
            elif AutomationCore.model_validate(known[0].model_dump()) != wanted:  # updating forgets what it watches
                client.update_automation(known[0].id, wanted)


def start(children: Children, root: str, port: int, mlflow_port: int) -> None:
    """Starts everything, each when what it needs answers."""
    children.start("server", "prefect", "server", "start", "--host", HOST, "--port", str(port))
    tracking = ["--backend-store-uri", os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root}/mlflow/mlflow.db"]
    where = ["--host", HOST, "--port", str(mlflow_port), "--workers", "1", "--no-serve-artifacts"]
    children.start("mlflow", "mlflow", "server", *where, *tracking)
    children.watch("server", f"http://{HOST}:{port}/api/health")
    children.watch("mlflow", f"http://{HOST}:{mlflow_port}/health")  # before any run: both would make the tables
    register()
    spec = json.dumps(yaml.safe_load((CHECKOUT / "prefect.yaml").read_text()), ensure_ascii=False)
    here = children.logs / "prefect.yaml"  # with this root
    here.write_text(spec.replace(DEMO, json.dumps(root, ensure_ascii=False)[1:-1]))
    if children.start("deploy", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(here)).wait():
        children.watch()
    del children.running["deploy"]
    children.start("worker", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", "serve")


def serve(
    root: Annotated[str, Field(description="Local folder that `prepare` or `demo` has written to.")] = DEMO,
    port: Annotated[int, Field(description="Port of the Prefect server.", ge=1, le=65535)] = 4200,
    mlflow_port: Annotated[int, Field(description="Port of the MLflow UI.", ge=1, le=65535)] = 5000,
) -> None:
    """Run everything that schedules need, on this machine alone, until Ctrl-C or SIGTERM.

    Raises `InputError` where the root is not a local root or a port is taken.
    """
    fs, path = files.locate(files.existing_root(root))
    if "file" not in fs.protocol:
        raise InputError(f"{root}: serve needs a local root; for this one start servers of your own, see prefect.yaml")
    for option, number in (("--port", port), ("--mlflow-port", mlflow_port)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, number))
            except OSError as error:
                raise InputError(f"{option} {number}: {error.strerror}; choose another {option}") from error
    origin = f"http://{HOST}:{port}"
    os.environ |= SETTINGS | {"PREFECT_API_URL": f"{origin}/api", "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origin}
    logs = Path(path) / "logs"
    logs.mkdir(exist_ok=True)
    for signum in SIGNALS:
        signal.signal(signum, signal.default_int_handler)
    children = Children(logs)
    try:
        start(children, path, port, mlflow_port)
        echo(
            f"\n  Prefect      {origin}\n  MLflow       http://{HOST}:{mlflow_port}\n  root         {path}\n"
            f"  logs         {logs}\n  start a run  PREFECT_API_URL={origin}/api prefect deployment run 'retrain/nightly'"
            "\n\nCtrl-C ends all of it."
        )
        children.watch()
    except KeyboardInterrupt:
        echo("\nstopping, runs first")
    finally:
        children.stop()


if __name__ == "__main__":
    guard(sys.argv[1])
