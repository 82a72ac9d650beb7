"""Parts: byte-stable, committed whole, and damage is found and named."""

import dataclasses
import json
import tarfile
import threading
from pathlib import Path

import pytest

from storage import datasets, files, parts, tables
from storage.errors import Damaged
from tests.made_parts import KEYS, commit, flip
from tests.preparing import bytes_of, prepare


@pytest.fixture
def part(tmp_path):
    return commit(tmp_path / "root")


def test_the_same_content_gives_the_same_bytes_in_two_places(tmp_path):
    one, two = commit(tmp_path / "one"), commit(tmp_path / "two")
    assert Path(one.media).read_bytes() == Path(two.media).read_bytes()
    assert Path(one.index).read_bytes() == Path(two.index).read_bytes()
    assert Path(one.media).name == Path(two.media).name and one.digest == two.digest


def test_cut_parts_are_the_same_from_one_worker_and_from_two(archive, tmp_path, monkeypatch):
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
    flip(part.media, part.rows()[number]["offset"] + 100)
    with pytest.raises(Damaged, match="part p1"):
        part.verify()
    with pytest.raises(Damaged, match=f"part p1: clip {KEYS[number]}"):
        list(part.clips())


def test_a_flipped_header_is_found_by_verify(part):
    flip(part.media, 0)
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


def test_damage_on_s3_is_named_too(s3):
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


def test_a_leftover_tar_of_another_encoder_is_no_obstacle(tmp_path):
    leftover = commit(tmp_path / "root", seed=1)
    Path(leftover.index).unlink()
    part = commit(tmp_path / "root", seed=2)
    part.verify()
    assert part.digest != leftover.digest and len(list(part.clips())) == 3
    assert datasets.freeze(str(tmp_path / "root"), "d", [part], {}) == datasets.load(str(tmp_path / "root"), "d")
    assert files.digest_file(leftover.media) == leftover.digest


def test_a_leftover_of_the_same_bytes_is_taken_over(tmp_path):
    leftover = commit(tmp_path / "root")
    Path(leftover.index).unlink()
    assert commit(tmp_path / "root") == leftover and Path(leftover.media).name == "p1.tar"


def test_a_damaged_leftover_is_no_obstacle(tmp_path):
    leftover = commit(tmp_path / "root")
    Path(leftover.index).unlink()
    flip(leftover.media, 600)
    commit(tmp_path / "root").verify()


def test_the_second_committer_gets_the_first_ones_part(tmp_path):
    first, second = commit(tmp_path / "root", seed=1), commit(tmp_path / "root", seed=2)
    assert second == first
    second.verify()


def test_racing_committers_end_with_one_sound_part(tmp_path):
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


def test_a_slow_writer_cannot_touch_a_committed_part(tmp_path, monkeypatch):
    publish, fast = files.publish, []

    def slow(source, url, **options):
        if url.endswith(".tar") and not fast:  # another committer goes through between our work and our publish
            fast.append(None)
            fast[0] = commit(tmp_path / "root", seed=1)
        return publish(source, url, **options)

    monkeypatch.setattr(files, "publish", slow)
    assert commit(tmp_path / "root", seed=2) == fast[0]
    fast[0].verify()


def test_a_part_of_nothing_has_an_index_and_no_tar(tmp_path):
    part = commit(tmp_path / "root", keys=())
    assert (part.samples, part.bytes, part.digest, part.rows(), list(part.clips())) == (0, 0, "", [], [])
    assert files.names(str(tmp_path / "root" / "parts")) == ["p1.parquet"]
    part.verify()


def test_every_damaged_byte_of_an_index_is_found_or_harmless(part, tmp_path):
    whole, right = Path(part.index).read_bytes(), part.rows()
    wrong = []
    for at in range(5, len(whole), 23):
        flip(part.index, at)
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
    """The index of schema 1 had neither members nor metadata."""
    root = str(tmp_path / "root")
    _as_schema_1(root, part)
    assert files.existing_root(root) == root
    rows = parts.find(root, "p1").rows()
    assert [(row["member"], row["metadata"]) for row in rows] == [(f"{key}.mp4", "{}") for key in KEYS]
    assert parts.find(root, "p1").table(["member"]).column_names == ["member"]
    assert tuple(row["key"] for row, _ in part.clips()) == KEYS


def test_writing_to_an_older_root_marks_it(part, tmp_path):
    """From then on an older version refuses it."""
    root = str(tmp_path / "root")
    _as_schema_1(root, part)
    assert files.open_root(root) == root
    assert files.read_json(files.join(root, files.MARKER)) == {"schema": files.SCHEMA}


def test_an_index_of_fewer_rows_is_found(part):
    with pytest.raises(Damaged, match="part p1: its index has 3 rows, 4 were"):
        dataclasses.replace(part, samples=4).rows()
