"""Everything Reelmill says to MLflow: runs, metrics, datasets, figures, models and the registry's aliases.

The only file that imports mlflow. Calls name the run they are for, so that trainings side by side do not mix.
"""

import contextlib
import functools
import json
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
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
CHAMPION = "champion"
# Tags of a version: when it got the alias; when and why a person took it; the gate's decision in full and in a word.
SINCE, ROLLED_BACK, DECISION = "champion_since", "rolled_back", ("gate", "gate_decision")
NO_ALIAS = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow's answers where there is none
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
    run = c.create_run(_experiment(root), run_name=redact(name), tags=_redacted(tags))
    # Redacted before it is cut: half a secret has no form to know it by.
    shown = [Param(redact(key), redact(str(value))[:500]) for key, value in params.items()]
    c.log_batch(run.info.run_id, params=shown)
    return run.info.run_id


def _redacted(tags: dict[str, str]) -> dict[str, str]:
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
    client(root).log_batch(run, tags=[RunTag(key, value) for key, value in _redacted(tags).items()])


def log_dataset(root: str, run: str, dataset: Dataset, context: str, parts: int) -> None:
    """Ties a frozen dataset, by the digest that is its version, to a run."""
    source = mlflow.data.dataset_source_registry.resolve_dataset_source(
        files.join(root, "datasets", dataset.name, f"{dataset.version}.json")
    )
    made: Any = mlflow.data.meta_dataset.MetaDataset
    meta = made(source, name=dataset.name, digest=dataset.version)
    tags = [InputTag("mlflow.data.context", context), InputTag("parts", str(parts))]
    _log_inputs(root, run, [DatasetInput(meta._to_mlflow_entity(), tags)])


def log_columns(root: str, run: str, used: dict[str, str], parts: list[str], context: str) -> None:
    """Ties the versions of columns that a run reads to it, each by its digest over the parts that it reads."""
    made: Any = mlflow.data.meta_dataset.MetaDataset
    inputs = []
    for column, version in sorted(used.items()):
        folder = files.join(root, "columns", column, version)
        source = mlflow.data.dataset_source_registry.resolve_dataset_source(folder)
        meta = made(source, name=column, digest=columns.digest(root, column, version, parts))
        facts = {"mlflow.data.context": context, "version": version, "parts": str(len(parts))}
        inputs.append(DatasetInput(meta._to_mlflow_entity(), [InputTag(key, value) for key, value in facts.items()]))
    if inputs:
        _log_inputs(root, run, inputs)


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
            tags=_redacted(tags),
            run_id=run,
            validate_serving_input=False,  # it traces all again, for a minute of two streams, and could only warn
        )
    return logged.model_uri


def register(root: str, name: str, uri: str, run: str, tags: dict[str, str]) -> int:
    """Registers a model as the next version under a name; one that is registered already keeps its version."""
    c = client(root)
    with contextlib.suppress(MlflowException):
        c.create_registered_model(name, description="Reelmill detector; see the tags of each version")
    for version, known in versions(root, name).items():
        if known.get("checkpoint_digest") == tags["checkpoint_digest"]:
            return version
    return int(c.create_model_version(name, source=uri, run_id=run, tags=_redacted(tags)).version)


@dataclass(frozen=True)
class ModelVersion:
    """A registered version as the other tasks need it."""

    name: str
    version: int
    run: str
    tags: dict[str, str]

    @property
    def checkpoint(self) -> str:
        return self.tags["checkpoint"]


def champion(root: str, name: str, alias: str = CHAMPION) -> ModelVersion | None:
    """The version that carries the alias ``champion``, or another one, if there is one."""
    try:
        found = client(root).get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code not in NO_ALIAS:  # a server that fails has not said that there is none
            raise
        return None
    return ModelVersion(name, int(found.version), found.run_id or "", dict(found.tags))


def promote(root: str, name: str, version: int) -> Callable[[], None]:
    """Moves the alias ``champion`` to a version; returns what takes that and the gate's decision on it back."""
    c = client(root)
    before, tags = champion(root, name), versions(root, name)[version]
    moves = before is None or before.version != version
    if moves:
        c.set_model_version_tag(name, str(version), SINCE, datetime.now(UTC).isoformat(timespec="microseconds"))
        c.set_registered_model_alias(name, CHAMPION, str(version))

    def back() -> None:
        if before is None:
            c.delete_registered_model_alias(name, CHAMPION)
        elif moves:
            c.set_registered_model_alias(name, CHAMPION, str(before.version))
        for tag_name in (SINCE, *DECISION):
            if tag_name in tags:
                c.set_model_version_tag(name, str(version), tag_name, tags[tag_name])
            else:
                c.delete_model_version_tag(name, str(version), tag_name)

    return back


def registered(root: str) -> list[ModelVersion]:
    """Every version of every model, in order of name and version."""
    c = client(root)
    names = sorted(model.name for model in _all(c.search_registered_models))
    found = [version for name in names for version in _all(functools.partial(_versions_of, c, name))]
    made = [ModelVersion(v.name, int(v.version), v.run_id or "", dict(v.tags)) for v in found]
    return sorted(made, key=lambda one: (one.name, one.version))


def _versions_of(c: MlflowClient, name: str, page_token: str | None = None) -> Any:
    return c.search_model_versions(f"name = '{name}'", page_token=page_token)


def _all(search: Callable[..., Any]) -> list[Any]:
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


def reigns(root: str, name: str) -> list[int]:
    """The versions that have been champion, the last to become it first."""
    since = {version: tags[SINCE] for version, tags in versions(root, name).items() if SINCE in tags}
    return sorted(since, key=lambda version: (since[version], version), reverse=True)


def versions(root: str, name: str) -> dict[int, dict[str, str]]:
    """The tags of every version of a model, the oldest first."""
    found = client(root).search_model_versions(f"name = '{name}'")
    return dict(sorted((int(v.version), dict(v.tags)) for v in found))


def add_to_tag(root: str, name: str, version: int, tag_name: str, value: str) -> None:
    """Adds a value to those, with commas between them, that a tag of a version has; it is there once."""
    c = client(root)
    had = c.get_model_version(name, str(version)).tags.get(tag_name, "")
    if value not in had.split(","):
        c.set_model_version_tag(name, str(version), tag_name, f"{had},{value}".strip(","))


def remove_pictures(root: str, dataset: str) -> None:
    """Removes the pictures with frames of videos from the runs on a dataset version, given as name@version."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    for run in _all(functools.partial(client(root).search_runs, [_experiment(root)], f"tags.dataset = '{dataset}'")):
        repository = get_artifact_repository(run.info.artifact_uri)
        for found in repository.list_artifacts("figures"):
            if found.path.rpartition("/")[2].startswith("timeline_"):
                repository.delete_artifacts(found.path)


def rolled_back(root: str, name: str, version: int) -> str | None:
    """When and why a person took the alias from a version, if one did and nobody gave it back."""
    return client(root).get_model_version(name, str(version)).tags.get(ROLLED_BACK)


def roll_back(root: str, name: str, version: int, to: int, why: str) -> None:
    """Moves the alias from a version to another by a person's word, and keeps that word."""
    c = client(root)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    c.set_model_version_tag(name, str(version), ROLLED_BACK, redact(f"{now} {why}".strip()))
    if rolled_back(root, name, to):
        c.delete_model_version_tag(name, str(to), ROLLED_BACK)
    promote(root, name, to)


def decide(root: str, name: str, version: int, decision: dict[str, Any]) -> None:
    """Keeps the gate's decision, with every number, on the version that it was about."""
    c = client(root)
    for tag_name, value in zip(DECISION, (redact(json.dumps(decision)), decision["decision"]), strict=True):
        c.set_model_version_tag(name, str(version), tag_name, value)


def decided(root: str, name: str, version: int) -> dict[str, Any] | None:
    """The gate's decision on a version, if it was judged before."""
    kept = client(root).get_model_version(name, str(version)).tags.get(DECISION[0])
    return json.loads(kept) if kept else None


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
