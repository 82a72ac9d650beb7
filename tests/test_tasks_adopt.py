"""Adopting shards of others: what is sound is used where it is, what is not is named, and nothing is unpickled."""

import io
import json
import tarfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import webdataset
from click.testing import CliRunner

from flows.__main__ import main
from storage import adoption, datasets, files, ledger, reading
from storage.adoption import BadSidecar, describe
from storage.catalogue import Catalogue
from storage.errors import BudgetExceeded, Damaged, InputError
from storage.media.encoder import Encoder
from tasks.adopt import adopt

LONG = "long/" * 22 + "name"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")

    def make(number, frames=12):
        path = folder / f"{number}.mp4"
        if not path.exists():
            pixels = np.random.default_rng(number).integers(0, 255, (32, 48, 3), np.uint8)
            encoder = Encoder(path, 48, 32, Fraction(10), Fraction(1, 1000))
            for t in range(frames):
                encoder.write(np.roll(pixels, t, 1), Fraction(t, 10))
            encoder.close()
        return path.read_bytes()

    return make


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


def evil(canary):
    return b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."


def written(folder, clip, canary, count=2, each=3):
    """Shards as WebDataset's own writer makes them: odd keys, several sidecars, a pickle beside each clip."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = ["plain", "with space", LONG, "dir/é", "Case.v1", "x"]
    pattern = str(folder / "shard-%03d.tar")
    with webdataset.ShardWriter(pattern, maxcount=each, opener=lambda p: open(p, "wb"), verbose=0) as sink:
        for number in range(count * each):
            sample = {"__key__": keys[number % len(keys)], "mp4": clip(number), "pkl": evil(canary), "jpg": b"\xff\xd8"}
            if number % 3 == 0:
                sample |= {"json": json.dumps({"label": "left", "who": "me"}).encode(), "txt": b"a man walks"}
            if number % 3 == 1:
                sample |= {"json": json.dumps({"labels": [{"start": 0.1, "end": 0.5, "label": "right"}]}).encode()}
            if number % 3 == 2:
                sample |= {"cls": b"7"}
            sink.write(sample)
    return folder


def put(path, *members):
    """A tar of (name, bytes or a kind of member)."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes) and len(content) > 1:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = content, "/etc/passwd"
                tar.addfile(info)
    return path


def by_item(root):
    found = {}
    for name in files.names(files.join(root, "ledger", "adopt")):
        for entry in ledger.read(root, "adopt", name.removesuffix(".parquet")):
            found[entry.item.rpartition("#")[2]] = (entry.verdict, entry.reason)
    return found


@pytest.fixture(params=["local", "s3"])
def places(request, tmp_path, clip, canary):
    """(shards, root): both here, or both on S3."""
    local = written(tmp_path / "theirs", clip, canary)
    if request.param == "local":
        return str(local), str(tmp_path / "root")
    bucket = f"{request.getfixturevalue('s3')}/{tmp_path.name}"
    for path in local.iterdir():
        files.replace(path.read_bytes(), f"{bucket}/theirs/{path.name}")
    return f"{bucket}/theirs", f"{bucket}/root"


def test_a_dataset_of_webdatasets_writer_is_adopted_where_it_is(places, canary, clip):
    theirs, root = places
    said = adopt(root, [f"{theirs}/shard-{{000..001}}.tar"], "them")
    data = datasets.load(root, "them")
    assert data.clips == 6 and f"{data.version}: 6 clips" in said
    rows = {row["path"]: row for part in data.parts for row in part.rows()}
    assert set(rows) == {"plain", "with space", LONG, "dir/é", "Case.v1", "x"}
    assert {part.media for part in data.parts} == {f"{theirs}/shard-{i:03d}.tar" for i in range(2)}
    assert not files.names(files.join(root, "parts"), ".tar")
    for part in data.parts:
        part.verify()
        assert {(row["split"], row["labelled"]) for row in part.rows()} == {(part.split, part.labelled)}
    plain = rows["plain"]
    assert (plain["frames"], plain["width"], plain["height"]) == (12, 48, 32)
    assert plain["fps"] == pytest.approx(10) and plain["duration"] == pytest.approx(1.2)
    assert json.loads(plain["metadata"]) == {"who": "me", "caption": "a man walks"}
    assert plain["labels"] == [{"start": None, "end": None, "label": "left"}] and plain["split"] == "train"
    assert rows["with space"]["labels"] == [{"start": 0.1, "end": 0.5, "label": "right"}]
    assert rows[LONG]["labels"][0]["label"] == "7"
    keys = [row["key"] for row in rows.values()]
    assert len(set(keys)) == 6 and all(set(key) <= set("0123456789abcdef-") for key in keys)
    found = Catalogue(root, data)
    streamed = {s["__key__"]: s for s in reading.samples(data)}
    for number, path in enumerate(["plain", "with space", LONG, "dir/é", "Case.v1", "x"]):
        key = rows[path]["key"]
        assert found.clip(key) == streamed[key]["mp4"] == clip(number)
        assert "pkl" not in streamed[key] and streamed[key]["jpg"] == b"\xff\xd8"
    assert not canary.exists()


def test_a_second_run_adopts_nothing_and_a_changed_tar_is_taken_up_and_noticed(places, capsys, clip, tmp_path):
    theirs, root = places
    adopt(root, [theirs], "them")
    before = datasets.load(root, "them")
    capsys.readouterr()
    adopt(root, [theirs], "them")
    assert "0 shards to do, 2 already there" in capsys.readouterr().out
    assert datasets.load(root, "them").version == before.version
    files.replace(put(tmp_path / "new.tar", ("new.mp4", clip(9))).read_bytes(), f"{theirs}/shard-001.tar")
    adopt(root, [theirs], "them")
    assert "1 shards to do, 1 already there" in capsys.readouterr().out
    after = datasets.load(root, "them")
    assert after.clips == 4 and after.version != before.version
    assert len(list(reading.samples(after))) == 4
    old = [part for part in before.parts if part.media.endswith("001.tar")]
    for read in (lambda: list(old[0].clips()), lambda: list(reading.samples(old))):
        with pytest.raises(Damaged, match=f"part {old[0].id}"):
            read()


def test_what_cannot_be_used_is_quarantined_with_a_reason(tmp_path, clip):
    """A bad sample costs itself alone."""
    deep = b'{"label": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    put(
        tmp_path / "x.tar",
        ("good.mp4", clip(0)), ("good.json", b'{"class": 3}'),
        ("../up.mp4", clip(1)), ("/abs.mp4", clip(1)), ("sub/link.mp4", b"2"), ("hard.mp4", b"1"), ("pipe.mp4", b"6"),
        ("twice.mp4", clip(2)), ("twice.mp4", clip(3)), ("noext", b"??"), ("__m__/k.mp4", clip(1)),
        ("nl\n.mp4", clip(1)), ("text.mp4", b"<html>not a video</html>"), ("cut.mp4", clip(4)[:900]),
        ("deep.mp4", clip(5)), ("deep.json", deep), ("nan.mp4", clip(5)), ("nan.json", b'{"score": NaN}'),
        ("two.mp4", clip(5)), ("two.json", b'{"label": "a", "label": "b"}'), ("only.txt", b"no video"),
        ("seg.mp4", clip(5)), ("seg.json", b'{"labels": [{"start": 2, "end": 1, "label": "x"}]}'),
        ("half.mp4", clip(5)), ("half.json", b'{"label": "\\ud800"}'), ("far.mp4", clip(5)),
        ("far.json", b'{"labels": [{"start": 0, "end": 1' + b"0" * 400 + b', "label": "x"}]}'),
        ("lists.mp4", clip(5)), ("lists.json", b'{"m": ' + b"[" * 990 + b"]" * 990 + b"}"),
        ("last.mov", clip(6)),
    )  # fmt: skip
    root = str(tmp_path / "root")
    adopt(root, [str(tmp_path / "x.tar")], "them", failure_budget=1.0)
    found = by_item(root)
    for item in ("text.mp4", "cut.mp4"):  # which reason is the decoder's affair
        assert found.pop(item)[1] in ("decode_error", "not_video", "truncated")
    assert {item: why for item, (verdict, why) in found.items() if verdict == "quarantined"} == {
        "../up.mp4": "unsafe_name", "/abs.mp4": "unsafe_name", "sub/link.mp4": "link", "hard.mp4": "link",
        "pipe.mp4": "special", "twice.mp4": "duplicate", "noext": "no_key", "__m__/k.mp4": "no_key",
        "nl\n.mp4": "bad_name", "deep.mp4": "bad_sidecar",
        "nan.mp4": "bad_sidecar", "two.mp4": "bad_sidecar", "seg.mp4": "bad_sidecar",
        "half.mp4": "bad_sidecar", "far.mp4": "bad_sidecar", "lists.mp4": "bad_sidecar",
    }  # fmt: skip
    assert found["only"] == ("dropped", "no_video")
    [book] = files.names(files.join(root, "ledger", "adopt"))
    kinds = {e.item.rpartition("#")[2]: e.error for e in ledger.read(root, "adopt", book.removesuffix(".parquet"))}
    assert kinds["nan.mp4"] == "BadSidecar" and kinds["cut.mp4"].endswith("Error") and kinds["last.mov"] == ""
    data = datasets.load(root, "them")
    assert sorted(row["path"] for part in data.parts for row in part.rows()) == ["good", "last"]
    assert sorted(p.name for p in tmp_path.rglob("*.mp4")) == []


def test_an_adopted_dataset_is_audited_and_verified(tmp_path, clip):
    from tasks.audits.contents import funnel
    from tasks.verify import examine

    put(tmp_path / "x.tar", ("a.mp4", clip(0)), ("b.mp4", clip(1)), ("b.mp4", clip(1)), ("c.mp4", b"rubbish"))
    root = files.absolute(str(tmp_path / "root"))
    adopt(root, [str(tmp_path / "x.tar")], "them")
    data = datasets.load(root, "them")
    reason = by_item(root)["c.mp4"][1]
    assert funnel(root, data)["by_reason"] == {"quarantined: duplicate": 1, f"quarantined: {reason}": 1}
    assert examine(root, "them", 1.0, 0)[0] == [] == examine(root, None, 1.0, 0)[0]
    where = tmp_path / "x.tar"
    whole = where.read_bytes()
    at = data.parts[0].rows()[0]["offset"] + 20
    where.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
    (finding,) = examine(root, "them", 1.0, 0)[0]
    assert finding.url == str(where) and "1 of 1 clips" in finding.problem and "adopt it again" in finding.remedy
    where.unlink()
    assert [f.problem for f in examine(root, "them", 1.0, 0)[0]] == ["it is gone"]


def test_a_damaged_tar_is_named_after_the_others_are_adopted(tmp_path, clip, canary):
    theirs = written(tmp_path / "theirs", clip, canary, count=3)
    whole = (theirs / "shard-001.tar").read_bytes()
    (theirs / "shard-001.tar").write_bytes(whole[:3000])
    root = str(tmp_path / "root")
    for _ in range(2):  # the second run says it again
        with pytest.raises(Damaged, match=r"1 of 3 shards .*shard-001.tar: .*truncated"):
            adopt(root, [str(theirs)], "them")
    assert datasets.load(root, "them").clips == 6
    (theirs / "shard-001.tar").write_bytes(whole)
    adopt(root, [str(theirs)], "them")
    assert datasets.load(root, "them").clips == 9


def test_a_clip_that_is_too_large_is_not_read(tmp_path, clip, monkeypatch):
    put(tmp_path / "x.tar", ("small.mp4", clip(0)), ("large.mp4", clip(1) + bytes(100_000)))
    monkeypatch.setattr("tasks.adopt.LARGEST", 100_000)
    root = str(tmp_path / "root")
    adopt(root, [str(tmp_path / "x.tar")], "them")
    assert by_item(root) == {"small.mp4": ("kept", ""), "large.mp4": ("quarantined", "too_large")}


def test_too_many_bad_samples_fail_the_run(tmp_path, clip):
    put(tmp_path / "x.tar", ("good.mp4", clip(0)), *((f"{i}.mp4", b"rubbish") for i in range(20)))
    with pytest.raises(BudgetExceeded, match="20 of 21 samples .*20 (decode_error|not_video)"):
        adopt(str(tmp_path / "root"), [str(tmp_path / "x.tar")], "them")
    assert datasets.names(str(tmp_path / "root")) == []


def test_labels_of_a_file_come_first_and_strangers_in_it_are_named(tmp_path, clip):
    put(tmp_path / "x.tar", ("a.mp4", clip(0)), ("a.cls", b"12"), ("b.mp4", clip(1)))
    (tmp_path / "l.csv").write_text("path,start,end,label\na,0.1,0.4,jump\nb.mp4,0,1,run\n")
    root = str(tmp_path / "root")
    adopt(root, [str(tmp_path / "x.tar")], "them", labels=str(tmp_path / "l.csv"), split="heldout")
    rows = {row["path"]: row for part in datasets.load(root, "them").parts for row in part.rows()}
    assert rows["a"]["labels"] == [{"start": 0.1, "end": 0.4, "label": "jump"}] and rows["b"]["split"] == "heldout"
    (tmp_path / "l.csv").write_text("path,label\nzebra,jump\n")
    with pytest.raises(InputError, match="zebra"):
        adopt(root, [str(tmp_path / "x.tar")], "them", labels=str(tmp_path / "l.csv"))


def test_a_name_with_a_hash_can_be_labelled(tmp_path, clip):
    put(tmp_path / "x#y.tar", ("a#b.mp4", clip(0)), ("c.mp4", clip(1)))
    (tmp_path / "l.csv").write_text("path,label\na#b.mp4,up\nc,down\n")
    adopt(str(tmp_path / "root"), [str(tmp_path / "x#y.tar")], "them", labels=str(tmp_path / "l.csv"))
    rows = [row for part in datasets.load(str(tmp_path / "root"), "them").parts for row in part.rows()]
    assert {row["member"]: row["labels"][0]["label"] for row in rows} == {"a#b.mp4": "up", "c.mp4": "down"}
    (tmp_path / "l.csv").write_text("path,label\nb.mp4,up\n")
    with pytest.raises(InputError, match=r"1 members that no shard has \(b.mp4\); they have such as a#b.mp4"):
        adopt(str(tmp_path / "root"), [str(tmp_path / "x#y.tar")], "them", labels=str(tmp_path / "l.csv"))


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zst"])
def test_a_compressed_tar_in_a_folder_is_refused_by_its_name(tmp_path, clip, kind):
    put(tmp_path / "a.tar", ("a.mp4", clip(0)))
    (tmp_path / f"b.tar.{kind}").write_bytes(b"whatever")
    with pytest.raises(Damaged, match=rf"1 of 2 shards .*b.tar.{kind}: unpack it first \(compressed"):
        adopt(str(tmp_path / "root"), [str(tmp_path)], "them")


def test_a_second_set_of_shards_can_be_added(tmp_path, clip):
    put(tmp_path / "a.tar", ("a.mp4", clip(0)))
    put(tmp_path / "b.tar", ("b.mp4", clip(1)))
    root = str(tmp_path / "root")
    adopt(root, [str(tmp_path / "a.tar")], "them", split="train", add=True)
    adopt(root, [str(tmp_path / "b.tar")], "them", split="heldout", add=True)
    data = datasets.load(root, "them")
    assert data.clips == 2 and {part.split for part in data.parts} == {"train", "heldout"}


def test_several_videos_of_one_key_are_several_clips(tmp_path, clip):
    put(tmp_path / "x.tar", ("v.1.mp4", clip(0)), ("v.1.cls", b"1\n"), ("v.2.mp4", clip(1)), ("v.2.cls", b"2\n"))
    root = str(tmp_path / "root")
    adopt(root, [str(tmp_path / "x.tar")], "them")
    data = datasets.load(root, "them")
    found = [(s["__row__"]["path"], s["mp4"], s["cls"]) for s in reading.samples(data)]
    assert found == [("v.1", clip(0), b"1\n"), ("v.2", clip(1), b"2\n")]
    assert [r["labels"][0]["label"] for r in data.parts[0].rows()] == ["1", "2"]


def test_features_and_pseudo_labels_are_made_of_adopted_clips(tmp_path, clip, canary):
    from storage import columns
    from tasks.extract import COLUMN, extract_dataset
    from tasks.label import label_dataset

    root = str(tmp_path / "root")
    adopt(root, [str(written(tmp_path / "theirs", clip, canary))], "them")
    data = datasets.load(root, "them")
    version, _ = extract_dataset(root, data, "conse", None, 2.0)
    for part in data.parts:
        table = columns.read(root, COLUMN, version, part, ["embedding"])
        assert table["key"].to_pylist() == [row["key"] for row in part.rows()]
        assert all(len(row) == 3 for row in table["embedding"].to_pylist())
    assert label_dataset(root, data)[1].kept == 4


@pytest.mark.parametrize(
    ("beside", "rows", "metadata"),
    [
        ({"json": b'{"labels": ["b", "a", 3]}'}, [(None, None, "3"), (None, None, "a"), (None, None, "b")], {}),
        ({"json": b'{"labels": []}'}, [], {}),
        ({"json": b'{"caption": "x", "n": 1}'}, None, {"caption": "x", "n": 1}),
        ({"cls": b"4\n"}, [(None, None, "4")], {}),
        ({"cls": b"4\n", "label": b"four"}, [(None, None, "four")], {"cls": "4"}),
        ({"cls": b"1", "json": b'{"label": "run"}'}, [(None, None, "run")], {"cls": "1"}),
        (
            {"cls": b"1", "json": b'{"labels": [{"start": 0, "end": 1, "label": "x"}]}'},
            [(0.0, 1.0, "x")],
            {"cls": "1"},
        ),
        ({"json": b'{"from": ["s3://a/b?X-Amz-Signature=c0ffee"]}'}, None, {"from": ["s3://a/b?X-Amz-Signature=***"]}),
        ({"json": b'{"label": {"start": 0, "end": 1, "class": 2}}'}, [(0.0, 1.0, "2")], {}),
        ({}, None, {}),
    ],
)
def test_sidecars_say_labels_and_metadata(beside, rows, metadata):
    labels, rest = describe(beside, "caption")
    assert (None if labels is None else list(labels.rows)) == rows and rest == metadata


@pytest.mark.parametrize(
    "data",
    [b'{"label": 1.5}', b'{"label": true}', b'{"labels": [{"start": 0, "label": "x"}]}', b"[1]", b"\xff", b"{",
     b'{"labels": ["a", {"start": 0, "end": 1, "label": "x"}]}', b'{"split": "dev", "label": "a"}',
     *(b'{"%b": ' % name + b"[" * deep + b"]" * deep + b"}" for name in (b"label", b"m") for deep in (65, 500, 990)),
     *(b'{"m": ' + b'{"a": ' * deep + b"1" + b"}" * deep + b"}" for deep in (65, 480, 990)),
     b'{"labels": [{"start": 0, "end": 1' + b"0" * 400 + b', "label": "x"}]}', b'{"score": 1e999}', b'{"n": [-1e999]}',
     b'{"label": "\\ud800"}', b'{"\\ud800": 1}', b'{"who": ["\\udfff"]}'],
)  # fmt: skip
def test_a_sidecar_that_is_not_understood_is_refused(data):
    with pytest.raises(BadSidecar):
        describe({"json": data}, "caption")


def test_a_text_is_a_label_when_asked(tmp_path):
    assert describe({"txt": b" dog \n"}, "label")[0].rows == ((None, None, "dog"),)
    assert describe({"txt": b" dog \n"}, "caption") == (None, {"caption": "dog"})


def test_no_shards_is_one_line(tmp_path):
    result = CliRunner().invoke(main, ["adopt", "--root", str(tmp_path / "r"), "--shards", str(tmp_path / "no-*.tar")])
    assert result.exit_code == 2 and "no shards there" in result.stderr and not (tmp_path / "r").exists()
    for hostile in ("pipe:touch /tmp/x", "simplecache::file:///etc/passwd"):
        with pytest.raises(InputError):
            adoption.find([hostile])
    assert not Path("/tmp/x").exists()
