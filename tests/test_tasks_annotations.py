"""Published annotations to labels, predictions to a submission, and a submission to its scores, on real videos."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from test_tasks_prepare import prepare

from flows.__main__ import EXIT_INPUT, main
from models.metrics import MODES
from storage import annotations, checkpoints
from storage.labels import read_labels
from tasks import evaluate, predict, train_rank
from tasks.train_rank import Spec
from tasks.training.pretrain import classes_of


def run(*arguments, code=0):
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def charades(path, videos, classes):
    """Writes annotations in the format of Charades: (id, seconds, [(start, end, class name)])."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "subject", "script", "actions", "length"])
        for id, seconds, actions in videos:
            text = ";".join(f"c{classes.index(name):03d} {float(s)!r} {float(e)!r}" for s, e, name in actions)
            writer.writerow([id, "HR43", 'A person, "quickly".', text, repr(float(seconds))])
    return path


def listed(path, classes):
    path.write_text("".join(f"c{k:03d} {name}\n" for k, name in enumerate(classes)))
    return path


@pytest.fixture(scope="module")
def ready(archive, tmp_path_factory):
    """A root with the predictions of an untrained checkpoint on its held-out videos, and what evaluation says."""
    root = str(tmp_path_factory.mktemp("official"))
    dataset, _ = prepare(root, str(archive / "archive"), str(archive / "labels.csv"))
    classes = classes_of(dataset.select(split="train", labelled="segments"))
    spec = Spec(root=root, parts=[], classes=classes, objective="dense", options={"size": "TINY"}, size=24)
    weights = train_rank.build(spec).state_dict()
    checkpoint = checkpoints.save(root, "untrained", 1, weights, {}, train_rank._about(spec), True)
    found = evaluate.evaluate_checkpoint(root, dataset, checkpoint, "official")
    return root, classes, found, predict.version(checkpoint)


def truth_of(ready, folder):
    """The held-out videos as Charades annotations."""
    _, classes, found, _ = ready
    videos = [
        (Path(key).stem, seconds, [(s, e, classes[k]) for s, e, k in zip(*segments, strict=True)])
        for key, _, _, segments, seconds in found.videos
    ]
    return charades(folder / "Charades_v1_test.csv", videos, classes)


def test_a_submission_scores_what_evaluation_says(ready, tmp_path):
    root, classes, found, version = ready
    said = run("submission", "--root", root, "--dataset", "a", "--out", tmp_path / "s.txt")
    assert said.startswith(f"{25 * len(found.videos)} lines of {len(classes)} scores")
    truth = truth_of(ready, tmp_path)
    table = run("submission-score", "--submission", tmp_path / "s.txt", "--file", truth, "--num-classes", len(classes))
    for mode in MODES:
        (percent,) = re.findall(rf"\| {mode} \| ([\d.]+) \|", table)
        assert float(percent) == pytest.approx(100 * found.metrics[f"charades_25_{mode}"], abs=6e-5)
    assert f"{len(found.videos)} videos, {25 * len(found.videos)} frames" in table and "missing" not in table


def test_columns_follow_the_list_of_classes_and_unknown_ones_score_zero(ready, tmp_path):
    root, classes, _, version = ready
    order = ["never seen", *classes[::-1]]
    said = run("submission", "--root", root, "--dataset", "a", "--out", tmp_path / "o.txt", "--version", version,
               "--classes", listed(tmp_path / "c.txt", order))  # fmt: skip
    assert f"{len(order)} scores" in said and "1 classes score 0" in said
    run("submission", "--root", root, "--dataset", "a", "--out", tmp_path / "s.txt")
    plain, ordered = (np.loadtxt(tmp_path / name, usecols=range(2, 2 + len(classes))) for name in ("s.txt", "o.txt"))
    assert (ordered[:, 0] == 0).all()
    assert np.array_equal(ordered[:, 1:], plain[:, ::-1][:, : len(classes) - 1])


def test_frames_that_are_missing_are_counted_and_cost_precision(ready, tmp_path):
    root, classes, found, _ = ready
    run("submission", "--root", root, "--dataset", "a", "--out", tmp_path / "s.txt")
    lines = (tmp_path / "s.txt").read_text().splitlines()
    (tmp_path / "fewer.txt").write_text("\n".join([*lines[5:], "stranger 1" + " 0" * len(classes)]))
    table = run("submission-score", "--submission", tmp_path / "fewer.txt", "--file", truth_of(ready, tmp_path),
                "--num-classes", len(classes))  # fmt: skip
    assert "5 frames missing, 1 lines of other videos" in table


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_charades_annotations_become_the_labels_that_they_were(archive, tmp_path, split):
    """The rendered archive's segments, written as Charades has them, come back as its own labels."""
    labels, folder = read_labels(str(archive / "labels.csv")), f"dense/{split}/"
    known = {path: of for path, of in labels.items() if path.startswith(folder)}
    classes = sorted({name for of in known.values() for _, _, name in of.rows})
    file = charades(tmp_path / "of.csv", [(Path(path).stem, 60, of.rows) for path, of in known.items()], classes)
    names = listed(tmp_path / "classes.txt", classes)
    said = run("annotations", "--format", "charades", "--file", file, "--out", tmp_path / "labels.csv",
               "--split", split, "--classes", names, "--path", "dense/{split}/{id}.mp4")  # fmt: skip
    assert known and said.startswith(f"{len(known)} videos, {sum(len(of.rows) for of in known.values())} rows in ")
    assert read_labels(str(tmp_path / "labels.csv")) == known


def test_the_split_can_be_set_and_what_is_left_out_is_said(tmp_path):
    (tmp_path / "k.csv").write_text(
        "label,youtube_id,time_start,time_end,split\nrun,a,0,10,train\nrun,b,5,15,val\n,c,0,10,test\n"
    )
    for split, expected in (("as-given", ["train", "heldout"]), ("train", ["train", "train"])):
        said = run("annotations", "--format", "kinetics", "--file", tmp_path / "k.csv", "--out", tmp_path / "l.csv",
                   "--split", split)  # fmt: skip
        assert "3 videos, 2 rows" in said and "left out: 1 spans without a label" in said
        found = read_labels(str(tmp_path / "l.csv"))
        assert [found[f"{n}.mp4"].split for n in ("a_000000_000010", "b_000005_000015")] == expected


def test_nothing_is_written_where_a_row_is_wrong(tmp_path):
    (tmp_path / "c.csv").write_text("id,actions,length\nA,c001 0 1,9\nB,c01 0 1,9\n")
    arguments = ("annotations", "--format", "charades", "--file", tmp_path / "c.csv", "--out", tmp_path / "l.csv")
    assert "row 2 (B): 'c01 0 1' is not an action" in run(*arguments, code=EXIT_INPUT)
    assert not (tmp_path / "l.csv").exists()


def test_what_cannot_be_submitted_or_scored_is_said(ready, tmp_path):
    root, classes, _, _ = ready
    out = ("--out", tmp_path / "s.txt")
    assert "no predictions v9" in run("submission", "--root", root, "--dataset", "a", "--version", "v9", *out, code=2)
    few = listed(tmp_path / "c.txt", classes[1:])
    assert f"does not list classes of the model: {classes[0]}" in run(
        "submission", "--root", root, "--dataset", "a", "--classes", few, *out, code=2
    )
    (tmp_path / "x.txt").write_text("stranger 1" + " 0" * len(classes) + "\n")
    truth, score = truth_of(ready, tmp_path), ("submission-score", "--submission", tmp_path / "x.txt")
    assert "no video in common" in run(*score, "--file", truth, "--num-classes", len(classes), code=2)
    (tmp_path / "empty.txt").write_text("")
    score = ("submission-score", "--submission", tmp_path / "empty.txt", "--file", truth)
    assert "no video in common" in run(*score, "--num-classes", len(classes), code=2)
    (tmp_path / "y.txt").write_text(f"{next(annotations.read(str(truth), 'charades')).id} 1 0\n")
    score = ("submission-score", "--submission", tmp_path / "y.txt", "--file", truth)
    assert "is none of 0 … 0; give --classes, set --num-classes" in run(*score, "--num-classes", 1, code=2)
    (tmp_path / "none.txt").write_text("\n")
    assert "no classes" in run(*score, "--classes", tmp_path / "none.txt", code=2)


def test_classes_counted_from_one_are_scored_in_their_own_columns(tmp_path):
    """As MultiTHUMOS has them: 1 is the first of its list, and the first column of a submission."""
    videos = {"a": {"subset": "testing", "duration": 25.0, "actions": [[1, 0.0, 4.5], [3, 20.0, 25.0]]}}
    (tmp_path / "m.json").write_text(json.dumps(videos))
    (tmp_path / "classes.txt").write_text("1 BaseballPitch\n2 BasketballBlock\n3 BasketballDribble\n")
    on = [[frame <= 5, False, frame > 20] for frame in range(1, 26)]
    lines = [f"a {number} {' '.join(str(int(one)) for one in row)}" for number, row in enumerate(on, start=1)]
    (tmp_path / "s.txt").write_text("\n".join(lines))
    score = ("submission-score", "--submission", tmp_path / "s.txt", "--file", tmp_path / "m.json", "--format")
    said = run(*score, "multithumos", "--classes", tmp_path / "classes.txt")
    assert re.findall(r"\| (\w+) \| ([\d.]+) \|", said) == [(mode, "100.0000") for mode in MODES]
    assert "1 classes without a positive frame" in said
    refused = run(*score, "multithumos", "--num-classes", 3, code=EXIT_INPUT)
    assert "video a: class 3 is none of 0 … 2; give --classes" in refused
