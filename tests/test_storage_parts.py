"""Parts, datasets, columns and the ledger: byte-stable, committed whole, and damage is found and named."""

import dataclasses
import io
import json
import tarfile
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from storage import columns, datasets, files, ledger, parts, tables
from storage.errors import Damaged, InputError, RootError
from storage.ledger import Entry, Report
from tests.preparing import bytes_of, prepare

KEYS = ("aa-000000000", "bb-000000000", "cc-000010000")


def _row(key):
    return {
        "key": key, "offset": 0, "size": 0, "sha256": "", "source": f"/archive/{key}.mp4", "path": f"{key}.mp4",
        "content_id": "c" * 64, "start": 0.0, "end": 2.0, "start_pts": 0, "end_pts": 40, "time_base": "1/20",
        "duration": 2.0, "frames": 40, "fps": 20.0, "width": 16, "height": 16, "split": "train",
        "labelled": "segments", "labels": [{"start": 0.5, "end": 1.5, "label": "left"}],
    }  # fmt: skip


@pytest.fixture
def commit(tmp_path):
    """Commits a part of made-up clips (`seed` decides their bytes) under a root."""

    def make(root, part="p1", keys=KEYS, seed=0):
        root = root if isinstance(root, str) else str(root)
        with files.scratch() as folder:
            media = []
            for number, _ in enumerate(keys):
                media.append(folder / f"{number}.mp4")
                media[-1].write_bytes(np.random.default_rng((seed, number)).bytes(700 + 511 * number))
            return parts.commit(root, part, [_row(key) for key in keys], media, folder)

    return make


@pytest.fixture
def part(commit, tmp_path):
    return commit(tmp_path / "root")


def _flip(path, at):
    data = bytearray(Path(path).read_bytes())
    data[at] ^= 1
    Path(path).write_bytes(data)


def test_the_same_content_gives_the_same_bytes_in_two_places(commit, tmp_path):
    one, two = commit(tmp_path / "one"), commit(tmp_path / "two")
    assert Path(one.media).read_bytes() == Path(two.media).read_bytes()
    assert Path(one.index).read_bytes() == Path(two.index).read_bytes()
    assert Path(one.media).name == Path(two.media).name and one.digest == two.digest


def test_cut_parts_are_the_same_from_one_worker_and_from_two(archive, tmp_path, monkeypatch):
    """PR05."""
    made = {}
    for width in (1, 2):
        monkeypatch.setattr("tasks.pool.workers", lambda width=width: width)
        data, _ = prepare(str(tmp_path / str(width)), str(archive / "archive" / "weak"), units=4)
        assert len(data.parts) >= 4
        made[width] = bytes_of(tmp_path / str(width))
    assert made[1] == made[2]


def test_offsets_are_those_of_the_tar(part):
    with tarfile.open(part.media) as tar:
        for row in part.rows():
            member = tar.extractfile(f"{row['key']}.mp4").read()
            assert files.read(part.media, row["offset"], row["offset"] + row["size"]) == member
            assert json.load(tar.extractfile(f"{row['key']}.json"))["labels"] == row["labels"]


def test_nothing_of_this_machine_is_in_the_tar(part):
    with tarfile.open(part.media) as tar:
        members = tar.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
    assert [m.name for m in members] == [f"{key}.{kind}" for key in KEYS for kind in ("mp4", "json")]


def test_plain_webdataset_reads_it(part):
    wds = pytest.importorskip("webdataset")
    samples = list(wds.WebDataset(part.media, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == list(KEYS)
    assert [sample["mp4"] for sample in samples] == [data for _, data in part.clips()]


def test_find_returns_what_was_committed(part, tmp_path):
    assert parts.find(str(tmp_path / "root"), "p1") == part and parts.committed(str(tmp_path / "root"), "p1")
    assert (part.samples, part.split, part.labelled) == (3, "train", "segments")
    assert part.bytes == Path(part.media).stat().st_size and part.digest == files.digest_file(part.media)


@pytest.mark.parametrize("number", range(3))
def test_a_flipped_byte_is_named_with_its_clip(part, number):
    _flip(part.media, part.rows()[number]["offset"] + 100)
    with pytest.raises(Damaged, match="part p1"):
        part.verify()
    with pytest.raises(Damaged, match=f"part p1: clip {KEYS[number]}"):
        list(part.clips())


def test_a_flipped_header_is_found_by_verify(part):
    _flip(part.media, 0)
    with pytest.raises(Damaged, match="part p1"):
        part.verify()


def test_a_tar_cut_short_is_named(part):
    Path(part.media).write_bytes(Path(part.media).read_bytes()[:900])
    with pytest.raises(Damaged, match="part p1: clip aa"):
        list(part.clips())


def test_a_tar_that_is_gone_is_named(part):
    Path(part.media).unlink()
    for read in (part.verify, lambda: list(part.clips())):
        with pytest.raises(Damaged, match="part p1: .*is gone"):
            read()


def test_damage_on_s3_is_named_too(commit, s3):
    part = commit(f"{s3}/damage")
    whole = files.read(part.media)
    for broken in (whole[:100] + b"?" + whole[101:], whole[:1500]):
        files.replace(broken, part.media)
        with pytest.raises(Damaged, match="part p1"):
            part.verify()
    with pytest.raises(Damaged, match="part p1: clip bb"):
        list(part.clips())


def test_a_tar_without_an_index_is_not_seen(part, tmp_path):
    Path(part.index).unlink()
    assert parts.find(str(tmp_path / "root"), "p1") is None and not parts.committed(str(tmp_path / "root"), "p1")


def test_a_leftover_tar_of_another_encoder_is_no_obstacle(commit, tmp_path):
    leftover = commit(tmp_path / "root", seed=1)
    Path(leftover.index).unlink()
    part = commit(tmp_path / "root", seed=2)
    part.verify()
    assert part.digest != leftover.digest and len(list(part.clips())) == 3
    assert datasets.freeze(str(tmp_path / "root"), "d", [part], {}) == datasets.load(str(tmp_path / "root"), "d")
    assert files.digest_file(leftover.media) == leftover.digest


def test_a_leftover_of_the_same_bytes_is_taken_over(commit, tmp_path):
    leftover = commit(tmp_path / "root")
    Path(leftover.index).unlink()
    assert commit(tmp_path / "root") == leftover and Path(leftover.media).name == "p1.tar"


def test_a_damaged_leftover_is_no_obstacle(commit, tmp_path):
    leftover = commit(tmp_path / "root")
    Path(leftover.index).unlink()
    _flip(leftover.media, 600)
    commit(tmp_path / "root").verify()


def test_the_second_committer_gets_the_first_ones_part(commit, tmp_path):
    first, second = commit(tmp_path / "root", seed=1), commit(tmp_path / "root", seed=2)
    assert second == first
    second.verify()


def test_racing_committers_end_with_one_sound_part(commit, tmp_path):
    for round in range(6):
        gate, made = threading.Barrier(3), []

        def work(seed, gate=gate, made=made, name=f"p{round}"):
            gate.wait()
            made.append(commit(tmp_path / "root", name, seed=seed))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2, 3)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert made[0] == made[1] == made[2]
        made[0].verify()


def test_a_slow_writer_cannot_touch_a_committed_part(commit, tmp_path, monkeypatch):
    publish, fast = files.publish, []

    def slow(source, url, **options):
        if url.endswith(".tar") and not fast:  # another committer goes through between our work and our publish
            fast.append(None)
            fast[0] = commit(tmp_path / "root", seed=1)
        return publish(source, url, **options)

    monkeypatch.setattr(files, "publish", slow)
    assert commit(tmp_path / "root", seed=2) == fast[0]
    fast[0].verify()


def test_a_part_of_nothing_has_an_index_and_no_tar(commit, tmp_path):
    part = commit(tmp_path / "root", keys=())
    assert (part.samples, part.bytes, part.digest, part.rows(), list(part.clips())) == (0, 0, "", [], [])
    assert files.names(str(tmp_path / "root" / "parts")) == ["p1.parquet"]
    part.verify()


def test_every_damaged_byte_of_an_index_is_found_or_harmless(part, tmp_path):
    whole, right = Path(part.index).read_bytes(), part.rows()
    wrong = []
    for at in range(5, len(whole), 23):
        _flip(part.index, at)
        try:
            found = parts.find(str(tmp_path / "root"), "p1")
            if (found.rows(), found.digest) != (right, part.digest):
                wrong.append(at)
        except Damaged as error:
            assert "p1.parquet" in str(error)
        Path(part.index).write_bytes(whole)
    assert not wrong


def _as_schema_1(root, part):
    """Rewrites a root as the schema before this one had it."""
    facts = tables.about(part.index)
    older = tables.read(part.index).drop_columns(["member", "identity", "metadata"])
    Path(part.index).write_bytes(tables.pack(older, facts))
    Path(root, files.MARKER).write_text(json.dumps({"schema": 1}))


def test_a_root_of_the_schema_before_is_read(part, tmp_path):
    """PR25: the index of schema 1 had neither members nor metadata."""
    root = str(tmp_path / "root")
    _as_schema_1(root, part)
    assert files.existing_root(root) == root
    rows = parts.find(root, "p1").rows()
    assert [(row["member"], row["metadata"]) for row in rows] == [(f"{key}.mp4", "{}") for key in KEYS]
    assert parts.find(root, "p1").table(["member"]).column_names == ["member"]
    assert tuple(row["key"] for row, _ in part.clips()) == KEYS


def test_writing_to_an_older_root_marks_it(part, tmp_path):
    """PR25: from then on an older version refuses it."""
    root = str(tmp_path / "root")
    _as_schema_1(root, part)
    assert files.open_root(root) == root
    assert files.read_json(files.join(root, files.MARKER)) == {"schema": files.SCHEMA}


def test_a_ledger_of_the_schema_before_is_read(tmp_path):
    """PR25: its seconds were of video."""
    old = pa.table({"step": ["shard"], "item": ["a"], "content_id": ["c"], "verdict": ["kept"], "reason": [""],
                    "detail": [""], "clips": pa.array([2], pa.int32()), "seconds": [4.5]})  # fmt: skip
    target = tmp_path / "ledger" / "shard" / "p.parquet"
    target.parent.mkdir(parents=True)
    target.write_bytes(tables.pack(old))
    (entry,) = ledger.read(str(tmp_path), "shard", "p")
    assert (entry.clips, entry.duration, entry.seconds, entry.host) == (2, 4.5, 0.0, "")


def test_an_index_of_fewer_rows_is_found(part):
    with pytest.raises(Damaged, match="part p1: its index has 3 rows, 4 were"):
        dataclasses.replace(part, samples=4).rows()


# Datasets


def test_a_frozen_dataset_loads_again(part, commit, tmp_path):
    root = str(tmp_path / "root")
    frozen = datasets.freeze(root, "d", [commit(root, "p2"), part, commit(root, "p0", keys=())], {"span": 2.0})
    assert datasets.load(root, "d") == datasets.load(root, "d", frozen.version) == frozen
    assert [p.id for p in frozen.parts] == ["p1", "p2"] and frozen.clips == 6
    assert datasets.names(root) == ["d"]


def test_the_version_follows_from_the_content(part, commit, tmp_path):
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


def test_a_column_beside_another_part_is_refused(part, commit, tmp_path):
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
        _flip(path, at)
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


def test_a_damaged_ledger_is_named(tmp_path):
    ledger.write(str(tmp_path), "shard", "p1", [Entry("a", "kept")])
    _flip(tmp_path / "ledger" / "shard" / "p1.parquet", 60)
    with pytest.raises(Damaged, match="ledger/shard/p1.parquet"):
        ledger.read(str(tmp_path), "shard", "p1")


def test_packing_is_byte_stable():
    assert tables.pack(_column(), {"b": 1, "a": 2}) == tables.pack(_column(), {"a": 2, "b": 1})
    assert pa.parquet.read_table(io.BytesIO(tables.pack(_column()))) == _column()
