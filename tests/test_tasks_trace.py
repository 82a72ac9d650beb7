"""Lineage both ways: from every prediction row back to its source and its model, and from the source forward to it."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from flows.__main__ import main
from storage import checkpoints, columns, datasets, files, lineage, parts
from tasks import registry, tracking
from tasks.lineage import trace


def run(*words):
    return CliRunner().invoke(main, ["trace", *words])


@pytest.fixture(scope="module")
def root(traced):
    return str(traced / "root")


def rows_of(found):
    return found[0].to_pylist()


@pytest.fixture(scope="module")
def forward(root):
    """What a trace of every source of the archive says, by its path."""
    paths = lineage.planned(root)["path"].to_pylist()
    return {path: rows_of(trace.of_source(root, path)) for path in paths}


def test_every_prediction_row_leads_back_to_its_source_and_forward_to_itself(root, forward):
    champion = registry.champion(root, "detector")
    (version,) = columns.versions(root, "predictions")
    backward = rows_of(trace.of_model(root, "models:/detector@champion"))
    trained = {row["key"]: row for row in backward}
    seen = 0
    for part in datasets.load(root, "a").parts:
        table = columns.read(root, "predictions", version, part)
        about = columns.about(root, "predictions", version, part)
        assert about["model"] == champion.tags["checkpoint_digest"] == checkpoints.describe(about["checkpoint"]).digest
        for index, key in zip(part.rows(), table["key"].to_pylist(), strict=True):
            rows = forward[index["path"]]
            mine = [
                row for row in rows if row["kind"] == "column" and row["name"] == "predictions" and row["key"] == key
            ]
            assert [(row["version"], row["part"]) for row in mine] == [(version, part.id)]
            assert mine[0]["detail"] == f"by detector version {champion.version}"
            (source,) = [row for row in rows if row["kind"] == "source" and row["name"] == index["path"]]
            assert files.digest_file(source["detail"]) == index["content_id"], "down to the bytes of the source"
            of_key = rows_of(trace.of_source(root, key))
            assert {row["key"] for row in of_key if row["kind"] == "clip"} == {key}
            assert {row["name"] for row in of_key if row["kind"] == "source"} == {index["path"]}
            if part.split == "train":
                back = trained[key]
                run = tracking.client(root).get_run(back["run"])
                assert run.data.tags["reelmill.training"] == back["training"]
                name, _, digest = back["dataset"].partition("@")
                assert part.id in {one.id for one in datasets.load(root, name, digest).parts}
                assert (back["source"], back["content_id"]) == (index["source"], index["content_id"])
                assert [row["detail"] for row in rows if row["kind"] == "model"] == [back["training"]]
            else:
                assert key not in trained and not [row for row in rows if row["kind"] == "model"]
                assert [row["name"] for row in rows if row["kind"] == "measured"] == ["detector"]
            seen += 1
    assert seen == datasets.load(root, "a").clips > 10


def test_a_source_leads_to_every_object_that_has_a_row_of_it(root, forward):
    """Against all objects below the root, looked at one by one."""
    for path, rows in forward.items():
        keys = {row["key"] for row in rows if row["kind"] in ("clip", "volume")}
        said = {(row["kind"], row["name"], row["version"], row["part"]) for row in rows if row["part"]}
        wanted = set()
        for item in sorted(Path(root, "columns").glob("*/*/*.parquet")):
            if keys & set(pq.read_table(item)["key"].to_pylist()):
                wanted.add(("column", item.parts[-3], item.parts[-2], item.stem))
        assert {one for one in said if one[0] == "column"} == wanted, path
        segments = [
            key for f in Path(root, "segments").glob("*/*.parquet") for key in pq.read_table(f)["key"].to_pylist()
        ]
        assert sum(row["rows"] for row in rows if row["kind"] == "segments") == sum(key in keys for key in segments)
        listed = {
            (data.name, data.version, part.id)
            for data, _ in lineage.versions(root)
            for part in data.parts
            if keys & {row["key"] for row in part.rows()}
        }
        assert {one[1:] for one in said if one[0] == "dataset"} == listed


def test_a_model_leads_to_its_trainings_with_their_columns_and_sources(root):
    rows = rows_of(trace.of_model(root, "models:/detector/1"))
    dense = {f"dense/{n:02d}.mp4" for n in range(4)}
    weak = {f"weak/{n:02d}.mp4" for n in range(3)}
    by_training = {}
    for row in rows:
        by_training.setdefault(row["training"].partition("-")[0], set()).add(row["path"])
    assert by_training == {"finetune": dense, "pretrain": weak}
    data = datasets.load(root, "a")
    assert {row["dataset"] for row in rows} == {f"a@{data.version}"}
    (labels,) = columns.versions(root, "pseudo_labels")
    assert {row["columns"] for row in rows if row["path"] in weak} == {
        f"pseudo_labels:{labels},selection:{data.selection}"
    }


def test_clips_that_a_selection_dropped_were_not_trained_on(root, tmp_path):
    other = str(tmp_path / "root")
    shutil.copytree(root, other)
    data = datasets.load(other, "a")
    (part,) = data.select(split="train", labelled="segments")
    table = columns.read(other, "selection", data.selection, part)
    dropped = table["key"][0].as_py()
    kept = table.set_column(1, "kept", [[key != dropped for key in table["key"].to_pylist()]])
    files.remove(columns.url(other, "selection", data.selection, part.id))
    columns.write(other, "selection", data.selection, part, kept, {})
    assert dropped not in {row["key"] for row in rows_of(trace.of_model(other, "models:/detector@champion"))}
    rows = rows_of(trace.of_source(other, dropped))
    assert not [row for row in rows if row["kind"] == "model"]
    assert [row["detail"] for row in rows if row["name"] == "selection"] == ["dropped"]


def test_the_tree_is_short_and_the_whole_list_is_written(root, tmp_path):
    lines = run("models:/detector@champion", "--root", root).output.splitlines()
    assert lines[0].startswith("detector version 1, champion · x3d") and len(lines) < 20
    assert any(line.startswith("    column   pseudo_labels ") and " · digest " in line for line in lines)
    assert lines[-1].startswith("  sources    7: ") and lines[-1].endswith(" and 3 more")
    rows = [json.loads(line) for line in run("weak/00.mp4", "--root", root, "--json").output.splitlines()]
    csv = run("weak/00.mp4", "--root", root, "--csv").output.splitlines()
    assert len(csv) == len(rows) + 1 and csv[0].startswith('"kind","name","version"')
    made = run("weak/00.mp4", "--root", root, "--parquet", str(tmp_path / "rows.parquet"))
    assert f"{len(rows)} rows in" in made.output
    assert pq.read_table(tmp_path / "rows.parquet").to_pylist() == rows


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("models:/detectr@champion", "no model 'detectr'; there are detector"),
        ("models:/detector/7", "detector has no version 7; it has 1"),
        ("models:/detector@best", "detector has no alias 'best'; it has versions 1"),
        ("models:detector", "write models:/NAME@champion or models:/NAME/VERSION"),
        ("dense/99.mp4", "no source and no clip of that name; the most like it are dense/0"),
    ],
)
def test_what_is_not_there_is_said_with_what_is_like_it(root, word, said):
    result = run(word, "--root", root)
    assert result.exit_code == 2 and said in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_source_is_known_by_any_of_its_names(root, forward):
    (clip,) = [
        row for row in lineage.clips(root).to_pylist() if row["path"] == "weak/01.mp4" and row["labelled"] == "video"
    ]
    for word in (clip["source"], clip["identity"], clip["identity"][:8], clip["content_id"], clip["content_id"][:12]):
        assert rows_of(trace.of_source(root, word)) == forward["weak/01.mp4"], word


def test_no_tar_is_read_and_object_storage_gives_the_same(root, tmp_path, s3, monkeypatch):
    remote = f"{s3}/{tmp_path.name}"
    for path in Path(root).rglob("*"):
        if path.is_file() and path.parts[len(Path(root).parts)] not in ("mlflow", "figures"):
            files.replace(path.read_bytes(), files.join(remote, str(path.relative_to(root))))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow/mlflow.db")
    read, asked = files.read, []
    monkeypatch.setattr(files, "read", lambda url, *ends: asked.append(url) or read(url, *ends))
    for word in ("weak/00.mp4", "models:/detector@champion"):
        way = trace.of_model if word.startswith("models:") else trace.of_source
        assert way(remote, word)[0].equals(way(root, word)[0])
    assert asked and not [url for url in asked if url.endswith(".tar")]


def test_a_champion_whose_parts_are_gone_is_traced_as_far_as_it_goes(root, tmp_path):
    other = str(tmp_path / "root")
    shutil.copytree(root, other)
    data = datasets.load(other, "a")
    (part,) = data.select(split="train", labelled="video")
    files.remove(parts.part_urls(other, part.id)[1])
    rows, tree = trace.of_model(other, "models:/detector@champion")
    assert {row["path"].partition("/")[0] for row in rows.to_pylist()} == {"dense"}
    assert any("1 of them have no clip now" in line for line in tree)
