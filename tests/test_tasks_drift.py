"""What is shown of a dataset before it is trained on: class shares, changed labels, classes that are new or missing."""

import shutil
from collections import Counter

import pytest

from storage import datasets
from tasks import drift, report
from tests import lamps
from tests.preparing import prepare


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """A root with three versions: the first; one with a clip relabelled and more of blue; one that measures pink."""
    folder = tmp_path_factory.mktemp("drift")
    lamps.render(folder, train=3, held_out=2, weak=3)
    root, archive, labels = str(folder / "root"), folder / "archive", folder / "labels.csv"
    found = [prepare(root, str(archive), str(labels))[0]]
    rows = labels.read_text().splitlines()
    for i in (5, 6):
        shutil.copy(archive / "weak" / "02.mp4", archive / "weak" / f"0{i}.mp4")
        with open(archive / "weak" / f"0{i}.mp4", "ab") as file:
            file.write(b"\0\0\0\x10free" + bytes([i] * 8))  # other bytes that show the same
        rows.append(rows[-1].replace("02.mp4", f"0{i}.mp4") if i == 5 else rows[-1].replace("05.mp4", "06.mp4"))
    rows = [row.replace(",red,", ",green,") if "weak/00" in row else row for row in rows]
    labels.write_text("\n".join(rows) + "\n")
    found.append(prepare(root, str(archive), str(labels))[0])
    rows = [row.replace(",blue,", ",pink,") if "heldout" in row else row for row in rows]
    labels.write_text("\n".join(row.replace(",red,", ",green,") for row in rows) + "\n")
    found.append(prepare(root, str(archive), str(labels))[0])
    return root, found


def test_shares_of_a_split_are_counted_by_clip(versions):
    root, (first, *_) = versions
    clips = [row for part in first.select(split="train") for row in part.rows()]
    found = drift.labelled(root, first, first.select(split="train"))
    names = [{label["label"] for label in row["labels"]} for row in clips]
    assert found.clips == sum(map(bool, names)) > 3
    assert found.counts == Counter(name for each in names for name in each)


def test_what_moved_between_two_versions(versions):
    root, (first, second, _) = versions
    found = drift.compare(root, first, second)
    assert found.before == first.version and (found.new, found.gone, found.untrained) == ([], [], [])
    assert found.changed == 1 and found.common == first.clips, "one weak clip is green now"
    assert found.distance and 0 < found.distance < 1
    shares = {row["class"]: (row["before"], row["now"]) for row in found.rows if row["split"] == "train"}
    assert shares["blue"][1] > shares["blue"][0] and shares["red"][1] < shares["red"][0]
    said = "\n".join(drift.lines(found, "a@1", ""))
    assert "since a@1" in said and f"1 of {first.clips} clips that both have changed their labels" in said


def test_a_version_against_itself_has_not_moved(versions):
    root, (first, *_) = versions
    found = drift.compare(root, first, first)
    assert found.distance == 0 and found.churn == 0 and found.common == first.clips
    assert "nothing moved" in drift.lines(found, "a@1", "")[0]


def test_a_class_that_is_measured_and_not_trained_is_a_warning_by_name(versions, capsys, monkeypatch):
    root, (first, _, third) = versions
    tables = []
    monkeypatch.setattr(report, "table", lambda key, rows, description: tables.append((key, rows, description)))
    metrics, tags = drift.show(root, third, f"a@{first.version}")
    said = capsys.readouterr().out
    assert "WARNING      pink: on held-out videos" in said and "gone in training: red" in said
    assert metrics["classes_untrained"] == 1 and metrics["classes_gone"] == 1 and metrics["label_churn"] > 0
    assert tags["classes_untrained"] == "pink" and tags["compared_with"] == f"a@{first.version}"
    ((key, rows, description),) = tables
    assert key == "drift" and first.version in description and third.version in description
    assert {"class": "pink", "split": "heldout"}.items() <= next(r for r in rows if r["class"] == "pink").items()


@pytest.mark.parametrize(
    ("trained_on", "why"),
    [("", "there is no champion"), ("b@1", "another dataset, b@1"), ("a@0000", "the list of a@0000, which")],
)
def test_what_cannot_be_compared_is_said(versions, capsys, trained_on, why):
    root, (first, *_) = versions
    metrics, tags = drift.show(root, first, trained_on)
    assert why in capsys.readouterr().out and "class_drift" not in metrics and tags == {}


def test_clips_that_the_selection_drops_do_not_count(versions, monkeypatch):
    root, (first, *_) = versions
    monkeypatch.setattr(datasets, "kept", lambda root, selection, part, keys=None: [False] * part.samples)
    assert drift.labelled(root, first, first.parts) == drift.Labelled(0, Counter())
