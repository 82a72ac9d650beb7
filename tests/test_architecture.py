"""The import rules of docs/architecture.md, with controls that prove the checks can fail."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = {  # folder: what it may import of ours
    "flows": {"flows", "tasks"},
    "tasks": {"tasks", "models", "storage"},
    "models": {"models"},
    "storage": {"storage"},
}
FORBIDDEN = {  # folder: packages it must not know
    "flows": {"torch", "fsspec", "webdataset", "mlflow", "dask", "distributed", "av", "numpy", "pyarrow"},
    "tasks": set(),
    "models": {"prefect", "mlflow", "fsspec", "dask", "distributed", "av", "pyarrow"},
    "storage": {"prefect", "mlflow", "dask", "distributed"},
}
ONLY_IN = {"mlflow": "tasks/tracking.py", "dask": "tasks/pool.py", "distributed": "tasks/pool.py"}
HEAVY = {"open_clip", "diffusers", "transformers", "timm"}
VAGUE = {"utils", "helpers", "common", "base", "manager", "factory"}
FILES = [path for folder in LAYERS for path in sorted((ROOT / folder).rglob("*.py"))]


def imported(source: str, top_only: bool = False) -> set[str]:
    nodes = ast.parse(source).body if top_only else list(ast.walk(ast.parse(source)))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import: Prefect may load a flow file without its package"
            found.add((node.module or "").split(".")[0])
    return found


def violations(where: str, source: str) -> list[str]:
    folder, names = where.split("/")[0], imported(source)
    found = sorted((names & LAYERS.keys()) - LAYERS[folder]) + sorted(names & FORBIDDEN[folder])
    found += [name for name, home in ONLY_IN.items() if name in names and where != home]
    return found + sorted(imported(source, top_only=True) & HEAVY)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    assert violations(str(path.relative_to(ROOT)), path.read_text()) == []


def beyond_media(source: str) -> list[str]:
    """What a file of storage/media imports of storage beyond its own folder, errors, digests and timing."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "storage":
            found += [f"storage.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(node.module or "")
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    allowed = {"media", "errors", "files", "timing"}
    return [name for name in found if name.startswith("storage.") and name.split(".")[1] not in allowed]


def test_media_knows_nothing_of_what_is_committed():
    assert {name for path in FILES if "media" in path.parts for name in beyond_media(path.read_text())} == set()
    assert beyond_media("from storage.media import video\nfrom storage import parts") == ["storage.parts"]
    assert beyond_media("import storage.ledger") == ["storage.ledger"]


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("flows/x.py", "import torch"),
        ("flows/x.py", "from storage import files"),
        ("models/x.py", "from tasks import shard"),
        ("models/x.py", "def f():\n    from storage import files"),
        ("storage/x.py", "import prefect"),
        ("tasks/x.py", "from mlflow import MlflowClient"),
        ("tasks/x.py", "import dask.distributed"),
        ("tasks/x.py", "from flows import demo"),
        ("models/x.py", "import open_clip"),
    ],
)
def test_a_violation_is_seen(where, source):
    assert violations(where, source)


def test_every_folder_is_a_package_of_this_checkout():
    for folder in LAYERS:
        spec = importlib.util.find_spec(folder)
        assert spec and spec.origin and Path(spec.origin).is_relative_to(ROOT), folder


def test_flow_files_hide_nothing():
    for path in (ROOT / "flows").glob("[!_]*.py"):
        assert path.stem not in LAYERS and path.stem not in sys.stdlib_module_names
        spec = importlib.util.find_spec(path.stem)
        assert spec is None or Path(spec.origin).is_relative_to(ROOT), f"{path} hides an installed package"


def test_no_vague_file_names():
    assert not {path.stem for path in FILES} & VAGUE


def test_the_readme_says_where_everything_is():
    tree = (ROOT / "README.md").read_text().partition("## What is where")[2].partition("## Growing")[0]
    words = set(re.findall(r"\w+", tree))
    assert {path.stem for path in FILES if not path.stem.startswith("__")} <= words


def test_a_flow_file_is_named_after_its_flow():
    for path in (ROOT / "flows").glob("[!_]*.py"):
        names = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        assert path.stem in names


def test_importing_the_flows_stays_light():
    heavy = HEAVY | {"webdataset", "mlflow.pytorch"}
    code = f"import flows.demo, sys; assert not {heavy!r} & set(sys.modules), {heavy!r} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_training_program_knows_neither_prefect_nor_mlflow():
    code = "import tasks.train_rank, sys; assert not {'prefect', 'mlflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_nothing_unpickles():
    for path in FILES:
        text = path.read_text()
        assert "import pickle" not in text and "weights_only=False" not in text, path
        assert text.count("torch.load(") == text.count("weights_only=True"), path
