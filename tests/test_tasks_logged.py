"""What MLflow is given of each kind of system runs without this code, for any batch and length."""

import mlflow
import pytest
import torch

from storage import checkpoints, files
from tasks import scorer, tracking, train_rank
from tasks.train_rank import Spec

SYSTEMS = {
    "coarse_fine": {"size": "TINY"},
    "super_events": {"size": "TINY", "width": 12},
    "pdan": {"size": "TINY", "width": 12},
}  # test_tasks_champions.py has another temporal head and an ensemble


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    torch.set_num_threads(1)
    return files.open_root(str(tmp_path_factory.mktemp("logged")))


def saved(root, system, options):
    features = {"features": "v"} if "width" in options else {}
    spec = Spec(
        root=root, parts=[], classes=["a", "b"], objective="dense", system=system, options=options,
        size=16, whole=32, **features,
    )  # fmt: skip
    model = train_rank.build(spec)
    return checkpoints.save(root, system, 1, model.state_dict(), {}, train_rank._about(spec), True)


@pytest.mark.parametrize("system", [pytest.param("coarse_fine", marks=pytest.mark.long), "super_events", "pdan"])
def test_a_logged_model_loads_and_scores(root, system):
    checkpoint = saved(root, system, SYSTEMS[system])
    run = tracking.start(root, system, {}, {})
    example, model = scorer.example(checkpoint), scorer.Scorer(scorer.load(checkpoint.url)).eval()
    uri = tracking.log_model(root, run, model, example, {"checkpoint": checkpoint.url})
    found = mlflow.pyfunc.load_model(uri)
    signature = tuple(found.metadata.signature.inputs.inputs[0].shape)
    assert signature == ((-1, 3, -1, 16, 16) if example.ndim == 5 else (-1, -1, 12))
    shape = (3, 3, 20, 16, 16) if example.ndim == 5 else (3, 21, 12)
    other = torch.randint(0, 256, shape, dtype=torch.uint8) if example.ndim == 5 else torch.randn(shape)
    with torch.no_grad():
        wanted = model(other)
    assert wanted.shape == (3, shape[2] if example.ndim == 5 else 21, 2) and 0 < wanted.min() < wanted.max() < 1
    assert torch.allclose(torch.from_numpy(found.predict(other.numpy())), wanted, atol=1e-5)
    kept = found.input_example
    assert kept.shape == tuple(example.shape) and kept.dtype == example.numpy().dtype
