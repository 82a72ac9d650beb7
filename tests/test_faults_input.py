"""From outside comes data: nothing unpickles or reads YAML, JSON says each thing once, odd URLs lead nowhere."""

import ast
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.__main__ import EXIT_INPUT, main
from storage import datasets, files, lists
from storage.errors import BudgetExceeded, InputError
from storage.labels import read_labels
from tasks import shard
from tests.preparing import RECIPE, plan

ROOT = Path(__file__).parent.parent
SOURCES = [path for folder in ("flows", "tasks", "models", "storage") for path in (ROOT / folder).rglob("*.py")]
RUNS_CODE = {  # modules that execute what they read
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch.distributed.checkpoint", "runpy",
    "distributed.protocol.pickle",
}  # fmt: skip
CALLS = {"eval", "exec", "os.system", "os.popen", "torch.hub.load", "torch.jit.load", "pd.read_pickle", "yaml.load",
         "yaml.unsafe_load", "yaml.full_load"}  # fmt: skip
OUR_OWN_CALLS = "pool.py"  # sent to Dask's workers, which run whatever their scheduler sends
OUR_OWN_YAML = "serve.py"  # reads prefect.yaml and automations.yaml of the checkout, with safe_load


def runs_what_it_reads(name: str, text: str) -> list[str]:
    """Where a source file could execute data, by line."""
    found = []
    for node in ast.walk(ast.parse(text)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            if isinstance(node, ast.ImportFrom):
                named += [f"{node.module}.{alias.name}" for alias in node.names]
            bad = [m for m in named if m in RUNS_CODE or m.partition(".")[0] in RUNS_CODE]
            found += [f"{name}:{line} imports {m}" for m in bad if name != OUR_OWN_CALLS]
            if "yaml" in named and name != OUR_OWN_YAML:
                found.append(f"{name}:{line} imports yaml")
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            said = {word.arg: ast.unparse(word.value) for word in node.keywords}
            wrong = called in CALLS or said.get("shell") == "True"
            wrong |= called == "torch.load" and said.get("weights_only") != "True"
            wrong |= called in ("np.load", "numpy.load") and said.get("allow_pickle") != "False"
            found += [f"{name}:{line} calls {called}"] if wrong else []
    return found


def test_no_code_path_reads_yaml_or_pickles_from_outside():
    """Configuration is typed options, data is JSON, Parquet and safetensors."""
    assert len(SOURCES) > 80
    assert [line for path in SOURCES for line in runs_what_it_reads(path.name, path.read_text())] == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "import yaml",
        "from torch.distributed import checkpoint",
        "import torch.distributed.checkpoint as dcp",
        "yaml.load(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "np.load(path)",
        "subprocess.run(command, shell=True)",
        "eval(text)",
    ],
)
def test_the_search_would_find_it(text):
    assert runs_what_it_reads("x.py", text)


# Lists and labels


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("l.jsonl", '{"path": "a.mp4", "label": "run", "label": "walk"}', "row 1: a column comes twice"),
        ("l.jsonl", '{"path": "a.mp4", "label": "run"}\n{"path": "b", "path": "c", "label": "x"}', "row 2: a column"),
        ("l.csv", "path,label,label\na.mp4,run,walk\n", "row 1: a column comes twice"),
        ("l.jsonl", '{"path": "a.mp4", "label": "run", "start": NaN, "end": 2}', "row 1: NaN is no number"),
        ("l.jsonl", '{"path": "a.mp4", "label": "run", "start": 0, "end": Infinity}', "row 1: Infinity is no number"),
        ("l.jsonl", '{"path": "a.mp4", "label": "run", "start": 0, "end": "nan"}', "needs 0 <= start < end"),
        ("l.jsonl", '{"path": "a.mp4", "label": "run", "start": "12:30", "end": 2}', "must be seconds"),
        ("l.jsonl", "!!python/object/apply:os.mkdir [ran]", "give CSV, Parquet or JSON lines"),
        ("l.jsonl", "[" * 100_000, "give CSV, Parquet or JSON lines"),
        ("l.yaml", "path: a.mp4", "give CSV, Parquet or JSON lines"),
    ],
)
def test_labels_that_could_be_read_in_two_ways_are_refused(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        read_labels(str(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value)


def test_what_yaml_would_turn_into_something_else_is_taken_as_written(tmp_path):
    """1e-4 is a number, `no` and `010` are names."""
    path = tmp_path / "l.csv"
    path.write_text("path,start,end,label\n010,1e-4,2e0,no\n010,2,3,12:30:45\n")
    found = read_labels(str(path))
    assert found["010"].rows == ((0.0001, 2.0, "no"), (2.0, 3.0, "12:30:45"))
    (tmp_path / "l.jsonl").write_text('{"path": "010", "start": 1e-4, "end": 2, "label": "no"}\n')
    assert read_labels(str(tmp_path / "l.jsonl"))["010"].rows == ((0.0001, 2.0, "no"),)


# URLs


def odd(tmp_path, port) -> dict[str, str]:
    return {
        "pipe": f"pipe:mkdir {tmp_path}/ran",
        "pipe url": f"pipe://mkdir {tmp_path}/ran",
        "chain": f"simplecache::file://{tmp_path}/secret",
        "chain over http": f"filecache::http://127.0.0.1:{port}/x",
        "zip in a tar": f"zip://x::file://{tmp_path}/secret",
        "reference": f"reference://x::http://127.0.0.1:{port}/x",
        "no such": "nosuch://x/y",
        "ext": f"ext::sh -c mkdir% {tmp_path}/ran",
    }


ODD = list(odd("", ""))


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("option", ["root", "archive", "labels", "shards"])
def test_an_odd_url_is_refused_in_one_line(kind, option, tmp_path, listener):
    """Wherever a URL may be given; nothing is run, nothing is asked, nothing is written."""
    port, calls = listener
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.mp4").write_bytes(b"x")
    given = {"--root": str(tmp_path / "r"), "--archive": str(tmp_path / "a"), f"--{option}": odd(tmp_path, port)[kind]}
    command = "adopt" if option == "shards" else "prepare"
    if option == "shards":
        del given["--archive"]
    before, here = len(calls), set(os.listdir())
    done = CliRunner().invoke(main, [command, *(word for pair in given.items() for word in pair)])
    assert done.exit_code == EXIT_INPUT, (done.output, done.exception)
    assert len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith("reelmill: ")
    assert len(calls) == before and not (tmp_path / "ran").exists() and set(os.listdir()) == here


@pytest.mark.parametrize("kind", [kind for kind in ODD if "://" in odd("", "")[kind]])
def test_an_odd_url_in_a_list_is_refused_with_it(kind, tmp_path, listener):
    port, calls = listener
    before = len(calls)
    path = tmp_path / "l.jsonl"
    path.write_text(json.dumps({"path": "a.mp4", "url": odd(tmp_path, port)[kind]}))
    with pytest.raises(InputError, match="unknown kind of URL"):
        list(lists.listing(str(path)))
    assert len(calls) == before


@pytest.mark.parametrize("name", ["../up", "a/../../up", "/abs", "..", "a/b", ""])
def test_a_name_of_a_dataset_is_no_way_out_of_the_root(name, tmp_path):
    """Names become parts of paths."""
    root = files.open_root(str(tmp_path / "root"))
    for act in (lambda: datasets.freeze(root, name, [], {}), lambda: datasets.load(root, name)):
        with pytest.raises(InputError, match="a name may hold no slash"):
            act()
    assert sorted(os.listdir(tmp_path)) == ["root"]


def test_an_archive_that_gives_no_clip_at_all_fails_with_its_reasons(tmp_path):
    """Also where it is too small for a share of failures to say much."""
    root = files.open_root(str(tmp_path / "root"))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.mp4").write_bytes(b"x")
    planned, listed = plan(root, str(tmp_path / "a"))
    with pytest.raises(BudgetExceeded, match=r"none of 1 files gave a clip \(1 not_video\)"):
        shard.shard.fn(root, "a", planned, RECIPE, 1.0, listed)
