"""A small rendered set as Charades, MultiTHUMOS and Kinetics publish theirs: annotations to a scored submission."""

import csv
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.__main__ import main
from models.metrics import MODES
from storage import checkpoints
from tasks import evaluate, train_rank
from tasks.train_rank import Spec
from tests import lamps
from tests.preparing import prepare

CLASSES = sorted(lamps.COLOURS)


def run(*arguments):
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """Two training and two held-out videos with segments and three of one action; and all that is known of them."""
    folder = tmp_path_factory.mktemp("published")
    lamps.render(folder, train=2, held_out=2, weak=3)
    with (folder / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row["path"].startswith("weak/"):  # as download scripts name a clip of ten seconds
            path = folder / "archive" / row["path"]
            row["path"] = f"weak/{path.stem}_000000_000010.mp4"
            path.rename(folder / "archive" / row["path"])
    (folder / "classes.txt").write_text("".join(f"c{k:03d} {name}\n" for k, name in enumerate(CLASSES)))
    return folder, rows


def actions(rows, split):
    found: dict[str, list] = {}
    for row in rows:
        if row["start"] and row["split"] == split:
            what = (CLASSES.index(row["label"]), float(row["start"]), float(row["end"]))
            found.setdefault(Path(row["path"]).stem, []).append(what)
    return found


def charades(folder, rows, split):
    with (folder / f"Charades_v1_{split}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "subject", "scene", "actions", "length"])
        for id, of in actions(rows, split).items():
            writer.writerow([id, "HR43", "Kitchen", ";".join(f"c{k:03d} {a!r} {b!r}" for k, a, b in of), "6.0"])
    return folder / f"Charades_v1_{split}.csv"


def multithumos(folder, rows):
    videos = {
        id: {"subset": name, "duration": 6.0, "actions": [[k, a, b] for k, a, b in of]}
        for split, name in (("train", "training"), ("heldout", "testing"))
        for id, of in actions(rows, split).items()
    }
    (folder / "multithumos.json").write_text(json.dumps(videos))
    return folder / "multithumos.json"


def kinetics(folder, rows):
    with (folder / "kinetics_train.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "youtube_id", "time_start", "time_end", "split"])
        for row in rows:
            if not row["start"]:
                writer.writerow([row["label"], Path(row["path"]).stem.split("_")[0], 0, 10, "train"])
    return folder / "kinetics_train.csv"


def converted(folder, out, *how):
    run("annotations", *how, "--out", folder / out)
    return (folder / out).read_text().splitlines(True)


@pytest.mark.parametrize("format", ["charades", "multithumos"])
def test_from_published_annotations_to_a_scored_submission(rendered, tmp_path, format):
    folder, rows = rendered
    where = ("--path", "dense/{id}.mp4", "--classes", folder / "classes.txt", "--format", format)
    if format == "charades":
        header, *lines = converted(
            tmp_path, "a.csv", "--file", charades(folder, rows, "train"), "--split", "train", *where
        )
        truth = charades(folder, rows, "heldout")
        lines += converted(tmp_path, "b.csv", "--file", truth, "--split", "heldout", *where)[1:]
    else:
        truth = multithumos(folder, rows)
        header, *lines = converted(tmp_path, "a.csv", "--file", truth, *where)
    weak = ("--format", "kinetics", "--path", "weak/{id}_{start:06d}_{end:06d}.mp4")
    lines += converted(tmp_path, "c.csv", "--file", kinetics(folder, rows), *weak)[1:]
    (tmp_path / "labels.csv").write_text("".join([header, *lines]))
    root = str(tmp_path / "root")
    dataset, _ = prepare(root, str(folder / "archive"), str(tmp_path / "labels.csv"))
    same, _ = prepare(str(tmp_path / "same"), str(folder / "archive"), labels_of(tmp_path, rows))
    assert [part.id for part in dataset.parts] == [part.id for part in same.parts], "the labels are those rendered"
    assert {(p.split, p.labelled) for p in dataset.parts} >= {
        ("train", "segments"),
        ("heldout", "segments"),
        ("train", "video"),
    }
    spec = Spec(root=root, parts=[], classes=CLASSES, objective="dense", options={"size": "TINY"}, size=16)
    about, weights = train_rank._about(spec), train_rank.build(spec).state_dict()
    found = evaluate.evaluate_checkpoint(root, dataset, checkpoints.save(root, "u", 1, weights, {}, about, True), "u")
    out = ("--out", tmp_path / "s.txt", "--classes", folder / "classes.txt")
    assert run("submission", "--root", root, "--dataset", "a", *out).startswith("50 lines of 3 scores")
    assert all(re.fullmatch(r"\d\d \d+( [\d.e-]+){3}", line) for line in (tmp_path / "s.txt").read_text().splitlines())
    table = run("submission-score", "--submission", tmp_path / "s.txt", "--file", truth, "--format", format,
                "--num-classes", 3)  # fmt: skip
    for mode in MODES:
        (percent,) = re.findall(rf"\| {mode} \| ([\d.]+) \|", table)
        assert float(percent) == pytest.approx(100 * found.metrics[f"charades_25_{mode}"], abs=6e-5)
    assert "missing" not in table and ("2 training videos left out" in table) == (format == "multithumos")


def labels_of(folder, rows):
    with (folder / "rendered.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "start", "end", "label", "split"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return str(folder / "rendered.csv")
