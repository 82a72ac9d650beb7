"""The demo as a newcomer runs it, small: one command, its summary, and two more that find nothing to do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from storage import datasets
from tasks import registry, tracking
from tests.servers import prefect_tables

pytestmark = pytest.mark.timeout(900)  # on a busy machine
CHECKOUT = Path(__file__).parent.parent
STEPS = ["--pretrain-steps", "12", "--finetune-steps", "12"]
WORDS = {
    "demo": ["--weak", "8", "--dense", "9", *STEPS],
    "prepare": ["--archive", "{root}/archive", "--labels", "{root}/labels.csv", "--name", "demo"],
    "retrain": ["--dataset", "demo", "--model", "detector-5", "--pretraining", "detection", *STEPS],
}
# One process and one server of Prefect for all three: each would take the time of a demo's work to start.
PROGRAM = """
import json, sys
from pathlib import Path
from flows.__main__ import main, quiet
quiet()
from tasks import silence
silence.AFTER = 3600.0  # it ends a process whose flow is done; here others follow
root, words = sys.argv[1], json.loads(sys.argv[2])
for command, given in words.items():
    for path in (Path(root) / "archive" / "real").glob("*"):
        path.touch()  # which leaves a doubt that only reading all of a large file can settle
    print("begins:", flush=True)
    main([command, "--root", root, "--seed", "5", *given], standalone_mode=False)
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """The root, and what each command printed on it."""
    root = tmp_path_factory.mktemp("demo")
    env = {**os.environ, "PREFECT_HOME": str(tmp_path_factory.mktemp("home"))}
    prefect_tables(Path(env["PREFECT_HOME"]))
    env.pop("PREFECT_API_URL", None)
    words = {command: [word.format(root=root) for word in given] for command, given in WORDS.items()}
    line = [sys.executable, "-c", PROGRAM, str(root), json.dumps(words)]
    done = subprocess.run(line, cwd=CHECKOUT, env=env, capture_output=True, text=True, timeout=1100)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return root, dict(zip(WORDS, done.stdout.split("begins:\n")[1:], strict=True))


@pytest.fixture(scope="module")
def ran(said):
    root, printed = said
    return root, printed["demo"], json.loads((root / "summary.json").read_text())


def test_every_file_is_accounted_for(ran):
    archive = ran[2]["archive"]
    assert archive["quarantined"] == {"empty": 1, "truncated": 1, "no_video_stream": 1, "not_video": 2}
    assert archive["videos"] == archive["kept"] + archive["dropped"] + 5 == 8 + 9 + 5 + 4


def test_the_second_run_decodes_nothing(ran):
    assert ran[2]["decoded_first_run"] >= 17 and ran[2]["decoded_second_run"] == 0
    assert ran[2]["infer"]["recomputed_second_run"] == 0


def test_three_candidates_are_measured_and_gated(ran):
    summary = ran[2]
    assert set(summary["map"]) == {"classification_pretraining", "detection_pretraining", "no_pretraining"}
    assert all(0 < value < 1 for value in summary["map"].values())
    assert summary["gates"]["classification"]["why"] == "there was no champion"
    assert summary["gate"]["ci_low"] <= summary["gate"]["delta"] <= summary["gate"]["ci_high"]
    assert (summary["gate"]["decision"] == "promoted") == (summary["gate"]["ci_low"] > 0)


def test_few_task_runs(ran):
    assert all(0 < count < 50 for count in ran[2]["task_runs"].values())


def test_progress_and_summary_are_on_the_terminal(ran):
    for word in ("ETA", "loss", "quarantined", "gate", "decoded", "make serve"):
        assert word in ran[1]


def test_predictions_and_segments_are_tables(ran):
    infer = ran[2]["infer"]
    dataset = datasets.load(str(ran[0]), "demo")
    wanted = [p for p in dataset.parts if p.split in ("heldout", "unlabelled")]
    tables = [pq.read_table(f"{infer['predictions']}/{part.id}.parquet") for part in wanted]
    assert sum(t.num_rows for t in tables) == infer["clips"]
    assert pq.read_metadata(infer["segments_table"]).num_rows == infer["segments"]


def test_pictures_are_there(ran):
    pictures = [Path(ran[2]["figures"]["volumes"])]
    pictures += [
        Path(ran[2]["figures"]["detection"]) / n for n in ("timeline_0.png", "precision_recall.png", "losses.png")
    ]
    assert all(p.read_bytes()[:4] == b"\x89PNG" for p in pictures)


def test_every_run_left_its_page(ran):
    pages = {flow: Path(url) for flow, url in ran[2]["reports"].items()}
    assert {flow: path.name.partition("-")[0] for flow, path in pages.items()} == {name: name for name in pages}
    assert all("</html>" in path.read_text() and path.stat().st_size < 3e6 for path in pages.values())
    assert str(pages["infer"]) in ran[1] and "could not be made" not in ran[1]


def test_features_are_real_embeddings(ran):
    root = ran[0]
    dataset = datasets.load(str(root), "demo")
    (version,) = (root / "columns" / "features").iterdir()
    table = pq.read_table(version / f"{dataset.parts[0].id}.parquet")
    vectors = np.array(table["embedding"].combine_chunks().flatten().to_pylist())
    assert vectors.shape[1] == 384 and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)


def test_mlflow_holds_the_runs_and_a_model_that_runs_without_us(ran):
    root, _, summary = ran
    version = registry.champion(str(root), "detector-5")
    assert version.version == summary["champion"]
    run = tracking.export(str(root), version.run)
    assert run["metrics"]["every_frame_map"] and run["params"]["objective"] == "dense"
    inputs = tracking.client(str(root)).get_run(version.run).inputs.dataset_inputs
    dataset = datasets.load(str(root), "demo")
    known = {i.dataset.name: i.dataset.digest for i in inputs}
    assert known.pop("demo") == dataset.version
    assert all((root / "columns" / column).is_dir() and digest for column, digest in known.items())
    assert list((root / "mlflow" / "artifacts" / "models").glob("m-*/artifacts/data/model.pt2"))
    model = mlflow.pytorch.load_model("models:/detector-5@champion")
    assert model(torch.zeros(3, 3, 20, 24, 24, dtype=torch.uint8)).shape[:2] == (3, 20)


def test_large_files_that_were_touched_are_read_whole_and_not_decoded(said):
    printed = said[1]["prepare"]
    assert "read whole" in printed and " 0 decodes in this run" in printed


def test_a_training_whose_inputs_did_not_change_is_reused(said, ran):
    assert said[1]["retrain"].count("already trained") == 2
    assert registry.champion(str(said[0]), "detector-5").version == ran[2]["champion"]
