"""One command for all that runs beside the flows: Prefect server, deployments, automations, worker, MLflow UI.

Everything listens on loopback alone and ends with this command, runs included.
"""

import json
import os
import signal
import socket
from pathlib import Path
from typing import Annotated

import yaml
from click import echo
from pydantic import Field

from storage import files
from storage.errors import InputError
from tasks import pool
from tasks.children import SIGNALS, Children

HOST = "127.0.0.1"  # neither server asks for a password, so nobody else may reach them
DEMO, POOL = "var/demo", "reelmill"  # root and work pool of prefect.yaml
CHECKOUT = Path(__file__).resolve().parent.parent
GPUS = Path("/proc/driver/nvidia/gpus")  # a folder for each
SETTINGS = {
    "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",  # a page of another site must not drive the server
    # A run that was killed with the server must be found when the server is back, and not keep its deployment's place.
    "PREFECT_SERVER_EVENTS_EXPIRED_BUCKET_BUFFER": "P7D",
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",  # into the logs
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes for what is not used here
    "PWD": str(CHECKOUT),  # prefect.yaml reads it
}


# Of the server alone: a run's own metrics would listen on every address, and two runs at a time on one port.
METRICS = {"PREFECT_SERVER_METRICS_ENABLED": "true"}


def tracking(root: Path) -> str:
    """Where the runs of a local root are tracked, as `tasks.tracking` has it; importing that takes MLflow's time."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root}/mlflow/mlflow.db"


def deployments(root: Path, out: Path) -> Path:
    """Writes prefect.yaml with a root in place of the demo's (JSON is YAML, and quotes whatever a path may hold)."""
    spec = json.dumps(yaml.safe_load((CHECKOUT / "prefect.yaml").read_text()), ensure_ascii=False)
    out.write_text(spec.replace(DEMO, json.dumps(str(root), ensure_ascii=False)[1:-1]))
    return out


def register() -> None:
    """Makes the work pool and, where there are GPUs, the limit of as many trainings, if they are missing; creates the
    automations, or brings those of the same name up to date."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
    from prefect.events.schemas.automations import AutomationCore

    from tasks.slots import GPU

    with get_client(sync_client=True) as client:
        if POOL not in [pool.name for pool in client.read_work_pools()]:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        gpus = len(list(GPUS.glob("*")))
        if gpus and GPU not in [limit.name for limit in client.read_global_concurrency_limits()]:
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU, limit=gpus))
        for spec in yaml.safe_load((CHECKOUT / "automations.yaml").read_text())["automations"]:
            wanted = AutomationCore.model_validate(spec)
            known = client.read_automations_by_name(wanted.name)
            if not known:
                client.create_automation(wanted)
            elif AutomationCore.model_validate(known[0].model_dump()) != wanted:  # updating forgets what it watches
                client.update_automation(known[0].id, wanted)


def start(children: Children, root: Path, port: int, mlflow_port: int) -> str:
    """Starts everything, each when what it needs answers; returns where MLflow is."""
    mlflow = tracking(root)
    children.start("server", "prefect", "server", "start", "--host", HOST, "--port", str(port))
    if not mlflow.startswith("http"):
        options = ["--host", HOST, "--port", str(mlflow_port), "--workers", "1", "--no-serve-artifacts"]
        options += ["--backend-store-uri", mlflow, "--default-artifact-root", f"{root}/mlflow/artifacts"]
        children.start("mlflow", "mlflow", "server", *options)
        mlflow = f"http://{HOST}:{mlflow_port}"
        children.wait("mlflow", f"{mlflow}/health")  # before any run: both would make the tables
    children.wait("server", f"http://{HOST}:{port}/api/health")
    register()
    spec = deployments(root, children.logs / "prefect.yaml")
    children.finish("deploy", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(spec))
    children.start("worker", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", "serve")
    return mlflow


def check(root: str, **ports: int) -> Path:
    """The folder of a root; raises `InputError` where it is not a writable local one or a port is taken."""
    fs, path = files.locate(files.open_root(files.existing_root(root)))
    if "file" not in fs.protocol:
        raise InputError(f"{root}: serve needs a local root; for this one start servers of your own, see prefect.yaml")
    for option, port in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                raise InputError(f"--{option} {port}: {error.strerror}; choose another --{option}") from error
    return Path(path)


def serve(
    root: Annotated[str, Field(description="Local folder that `prepare` or `demo` has written to.")] = DEMO,
    port: Annotated[int, Field(description="Port of the Prefect server.", ge=1, le=65535)] = 4200,
    mlflow_port: Annotated[int, Field(description="Port of the MLflow UI.", ge=1, le=65535)] = 5000,
    metrics: Annotated[bool, Field(description="Prometheus metrics of Prefect, and where those of Dask are.")] = False,
) -> None:
    """Run all that schedules and promotions need, on this machine alone, until Ctrl-C.

    The deployments of prefect.yaml get ROOT in place of var/demo. Logs are under ROOT/logs.
    """
    folder, origin = check(root, **{"port": port, "mlflow-port": mlflow_port}), f"http://{HOST}:{port}"
    (folder / "logs").mkdir(exist_ok=True)
    os.environ |= SETTINGS | (METRICS if metrics else {})
    os.environ |= {"PREFECT_API_URL": f"{origin}/api", "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origin}
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)
    children = Children(CHECKOUT, folder / "logs")
    try:
        mlflow = start(children, folder, port, mlflow_port)
        echo(f"\n  Prefect      {origin}\n  MLflow       {mlflow}/#/experiments?workflowType=machine_learning")
        echo(f"  root         {folder}\n  logs         {folder / 'logs'}")
        for page in [f"{origin}/api/metrics", pool.dashboard("metrics")] if metrics else []:
            echo(f"  metrics      {page}" if page else "  metrics      of Dask: at /metrics of its dashboard's port")
        echo(f"  run one      PREFECT_API_URL={origin}/api prefect deployment run 'retrain/nightly'")
        echo("\nCtrl-C ends all of it.")
        children.watch()
    except KeyboardInterrupt:
        echo("\nstopping: runs first, then the servers")
    finally:
        children.stop(first="worker")
