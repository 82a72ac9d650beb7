"""Other labels of shards that were adopted decode nothing: what the clips are was kept beside the labels."""

from fractions import Fraction

import numpy as np
import pytest
from test_tasks_adopt import put

from storage import datasets, files
from storage.errors import InputError
from storage.media.encoder import Encoder
from tasks import adopt as adopting
from tasks.adopt import adopt


def clip(folder, number):
    pixels = np.random.default_rng(number).integers(0, 255, (32, 48, 3), np.uint8)
    with Encoder(folder / "x.mp4", 48, 32, Fraction(10), Fraction(1, 1000)) as encoder:
        for t in range(6):
            encoder.write(np.roll(pixels, t, 1), Fraction(t, 10))
    return (folder / "x.mp4").read_bytes()


@pytest.fixture
def shards(tmp_path):
    """Two shards of two clips; one clip of each has a label beside it."""
    for name in ("one", "two"):
        a, b = (clip(tmp_path, n) for n in (0, 1))
        put(tmp_path / f"{name}.tar", (f"{name}/a.mp4", a), (f"{name}/a.cls", b"12"), (f"{name}/b.mp4", b))
    return str(tmp_path / "*.tar")


@pytest.fixture
def decodes(monkeypatch):
    count, real = [], adopting._probe
    monkeypatch.setattr(adopting, "_probe", lambda data: count.append(1) or real(data))
    return count


def labels(tmp_path, text):
    (tmp_path / "l.csv").write_text(text)
    return str(tmp_path / "l.csv")


def said(root):
    rows = [row for part in datasets.load(root, "them").parts for row in part.rows()]
    return {row["path"]: ([label["label"] for label in row["labels"]], row["labelled"], row["split"]) for row in rows}


def test_a_typo_in_the_labels_costs_no_second_decoding(tmp_path, shards, decodes):
    root = str(tmp_path / "root")
    with pytest.raises(
        InputError, match=r"l.csv names 1 members that no shard has \(one/q\); they have such as (one|two)/a.mp4"
    ):
        adopt(root, [shards], "them", labels=labels(tmp_path, "path,label\none/q,run\n"))
    assert len(decodes) == 4 and datasets.names(root) == []
    adopt(root, [shards], "them", labels=labels(tmp_path, "path,label\none/b,run\n"))
    assert len(decodes) == 4 and said(root)["one/b"] == (["run"], "video", "train")


def test_other_labels_are_taken_up_and_none_are_those_of_the_shard(tmp_path, shards, decodes):
    root = str(tmp_path / "root")
    adopt(root, [shards], "them")
    alone = datasets.load(root, "them")
    assert said(root)["one/a"] == (["12"], "video", "train") and said(root)["one/b"][1:] == ("none", "unlabelled")
    adopt(root, [shards], "them", labels=labels(tmp_path, "path,start,end,label\none/a.mp4,0,0.2,run\ntwo/b,,,fall\n"))
    assert said(root)["one/a"][:2] == (["run"], "segments") and said(root)["two/b"][0] == ["fall"]
    assert said(root)["two/a"] == (["12"], "video", "train"), "which the list does not name"
    adopt(root, [shards], "them", split="heldout")
    assert {split for _, _, split in said(root).values()} == {"heldout"} and said(root)["one/a"][0] == ["12"]
    adopt(root, [shards], "them")
    assert datasets.load(root, "them") == alone and len(decodes) == 4


def test_labels_later_make_the_parts_that_they_make_at_once(tmp_path, shards):
    listed = labels(tmp_path, "path,label\none/b,run\n")
    made = []
    for name, first in (("later", None), ("at once", listed)):
        adopt(str(tmp_path / name), [shards], "them", labels=first)
        adopt(str(tmp_path / name), [shards], "them", labels=listed)
        made.append([part.id for part in datasets.load(str(tmp_path / name), "them").parts])
    assert made[0] == made[1]


def test_what_a_text_is_changes_what_a_shard_says(tmp_path, decodes):
    put(tmp_path / "x.tar", ("a.mp4", clip(tmp_path, 0)), ("a.txt", b"dog"))
    root = str(tmp_path / "root")
    adopt(root, [str(tmp_path / "x.tar")], "them")
    adopt(root, [str(tmp_path / "x.tar")], "them", text="label")
    assert said(root)["a"][0] == ["dog"] and len(decodes) == 2


def test_a_part_that_is_gone_is_made_again_without_decoding(tmp_path, shards, decodes):
    root = str(tmp_path / "root")
    adopt(root, [shards], "them")
    before = datasets.load(root, "them")
    files.remove(before.parts[0].index)
    adopt(root, [shards], "them")
    assert datasets.load(root, "them") == before and len(decodes) == 4
    assert before.parts[0].rows()


def test_a_prepared_dataset_is_not_replaced_by_an_adopted_one(tmp_path, shards, decodes):
    root = files.open_root(str(tmp_path / "root"))
    prepared = datasets.freeze(root, "mine", [], {"recipe": {}})
    with pytest.raises(InputError, match="dataset mine was not adopted but prepared; give another --name"):
        adopt(root, [shards], "mine")
    assert datasets.load(root, "mine") == prepared and not decodes
