"""Thresholds come late: they decide which clips are used, and nothing is decoded, cut or embedded again for them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from flows.__main__ import main
from storage import columns, datasets, files, ledger, parts
from storage.errors import Damaged, InputError
from storage.media import scores
from storage.media.sandbox import Sandbox
from tasks import duplicates, evaluate, label, predict, select, what_if
from tasks.audits import contents
from tasks.score import score_dataset
from tasks.select import select_dataset
from tasks.thresholds import REASONS, RULES, Thresholds
from tasks.train_rank import Spec
from tasks.training import loader, train
from tasks.training.pretrain import classes_of, records
from tests.films import film, moving, prepare_films, write

BLACK = np.zeros((48, 64, 3), np.uint8)
LIMITS = Thresholds(min_motion=0.004, min_sharpness=0.15, max_black=0.5, max_static=0.5, min_duration=1.2)


def blurred(frames):
    made = []
    for frame in frames:
        f = frame.astype(float)
        for _ in range(14):
            f = (f + np.roll(f, 1, 0) + np.roll(f, 1, 1) + np.roll(f, -1, 0) + np.roll(f, -1, 1)) / 5
        made.append(f.astype(np.uint8))
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A root with one clip for every reason, good ones, and held-out clips one of which a training clip copies."""
    folder = tmp_path_factory.mktemp("select")
    frozen = moving(9006, 8)
    films = {
        "weak/good_1.mp4": moving(9001, 30),
        "weak/good_2.mp4": moving(9002, 30),
        "weak/still.mp4": [film(9003)[0]] * 30,
        "weak/blurred.mp4": blurred(moving(9004, 30)),
        "weak/black.mp4": [BLACK] * 24 + moving(9005, 6),
        "weak/repeated.mp4": frozen + [frozen[-1]] * 16 + moving(9006, 30)[24:],
        "weak/short.mp4": moving(9007, 9),
        "dense/train_1.mp4": moving(9011, 36),
        "dense/train_2.mp4": moving(9012, 36),
        "test/held_1.mp4": moving(9021, 36),
        "test/held_2.mp4": moving(9022, 36),
    }
    write(moving(9021, 36), folder / "archive" / "dense" / "copy.mp4", crf=33)
    weak = [(name, "", "", "only" if "short" in name else "a", "") for name in films if name.startswith("weak")]
    dense = [(f"dense/{n}.mp4", 0.2, 2.5, "a", "train") for n in ("train_1", "train_2", "copy")]
    held = [(f"test/held_{n}.mp4", 0.5, 2.0, "a", "heldout") for n in (1, 2)]
    root, dataset = prepare_films(folder, films, [*weak, *dense, *held])
    version, _ = score_dataset(root, dataset)
    duplicates.find_duplicates(root, dataset, version)
    return root, dataset, version


def names(root, dataset):
    return {row["path"].split("/")[1].removesuffix(".mp4") for p in dataset.parts for row in dataset.rows(root, p)}


def everything(dataset):
    return names("", replace(dataset, selection=None))


def test_every_reason_has_its_clip(made):
    root, dataset, version = made
    chosen, total = select_dataset(root, dataset, version, replace(LIMITS, near_duplicates="drop"))
    found = {}
    for part in chosen.parts:
        rows = columns.read(root, "selection", chosen.selection, part).to_pylist()
        found |= {row["path"]: verdict["reason"] for row, verdict in zip(part.rows(), rows, strict=True)}
    assert {path: reason for path, reason in found.items() if reason} == {
        "weak/still.mp4": "static",
        "weak/blurred.mp4": "blurred",
        "weak/black.mp4": "black",
        "weak/repeated.mp4": "repeated_frames",
        "weak/short.mp4": "too_short",
        "dense/copy.mp4": "near_duplicate",
    }
    assert set(total.dropped) == set(REASONS) and total.balanced and total.items == dataset.clips


def test_the_held_out_one_of_two_copies_stays(made):
    """Whatever their keys: were the held-out one dropped, its copy would go on being trained on."""
    root, dataset, version = made
    chosen, _ = select_dataset(root, dataset, version, Thresholds(near_duplicates="drop"))
    assert everything(dataset) - names(root, chosen) == {"copy"}


def test_every_clip_is_in_the_ledger_with_scores_and_thresholds(made):
    """In = kept + dropped, each with the numbers it was judged by."""
    root, dataset, version = made
    chosen, total = select_dataset(root, dataset, version, LIMITS)
    entries = [e for p in dataset.parts for e in ledger.read(root, "select", f"{p.id}-{chosen.selection}")]
    assert len(entries) == dataset.clips and ledger.tally(entries).dropped == total.dropped
    for entry in entries:
        assert entry.thresholds["min_motion"] == LIMITS.min_motion
        rules = {reason: (score, limit, least) for reason, score, limit, least in RULES}
        if entry.verdict == "dropped":
            score, limit, least = rules[entry.reason]
            assert (entry.scores[score] < entry.thresholds[limit]) == least
        assert set(scores.NAMES) < set(entry.scores)


def test_changing_a_threshold_decodes_nothing_and_rebuilds_nothing(made, monkeypatch):
    root, dataset, version = made
    monkeypatch.setattr(Sandbox, "call", lambda *_: pytest.fail("something was decoded"))
    kept = ("parts", "columns/scores", "near")
    before = {p: p.read_bytes() for folder in kept for p in (Path(root) / folder).rglob("*.parquet")}
    one, _ = select_dataset(root, dataset, version, Thresholds(min_motion=0.004))
    two, _ = select_dataset(root, dataset, version, Thresholds(min_motion=0.005))
    assert one.version != two.version != dataset.version and one.parts == two.parts == dataset.parts
    assert {p: p.read_bytes() for folder in kept for p in (Path(root) / folder).rglob("*.parquet")} == before


def test_no_threshold_is_the_dataset_as_it_was(made):
    root, dataset, version = made
    chosen, _ = select_dataset(root, dataset, version, LIMITS)
    again, _ = select_dataset(root, chosen, version, Thresholds())
    assert (again.version, again.selection) == (dataset.version, None) and names(root, again) == everything(dataset)


def test_a_selection_is_loaded_with_its_dataset(made):
    root, dataset, version = made
    chosen, _ = select_dataset(root, dataset, version, LIMITS)
    found = datasets.load(root, "a")
    assert found == chosen and found.about["thresholds"]["min_motion"] == LIMITS.min_motion
    assert sum(sum(found.kept(root, part)) for part in found.parts) == dataset.clips - 5


def test_a_manifest_with_another_selection_is_refused(made):
    root, dataset, version = made
    chosen, _ = select_dataset(root, dataset, version, LIMITS)
    url = files.join(root, "datasets", "a", f"{chosen.version}.json")
    sound = files.read(url)
    try:
        files.replace(sound.replace(chosen.selection.encode(), b"select-000000000000"), url)
        with pytest.raises(InputError, match="altered"):
            datasets.load(root, "a", chosen.version)
    finally:
        files.replace(sound, url)


def test_a_lost_selection_is_an_error_and_not_everything(made):
    root, dataset, _ = made
    with pytest.raises(Damaged, match="selection gone is gone"):
        replace(dataset, selection="gone").rows(root, dataset.parts[0])


def test_a_selection_is_the_same_bytes_every_time(made, tmp_path):
    import shutil

    root, dataset, version = made
    chosen, _ = select_dataset(root, dataset, version, LIMITS)
    shutil.copytree(root, tmp_path / "root", ignore=shutil.ignore_patterns("selection", "select"))
    copy = datasets.load(str(tmp_path / "root"), "a", dataset.version)
    again, _ = select_dataset(str(tmp_path / "root"), copy, version, LIMITS)
    assert again.version == chosen.version
    for part in dataset.parts:
        urls = [columns.url(r, "selection", chosen.selection, part.id) for r in (root, str(tmp_path / "root"))]
        assert files.read(urls[0]) == files.read(urls[1])


def test_thresholds_that_leave_nothing_are_refused(made):
    root, dataset, version = made
    before = datasets.load(root, "a").version
    with pytest.raises(InputError, match="drop all 12 clips"):
        select_dataset(root, dataset, version, Thresholds(min_duration=100))
    assert datasets.load(root, "a").version == before


@pytest.mark.parametrize("bad", [{"min_motion": float("nan")}, {"max_black": 1.5}, {"near_duplicates": "maybe"}])
def test_thresholds_that_are_none_are_refused(made, bad):
    root, dataset, version = made
    with pytest.raises(InputError, match="--"):
        select_dataset(root, dataset, version, Thresholds(**bad))


def test_training_draws_selected_clips_alone(made):
    root, dataset, version = made
    chosen, _ = select_dataset(root, dataset, version, LIMITS)
    pseudo, _ = label.label_dataset(root, chosen)
    weak = chosen.select(split="train", labelled="video")
    clips = loader.Clips(root, weak, ["a"], 8.0, 24, pseudo, chosen.selection)
    assert {item.row["path"] for item in clips.items} == {"weak/good_1.mp4", "weak/good_2.mp4"}
    assert len(loader.Clips(root, weak, ["a"], 8.0, 24, pseudo)) == 7
    assert classes_of(weak) == ["a", "only"] and classes_of(weak, lambda part: chosen.kept(root, part)) == ["a"]


def test_another_selection_is_another_training(made):
    root, dataset, _ = made
    spec = Spec(root=root, parts=records(dataset.parts), classes=["a"], objective="dense")
    chosen = replace(spec, selection="select-1")
    assert (
        train.run_name(spec, "t") != train.run_name(chosen, "t") != train.run_name(replace(chosen, selection="2"), "t")
    )


def test_the_audit_counts_selected_clips(made):
    root, dataset, version = made
    chosen, _ = select_dataset(root, dataset, version, LIMITS)
    assert contents.labels(root, dataset)["train"] == {"a": 9, "only": 1}
    assert contents.labels(root, chosen)["train"] == {"a": 5}


def predictions(root, dataset, name):
    """A predictions column that says nothing, for every part."""
    for part in dataset.parts:
        rows = [
            {"key": r["key"], "times": np.arange(r["frames"]) / 12 + r["start"], "scores": np.zeros((r["frames"], 1))}
            for r in part.rows()
        ]
        columns.write(root, predict.COLUMN, name, part, predict._as_table(
            [row | {"scores": row["scores"].astype(np.float16)} for row in rows], 1), {})  # fmt: skip


def test_a_held_out_video_that_training_shows_is_named(made):
    """No clip that is measured may show what a training clip shows, whatever was done to it."""
    root, dataset, version = made
    held = evaluate.held_out(dataset)
    found, checked = evaluate.leaks(root, dataset, held)
    assert [(leak["video"], leak["training_video"]) for leak in found] == [("test/held_1.mp4", "dense/copy.mp4")]
    assert checked == "content and pictures"
    chosen, _ = select_dataset(root, dataset, version, Thresholds(near_duplicates="drop"))
    assert evaluate.leaks(root, chosen, held) == ([], "content and pictures"), "the copy is not trained on"


def test_what_leaks_is_not_measured(made):
    root, dataset, _ = made
    predictions(root, dataset, "nothing")
    held = evaluate.held_out(dataset)
    videos = evaluate.scored_videos(root, held, "nothing", ["a"], None, {"test/held_1.mp4"})
    assert [video[0] for video in videos] == ["test/held_2.mp4"]


def test_without_a_search_the_check_says_what_it_was(made):
    root, dataset, _ = made
    other = replace(dataset, parts=dataset.parts[1:])
    assert evaluate.leaks(root, other, []) == ([], "content")


def test_the_truth_of_a_dropped_clip_is_not_asked_for():
    segments = {(0.0, 10.0, 0), (4.0, 5.0, 1)}
    assert evaluate._outside(segments, [(3.0, 6.0)]) == {(0.0, 3.0, 0), (6.0, 10.0, 0)}


def test_a_dropped_clip_is_not_measured(made):
    root, dataset, version = made
    predictions(root, dataset, "nothing")
    held = evaluate.held_out(dataset)
    motions = {
        row["path"]: score["motion"]
        for part in held
        for row, score in zip(part.rows(), select.scored(root, part, version).to_pylist(), strict=True)
    }
    between = sum(motions.values()) / 2
    chosen, _ = select_dataset(root, dataset, version, Thresholds(min_motion=between))
    videos = evaluate.scored_videos(root, held, "nothing", ["a"], chosen.selection)
    assert [video[0] for video in videos] == [max(motions, key=motions.get)]


def test_what_if_foretells_what_select_does(made):
    root, dataset, version = made
    present, _ = select_dataset(root, dataset, version, Thresholds(min_motion=0.004))
    wanted = replace(LIMITS, near_duplicates="drop")
    foretold = what_if.outcome(root, present, version, wanted)
    chosen, total = select_dataset(root, dataset, version, wanted)
    assert foretold.clips[""] == total.kept and {r: n for r, n in foretold.clips.items() if r} == total.dropped
    assert foretold.seconds[""] == pytest.approx(total.seconds)
    before, after = names(root, present), names(root, chosen)
    assert (foretold.gained, foretold.lost) == (len(after - before), len(before - after))
    assert foretold.classes["only"] == {"too_short": 1}


def test_a_sweep_counts_what_a_threshold_alone_would_keep():
    values = np.arange(100) / 100
    for point, kept in what_if.sweep(values, True):
        assert kept == (values >= point).sum()
    assert what_if.sweep(values, True)[0] == (0.0, 100) and what_if.sweep(values, False)[-1] == (0.99, 100)


def test_what_if_and_select_on_the_command_line(made):
    root, dataset, version = made
    datasets.freeze(root, "a", dataset.parts, {})
    before = {p for p in Path(root).rglob("*") if p.is_file()}
    shown = CliRunner().invoke(main, ["what-if", "--root", root, "--dataset", "a", "--min-motion", "0.004"])
    assert shown.exit_code == 0, shown.output
    assert "11 of 12 clips kept" in shown.output and "--max-black" in shown.output and "only" in shown.output
    new = {p for p in Path(root).rglob("*") if p.is_file()} - before
    assert [p.suffix for p in new] == [".png"] and f"picture: {new.copy().pop()}" in shown.output
    done = CliRunner().invoke(main, ["select", "--root", root, "--dataset", "a", "--min-motion", "0.004"])
    assert done.exit_code == 0 and "11 of 12 clips" in done.output
    assert datasets.load(root, "a").selection is not None


def test_what_if_without_scores_says_what_to_do(tmp_path):
    root, dataset = prepare_films(tmp_path, {"film.mp4": moving(9100, 12)})
    refused = CliRunner().invoke(main, ["what-if", "--root", root, "--dataset", "a"])
    assert refused.exit_code == 2 and "has no scores" in refused.stderr and len(refused.stderr.splitlines()) == 1
    done = CliRunner().invoke(main, ["select", "--root", root, "--dataset", "a", "--near-duplicates", "drop"])
    assert done.exit_code == 0 and "1 of 1 clips" in done.output, done.output
    assert parts.find(root, dataset.parts[0].id) == dataset.parts[0]
