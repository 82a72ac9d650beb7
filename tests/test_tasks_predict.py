"""Batch inference and evaluation: every frame once, on the right clock, and only where it is missing."""

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from test_tasks_prepare import prepare

import models
from storage import checkpoints, columns, files
from storage.errors import InputError
from tasks import evaluate, predict, scorer, segments, train_rank
from tasks.calibration import Calibration
from tasks.train_rank import Spec
from tasks.training.pretrain import classes_of
from tasks.training.videos import Neighbours


@pytest.fixture(scope="module")
def ready(archive, tmp_path_factory):
    """A prepared root and an untrained checkpoint."""
    root = str(tmp_path_factory.mktemp("predicted"))
    dataset, _ = prepare(root, str(archive / "archive"), str(archive / "labels.csv"))
    classes = classes_of(dataset.select(split="train", labelled="segments"))
    spec = Spec(root=root, parts=[], classes=classes, objective="dense", options={"size": "TINY"}, size=24)
    weights = train_rank.build(spec).state_dict()
    return root, dataset, checkpoints.save(root, "untrained", 1, weights, {}, train_rank._about(spec), True)


@pytest.mark.parametrize("T", [1, 15, 16, 17, 24, 100])
def test_windows_cover_every_frame(T):
    seen = np.zeros(max(T, 16))
    for begin in scorer.windows(T, 16):
        seen[begin : begin + 16] += 1
    assert seen.min() >= 1 and seen.max() <= 3


class Clockwork(torch.nn.Module):
    """Answers with the brightness of each frame, so that frames out of place are seen."""

    config = models.build("x3d", size="TINY", num_classes=1).config

    def forward(self, video):
        return {"logits": video.mean((1, 3, 4))[..., None]}


@pytest.mark.parametrize("T", [5, 16, 40])
def test_joined_windows_equal_one_pass(T):
    video = torch.randint(0, 256, (T, 3, 8, 8), dtype=torch.uint8)
    joined = scorer.frame_logits(Clockwork(), video, 16)
    whole = Clockwork()(scorer.normalise(video.transpose(0, 1)[None], Clockwork.config))["logits"][0]
    assert joined.shape == (T, 1) and torch.allclose(joined, whole, atol=1e-5)


def test_scores_at_source_rate_follow_the_times():
    sampled, times = np.array([0.0, 0.5, 1.0]), np.array([0.0, 0.1, 0.25, 0.9])
    scores = scorer.at_source_rate(np.array([[0.0], [1.0], [2.0]]), sampled, times)
    assert np.allclose(np.log(scores / (1 - scores))[:, 0], 2 * times)


def test_segments_are_runs_above_the_threshold():
    times = np.arange(10) / 10
    scores = np.array([0, 0.6, 0.8, 0.7, 0, 0, 0.9, 0, 0.5, 0.5])[:, None]
    found = segments.find(scores, times, ["a"], Calibration())
    inside, at_the_end = found
    assert (inside["start"], inside["end"], inside["score"]) == pytest.approx((0.1, 0.4, 0.7))
    assert (at_the_end["start"], at_the_end["end"], at_the_end["frames"]) == (pytest.approx(0.8), pytest.approx(1.0), 2)


def test_every_source_frame_is_predicted_once(ready):
    root, dataset, checkpoint = ready
    name, done = predict.predict_parts(root, dataset.parts, checkpoint)
    assert done.decoded == dataset.clips
    for part in dataset.parts:
        for row, (key, times, scores) in zip(part.rows(), predict.read_predictions(root, name, part), strict=True):
            assert key == row["key"] and len(times) == len(scores) == row["frames"]
            assert times[0] == pytest.approx(row["start"]) and times[-1] < row["end"]


def test_a_second_run_computes_nothing(ready):
    root, dataset, checkpoint = ready
    predict.predict_parts(root, dataset.parts, checkpoint)
    _, done = predict.predict_parts(root, dataset.parts, checkpoint)
    assert done.decoded == 0


def test_the_tables_open_in_one_line(ready):
    root, dataset, checkpoint = ready
    name, _ = predict.predict_parts(root, dataset.parts, checkpoint, thresholds=Calibration())
    frames = duckdb.sql(f"select sum(len(times)) from '{root}/columns/predictions/{name}/*.parquet'").fetchall()[0][0]
    assert frames == sum(row["frames"] for part in dataset.parts for row in part.rows())
    found = segments.version(name, Calibration())
    assert pq.read_schema(f"{root}/segments/{found}/{dataset.parts[0].id}.parquet").names == segments.SCHEMA.names


def perfect(root, dataset, classes, name, spoil=0.0):
    """Writes a predictions column that knows the truth, up to some noise."""
    rng = np.random.default_rng(0)
    for part in dataset.select(split="heldout", labelled="segments"):
        rows = []
        for row in part.rows():
            times = np.arange(row["frames"]) / row["fps"]
            truth = predict_truth(row, times, classes)
            scores = (1 - spoil) * truth + spoil * rng.uniform(size=truth.shape)
            rows.append({"key": row["key"], "times": times + row["start"], "scores": scores.astype(np.float16)})
        columns.write(root, predict.COLUMN, name, part, predict._as_table(rows, len(classes)), {})


def predict_truth(row, times, classes):
    truth = np.zeros((len(times), len(classes)))
    for found in row["labels"]:
        on = (times + row["start"] >= found["start"]) & (times + row["start"] <= found["end"])
        truth[on, classes.index(found["label"])] = 1
    return truth


def test_perfect_predictions_of_many_clips_score_one(ready):
    """Clips of a video are joined on its clock; a clip out of place, or a label lost at a cut, would cost."""
    root, dataset, checkpoint = ready
    classes = checkpoint.about["classes"]
    perfect(root, dataset, classes, "perfect")
    parts = evaluate.held_out(dataset)
    assert max(len([r for r in p.rows() if r["path"] == r0["path"]]) for p in parts for r0 in p.rows()) > 1
    videos = evaluate.scored_videos(root, parts, "perfect", classes)
    for protocol in evaluate.PROTOCOLS:
        result = evaluate.frame_map(*evaluate.collect(videos, len(classes), protocol).arrays()[:2])
        assert result.map == pytest.approx(1.0)


def test_an_untrained_model_is_measured_in_every_mode(ready):
    root, dataset, checkpoint = ready
    found = evaluate.evaluate_checkpoint(root, dataset, checkpoint, "evaluate")
    assert 0.02 < found.metrics["every_frame_map"] < 0.9
    modes = {f"{p}_{m}" for p in evaluate.PROTOCOLS for m in ("map", "wap", "map_prior_normalised")}
    kinds = {f"every_frame_map_{kind}" for kind in ("single", "several", "boundary", "away")}
    assert set(found.metrics) == modes | kinds | {"latency_ms", "peak_memory_mb", "gmacs", "params_m"}


def test_figures_are_drawn(ready, tmp_path):
    root, dataset, checkpoint = ready
    found = evaluate.evaluate_checkpoint(root, dataset, checkpoint, "evaluate")
    made = evaluate.draw(found, checkpoint.about["classes"], tmp_path, evaluate.held_out(dataset))
    assert all(path.read_bytes()[:4] == b"\x89PNG" and path.stat().st_size > 10_000 for path in made)


def test_a_dataset_without_held_out_videos_is_refused(ready):
    root, dataset, _ = ready
    from dataclasses import replace

    with pytest.raises(InputError, match="no held-out videos with segments"):
        evaluate.held_out(replace(dataset, parts=dataset.select(split="train")))


def test_overlap_of_train_and_held_out_is_refused(ready):
    root, dataset, _ = ready
    from dataclasses import replace

    leaked = [replace(part, split="train") for part in dataset.select(split="heldout")]
    with pytest.raises(InputError, match="both train and held-out"):
        evaluate.held_out(replace(dataset, parts=[*dataset.parts, *leaked]))


def test_an_interrupted_prediction_leaves_nothing_half(ready, monkeypatch):
    root, dataset, checkpoint = ready
    part = dataset.parts[0]
    monkeypatch.setattr(columns, "write", lambda *_, **__: (_ for _ in ()).throw(OSError("gone")))
    monkeypatch.setattr(predict, "version", lambda _: "interrupted")
    with pytest.raises(OSError, match="gone"):
        predict.predict_part(Neighbours(part), root=root, checkpoint=checkpoint.url)
    assert not columns.has(root, predict.COLUMN, "interrupted", part.id)
    assert files.names(files.join(root, "columns", predict.COLUMN, "interrupted")) == []
