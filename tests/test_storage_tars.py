"""A part's tar is written beside other work: the bytes of a plain tar, whole or not at all, and no request too many."""

import io
import json
import tarfile

import numpy as np
import pytest

from storage import files, parts, tars
from tests.made_parts import _row

SIZES = (0, 1, 511, 512, tars.BLOCK - 1, tars.BLOCK, 2 * tars.BLOCK + 7)


@pytest.fixture
def clips(tmp_path):
    """Rows and files of clips around the sizes of a tar's block and of a read."""
    rows, media = [], []
    for number, size in enumerate(SIZES):
        rows.append(_row(f"{number:02d}-000000000") | {"metadata": "{}"})
        media.append(tmp_path / f"{number}.mp4")
        media[-1].write_bytes(np.random.default_rng(number).bytes(size))
    return rows, media


def _plain(rows, media):
    """The same shard as the standard library writes it."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for row, path in zip(rows, media, strict=True):
            facts = {name: row[name] for name in tars.SIDECAR} | {"metadata": {}}
            sidecar = json.dumps(facts, sort_keys=True).encode()
            for name, data in ((f"{row['key']}.mp4", path.read_bytes()), (f"{row['key']}.json", sidecar)):
                member = tarfile.TarInfo(name)
                member.size, member.mode, member.mtime = len(data), 0o644, 0
                tar.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def test_the_bytes_are_those_of_a_plain_tar(clips, tmp_path):
    with tars.Tar(tmp_path / "a.tar") as tar:
        tar.add(*clips)
        digest, done = tar.close(), tar.rows
    data = (tmp_path / "a.tar").read_bytes()
    assert data == _plain(*clips) and digest == files.digest(data)
    for row, path in zip(done, clips[1], strict=True):
        found = data[row["offset"] : row["offset"] + row["size"]]
        assert found == path.read_bytes() and row["sha256"] == files.digest(found)


def test_clips_that_are_given_are_gone_and_others_stay(clips, tmp_path):
    rows, media = clips
    with tars.Tar(tmp_path / "a.tar") as tar:
        tar.add(rows[:3], media[:3], give=True)
        tar.add(rows[3:], media[3:])
        tar.close()
    assert [path.exists() for path in media] == [False] * 3 + [True] * 4


def test_a_clip_that_cannot_be_read_commits_nothing(clips, tmp_path):
    """What goes wrong beside the work is raised before anything is put into the store."""
    rows, media = clips
    media[2].unlink()
    with pytest.raises(FileNotFoundError, match=r"2\.mp4"), tars.Tar(tmp_path / "a.tar") as tar:
        tar.add(rows, media)
        parts.commit_tar(str(tmp_path / "root"), "p1", tar)
    assert not list(tmp_path.glob("root/**/*.*"))


def test_a_clip_that_ends_early_commits_nothing(clips, tmp_path, monkeypatch):
    rows, media = clips
    whole = type(media[6]).stat

    def longer(path, **options):
        found = whole(path, **options)
        if path != media[6]:
            return found
        return type(found)([*found[:6], found.st_size + 1, *found[7:]])

    monkeypatch.setattr(type(media[6]), "stat", longer)
    with pytest.raises(OSError, match="ends 1 bytes early"):
        parts.commit(str(tmp_path / "root"), "p1", rows, media, tmp_path)
    assert not list(tmp_path.glob("root/**/*.*"))


def test_an_index_that_was_just_written_is_not_read_again(clips, tmp_path, monkeypatch):
    read, asked = files.read, []
    monkeypatch.setattr(files, "read", lambda url, *span: asked.append(url) or read(url, *span))
    root = str(tmp_path / "root")
    made = parts.commit(root, "p1", *clips, tmp_path)
    assert not asked
    assert parts.find(root, "p1") == made  # and what it says is what is there
    assert parts.commit(root, "p1", *clips, tmp_path) == made  # another writer's is read
    assert len([url for url in asked if url.endswith(".parquet")]) == 2
