"""Datasets, columns and the ledger: what was written comes back, and what was altered or damaged is named."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from storage import columns, datasets, ledger, tables
from storage.errors import Damaged, InputError, RootError
from storage.ledger import Entry, Report
from tests.made_parts import KEYS, commit, flip


@pytest.fixture
def part(tmp_path):
    return commit(tmp_path / "root")


# Datasets


def test_a_frozen_dataset_loads_again(part, tmp_path):
    root = str(tmp_path / "root")
    frozen = datasets.freeze(root, "d", [commit(root, "p2"), part, commit(root, "p0", keys=())], {"span": 2.0})
    assert datasets.load(root, "d") == datasets.load(root, "d", frozen.version) == frozen
    assert [p.id for p in frozen.parts] == ["p1", "p2"] and frozen.clips == 6
    assert datasets.names(root) == ["d"]


def test_the_version_follows_from_the_content(part, tmp_path):
    root = str(tmp_path / "root")
    two = commit(root, "p2")
    versions = [datasets.freeze(root, "d", list_, {}).version for list_ in ([part, two], [two, part], [part])]
    assert versions[0] == versions[1] != versions[2] == datasets.load(root, "d").version
    assert datasets.load(root, "d", versions[0]).clips == 6


def test_a_dataset_moves_with_its_root(part, tmp_path):
    frozen = datasets.freeze(str(tmp_path / "root"), "d", [part], {})
    (tmp_path / "root").rename(tmp_path / "moved")
    moved = datasets.load(str(tmp_path / "moved"), "d")
    assert moved.version == frozen.version
    moved.parts[0].verify()


def test_select_by_split_and_kind(part):
    other = dataclasses.replace(part, id="p2", split="heldout", labelled="video")
    data = datasets.Dataset("d", "v", [part, other], {})
    assert data.select(split="heldout") == data.select(labelled="video") == [other]
    assert data.select(split="train", labelled="video") == [] and data.select() == [part, other]


def test_an_altered_list_is_refused(part, tmp_path):
    root = str(tmp_path / "root")
    version = datasets.freeze(root, "d", [part], {}).version
    path = tmp_path / "root" / "datasets" / "d" / f"{version}.json"
    path.write_text(path.read_text().replace('"samples": 3', '"samples": 2'))
    with pytest.raises(InputError, match=f"dataset d {version}: .*altered; prepare it again"):
        datasets.load(root, "d")


def test_a_list_of_a_newer_schema_is_refused(part, tmp_path):
    root = str(tmp_path / "root")
    version = datasets.freeze(root, "d", [part], {}).version
    path = tmp_path / "root" / "datasets" / "d" / f"{version}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    with pytest.raises(RootError, match="schema 99"):
        datasets.load(root, "d")


def test_a_dataset_that_is_not_there_names_those_that_are(part, tmp_path):
    with pytest.raises(InputError, match="run `reelmill prepare` first"):
        datasets.load(str(tmp_path / "root"), "e")
    datasets.freeze(str(tmp_path / "root"), "d", [part], {})
    with pytest.raises(InputError, match="no dataset 'e'.*there are: d"):
        datasets.load(str(tmp_path / "root"), "e")


# Columns


def _column(keys=KEYS):
    return pa.table({"key": list(keys), "score": np.arange(len(keys), dtype=np.float32)})


def test_a_column_comes_back(part, tmp_path):
    root = str(tmp_path / "root")
    assert not columns.has(root, "scores", "v1", "p1")
    assert columns.write(root, "scores", "v1", part, _column(), {"model": "m"})
    assert columns.has(root, "scores", "v1", "p1") and columns.versions(root, "scores") == ["v1"]
    assert columns.read(root, "scores", "v1", part, ["score"]).to_pydict() == _column().to_pydict()
    assert columns.about(root, "scores", "v1", part) == {"model": "m"}


@pytest.mark.parametrize("keys", [KEYS[:2], KEYS[::-1], (*KEYS, "dd"), ("xx", *KEYS[1:]), ()])
def test_a_column_of_other_keys_is_refused(part, tmp_path, keys):
    with pytest.raises(Damaged, match="column scores: its keys are not those of part p1"):
        columns.write(str(tmp_path / "root"), "scores", "v1", part, _column(keys), {})
    assert not columns.has(str(tmp_path / "root"), "scores", "v1", "p1")


def test_a_column_beside_another_part_is_refused(part, tmp_path):
    root = str(tmp_path / "root")
    other = commit(root, "p2", keys=KEYS[::-1])
    columns.write(root, "scores", "v1", other, _column(KEYS[::-1]), {})
    Path(columns.url(root, "scores", "v1", "p2")).rename(columns.url(root, "scores", "v1", "p1"))
    with pytest.raises(Damaged, match="keys are not those of part p1"):
        columns.read(root, "scores", "v1", part)


def test_the_first_writer_of_a_column_stays(part, tmp_path):
    root = str(tmp_path / "root")
    assert columns.write(root, "scores", "v1", part, _column(), {"by": "first"})
    assert not columns.write(root, "scores", "v1", part, _column(), {"by": "second"})
    assert columns.about(root, "scores", "v1", part) == {"by": "first"}


def test_a_column_that_is_not_there(part, tmp_path):
    with pytest.raises(FileNotFoundError):
        columns.read(str(tmp_path / "root"), "scores", "v1", part)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.99])
def test_a_column_cut_short_is_named(part, tmp_path, share):
    root = str(tmp_path / "root")
    columns.write(root, "scores", "v1", part, _column(), {})
    path = Path(columns.url(root, "scores", "v1", "p1"))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(Damaged, match="columns/scores/v1/p1.parquet"):
        columns.read(root, "scores", "v1", part)


def test_a_field_that_is_missing_is_named(part, tmp_path):
    columns.write(str(tmp_path / "root"), "scores", "v1", part, _column(), {})
    with pytest.raises(Damaged, match="scores/v1/p1.parquet cannot be read .*weight"):
        columns.read(str(tmp_path / "root"), "scores", "v1", part, ["weight"])


def test_every_flipped_byte_of_the_pages_is_found(part, tmp_path):
    root = str(tmp_path / "root")
    columns.write(root, "scores", "v1", part, _column(), {})
    path = Path(columns.url(root, "scores", "v1", "p1"))
    whole, silent = path.read_bytes(), 0
    footer = int.from_bytes(whole[-8:-4], "little")
    for at in range(4, len(whole) - footer - 8, 2):
        flip(path, at)
        try:
            silent += columns.read(root, "scores", "v1", part) != _column()
        except Damaged as error:
            assert "p1.parquet" in str(error)
        path.write_bytes(whole)
    assert not silent


# The ledger


def test_the_ledger_comes_back(tmp_path):
    entries = [
        Entry("a\n;🎬.mp4", "kept", clips=2, duration=4.5, scores={"black": 0.25}),
        Entry("b", "quarantined", "empty", "0 bytes", "cc"),
    ]
    ledger.write(str(tmp_path), "shard", "p1", entries)
    assert ledger.read(str(tmp_path), "shard", "p1") == entries


def test_every_entry_is_counted_once():
    verdicts = [("kept", ""), ("kept", ""), ("dropped", "duplicate"), ("quarantined", "empty"), ("quarantined", "oom")]
    report = ledger.tally(Entry(str(n), *v) for n, v in enumerate(verdicts))
    assert (report.items, report.kept, report.dropped.total(), report.quarantined["oom"]) == (5, 2, 1, 1)
    assert report.balanced


def test_reports_add_up_and_an_unbalanced_one_shows():
    one, two = ledger.tally([Entry("a", "kept")]), ledger.tally([Entry("b", "dropped", "duplicate")])
    assert (one + two).balanced and (one + two).items == 2
    assert not (one + Report(items=1)).balanced


def test_a_ledger_of_the_schema_before_is_read(tmp_path):
    """Its seconds were of video."""
    old = pa.table({"step": ["shard"], "item": ["a"], "content_id": ["c"], "verdict": ["kept"], "reason": [""],
                    "detail": [""], "clips": pa.array([2], pa.int32()), "seconds": [4.5]})  # fmt: skip
    target = tmp_path / "ledger" / "shard" / "p.parquet"
    target.parent.mkdir(parents=True)
    target.write_bytes(tables.pack(old))
    (entry,) = ledger.read(str(tmp_path), "shard", "p")
    assert (entry.clips, entry.duration, entry.seconds, entry.host) == (2, 4.5, 0.0, "")


def test_a_damaged_ledger_is_named(tmp_path):
    ledger.write(str(tmp_path), "shard", "p1", [Entry("a", "kept")])
    flip(tmp_path / "ledger" / "shard" / "p1.parquet", 60)
    with pytest.raises(Damaged, match="ledger/shard/p1.parquet"):
        ledger.read(str(tmp_path), "shard", "p1")


def test_packing_is_byte_stable():
    assert tables.pack(_column(), {"b": 1, "a": 2}) == tables.pack(_column(), {"a": 2, "b": 1})
    assert pa.parquet.read_table(io.BytesIO(tables.pack(_column()))) == _column()
