"""An ensemble and temporal heads as champions: exported, promoted, inferred with, and loaded where this code is not."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from models.gate import Rules
from storage import checkpoints, columns, datasets, files, parts
from tasks import backbone, ensemble, evaluate, gate, predict, registry, scorer, segments, tracking, train_rank
from tasks.train_rank import Spec
from tasks.training import finetune
from tests import lamps
from tests.preparing import prepare

pytestmark = pytest.mark.long
EXPORTED = ("joined", "tgm")  # which takes long
HEADS = ("super_events", "tgm", "pdan")
LOAD = """
import mlflow.pytorch, numpy, torch
for name in {names}:
    model = mlflow.pytorch.load_model(f"models:/{{name}}@champion")
    given = numpy.load(f"{folder}/{{name}}.npz")["given"]
    numpy.save(f"{folder}/{{name}}-answer.npy", model(torch.from_numpy(given)).detach().numpy())
"""


def untrained(root, system, seed=0, **more):
    given = {"options": {"size": "TINY"}, "size": 16, **more}
    spec = Spec(root=root, parts=[], classes=list(lamps.COLOURS), objective="dense", system=system, seed=seed, **given)
    about, weights = train_rank._about(spec), train_rank.build(spec).state_dict()
    return checkpoints.save(root, f"{system}-{seed}", 1, weights, {}, about, True)


def promoted(root, dataset, tuned, name):
    """Evaluates, exports, registers and promotes what a training returned; the last two alone is quicker."""
    checkpoint, run = tuned["checkpoint"], tuned["run"]
    if name not in EXPORTED:
        tags = {"checkpoint": checkpoint.url, "checkpoint_digest": checkpoint.digest}
        registry.promote(root, name, registry.register(root, name, f"runs:/{run}/model", run, tags))
        return checkpoint
    evaluation = evaluate.evaluate_checkpoint(root, dataset, checkpoint, name)
    uri = finetune._log_model(root, run, checkpoint)
    candidate = {"evaluation": evaluation, "checkpoint": checkpoint, "run": run, "model_uri": uri}
    assert gate.gate.fn(root, dataset, name, candidate, name, Rules(), 0)["decision"] == "promoted"
    return checkpoint


@pytest.fixture(scope="module")
def lit(tmp_path_factory):
    """A root of lamps, and the champions on random weights by name: an X3D, an ensemble, and heads on its features."""
    folder = tmp_path_factory.mktemp("champions")
    lamps.render(folder, train=3, held_out=2, weak=0)
    late, labels = folder / "archive" / "dense" / "02.mp4", folder / "labels.csv"
    late.rename(folder / "late.mp4")
    labels.write_text("".join(row for row in labels.read_text().splitlines(True) if "02.mp4" not in row))
    root = str(folder / "root")
    dataset, _ = prepare(root, str(folder / "archive"), str(labels))
    parent = tracking.start(root, "retrain", {}, {})
    run = lambda name: tracking.start(root, name, {}, {}, parent)  # noqa: E731
    members = [untrained(root, "x3d", seed) for seed in range(2)]
    made = {"x3d": promoted(root, dataset, {"checkpoint": members[0], "run": run("x3d")}, "x3d")}
    joined = ensemble.ensemble.fn(root, dataset, [{"checkpoint": m} for m in members], "joined", parent)
    made["joined"] = promoted(root, dataset, joined, "joined")
    name = backbone.features(root, "a", "x3d").split()[1].rstrip(";")
    for system in HEADS:
        head = untrained(root, system, options={"size": "TINY", "width": 64}, features=name, frames=48)
        made[system] = promoted(root, dataset, {"checkpoint": head, "run": run(system)}, system)
    return folder, root, dataset, made


@pytest.mark.parametrize("name", ["joined", *HEADS])
def test_the_champion_infers_every_clip_and_its_segments(lit, name):
    _, root, dataset, made = lit
    done = predict.predict.fn(root, "a", name, [])
    assert done["version"] == predict.version(made[name]) and done["clips"] == dataset.clips
    had = [part.samples for part in dataset.parts if part.split == "heldout" and name in EXPORTED]
    assert had or name not in EXPORTED
    assert done["predicted"] == dataset.clips - sum(had)
    for part in dataset.parts:
        for row, (key, times, scores) in zip(
            part.rows(), predict.read_predictions(root, done["version"], part), strict=True
        ):
            assert key == row["key"] and scores.shape == (row["frames"], 3) and len(times) == row["frames"]
        assert files.exists(segments.url(root, done["version"], part.id))
    assert predict.predict.fn(root, "a", name, [])["predicted"] == 0


def test_champions_load_in_a_process_that_knows_none_of_this_code(lit, tmp_path):
    _, root, _, made = lit
    rng = np.random.default_rng(0)
    for name in EXPORTED:
        checkpoint = made[name]
        given = scorer.example(checkpoint).repeat_interleave(2, 0)  # another number of clips, and fewer frames
        given = given[:, :, :12] if name == "joined" else given[:, :21]
        random = rng.integers(0, 256, given.shape) if given.dtype == torch.uint8 else rng.normal(size=given.shape)
        seen = torch.from_numpy(random).to(given.dtype)
        with torch.no_grad():
            wanted = scorer.Scorer(scorer.load(checkpoint.url)).eval()(seen)
        np.savez(tmp_path / f"{name}.npz", given=seen.numpy(), wanted=wanted.numpy())
    program = LOAD.format(names=EXPORTED, folder=tmp_path)
    uri = tracking.client(root)._tracking_client.tracking_uri
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={"PATH": "", "MLFLOW_TRACKING_URI": uri},
        capture_output=True, text=True, timeout=1000,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    for name in EXPORTED:
        wanted = np.load(tmp_path / f"{name}.npz")["wanted"]
        np.testing.assert_allclose(np.load(tmp_path / f"{name}-answer.npy"), wanted, atol=1e-5, err_msg=name)


def test_both_sides_are_measured_in_one_run_and_held_out_parts_are_read_once(lit, monkeypatch):
    _, root, dataset, made = lit
    measured, read = [], []
    of_ours, table = evaluate.footprint, parts.Part.table
    monkeypatch.setattr(
        evaluate, "footprint", lambda checkpoint: measured.append(checkpoint.url) or of_ours(checkpoint)
    )
    monkeypatch.setattr(parts.Part, "table", lambda part, columns=None: read.append(columns) or table(part, columns))
    evaluate._apart.cache_clear()
    challenger = evaluate.evaluate_checkpoint(root, dataset, made["joined"], "challenger")
    assert gate.judge(root, dataset, "x3d", challenger, "joined", Rules(), seed=0)["decision"] == "refused"
    evaluate.held_out(dataset)
    assert len(measured) == 2 and measured[0] == made["joined"].url, "latencies of two days are not compared"
    assert read.count(["content_id"]) == sum(part.split in ("train", "heldout") for part in dataset.parts)


def test_new_videos_get_the_heads_features_from_the_model_that_made_them(lit):
    folder, root, before, made = lit
    late = folder / "archive" / "dense" / "02.mp4"
    (folder / "late.mp4").rename(late)
    found, _ = prepare(root, str(folder / "archive"), str(folder / "labels.csv"))
    data = datasets.freeze(root, "a", found.parts, {"before": before.version})
    name = made["tgm"].about["spec"]["features"]
    assert not all(columns.has(root, "features", name, part.id) for part in data.parts)
    assert f"features {name};" in backbone.features(root, "a", "tgm")
    assert all(columns.has(root, "features", name, part.id) for part in data.parts)
    done = predict.predict.fn(root, "a", "tgm", [])
    assert done["clips"] == data.clips == before.clips + 2 and done["predicted"] == 2
