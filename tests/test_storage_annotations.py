"""Annotation files in the formats of their authors: read as a stream, turned into labels, and refused by row."""

import json
from collections import Counter

import pytest

from storage import annotations
from storage.annotations import Video, label_rows, read, read_classes
from storage.errors import InputError

CHARADES = """id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length
46GP8,HR43,Kitchen,6,7,Yes,"A person cooks, ""slowly"", on a stove.",food;stove,A person cooks.,c092 11.90 21.20;c147 0.00 12.60,24.83
N11GT,0KZ7,Stairs,5,6,Yes,A person runs.,doorway,Someone runs.,,18.00
"""  # noqa: E501
MULTITHUMOS = {
    "video_validation_0000690": {"subset": "training", "duration": 16.93, "actions": [[26, 0.0, 6.1], [1, 5, 16.9]]},
    "video_test_0000006": {"subset": "testing", "duration": 120.5, "actions": []},
}
KINETICS = """label,youtube_id,time_start,time_end,split
testifying,---QUuC4vJs,84,94,validate
"playing, loudly",--3ouPhoy2A,20,30,train
,--4-0ihtnBU,58,68,test
"""


@pytest.fixture
def written(tmp_path):
    """Writes a file of this text (or JSON) and returns its path."""

    def write(content, name="a.csv"):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_charades(written):
    first, second = read(written(CHARADES), "charades")
    assert first == Video("46GP8", 24.83, ((11.9, 21.2, 92), (0.0, 12.6, 147)))
    assert second == Video("N11GT", 18.0)


def test_multithumos_and_charades_json(written):
    first, second = read(written(MULTITHUMOS, "m.json"), "multithumos")
    assert first == Video("video_validation_0000690", 16.93, ((0.0, 6.1, 26), (5.0, 16.9, 1)), split="train")
    assert second == Video("video_test_0000006", 120.5, split="heldout")


def test_kinetics(written):
    videos = list(read(written(KINETICS), "kinetics"))
    assert videos[0] == Video("---QUuC4vJs", 10.0, label="testifying", split="heldout", span=(84, 94))
    assert [v.split for v in videos] == ["heldout", "train", "heldout"] and videos[1].label == "playing, loudly"


def test_labels_out_of_charades(written):
    counts: Counter = Counter()
    rows = list(label_rows(read(written(CHARADES), "charades"), "charades", split="train", counts=counts))
    assert rows == [
        {"path": "46GP8.mp4", "start": 11.9, "end": 21.2, "label": "c092", "split": "train"},
        {"path": "46GP8.mp4", "start": 0.0, "end": 12.6, "label": "c147", "split": "train"},
        {"path": "N11GT.mp4", "start": "", "end": "", "label": "", "split": "train"},  # nothing happens
    ]
    assert counts == {"videos": 2, "rows": 3, "actions of no length": 0}


def test_labels_with_names_and_paths(written):
    classes = read_classes(written("1 BaseballPitch\n26 Run and jump\n", "classes.txt"))
    videos = read(written(MULTITHUMOS, "m.json"), "multithumos")
    rows = list(label_rows(videos, "multithumos", path="thumos/{split}/{id}.avi", classes=classes))
    assert [(row["path"], row["label"]) for row in rows] == [
        ("thumos/train/video_validation_0000690.avi", "Run and jump"),
        ("thumos/train/video_validation_0000690.avi", "BaseballPitch"),
        ("thumos/heldout/video_test_0000006.avi", ""),
    ]
    plain = [row["label"] for row in label_rows(read(written(MULTITHUMOS, "m.json"), "multithumos"), "multithumos")]
    assert plain == ["026", "001", ""]


def test_labels_out_of_kinetics(written):
    counts: Counter = Counter()
    rows = list(label_rows(read(written(KINETICS), "kinetics"), "kinetics", counts=counts))
    assert [(row["path"], row["start"], row["label"], row["split"]) for row in rows] == [
        ("---QUuC4vJs_000084_000094.mp4", "", "testifying", "heldout"),
        ("--3ouPhoy2A_000020_000030.mp4", "", "playing, loudly", "train"),
    ]
    assert counts == {"videos": 3, "rows": 2, "spans without a label": 1}


def test_actions_of_no_length_are_left_out_and_counted(written):
    text = "id,actions,length\nAAAAA,c001 3.0 3.0;c002 5.0 4.0;c003 1.0 2.0,9\n"
    counts: Counter = Counter()
    rows = list(label_rows(read(written(text), "charades"), "charades", counts=counts))
    assert [row["label"] for row in rows] == ["c003"] and counts["actions of no length"] == 2


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 1 << 16])
def test_json_is_read_alike_in_chunks_of_any_size(written, monkeypatch, chunk):
    monkeypatch.setattr(annotations, "CHUNK", chunk)
    long = {f"v{i}": {"subset": "x", "duration": 10.25 * (i + 1), "actions": [[i, 0.5, 1.25]] * i} for i in range(9)}
    path = written(json.dumps(long, indent=3), "m.json")
    assert [(v.id, v.duration, len(v.actions)) for v in read(path, "multithumos")] == [
        (f"v{i}", 10.25 * (i + 1), i) for i in range(9)
    ]


def test_a_json_file_is_never_whole_in_memory(written, monkeypatch):
    """Of 400 videos in 80 kB, the text that is held stays below two chunks."""
    monkeypatch.setattr(annotations, "CHUNK", 1000)
    held = []
    decoded = annotations._decoded
    monkeypatch.setattr(
        annotations, "_decoded", lambda d, text, *more: held.append(len(text)) or decoded(d, text, *more)
    )
    many = {f"v{i}": {"subset": "x", "duration": 9.5, "actions": [[1, 0.5, 1.25]] * 10} for i in range(400)}
    path = written(many, "m.json")
    assert sum(1 for _ in read(path, "multithumos")) == 400
    assert len(json.dumps(many)) > 60_000 and max(held) < 2500


BAD = [
    ("charades", "id,length\nA,3\n", "row 1: no column actions; it has id, length"),
    ("charades", "id,actions,length\nA,c1 0 2,3\n", r"row 1 \(A\): 'c1 0 2' is not an action such as"),
    ("charades", "id,actions,length\nA,,3\nB,c001 0 x,3\n", r"row 2 \(B\): 'x' is not a number of seconds"),
    ("charades", "id,actions,length\nA,c001 -1 2,3\n", "'-1' is not a number of seconds, 0 or more"),
    ("charades", "id,actions,length\nA,,0\n", "cannot be 0 seconds long"),
    ("charades", "id,actions,length\nA,,nan\n", "'nan' is not a number of seconds"),
    ("charades", "id,actions,length\n ,,3\n", "no id"),
    ("charades", "id,actions,length\nA,,3\nA,,4\n", "A comes twice"),
    ("charades", "id,actions,length\n", "no videos; is it a charades file"),
    ("kinetics", "label,youtube_id,time_start,time_end\nx,a,0,1\n", "no column split"),
    ("kinetics", "label,youtube_id,time_start,time_end,split\nx,a,5,5,train\n", "time_start < time_end, got 5 to 5"),
    ("kinetics", "label,youtube_id,time_start,time_end,split\nx,a,0.5,5,train\n", "whole seconds"),
    ("multithumos", "[]", "after the beginning: not the JSON of annotations .it does not begin with"),
    ("multithumos", "{}", "no videos"),
    ("multithumos", '{"a": {"duration": 3}}', "video a: not of the form .*KeyError: 'actions'"),
    ("multithumos", '{"a": {"duration": 3, "actions": [[1, 2]]}}', "video a: not of the form"),
    ("multithumos", '{"a": {"duration": 3, "actions": [["x", 0, 2]]}}', "'x' is not the number of a class"),
    ("multithumos", '{"a": {"duration": 3, "actions": [[1, 0, null]]}}', "None is not a number of seconds"),
    ("multithumos", '{"a": {"duration": 3, "actions": []}, "b": {"dur', "after video a: not the JSON"),
    ("multithumos", '{"a": {"duration": 3, "actions": []}', "after the beginning: not the JSON .*the end"),
    ("multithumos", '{"a" {"duration": 3}}', "not the JSON"),
    ("multithumos", '{"a": {"duration": 3, "actions": []}, "a": {"duration": 3, "actions": []}}', "a comes twice"),
    ("multithumos", '{3: {"duration": 3, "actions": []}}', "3 is not the id of a video"),
]


@pytest.mark.parametrize(("kind", "text", "message"), BAD)
def test_what_is_wrong_is_said_with_the_file_and_the_place(written, kind, text, message):
    path = written(text, "a.json" if kind == "multithumos" else "a.csv")
    with pytest.raises(InputError, match=f"{path}.*{message}"):
        list(read(path, kind))


def test_files_that_are_not_there_and_formats_that_are_none(tmp_path, written):
    for kind in ("charades", "multithumos", "kinetics"):
        with pytest.raises(InputError, match="none.csv"):
            list(read(str(tmp_path / "none.csv"), kind))
    with pytest.raises(InputError, match="no annotations of the kind 'ava'; there are charades"):
        list(read(written(CHARADES), "ava"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("c000 Holding\nwalking\n", "row 2: 'walking' is not a number and a name"),
        ("c000 Holding\nc000 Walking\n", "row 2: class 0 or the name 'Walking' comes twice"),
        ("1 Run\n2 Run\n", "row 2: class 2 or the name 'Run' comes twice"),
        ("\n", "classes.txt: no classes"),
    ],
)
def test_lists_of_classes_that_are_wrong(written, text, message):
    with pytest.raises(InputError, match=message):
        read_classes(written(text, "classes.txt"))


def test_what_a_list_or_a_template_does_not_have_is_said(written):
    videos = list(read(written(CHARADES), "charades"))
    assert read_classes(written("c092 Walking through a doorway\n\n", "c.txt")) == {92: "Walking through a doorway"}
    with pytest.raises(InputError, match="class 147 is not in the list of classes, which has 1"):
        list(label_rows(videos, "charades", classes={92: "x"}))
    for template in ("{name}.mp4", "{}.mp4", "{id"):
        with pytest.raises(InputError, match="no template of id, start"):
            list(label_rows(videos, "charades", path=template))
