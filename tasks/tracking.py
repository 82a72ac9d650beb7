"""What Reelmill says to MLflow of its runs: parameters, metrics, datasets, figures and models.

The versions of models are in tasks/registry.py.

The only file that imports mlflow. Calls name the run they are for, so that trainings side by side do not mix.
"""

import contextlib
import functools
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from storage import columns, files, local
from storage.datasets import Dataset
from storage.errors import InputError
from storage.secrets import redact

# Both concern choices that are made for us and are right here.
warnings.filterwarnings("ignore", message="The specified dataset source can be interpreted")
warnings.filterwarnings("ignore", message="No complete tensor found in the group")

EXPERIMENT = "reelmill"
EXPORTING = threading.Lock()  # torch.export keeps one stack of modes for all threads
EVERY = 10.0  # seconds that metrics wait for more
BATCH = 500  # metrics a call; one call per metric is 25 times slower


def client(root: str) -> MlflowClient:
    """A client for ``MLFLOW_TRACKING_URI``, or for SQLite under a local root where that is not set."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    uri = given or _embedded(root)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    if given is None:  # mlflow has just set it, and the next root would take it for the caller's wish
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        _make_tables(uri)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _embedded(root: str) -> str:
    fs, path = files.locate(root)
    if "file" not in fs.protocol:
        raise InputError(f"{root}: tracking on SQLite needs a local root; set MLFLOW_TRACKING_URI to an MLflow server")
    folder = Path(path) / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / 'mlflow.db'}"


@functools.cache
def _make_tables(uri: str) -> None:
    """Makes MLflow's tables, one process at a time: two that begin at once on a new database fail each other."""
    with local.locked(uri.removeprefix("sqlite:///")):
        MlflowClient(tracking_uri=uri, registry_uri=uri)  # fetches its store, which makes them where there are none


def _experiment(root: str) -> str:
    """The id of the experiment; made with artifacts under the root where tracking is embedded."""
    c = client(root)
    found = c.get_experiment_by_name(EXPERIMENT)
    if found:
        return found.experiment_id
    embedded = not os.environ.get("MLFLOW_TRACKING_URI")
    place = (Path(files.locate(root)[1]) / "mlflow" / "artifacts").as_uri() if embedded else None
    try:
        return c.create_experiment(EXPERIMENT, artifact_location=place)
    except MlflowException:  # another process was faster
        return c.get_experiment_by_name(EXPERIMENT).experiment_id  # type: ignore[union-attr]


def start(root: str, name: str, params: dict[str, Any], tags: dict[str, str], parent: str | None = None) -> str:
    """Starts a run and returns its id; its parameters are set once, here."""
    c = client(root)
    if parent:
        tags = {**tags, "mlflow.parentRunId": parent}
    run = c.create_run(_experiment(root), run_name=redact(name), tags=redacted(tags))
    # Redacted before it is cut: half a secret has no form to know it by.
    shown = [Param(redact(key), redact(str(value))[:500]) for key, value in params.items()]
    c.log_batch(run.info.run_id, params=shown)
    return run.info.run_id


def redacted(tags: dict[str, str]) -> dict[str, str]:
    return {redact(key): redact(value) for key, value in tags.items()}


def resume_or_start(
    root: str, name: str, identity: str, params: dict[str, Any], tags: dict[str, str], parent: str | None
) -> str:
    """The run of a training with this identity, begun earlier and perhaps interrupted, or a new one.

    It has the Prefect run of its parent, if it has one: the one that works on it now.
    """
    c = client(root)
    above = c.get_run(parent).data.tags if parent else {}
    tags = {**tags, **{name: value for name, value in above.items() if name.startswith("prefect.")}}
    if known := training(root, identity):
        tag(root, known[0], tags)
        if "failure" in c.get_run(known[0]).data.tags:
            c.delete_tag(known[0], "failure")  # it goes on
        c.update_run(known[0], status="RUNNING")
        return known[0]
    return start(root, name, params, {**tags, "reelmill.training": identity}, parent)


def end(root: str, run: str, status: str = "FINISHED") -> None:
    client(root).set_terminated(run, status)


@dataclass
class MetricBuffer:
    """Collects metrics of a run and sends them in batches; those named ``once`` have one value a step.

    A training that goes on comes by steps again that it told of before it was killed.
    """

    root: str
    run: str
    once: Collection[str] = ()

    def __post_init__(self) -> None:
        self.client = client(self.root)
        self.waiting: list[Metric] = []
        self.sent = time.monotonic()
        self.known = {(name, m.step) for name in self.once for m in self.client.get_metric_history(self.run, name)}

    def add(self, values: dict[str, float], step: int = 0) -> None:
        now = int(time.time() * 1000)
        new = {name: value for name, value in values.items() if (name, step) not in self.known}
        self.known |= {(name, step) for name in new if name in self.once}
        self.waiting += [Metric(redact(name), float(value), now, step) for name, value in new.items()]
        if len(self.waiting) >= BATCH or time.monotonic() - self.sent > EVERY:
            self.flush()

    def flush(self) -> None:
        for start_at in range(0, len(self.waiting), BATCH):
            self.client.log_batch(self.run, metrics=self.waiting[start_at : start_at + BATCH])
        self.waiting, self.sent = [], time.monotonic()


def log_metrics(root: str, run: str, values: dict[str, float]) -> None:
    """Logs final values of a run."""
    buffer = MetricBuffer(root, run)
    buffer.add(values)
    buffer.flush()


def tag(root: str, run: str, tags: dict[str, str]) -> None:
    client(root).log_batch(run, tags=[RunTag(key, value) for key, value in redacted(tags).items()])


def log_dataset(root: str, run: str, dataset: Dataset, context: str, parts: int) -> None:
    """Ties a frozen dataset, by the digest that is its version, to a run."""
    place = files.join(root, "datasets", dataset.name, f"{dataset.version}.json")
    facts = {"mlflow.data.context": context, "parts": str(parts)}
    _log_inputs(root, run, [_input(place, dataset.name, dataset.version, facts)])


def log_columns(root: str, run: str, used: dict[str, str], parts: list[str], context: str) -> None:
    """Ties the versions of columns that a run reads to it, each by its digest over the parts that it reads."""
    inputs = []
    for column, version in sorted(used.items()):
        facts = {"mlflow.data.context": context, "version": version, "parts": str(len(parts))}
        digest = columns.digest(root, column, version, parts)
        inputs.append(_input(files.join(root, "columns", column, version), column, digest, facts))
    if inputs:
        _log_inputs(root, run, inputs)


def _input(place: str, name: str, digest: str, facts: dict[str, str]) -> DatasetInput:
    made: Any = mlflow.data.meta_dataset.MetaDataset
    meta = made(mlflow.data.dataset_source_registry.resolve_dataset_source(place), name=name, digest=digest)
    return DatasetInput(meta._to_mlflow_entity(), [InputTag(key, value) for key, value in facts.items()])


def _log_inputs(root: str, run: str, inputs: list[DatasetInput]) -> None:
    """MLflow looks for a dataset and makes it in two steps: of runs that name a new one at once, one finds it made."""
    for again in (True, True, False):
        try:
            client(root).log_inputs(run, inputs)
            return
        except MlflowException as error:
            if not again or "UNIQUE" not in str(error).upper():
                raise


@contextlib.contextmanager
def watched(root: str, run: str) -> Iterator[None]:
    """Logs what of the machine is in use, processors, memory, disk and GPUs, every ten seconds of the block."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    client(root)
    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or _embedded(root)
    monitor = SystemMetricsMonitor(run, resume_logging=True, tracking_uri=uri)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


def log_files(root: str, run: str, paths: list[Path], folder: str) -> None:
    """Uploads figures and tables."""
    for path in paths:
        client(root).log_artifact(run, str(path), folder)


def log_failure(root: str, run: str, message: str, clips: dict[str, list[str]]) -> None:
    """Keeps why a run failed: the first line as a tag, all of it as a file, and clips that led there, by step."""
    tag(root, run, {"failure": message.partition("\n")[0][:5000]})
    client(root).log_text(run, redact(message), "failure/log.txt")
    if clips:
        client(root).log_dict(run, clips, "failure/clips.json")


def log_model(root: str, run: str, model: Any, example: Any, tags: dict[str, str]) -> str:
    """Logs a module as an exported program with signature and input example; returns its URI.

    ``model`` maps uint8 `[B, 3, T, S, S]`, or float32 features `[B, T, D]`, to scores `[B, T, K]`; B and T stay free.
    What is logged runs without this code; Reelmill itself reads the checkpoint that the tags name.
    """
    import mlflow.pytorch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    client(root)
    K = model(example).shape[-1]
    free = {0, 2 if example.ndim == 5 else 1}  # B and T
    shape = tuple(-1 if i in free else size for i, size in enumerate(example.shape))
    signature = ModelSignature(
        inputs=Schema([TensorSpec(example.numpy().dtype, shape)]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, -1, K))]),
    )
    with EXPORTING:
        mlflow.set_experiment(experiment_id=_experiment(root))  # whose artifacts are under the root, not in ./mlruns
        logged = mlflow.pytorch.log_model(
            model,
            name="model",
            input_example=example.numpy(),
            signature=signature,
            serialization_format="pt2",
            # Named, not inferred: inferring starts a process that loads the model again.
            pip_requirements=[f"{name}=={metadata.version(name)}" for name in ("torch", "numpy")],
            tags=redacted(tags),
            run_id=run,
            validate_serving_input=False,  # it traces all again, for a minute of two streams, and could only warn
        )
    return logged.model_uri


def every(search: Callable[..., Any]) -> list[Any]:
    """What a search has on all its pages."""
    page = search()
    found = list(page)
    while page.token:
        page = search(page_token=page.token)
        found += page
    return found


def training(root: str, identity: str) -> tuple[str, dict[str, str]] | None:
    """The run, and its tags, of the training that made the checkpoints of this name; None where nothing tells."""
    wanted = f"tags.`reelmill.training` = '{identity}'"
    for run in client(root).search_runs([_experiment(root)], wanted, max_results=1):
        return run.info.run_id, dict(run.data.tags)
    return None


def running(root: str) -> dict[str, dict[str, str]]:
    """The tags of the runs that MLflow takes for running, by id; of processes that were killed, too."""
    search = functools.partial(client(root).search_runs, [_experiment(root)], "attributes.status = 'RUNNING'")
    return {run.info.run_id: dict(run.data.tags) for run in every(search)}


def is_running(root: str, run: str) -> bool:
    """Whether MLflow takes a run for running."""
    return bool(client(root).get_run(run).info.status == "RUNNING")


def trained(root: str) -> list[Any]:
    """The runs of trainings that came to an end, the newest first."""
    if (found := client(root).get_experiment_by_name(EXPERIMENT)) is None:  # who only looks makes none
        return []
    return every(functools.partial(client(root).search_runs, [found.experiment_id], "metrics.train_seconds > 0"))


def remove_pictures(root: str, dataset: str) -> None:
    """Removes pictures with frames of videos, and pages, from the runs on a dataset version, given as name@version."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    for run in every(functools.partial(client(root).search_runs, [_experiment(root)], f"tags.dataset = '{dataset}'")):
        repository = get_artifact_repository(run.info.artifact_uri)
        for found in [*repository.list_artifacts("figures"), *repository.list_artifacts("report")]:
            if found.path.rpartition("/")[2].startswith(("timeline_", "page")):
                repository.delete_artifacts(found.path)


def run_url(root: str, run: str) -> str:
    """Where a person finds the run: the server's page, or the database it is in."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or _embedded(root)
    if uri.startswith("http"):
        uri = f"{uri.rstrip('/')}/#/experiments/{_experiment(root)}/runs/{run}"
    else:
        uri = f"{uri}#run={run}"
    return redact(uri)


def export(root: str, run: str) -> dict[str, Any]:
    """Parameters, metrics and tags of a run."""
    data = client(root).get_run(run).data
    return {"params": data.params, "metrics": data.metrics, "tags": data.tags}
