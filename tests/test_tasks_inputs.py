"""What a training's run in MLflow says of its inputs: every dataset and column by its digest, machine, Prefect run."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import pytest

from storage import columns, datasets, files, tables
from storage.datasets import Dataset
from storage.errors import Damaged
from storage.parts import Part
from tasks import tracking
from tasks.training import pretrain, samples
from tests import traced


@pytest.fixture
def ran(traced, tmp_path, monkeypatch):
    """A run of `tracked_fit` whose training takes a second, and what it trained on."""
    shutil.copytree(traced / "root", tmp_path / "root")
    root, monkeypatched = str(tmp_path / "root"), []
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")

    def fit(spec, title, **_):
        monkeypatched.append(spec)
        time.sleep(1)
        return traced_checkpoint(root), {}

    monkeypatch.setattr(pretrain, "fit", fit)
    data = datasets.load(root, "a")
    spec = pretrain.spec_for(root, data, "detection", traced_recipe())
    above = {"prefect.flow_run_id": "f00", "prefect.flow_run_url": "http://127.0.0.1:4200/runs/flow-run/f00"}
    parent = tracking.start(root, "retrain a", {}, above)
    made = pretrain.tracked_fit(root, spec, "pretrain-detection", data, traced_recipe(), parent)
    return root, data, spec, tracking.client(root).get_run(made["run"])


def traced_checkpoint(root):
    from storage import checkpoints

    (run,) = [name for name in files.names(files.join(root, "checkpoints")) if name.startswith("pretrain")]
    return checkpoints.find(root, run)


def traced_recipe():
    return replace(traced.RECIPE, seed=3)


def test_every_dataset_and_column_is_an_input_by_its_digest(ran):
    root, data, spec, run = ran
    ids = [part["id"] for part in spec.parts]
    inputs = {one.dataset.name: one for one in run.inputs.dataset_inputs}
    assert inputs["a"].dataset.digest == data.version
    for name, version in (("pseudo_labels", spec.labels), ("selection", spec.selection)):
        said = {tag.key: tag.value for tag in inputs[name].tags}
        assert inputs[name].dataset.digest == columns.digest(root, name, version, ids)
        assert said == {"mlflow.data.context": "training", "version": version, "parts": str(len(ids))}
    assert set(inputs) == {"a", "pseudo_labels", "selection", "frames"}


def test_every_kind_of_pretraining_has_the_iterations_of_the_baseline_and_says_so(traced, tmp_path, monkeypatch):
    shutil.copytree(traced / "root", tmp_path / "root")
    root, specs = str(tmp_path / "root"), []
    monkeypatch.setattr(pretrain, "fit", lambda spec, title, **_: specs.append(spec) or (traced_checkpoint(root), {}))
    monkeypatch.setattr(pretrain, "_keep_frames", lambda *_: None)
    data, parent = datasets.load(root, "a"), tracking.start(root, "retrain a", {}, {})
    for kind, mode in (("classification", "mixup"), ("detection", "mixup"), ("detection", "manifold")):
        recipe = replace(traced_recipe(), pretrain_steps=37, augmentation=mode, volumes={})
        run = tracking.client(root).get_run(pretrain.pretrain.fn(root, data, kind, recipe, parent)["run"]).data
        assert run.tags["iterations"] == "37, the same for every kind of pretraining" and run.params["steps"] == "37"
    assert [(spec.objective, spec.augmentation) for spec in specs] == [
        ("classification", "none"), ("detection", "mixup"), ("detection", "manifold")]  # fmt: skip
    assert all(replace(spec, objective="", augmentation="none") == replace(specs[0], objective="") for spec in specs)


def test_the_machine_and_the_prefect_run_are_with_it(ran):
    _, _, _, run = ran
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= run.data.metrics.keys()
    assert run.data.tags["prefect.flow_run_url"].endswith("/flow-run/f00") and run.info.status == "FINISHED"


def test_a_digest_of_a_column_is_of_its_values_over_its_parts(traced, tmp_path):
    shutil.copytree(traced / "root", tmp_path / "root")
    root = str(tmp_path / "root")
    data = datasets.load(root, "a")
    (version,) = columns.versions(root, "predictions")
    ids = [part.id for part in data.parts]
    one = columns.digest(root, "predictions", version, ids)
    assert (
        one
        == columns.digest(root, "predictions", version, ids[::-1])
        != columns.digest(root, "predictions", version, ids[1:])
    )
    table = columns.read(root, "predictions", version, data.parts[0])
    url = columns.url(root, "predictions", version, data.parts[0].id)
    files.remove(url)
    assert columns.digest(root, "predictions", version, ids) == columns.digest(root, "predictions", version, ids[1:])
    changed = table.set_column(1, "times", [[[0.0]] * len(table)])
    columns.write(root, "predictions", version, data.parts[0], changed, {})
    assert columns.digest(root, "predictions", version, ids) != one


def test_labels_beside_other_clips_than_theirs_are_never_trained_on(ran):
    """They are joined by key: the same rows in another order, or one less, end the training before a step."""
    root, _, spec, _ = ran
    part = next(part for part in map(lambda record: Part(**record), spec.parts) if part.samples > 1)
    url = columns.url(root, "pseudo_labels", spec.labels, part.id)
    table, about = tables.both(url)
    samples.samples_of(spec)
    for wrong in (table.take(list(range(len(table)))[::-1]), table.slice(1)):
        files.replace(tables.pack(wrong, about), url)
        with pytest.raises(Damaged, match=f"column pseudo_labels: its keys are not those of part {part.id}"):
            samples.samples_of(spec)


def test_runs_that_name_a_new_input_at_once_all_have_it(tmp_path):
    """Trainings run side by side, and the first of them make MLflow's rows of what they read."""
    root = files.open_root(str(tmp_path))
    runs = [tracking.start(root, f"run {number}", {}, {}) for number in range(4)]
    for turn in range(6):
        data, start = Dataset(f"films {turn}", "v1", [], {}), Barrier(len(runs))

        def log(run, data=data, start=start):
            start.wait()
            tracking.log_dataset(root, run, data, "training", 1)

        with ThreadPoolExecutor(len(runs)) as pool:
            list(pool.map(log, runs))
    for run in runs:
        assert len(tracking.client(root).get_run(run).inputs.dataset_inputs) == 6
