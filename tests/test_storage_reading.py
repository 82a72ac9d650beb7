"""Reading parts: in sequence and at random, checked against the index, here and on S3; and by anybody else's tools."""

import io
import json
import random
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from storage import catalogue, datasets, files, parts, reading
from storage.catalogue import Catalogue
from storage.errors import Damaged, InputError

CLIPS = 5


def _row(key):
    return {
        "key": key, "offset": 0, "size": 0, "sha256": "", "source": f"/archive/{key}.mp4", "path": f"{key}.mp4",
        "content_id": "c" * 64, "start": 0.0, "end": 2.0, "start_pts": 0, "end_pts": 40, "time_base": "1/20",
        "duration": 2.0, "frames": 40, "fps": 20.0, "width": 16, "height": 16, "split": "train",
        "labelled": "video", "labels": [{"start": None, "end": None, "label": "left"}],
    }  # fmt: skip


def _payload(part, number):
    return np.random.default_rng((part, number)).bytes(600 + 700 * number)


def make(root, count=3, clips=CLIPS):
    """A dataset of made-up clips; the keys of a part are not those of the next in order."""
    made = []
    for part in range(count):
        keys = [f"{(number * 7 + part) % 97:02d}{part}{number}-000000000" for number in range(clips)]
        with files.scratch() as folder:
            media = []
            for number in range(clips):
                media.append(folder / f"{number}.mp4")
                media[-1].write_bytes(_payload(part, number))
            made.append(parts.commit(root, f"part{part}", [_row(key) for key in keys], media, folder))
    return datasets.freeze(root, "d", made, {})


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path):
    if request.param == "local":
        return str(tmp_path / "root")
    return f"{request.getfixturevalue('s3')}/{tmp_path.name}"


@pytest.fixture
def data(root):
    return make(root)


def _altered(part, change):
    files.replace(change(files.read(part.media)), part.media)


def test_every_clip_comes_once_in_order_with_its_row(data):
    found = list(reading.samples(data))
    assert [s["__key__"] for s in found] == [r["key"] for p in data.parts for r in p.rows()]
    for number, sample in enumerate(found):
        assert sample["mp4"] == _payload(number // CLIPS, number % CLIPS)
        assert json.loads(sample["json"])["key"] == sample["__key__"] == sample["__row__"]["key"]
    assert reading.decoded(found[0])["json"]["labels"] == found[0]["__row__"]["labels"]


def test_shares_of_workers_are_the_whole_once(data):
    shares = [[s["__key__"] for s in reading.samples(data, share=(i, 2))] for i in range(2)]
    assert sorted(shares[0] + shares[1]) == sorted(s["__key__"] for s in reading.samples(data))
    assert len(shares[0]) == 2 * CLIPS


def _edge(data):
    return 512 + -(-600 // 512) * 512  # behind the first clip


DAMAGE = {
    "cut at the edge of a member": lambda d: d[: _edge(d)],
    "cut within a clip": lambda d: d[:900],
    "cut within a header": lambda d: d[: _edge(d) + 100],
    "end blocks cut": lambda d: d[:-10240] if len(d) > 20480 else d[:-1024],
    "zero block in the middle": lambda d: d[: _edge(d)] + bytes(512) + d[_edge(d) + 512 :],
    "bad header in the middle": lambda d: d[: _edge(d)] + b"\xff" * 512 + d[_edge(d) + 512 :],
    "second tar behind": lambda d: d + d,
    "zero bytes": lambda d: b"",
    "a flipped bit in a clip": lambda d: d[:600] + bytes([d[600] ^ 1]) + d[601:],
    "a flipped bit beside the clips": lambda d: d[: (at := _edge(d) + 600)] + bytes([d[at] ^ 1]) + d[at + 1 :],
    "a page of HTML": lambda d: b"<html>404</html>" * 999,
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_that_webdataset_passes_over_stops_the_reader_and_is_named(damage, tmp_path):
    data = make(str(tmp_path / "root"), count=2)
    _altered(data.parts[1], DAMAGE[damage])
    found = []
    with pytest.raises(Damaged, match="part part1"):
        found.extend(reading.samples(data))
    with pytest.raises(Damaged, match="part part1"):
        for sample in reading.samples(data):
            part, number = int(sample["__part__"][-1]), sample["__row__"]["key"][3]
            assert sample["mp4"] == _payload(part, int(number))


def test_damage_on_s3_is_named_too(s3):
    data = make(f"{s3}/damaged-reading", count=1)
    _altered(data.parts[0], lambda d: d[: _edge(d)])
    with pytest.raises(Damaged, match="part part0"):
        list(reading.samples(data))
    files.remove(data.parts[0].media)
    with pytest.raises(Damaged, match="part part0.*is gone"):
        list(reading.samples(data))


def test_a_tar_with_the_right_clips_in_another_order_is_refused(tmp_path):
    part = make(str(tmp_path / "root"), count=1).parts[0]
    with tarfile.open(part.media) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]
    with tarfile.open(part.media, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members[2:4] + members[:2] + members[4:]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(Damaged, match="part part0: clip .* is not at its place"):
        list(reading.samples([part]))


def test_members_of_other_kinds_never_leave_the_tar(tmp_path):
    """Pickles are neither opened nor handed on, object arrays are refused."""
    part = make(str(tmp_path / "root"), count=1, clips=1).parts[0]
    key = part.rows()[0]["key"]
    canary = tmp_path / "canary"
    evil = b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."
    array = io.BytesIO()
    np.save(array, np.array([{}], object), allow_pickle=True)
    names = {f"{key}.{e}": evil for e in ("pyd", "pkl", "PICKLE", "pth", "pyd.gz")} | {f"{key}.npy": array.getvalue()}
    with tarfile.open(part.media, "a", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in names.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    given = []
    with pytest.raises(Damaged, match="differs from its index"):  # the tar has grown
        given.extend(reading.samples([part]))
    (sample,) = _but_last(reading.samples([part]))
    assert {name for name in sample if not name.startswith("__")} == {"mp4", "json", "npy"}
    with pytest.raises(Damaged, match="npy of clip"):
        reading.decoded(sample)
    assert not canary.exists()


def _but_last(found):
    kept = []
    with pytest.raises(Damaged):
        for sample in found:
            kept.append(sample)
    return kept


def test_plain_webdataset_and_plain_tarfile_read_our_parts(data, tmp_path):
    import webdataset

    for part in data.parts:
        path = tmp_path / "copy.tar"
        path.write_bytes(files.read(part.media))  # as `aws s3 cp` would
        expected = [(row["key"], clip) for row, clip in part.clips()]
        theirs = webdataset.WebDataset(str(path), shardshuffle=False)
        assert [(s["__key__"], s["mp4"]) for s in theirs] == expected
        with tarfile.open(path) as tar:
            assert [(m.name[:-4], tar.extractfile(m).read()) for m in tar if m.name.endswith(".mp4")] == expected


def test_a_torch_loader_reads_it_with_two_workers(tmp_path):
    make(str(tmp_path / "root"))
    code = f"""
import torch
from storage import datasets, reading
class Clips(torch.utils.data.IterableDataset):
    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        data = datasets.load({str(tmp_path / "root")!r}, "d")
        return reading.samples(data, share=(worker.id, worker.num_workers))
keys = [s["__key__"] for s in torch.utils.data.DataLoader(Clips(), batch_size=None, num_workers=2)]
assert len(set(keys)) == len(keys) == {3 * CLIPS}, keys
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_reading_does_not_import_torch_before_it_reads():
    code = "import storage.reading, storage.catalogue, sys; assert not {'torch', 'webdataset'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_random_access_gives_every_clip(root, data, monkeypatch):
    monkeypatch.setattr(catalogue, "GROUP", 4)
    found = Catalogue(root, data)
    expected = {row["key"]: clip for part in data.parts for row, clip in part.clips()}
    keys = list(expected) * 2
    random.Random(0).shuffle(keys)
    assert len(found) == len(expected) and list(found.clips(keys)) == [(key, expected[key]) for key in keys]
    for part in data.parts:
        for number, row in enumerate(part.rows()):
            place = found.find(row["key"])
            assert (place.part, place.row) == (part, number) and found.row(row["key"]) == row
    for stranger in ("", "zz", "000"):
        with pytest.raises(InputError, match=f"dataset d {data.version} has no clip '{stranger}'"):
            found.clip(stranger)


def test_a_look_up_does_not_read_the_indexes(root, data, monkeypatch):
    Catalogue(root, data)
    monkeypatch.setattr(parts.Part, "table", None)
    key = f"{7:02d}01-000000000"
    assert Catalogue(root, data).clip(key) == _payload(0, 1)


def test_a_damaged_clip_is_named_by_part_and_key(root, data):
    row = data.parts[1].rows()[2]
    _altered(data.parts[1], lambda d: d[: row["offset"]] + b"?" + d[row["offset"] + 1 :])
    found = Catalogue(root, data)
    with pytest.raises(Damaged, match=f"part part1: clip {row['key']}"):
        found.clip(row["key"])
    assert found.clip(data.parts[1].rows()[1]["key"]) == _payload(1, 1)


def test_a_damaged_or_missing_catalogue_is_made_again(root, data):
    Catalogue(root, data)
    where = catalogue.url(root, data)
    whole = files.read(where)
    for broken in (whole[:100] + bytes([whole[100] ^ 1]) + whole[101:], whole[:-300], b"", None):
        files.remove(where) if broken is None else files.replace(broken, where)
        assert Catalogue(root, data).clip(f"{7:02d}01-000000000") == _payload(0, 1)
        assert files.read(where) == whole


def test_a_key_in_two_parts_is_named(tmp_path):
    data = make(str(tmp_path / "root"), count=1)
    twice = datasets.Dataset("d", "v", [data.parts[0], data.parts[0]], {})
    with pytest.raises(Damaged, match="key .* is in part part0 and in part part0"):
        catalogue.build(str(tmp_path / "root"), twice)


def test_a_thousand_of_a_hundred_thousand_are_found_quickly(tmp_path, monkeypatch):
    import pyarrow as pa

    root, many = str(tmp_path), 100_000
    keys = [files.digest(str(i).encode())[:20] + "-000000000" for i in range(many)]
    made = [parts.Part(f"p{i}", "", "", 1000, 0, "") for i in range(many // 1000)]
    data = datasets.Dataset("d", "v", made, {})

    def table(part, columns):
        start = int(part.id[1:]) * 1000
        ones = pa.array([1] * 1000)
        return pa.table({"key": keys[start : start + 1000], "offset": ones, "size": ones, "sha256": ["ab" * 32] * 1000})

    monkeypatch.setattr(parts.Part, "table", table)
    catalogue.build(root, data)
    monkeypatch.setattr(parts.Part, "table", None)
    began = time.process_time()
    found = Catalogue(root, data)
    for number in random.Random(1).sample(range(many), 1000):
        place = found.find(keys[number])
        assert (place.part.id, place.row) == (f"p{number // 1000}", number % 1000)
    assert time.process_time() - began < 3
