"""Versions of columns: listed, compared, added by key, and dropped only where nothing uses them."""

import json
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from test_storage_reading import make

from flows.__main__ import main
from storage import columns, datasets, files, versions
from storage.errors import InputError
from tasks.columns import add, compare, drop, show


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path):
    local = request.param == "local"
    made = str(tmp_path / "root") if local else f"{request.getfixturevalue('s3')}/{tmp_path.name}"
    make(files.open_root(made))
    return made


def keys(root):
    return [row["key"] for part in datasets.load(root, "d").parts for row in part.rows()]


def table(root, tmp_path, name="t.parquet", change=lambda rows: rows):
    rows = [{"key": key, "score": float(i), "label": "cat"} for i, key in enumerate(keys(root))]
    pq.write_table(pa.Table.from_pylist(change(rows)), tmp_path / name)
    return str(tmp_path / name)


def test_values_are_joined_by_key_whatever_their_order(root, tmp_path):
    said = add(root, table(root, tmp_path, change=lambda rows: rows[::-1]), "quality", "v1", "d")
    assert said == "column quality v1: 3 parts written, 0 were there"
    expected = {key: float(i) for i, key in enumerate(keys(root))}
    for part in datasets.load(root, "d").parts:
        for row in columns.read(root, "quality", "v1", part).to_pylist():
            assert row["score"] == expected[row["key"]]
    assert "0 parts written, 3 were there" in add(root, str(tmp_path / "t.parquet"), "quality", "v1", "d")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda rows: rows + [{**rows[0], "key": "zebra"}], r"1 keys are not in dataset d \(zebra\)"),
        (lambda rows: rows[1:], "1 keys are missing"),
        (lambda rows: rows + rows[:1], "1 keys come twice"),
        (lambda rows: [{"key": row["key"]} for row in rows], "needs a column `key` and at least one more"),
        (lambda rows: [{**row, "key": 1} for row in rows], "keys are int64"),
    ],
)
def test_keys_that_do_not_fit_are_named_and_nothing_is_written(change, problem, tmp_path):
    root = str(tmp_path / "root")
    make(files.open_root(root))
    with pytest.raises(InputError, match=problem):
        add(root, table(root, tmp_path, change=change), "quality", "v1", "d")
    assert columns.versions(root, "quality") == []


def test_csv_and_json_lines_are_read_too(tmp_path):
    root = str(tmp_path / "root")
    make(files.open_root(root))
    (tmp_path / "t.csv").write_text("key,score\n" + "".join(f"{key},{i}\n" for i, key in enumerate(keys(root))))
    lines = "".join(json.dumps({"key": key, "score": i}) + "\n" for i, key in enumerate(keys(root)))
    (tmp_path / "t.jsonl").write_text(lines)
    for name in ("t.csv", "t.jsonl"):
        add(root, str(tmp_path / name), "quality", name, "d")
    assert "score: 0 of 15 rows changed" in compare(root, "quality", "t.csv", "t.jsonl", "d")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    for wrong in ("bad.parquet", "none.csv"):
        with pytest.raises(InputError, match=wrong):
            versions.load(str(tmp_path / wrong))


def test_a_version_never_changes_and_replacing_makes_another(root, tmp_path):
    add(root, table(root, tmp_path), "quality", "v1", "d")
    other = table(root, tmp_path, "u.parquet", lambda rows: [{**row, "score": row["score"] + 1} for row in rows])
    part = datasets.load(root, "d").parts[0]
    before = files.read(columns.url(root, "quality", "v1", part.id))
    with pytest.raises(InputError, match="exists with other values"):
        add(root, other, "quality", "v1", "d")
    said = add(root, other, "quality", "v1", "d", replace=True)
    assert "v1 stays as it is" in said and len(columns.versions(root, "quality")) == 2
    assert files.read(columns.url(root, "quality", "v1", part.id)) == before


def test_columns_are_listed_with_what_they_cover(root, tmp_path):
    assert show(root) == f"no columns under {root}"
    add(root, table(root, tmp_path), "quality", "v1", "d")
    data = datasets.load(root, "d")
    files.remove(columns.url(root, "quality", "v1", data.parts[0].id))
    (line,) = [line for line in show(root, "d").splitlines() if line.startswith("| quality")]
    assert line.startswith("| quality | v1 | 2 | 10 | ") and "d 2 of 3" in line and '"file": "t.parquet"' in line


def test_a_difference_counts_rows_numbers_and_labels(root, tmp_path):
    def changed(rows):
        rows[1]["score"] += 0.5
        rows[7]["score"] -= 1.5
        rows[7]["label"] = "dog"
        return rows

    add(root, table(root, tmp_path), "quality", "v1", "d")
    add(root, table(root, tmp_path, "u.parquet", changed), "quality", "v2", "d")
    lines = compare(root, "quality", "v1", "v2", "d").splitlines()
    ids = [part.id for part in datasets.load(root, "d").parts]
    assert lines[1] == "score: 2 of 15 rows changed; numbers differ by 0.133 on average, 1.5 at most"
    assert lines[2:4] == [f"  part {ids[0]}: 1 rows", f"  part {ids[1]}: 1 rows"]
    assert lines[4] == "label: 1 of 15 rows changed; cat → dog: 1" and lines[5] == f"  part {ids[1]}: 1 rows"
    with pytest.raises(InputError, match="no column quality v3; there are: quality v1, quality v2"):
        compare(root, "quality", "v1", "v3", "d")


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        ([[[1.0, 2.0]], [[3.0, 4.0]]], [[[1.0, 2.0]], [[3.0, 4.0]]], (0, 0, 0.0)),
        ([[[1.0, 2.0]], [[3.0, 4.0]]], [[[1.0, 2.0]], [[3.0, 4.5]]], (1, 0, 0.5)),
        ([[[1.0, 2.0]], [[3.0, 4.0]]], [[[1.0], [2.0]], [[3.0, 4.0]]], (1, 1, 0.0)),
        ([[[float("nan")]]], [[[float("nan")]]], (0, 0, 0.0)),
        ([[[float("nan")]]], [[[1.0]]], (1, 0, float("inf"))),
        ([None], [[[1.0]]], (1, 1, 0.0)),
    ],
)
def test_nested_numbers_are_compared_by_shape_and_size(one, two, expected):
    kind = pa.list_(pa.list_(pa.float32()))
    found = sum(map(versions._compare, pa.array(one, kind), pa.array(two, kind)), versions.Difference())
    assert (found.changed, found.reshaped, found.largest) == expected


def test_a_version_in_use_is_kept_unless_forced_and_a_dry_run_removes_nothing(root, tmp_path):
    add(root, table(root, tmp_path), "quality", "v1", "d")
    with pytest.raises(InputError, match="the only version that covers dataset d"):
        drop(root, "quality", "v1")
    add(root, table(root, tmp_path, "u.parquet", lambda r: [{**x, "score": 0.0} for x in r]), "quality", "v2", "d")
    assert drop(root, "quality", "v1").startswith("would remove column quality v1: 3 parts")
    assert columns.versions(root, "quality") == ["v1", "v2"]
    assert drop(root, "quality", "v1", dry_run=False).startswith("removed column quality v1: 3 parts")
    assert [e.version for e in versions.survey(root, [])] == ["v2"]
    assert drop(root, "quality", "v2", dry_run=False, force=True).startswith("removed")
    assert versions.survey(root, []) == [] and columns.versions(root, "quality") == []


def test_the_champions_predictions_are_kept(tmp_path, monkeypatch):
    import torch

    from storage import checkpoints
    from tasks import predict, registry

    root = str(tmp_path / "root")
    make(files.open_root(root))
    checkpoint = checkpoints.save(root, "run", 1, {"w": torch.ones(2)}, {}, {}, True)
    champion = SimpleNamespace(checkpoint=checkpoint.url, version=3)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setattr(registry, "champion", lambda *_: champion)
    name = predict.version(checkpoint)
    for number, version in enumerate((name, "older")):
        change = lambda rows, number=number: [{**row, "score": float(number)} for row in rows]  # noqa: E731
        add(root, table(root, tmp_path, f"{number}.parquet", change), predict.COLUMN, version, "d")
    with pytest.raises(InputError, match="predictions of the champion, detector 3"):
        drop(root, predict.COLUMN, name, dry_run=False)
    assert drop(root, predict.COLUMN, "older", dry_run=False).startswith("removed")


def test_names_that_lead_elsewhere_are_refused(tmp_path):
    root = str(tmp_path / "root")
    make(files.open_root(root))
    for column, version in (("../x", "v1"), ("x", "a/b"), ("", "v"), (".x", "v"), ("x", "latest")):
        with pytest.raises(InputError, match="use letters"):
            add(root, table(root, tmp_path), column, version, "d")


def test_the_commands_are_there(tmp_path):
    root = str(tmp_path / "root")
    make(files.open_root(root))
    run = CliRunner().invoke(
        main,
        ["column-add", "--root", root, "--file", table(root, tmp_path), "--column", "q", "--version", "1",
         "--dataset", "d"],
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    assert "| q | 1 | 3 | 15 |" in CliRunner().invoke(main, ["columns", "--root", root]).output
    refused = CliRunner().invoke(main, ["column-drop", "--root", root, "--column", "q", "--version", "1"])
    assert refused.exit_code == 2 and "is in use" in refused.stderr
