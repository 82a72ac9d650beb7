"""Listing, labels and drafts: nothing hangs, nothing is lost, and one change touches one part."""

import json
import os
import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import files, ledger
from storage.archive import Labels, Member, Source, check_labels, content_id, drafts, listing, read_labels, split_of
from storage.errors import InputError

CONFIG = {"span": 10.0, "short_side": 256}


@pytest.fixture
def labels(tmp_path):
    """Writes a labels file of this name and text and returns its path."""

    def write(text, name="labels.csv"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


# Labels

ROWS = [("a.mp4", None, None, "left", "train"), ("b.mp4", 0.5, 1.5, "up", "heldout"), ("b.mp4", 1.0, 2.0, "spin", "heldout")]  # fmt: skip # noqa: E501
FIELDS = ("path", "start", "end", "label", "split")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_the_three_formats_say_the_same(tmp_path, kind):
    path = tmp_path / f"labels.{kind}"
    records = [dict(zip(FIELDS, row, strict=True)) for row in ROWS]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(r) for r in records) + "\n\n")
    else:
        path.write_text("\n".join(",".join("" if v is None else str(v) for v in row) for row in [FIELDS, *ROWS]))
    assert read_labels(str(path)) == {
        "a.mp4": Labels(((None, None, "left"),), "train"),
        "b.mp4": Labels(((0.5, 1.5, "up"), (1.0, 2.0, "spin")), "heldout"),
    }


def test_labels_are_read_from_any_store(s3):
    files.replace(b"\xef\xbb\xbfpath,label\na.mp4,left\n", f"{s3}/labels.csv")  # with a byte order mark
    assert read_labels(f"{s3}/labels.csv") == {"a.mp4": Labels(((None, None, "left"),))}


def test_times_make_segments_and_their_absence_a_video_label(labels):
    found = read_labels(labels("path,start,end,label\na.mp4,,,left\nb.mp4,0,1,left\n"))
    assert (found["a.mp4"].kind, found["b.mp4"].kind) == ("video", "segments")


def test_an_empty_label_says_nothing_is_there(labels):
    found = read_labels(labels("path,label\na.mp4,\n"))
    assert found == {"a.mp4": Labels(())} and found["a.mp4"].kind == "segments"


@pytest.mark.parametrize(
    "text, message",
    [
        ("path,label\n,left\n", "row 1: no path"),
        ("path,label,split\na,x,train\na,y,heldout\n", "row 2: a is in two splits"),
        ("path,label,split\na,x,trian\n", "row 1: split 'trian' must be train or heldout"),
        ("path,start,end,label\na,1,,x\n", "row 1: start .* must be seconds, both or none"),
        ("path,start,end,label\na,0,1,x\na,one,2,x\n", "row 2: start 'one' .* must be seconds"),
        ("path,start,end,label\na,2,1,x\n", "row 1: needs 0 <= start < end, got 2 to 1"),
        ("path,start,end,label\na,1,1,x\n", "row 1: needs 0 <= start < end"),
        ("path,start,end,label\na,-1,1,x\n", "row 1: needs 0 <= start < end"),
        ("path,start,end,label\na,nan,1,x\n", "row 1: needs 0 <= start < end"),
        ("path,start,end,label\na,0,inf,x\n", "row 1: needs 0 <= start < end"),
        ("path,start,end,label\na,,,x\na,0,1,x\n", "a has rows with and without times"),
        ("path,label\na,x,y\n", "row 1: not a row of the columns"),
        ("path,label\n", "no rows; leave --labels out"),
        ("", "no rows"),
        ("file,label\na,x\n", "no column path; columns are path,label or path,start,end,label"),
        ("video,class\na,x\n", "no column label or path"),
        ("path,label\na," + "x" * 200_000 + "\n", "cannot be read as labels"),
    ],
)
def test_what_is_wrong_with_labels_is_said(labels, text, message):
    url = labels(text)
    with pytest.raises(InputError, match=f"{url}.*{message}"):
        read_labels(url)


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("l.jsonl", b'{"path": "a", "label": "x"}\n{"path": \n', "line 2"),
        ("l.jsonl", b'{"path": "a", "label": "x"}\n[1, 2]\n', "row 2: not a row"),
        ("l.jsonl", b"[]", "no column label or path"),
        ("l.parquet", b"PAR1 no", "give CSV, Parquet or JSON lines"),
        ("l.csv", b"path,label\n\xff\xfe,x\n", "give CSV, Parquet or JSON lines"),
    ],
)
def test_labels_that_cannot_be_read(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=f"{name}.*{message}"):
        read_labels(str(tmp_path / name))


def test_labels_that_are_missing_or_a_folder(tmp_path):
    with pytest.raises(InputError, match="no such labels file"):
        read_labels(str(tmp_path / "none.csv"))
    with pytest.raises(InputError, match="cannot be read as labels"):
        read_labels(str(tmp_path))


def test_labels_of_files_that_are_not_there():
    known = {f"{n}.mp4": Labels(((None, None, "left"),)) for n in range(9)}
    with pytest.raises(InputError, match=r"labels.csv names 8 files .*\(1.mp4, 2.mp4, 3.mp4, …\)"):
        check_labels(known, [_source("0.mp4")], "labels.csv", [])


def test_labels_of_classes_that_are_not_listed():
    known = {"a.mp4": Labels(((None, None, "left"), (None, None, "jump")))}
    check_labels(known, [_source("a.mp4")], "labels.csv", ["left", "jump", "more"])
    with pytest.raises(InputError, match="labels.csv names classes that --classes does not list: jump"):
        check_labels(known, [_source("a.mp4")], "labels.csv", ["left"])


def test_splits():
    weak, dense = Labels(((None, None, "left"),)), Labels(((0.0, 1.0, "left"),))
    paths = [_source(f"{n}.mp4") for n in range(2000)]
    assert {split_of(p, None, 0.3) for p in paths} == {"unlabelled"}
    assert {split_of(p, weak, 0.3) for p in paths} == {"train"}
    assert {split_of(p, Labels(dense.rows, "heldout"), 0.0) for p in paths} == {"heldout"}
    counts = Counter(split_of(p, dense, 0.3) for p in paths)
    assert counts["heldout"] + counts["train"] == 2000 and 0.26 < counts["heldout"] / 2000 < 0.34


def test_a_larger_held_out_share_moves_sources_one_way():
    dense, paths = Labels(((0.0, 1.0, "left"),)), [_source(f"{n}.mp4") for n in range(300)]
    small, large = ({p.path for p in paths if split_of(p, dense, share) == "heldout"} for share in (0.2, 0.4))
    assert small < large


# Drafts


def _source(path, place="/archive"):
    return Source(path, f"{place}/{path}", 1, "1")


def _member(path, content=None, split="train", labels=None, place="/archive"):
    return Member(_source(path, place), content or files.digest(path.encode()), split, labels)


def _many(seed, count=600):
    draw = random.Random(seed)
    return [_member(f"f{draw.randrange(3)}/{draw.getrandbits(60):x}.mp4") for _ in range(count)]


def _ids(members, per_part=16):
    return {draft.id for draft in drafts(members, CONFIG, per_part)}


def test_drafts_partition_the_members():
    members = _many(0)
    parts = list(drafts(members, CONFIG, 16))
    assert sorted(m.source.path for d in parts for m in d.members) == sorted(m.source.path for m in members)
    assert len({d.id for d in parts}) == len(parts)


@pytest.mark.parametrize("per_part", [1, 4, 16, 64, 1000])
def test_parts_are_about_as_large_as_asked(per_part):
    parts = list(drafts(_many(1), CONFIG, per_part))
    assert max(len(d.members) for d in parts) <= max(1, 1.5 * per_part)
    assert len(parts) <= 3 + 3 * 600 / per_part


def test_a_part_is_of_one_folder_split_and_kind():
    kinds = [None, Labels(((None, None, "x"),)), Labels(((0.0, 1.0, "x"),))]
    members = [
        _member(f"{n % 3}/{n}.mp4", split=("train", "heldout")[n % 2], labels=kinds[n % 5 % 3]) for n in range(400)
    ]
    for draft in drafts(members, CONFIG, 8):
        assert len({(m.source.path.split("/")[0], m.split, m.labelled) for m in draft.members}) == 1


def test_the_order_of_the_listing_leaves_no_trace():
    members = _many(2)
    shuffled = random.Random(0).sample(members, len(members))
    assert _ids(members) == _ids(shuffled)


@pytest.mark.parametrize("seed", range(40))
def test_one_source_more_or_less_changes_its_part_alone(seed):
    members = _many(seed, 200)
    extra = _member(f"f0/{random.Random(-1 - seed).getrandbits(60):x}.mp4")
    without, with_ = _ids(members), _ids([*members, extra])
    # A part grows, or splits in two; the other way round, it shrinks, or joins its other half.
    assert len(without - with_) <= 1 and 1 <= len(with_ - without) <= 2


@pytest.mark.parametrize("seed", range(10))
def test_a_changed_source_changes_its_part_alone(seed):
    members = _many(seed, 200)
    other = _member(members[seed].source.path, content="f" * 64)
    before, after = _ids(members), _ids([*members[:seed], other, *members[seed + 1 :]])
    assert len(before - after) == len(after - before) == 1


def test_labels_and_configuration_are_in_the_id_and_the_place_is_not():
    members = _many(3, 5)
    one = _ids(members)
    assert one == _ids([_member(m.source.path, place="s3://elsewhere") for m in members])
    assert not one & {d.id for d in drafts(members, {**CONFIG, "span": 5.0}, 16)}
    assert not one & _ids([_member(m.source.path, labels=Labels(((None, None, "x"),))) for m in members])
    assert not one & _ids([_member(m.source.path, split="heldout") for m in members])


# Listing


def _touch(path, data=b"x"):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def test_a_missing_archive_and_a_file(tmp_path, s3):
    with pytest.raises(InputError, match="no such archive; give the folder"):
        list(listing(str(tmp_path / "none")))
    with pytest.raises(InputError, match="no such archive; give the folder"):
        list(listing(f"{s3}/none-at-all"))
    (tmp_path / "file.mp4").write_text("x")
    with pytest.raises(InputError, match="a file; give the folder"):
        list(listing(str(tmp_path / "file.mp4")))


def test_an_empty_archive(tmp_path):
    assert list(listing(str(tmp_path))) == []


def test_hidden_files_and_folders_are_left_out(tmp_path):
    for name in (".hidden.mp4", ".git/a.mp4", "b/.c/d.mp4", "b/e.mp4"):
        _touch(tmp_path / name)
    assert [s.path for s in listing(str(tmp_path))] == ["b/e.mp4"]


def test_an_archive_below_a_hidden_folder_is_listed(tmp_path):
    _touch(tmp_path / ".cache" / "a.mp4")
    assert [s.path for s in listing(str(tmp_path / ".cache"))] == ["a.mp4"]


def test_the_stamp_follows_the_bytes(tmp_path):
    _touch(tmp_path / "a.mp4")
    os.symlink("a.mp4", tmp_path / "link.mp4")
    before = [s.stamp for s in listing(str(tmp_path))]
    _touch(tmp_path / "a.mp4", b"y")
    os.utime(tmp_path / "a.mp4", (1, 1))
    after = [s.stamp for s in listing(str(tmp_path))]
    assert before == [s for s in before if s not in after] and len(set(after)) == 1


def test_a_listing_of_s3(s3):
    fs, _ = files.locate(s3)
    for name in ("b.mp4", "folder/", "folder/a::b.mp4", "folder/ü 🎬.mp4", ".hidden/c.mp4"):
        fs.pipe_file(f"reel/listed/{name}", name.encode())
    found = {s.path: s for s in listing(f"{s3}/listed")}
    assert list(found) == ["b.mp4", "folder/a::b.mp4", "folder/ü 🎬.mp4"]
    assert all(s.regular and content_id(s) == files.digest(p.encode()) for p, s in found.items())


def test_a_folder_that_cannot_be_read_stops_the_listing(tmp_path, monkeypatch):
    scandir = os.scandir
    _touch(tmp_path / "closed" / "a.mp4")

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match="closed: cannot be listed"):
        list(listing(str(tmp_path)))


STRANGE = ("new\nline.mp4", "🎬 é.mp4", ";$(touch x)`y`.mp4", "-rf.mp4", "a::b.mp4", "s3:.mp4", "50%41.mp4", "x" * 251 + ".mp4")  # fmt: skip # noqa: E501


@pytest.fixture
def odd(tmp_path):
    """An archive of strange names and of things that are no files."""
    folder = tmp_path / "odd"
    for number, name in enumerate(STRANGE):
        _touch(folder / name, bytes([number]))
    _touch(os.fsencode(folder) + b"/\xff\xfe.mp4", b"bytes")
    _touch(folder / "good.mp4", b"good")
    _touch(folder / "notes.txt")
    _touch(folder / "folder.mp4" / "inside.mp4", b"inside")
    os.mkfifo(folder / "pipe.mp4")
    for name, target in {"dangling": "none", "self": "self.mp4", "device": "/dev/zero", "up": "..", "link": "good.mp4"}.items():  # fmt: skip # noqa: E501
        os.symlink(target, folder / f"{name}.mp4")
    os.symlink("..", folder / "loop")
    return folder


IRREGULAR = {f"{name}.mp4" for name in ("folder", "pipe", "dangling", "self", "device", "up")}


def test_strange_names_are_read_back(odd):
    found = {s.path: s for s in listing(str(odd))}
    for number, name in enumerate(STRANGE):
        assert content_id(found[name]) == files.digest(bytes([number]))
    assert content_id(found["%FF%FE.mp4"]) == files.digest(b"bytes")
    assert content_id(found["link.mp4"]) == files.digest(b"good") and content_id(found["folder.mp4/inside.mp4"])


def test_what_is_no_file_is_irregular(odd):
    assert {s.path for s in listing(str(odd)) if not s.regular} == IRREGULAR | {"loop"}


def test_everything_listed_ends_in_the_ledger(odd, tmp_path):
    from tasks.listing import load_plan, plan_archive

    root = files.open_root(str(tmp_path / "root"))
    plan, report = plan_archive(root, "d", str(odd), None, classes=[], held_out=0.3, per_part=16, config=CONFIG)
    entries = {e.item: e for e in ledger.read(root, "list", "d")}
    assert report.balanced and report.items == len(entries) == len(list(listing(str(odd))))
    assert {p for p, e in entries.items() if e.reason == "not_regular_file"} == IRREGULAR
    assert {p for p, e in entries.items() if e.verdict == "dropped"} == {"notes.txt", "loop", "link.mp4"}
    kept = {m.source.path for d in load_plan(root, "d", plan) for m in d.members}
    assert kept == {p for p, e in entries.items() if e.verdict == "kept"} >= {*STRANGE, "%FF%FE.mp4", "good.mp4"}


def test_an_escaped_name_cannot_pose_as_another(tmp_path):
    _touch(os.fsencode(tmp_path) + b"/\xff.mp4", b"one")
    _touch(tmp_path / "%FF.mp4", b"two")
    assert sorted((s.path, s.regular) for s in listing(str(tmp_path))) == [("%FF.mp4", False), ("%FF.mp4", True)]


def test_strange_names_reach_the_decoder(odd, tmp_path):
    from storage.sandbox import Sandbox
    from storage.video import Rejected
    from tasks.shard import _local

    sandbox = Sandbox()
    for source in listing(str(odd)):
        path = _local(source, Path(tmp_path))
        with pytest.raises(Rejected) as caught:
            sandbox.cut(path, tmp_path, span=2.0, short_side=64)
        assert (caught.value.reason == "not_regular_file") == (
            not source.regular and source.path != "dangling.mp4" and source.path != "self.mp4"
        )  # noqa: E501
    sandbox.close()
