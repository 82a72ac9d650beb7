"""Labels from CSV, Parquet and JSON lines: what is wrong is said with the file and the row."""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import files
from storage.errors import InputError
from storage.labels import Labels, check_classes, check_paths, read_labels, split_of


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


def test_a_list_of_names_is_several_labels_and_nothing_is_none(labels):
    rows = ['{"path": "z.mp4"}', '{"path": "a.mp4", "label": ["left", "up", 3, "up"]}',
            '{"path": "b.mp4", "start": 0, "end": 1, "label": ["left", "up"]}', '{"path": "c.mp4", "label": null}',
            '{"path": "d.mp4", "label": []}']  # fmt: skip
    assert read_labels(labels("\n".join(rows), "labels.jsonl")) == {
        "a.mp4": Labels(((None, None, "3"), (None, None, "left"), (None, None, "up"))),
        "b.mp4": Labels(((0.0, 1.0, "left"), (0.0, 1.0, "up"))),
        "c.mp4": Labels(()),
        "d.mp4": Labels(()),
    }


def test_a_number_that_is_none_is_no_label(tmp_path):
    pq.write_table(pa.table({"path": ["a", "b"], "label": [float("nan"), None]}), tmp_path / "labels.parquet")
    assert read_labels(str(tmp_path / "labels.parquet")) == {"a": Labels(()), "b": Labels(())}


@pytest.mark.parametrize(
    "row, message",
    [
        ({"label": True}, "row 1: True is no label; give a name, or a list of names"),
        ({"label": {"name": "left"}}, "row 1: {'name': 'left'} is no label"),
        ({"label": ["left", False]}, "row 1: False is no label"),
        ({"label": ["left", ["up"]]}, r"row 1: \['left', \['up'\]\] is no label"),
        ({"label": 1e999}, "row 1: inf is no label"),
        ({"label": "left", "start": False, "end": True}, "row 1: start False and end True must be seconds"),
        ({"split": "train"}, "row 1: a split but no label"),
        ({"note": "x"}, "no column label; columns are path,label"),
    ],
)
def test_odd_values_are_refused(labels, row, message):
    url = labels(json.dumps({"path": "a", **row}).replace("Infinity", "1e999"), "labels.jsonl")
    with pytest.raises(InputError, match=f"{url}.*{message}"):
        read_labels(url)


@pytest.mark.parametrize(
    "text, message",
    [
        ("path,label\n,left\n", "row 1: no path"),
        ("path,label,split\na,x,train\na,y,heldout\n", "row 2: a is in two splits"),
        ("path,label,split\na,x,trian\n", "row 1: split 'trian' must be train or heldout"),
        ("path,start,end,label\na,1,,x\n", "row 1: start .* must be seconds, both or none"),
        ("path,start,end,label\na,1_0,2_0,x\n", "row 1: start '1_0' and end '2_0' must be seconds"),
        ("path,start,end,label\na,0,1,x\na,one,2,x\n", "row 2: start 'one' .* must be seconds"),
        ("path,start,end,label\na,2,1,x\n", "row 1: needs 0 <= start < end, got 2 to 1"),
        ("path,start,end,label\na,1,1,x\n", "row 1: needs 0 <= start < end"),
        ("path,start,end,label\na,-1,1,x\n", "row 1: needs 0 <= start < end"),
        ("path,start,end,label\na,nan,1,x\n", "row 1: needs 0 <= start < end"),
        ("path,start,end,label\na,0,inf,x\n", "row 1: needs 0 <= start < end"),
        ("path,start,end,label\na,,,x\na,0,1,x\n", "a has rows with and without times"),
        ("path,label\na,x,y\n", "row 1: more values than the file has columns"),
        ("path,label\n", "no rows; leave --labels out"),
        ("", "no rows"),
        ("file,label\na,x\n", "no column path; columns are path,label or path,start,end,label"),
        ("video,class\na,x\n", "no column label or path"),
        ("path,label\na," + "x" * 200_000 + "\n", "row 1: .*give CSV"),
    ],
)
def test_what_is_wrong_with_labels_is_said(labels, text, message):
    url = labels(text)
    with pytest.raises(InputError, match=f"{url}.*{message}"):
        read_labels(url)


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("l.jsonl", b'{"path": "a", "label": "x"}\n{"path": \n', "row 2"),
        ("l.jsonl", b'{"path": "a", "label": "x"}\n[1, 2]\n', "row 2: no object with names"),
        ("l.jsonl", b"[]", "row 1: no object with names"),
        ("l.parquet", b"PAR1 no", "give CSV, Parquet or JSON lines"),
        ("l.csv", b"path,label\n\xff\xfe,x\n", "give CSV, Parquet or JSON lines"),
    ],
)
def test_labels_that_cannot_be_read(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=f"{name}.*{message}"):
        read_labels(str(tmp_path / name))


def test_labels_that_are_missing_or_a_folder(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_labels(str(tmp_path / "none.csv"))
    with pytest.raises(InputError, match="cannot be read"):
        read_labels(str(tmp_path))


def test_labels_of_files_that_are_not_there():
    check_paths(set(), "labels.csv")
    with pytest.raises(
        InputError, match="labels.csv names 5 files that are not in the archive .0.mp4, 1.mp4, 2.mp4, …"
    ):
        check_paths({f"{n}.mp4" for n in range(5)}, "labels.csv")


def test_labels_of_classes_that_are_not_listed():
    known = {"a.mp4": Labels(((None, None, "left"),)), "b.mp4": Labels(((0.0, 1.0, "jump"),))}
    check_classes(known, "labels.csv", ["left", "jump", "more"])
    check_classes(known, "labels.csv", [])
    with pytest.raises(InputError, match="labels.csv names classes that --classes does not list: jump"):
        check_classes(known, "labels.csv", ["left"])


def test_splits():
    weak, dense = Labels(((None, None, "left"),)), Labels(((0.0, 1.0, "left"),))
    paths = [f"{n}.mp4" for n in range(2000)]
    assert {split_of(p, None, 0.3) for p in paths} == {"unlabelled"}
    assert {split_of(p, weak, 0.3) for p in paths} == {"train"}
    assert {split_of(p, Labels(dense.rows, "heldout"), 0.0) for p in paths} == {"heldout"}
    counts = Counter(split_of(p, dense, 0.3) for p in paths)
    assert counts["heldout"] + counts["train"] == 2000 and 0.26 < counts["heldout"] / 2000 < 0.34


def test_a_larger_held_out_share_moves_sources_one_way():
    dense, paths = Labels(((0.0, 1.0, "left"),)), [f"{n}.mp4" for n in range(300)]
    small, large = ({p for p in paths if split_of(p, dense, share) == "heldout"} for share in (0.2, 0.4))
    assert small < large
