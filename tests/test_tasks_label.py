"""Pseudo labels of a real root: replicated, placed by predictions and by text, versioned, and how far they moved."""

import numpy as np
import pytest
from click.testing import CliRunner

from flows.__main__ import main
from storage import columns, files
from storage.errors import InputError
from tasks import extract, label, predict
from tasks.proposals import Proposals
from tasks.training import loader
from tasks.training.pretrain import spec_for
from tasks.training.recipe import Recipe
from tests.films import moving, prepare_films

CLASSES = ["bounce", "dog", "roll", "slide"]
LABELS = {"weak/one.mp4": ["roll"], "weak/two.mp4": ["roll", "slide"], "weak/three.mp4": ["bounce", "roll", "slide"]}


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A root of weak clips of 2 s: one, two and three actions; and predictions that know where they are."""
    folder = tmp_path_factory.mktemp("label")
    films = {name: moving(7000 + n, 24) for n, name in enumerate(LABELS)}
    rows = [(name, "", "", label, "") for name, labels in LABELS.items() for label in labels]
    root, dataset = prepare_films(folder, films, rows)
    label.label_dataset(root, dataset)
    for version, late in (("model-1", 1.0), ("model-2", 1.5)):
        known(root, dataset, version, late)
    return root, dataset


def known(root, dataset, version, late):
    """Predictions: rolling before ``late`` seconds, sliding from then on, all else nowhere."""
    for part in dataset.parts:
        made = []
        for row in part.rows():
            times = np.arange(row["frames"]) / 12 + row["start"]
            scores = np.full((len(times), len(CLASSES)), 0.1)
            scores[times < late - 1e-6, 2] = 0.9
            scores[times >= late - 1e-6, 3] = 0.8
            made.append({"key": row["key"], "times": times, "scores": scores.astype(np.float16)})
        about = {"classes": CLASSES}
        columns.write(root, "predictions", version, part, predict._as_table(made, len(CLASSES)), about)


def settings(**change):
    return Proposals(**{"column": "predictions", "version": "model-1", "smooth": 0.0, "shortest": 0.25} | change)


def curves(root, dataset, version):
    """The frames that each label is on, by video."""
    found = {}
    for part in dataset.parts:
        entries = columns.read(root, label.COLUMN, version, part).to_pylist()
        for row, entry in zip(part.rows(), entries, strict=True):
            on = np.array(entry["scores"]).reshape(-1, len(entry["labels"]))
            found[row["path"]] = {name: np.flatnonzero(on[:, k]).tolist() for k, name in enumerate(entry["labels"])}
    return found


def test_predictions_place_the_actions_of_clips_that_have_several(ready):
    root, dataset = ready
    version, report = label.label_dataset(root, dataset, settings())
    assert report.kept == 3 and version == settings().name()
    found = curves(root, dataset, version)
    assert found["weak/one.mp4"] == {"roll": list(range(24))}
    assert found["weak/two.mp4"] == {"roll": list(range(12)), "slide": list(range(12, 24))}
    assert found["weak/three.mp4"] == found["weak/two.mp4"] | {"bounce": list(range(24))}  # not proposed
    about = columns.about(root, label.COLUMN, version, dataset.parts[0])
    assert about["version"] == "model-1" and about["threshold"] == 0.5


def test_they_are_written_once_and_the_same_again(ready):
    root, dataset = ready
    version, _ = label.label_dataset(root, dataset, settings(smooth=0.3))
    urls = [columns.url(root, label.COLUMN, version, part.id) for part in dataset.parts]
    before = [files.read(url) for url in urls]
    assert label.label_dataset(root, dataset, settings(smooth=0.3))[1].kept == 0
    for url in urls:
        files.remove(url)
    label.label_dataset(root, dataset, settings(smooth=0.3))
    assert [files.read(url) for url in urls] == before


def test_training_sees_where_the_actions_are(ready):
    root, dataset = ready
    version, _ = label.label_dataset(root, dataset, settings())
    spec = spec_for(root, dataset, "detection", Recipe(pseudo_labels=version))
    assert spec.labels == version
    clips = loader.Clips(root, dataset.parts, CLASSES, 12.0, 16, spec.labels)
    two = [clips.clip(i)[1] for i in range(3) if clips.items[i].row["path"] == "weak/two.mp4"][0]
    assert two[:12, 2].all() and not two[12:, 2].any() and two[12:, 3].all() and not two[:12, 3].any()
    with pytest.raises(InputError, match="--pseudo-labels none-such: 1 of 1 parts lack it"):
        spec_for(root, dataset, "detection", Recipe(pseudo_labels="none-such"))


def test_churn_counts_by_class_what_changed(ready):
    """roll: 24 + 12 + 12 frames, later 24 + 18 + 18; slide: 12 + 12, later 6 + 6; bounce stays on all 24."""
    root, dataset = ready
    before, _ = label.label_dataset(root, dataset, settings())
    after, _ = label.label_dataset(root, dataset, settings(version="model-2"))
    rows = {row.pop("class"): row for row in label.churn(root, dataset.parts, before, after)}
    assert rows["roll"] == {"before": 48, "after": 60, "changed": 12, "churn": 0.2}
    assert rows["slide"] == {"before": 24, "after": 12, "changed": 12, "churn": 0.5}
    assert rows["bounce"] == {"before": 24, "after": 24, "changed": 0, "churn": 0}
    assert rows["all"] == {"before": 96, "after": 96, "changed": 24, "churn": 24 / 108}
    assert all(row["churn"] == 0 for row in label.churn(root, dataset.parts, after, after))


def test_the_command_says_what_was_placed_and_compares_with_the_version_before(ready):
    root, dataset = ready
    replicated = label.version()
    run = CliRunner().invoke(
        main,
        ["label", "--root", root, "--dataset", "a", "--version", "model-2", "--smooth", "0", "--shortest", "0.4",
         "--against", replicated],
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    version = settings(version="model-2", shortest=0.4).name()
    assert f"pseudo labels {version}: 2 clips with several actions, 4 of 5 labels placed, 1 left on" in run.output
    assert "| slide | 48 | 12 | 75.0 % |" in run.output and "| bounce | 24 | 24 | 0.0 % |" in run.output
    kept = files.read_json(f"{root}/figures/a/churn-{version}.json")
    assert (kept["before"], kept["after"]) == (replicated, version)
    again = CliRunner().invoke(main, ["label", "--root", root, "--dataset", "a", "--version", "model-2"])
    assert f"frames in {version}" in again.output  # the newest before


def test_text_places_them_too(ready):
    """What frames show of these names is chance; each frame's shares still add up and follow the embeddings."""
    root, dataset = ready
    made, _ = extract.extract_dataset(root, dataset, "conse", None, 4.0)
    how = Proposals(column="features", version=made, threshold=0.5, smooth=0.0, shortest=0.0, prompt="a ball: {}")
    version, _ = label.label_dataset(root, dataset, how)
    found = curves(root, dataset, version)
    towers = extract.encoder("conse", None)
    text = towers.encode_text(["a ball: roll", "a ball: slide"]).numpy()
    (part,) = dataset.parts
    entries = columns.read(root, "features", made, part).to_pylist()
    entry = next(e for e, row in zip(entries, part.rows(), strict=True) if row["path"] == "weak/two.mp4")
    rolls = np.array(entry["embedding"]) @ (text[0] - text[1]) >= 0
    at = [round(time * 12) for time in entry["times"]]
    assert len(at) == 8
    for name, expected in (("roll", rolls), ("slide", ~rolls)):  # what nothing proposes stays on every frame
        there = [frame in found["weak/two.mp4"][name] for frame in at]
        assert there == (expected.tolist() if expected.any() else [True] * len(at))


def test_a_column_that_cannot_propose_is_refused(ready):
    root, dataset = ready
    with pytest.raises(InputError, match=r"1 of 1 weakly labelled parts have no predictions model-9 .*reelmill infer"):
        label.label_dataset(root, dataset, settings(version="model-9"))
    for part in dataset.parts:
        keys = [
            {"key": row["key"], "times": np.zeros(1), "scores": np.zeros((1, 1), np.float16)} for row in part.rows()
        ]
        columns.write(root, "predictions", "few", part, predict._as_table(keys, 1), {"classes": ["roll"]})
        columns.write(root, "predictions", "unnamed", part, predict._as_table(keys, 1), {})
        columns.write(root, "features", "theirs", part, part.table(["key"]), {"file": "x.parquet"})
    with pytest.raises(InputError, match="predictions few know no class bounce, slide"):
        label.label_dataset(root, dataset, settings(version="few"))
    with pytest.raises(InputError, match="do not say which classes"):
        label.label_dataset(root, dataset, settings(version="unnamed"))
    with pytest.raises(InputError, match="features theirs were made elsewhere"):
        label.label_dataset(root, dataset, settings(column="features", version="theirs"))


def test_what_the_command_cannot_find_is_said(ready, tmp_path):
    root, _ = ready
    with pytest.raises(InputError, match="no pseudo labels nope"):
        label.relabel(root, "a", against="nope")
    other, _ = prepare_films(tmp_path, {"x.mp4": moving(1, 12)})
    with pytest.raises(InputError, match="nothing to place"):
        label.relabel(other, "a")
