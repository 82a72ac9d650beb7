"""The column of frames that trainings see: the same bytes as decoded ones, decoded once, and only where they fit."""

import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from storage import carry, columns, datasets, files
from storage.errors import Damaged
from storage.parts import Part
from tasks import train_rank
from tasks.training import batches, frames, loader, pretrain
from tests import made_parts, traced


@pytest.fixture
def root(traced, tmp_path):
    shutil.copytree(traced / "root", tmp_path / "root")
    shutil.rmtree(tmp_path / "root" / "columns" / "frames", ignore_errors=True)
    return str(tmp_path / "root")


@pytest.fixture
def data(root):
    return datasets.load(root, "a")


@pytest.fixture
def spec(root, data):
    return replace(pretrain.spec_for(root, data, "detection", traced.RECIPE), steps=3, batch=4, checkpoint_every=3)


def parts_of(spec):
    return [Part(**record) for record in spec.parts]


def never(*_):
    raise AssertionError("decoded")


def losses(spec, name):
    training = train_rank.Training(spec, name, 0, 1)
    return [training.advance(batch) for batch in training.coming]


@pytest.mark.parametrize("rate", ["sampled", "source"])
def test_a_training_draws_the_same_with_the_column_and_decodes_nothing(root, data, spec, monkeypatch, rate):
    spec = replace(spec, rate=rate)
    before = losses(spec, "before")
    assert frames.keep(root, data, parts_of(spec), spec.fps, spec.size)
    monkeypatch.setattr(loader, "decode", never)
    assert losses(spec, "after") == before
    with pytest.raises(AssertionError, match="decoded"):
        losses(replace(spec, size=spec.size + 4), "other")


def test_every_clip_is_that_of_the_decoder(root, data, spec):
    frames.keep(root, data, parts_of(spec), spec.fps, spec.size)
    for part in parts_of(spec):
        found = loader.stored(root, part, spec.fps, spec.size)
        for row in part.rows():
            made = loader.decode(part, row, spec.fps, spec.size)
            assert torch.equal(found[row["key"]].frames, made.frames)
            assert np.array_equal(found[row["key"]].sampled, made.sampled)
            assert np.array_equal(found[row["key"]].times, made.times)
        assert part.samples * 3 * spec.size**2 <= frames.weight([part], spec.fps, spec.size)
        assert sum(clip.frames.nbytes for clip in found.values()) <= frames.weight([part], spec.fps, spec.size)


def test_the_second_training_writes_nothing_and_its_column_is_an_input(root, data, spec, monkeypatch):
    told = []
    monkeypatch.setattr(pretrain.tracking, "log_columns", lambda root, run, used, parts, _: told.append((used, parts)))
    pretrain._keep_frames(root, "run", spec, data)
    monkeypatch.setattr(frames, "decode", never)
    pretrain._keep_frames(root, "run", replace(spec, seed=7), data)
    name = loader.frames_version(spec.fps, spec.size)
    assert told == [({"frames": name}, [part["id"] for part in spec.parts])] * 2
    assert [columns.has(root, "frames", name, part["id"]) for part in spec.parts] == [True] * len(spec.parts)


def test_what_does_not_fit_is_decoded_as_it_goes(root, data, spec, monkeypatch):
    monkeypatch.setattr(frames, "MOST", frames.weight(parts_of(spec), spec.fps, spec.size) - 1)
    pretrain._keep_frames(root, "run", spec, data)
    assert not files.exists(files.join(root, "columns", "frames"))
    assert len(losses(spec, "decoding")) == spec.steps


def test_clips_that_another_part_had_are_not_decoded(root, data, spec, monkeypatch):
    frames.keep(root, data, parts_of(spec), spec.fps, spec.size)
    (part,) = [part for part in parts_of(spec)][:1]
    kept = columns.read(root, "frames", loader.frames_version(spec.fps, spec.size), part)
    monkeypatch.setattr(frames, "decode", never)
    monkeypatch.setattr(carry, "known", lambda *_: kept.replace_schema_metadata(None))
    again = files.open_root(f"{root}-again")
    frames.write_part(part, root=again, fps=spec.fps, size=spec.size)
    assert loader.stored(again, part, spec.fps, spec.size).keys() == {row["key"] for row in part.rows()}


def test_frames_of_another_size_are_damage_and_name_the_clip(tmp_path):
    part = made_parts.commit(files.open_root(str(tmp_path)))
    keys = [row["key"] for row in part.rows()]
    table = {"key": keys, "frames": pa.array([b"12"] * len(keys), pa.binary())}
    table |= {name: pa.array([[0.0]] * len(keys), pa.list_(pa.float64())) for name in ("sampled", "times")}
    columns.write(str(tmp_path), "frames", loader.frames_version(8.0, 24), part, pa.table(table), {})
    with pytest.raises(Damaged, match=f"{part.id}.*{keys[0]}"):
        loader.stored(str(tmp_path), part, 8.0, 24)


def test_the_rate_may_be_said_as_a_whole_number():
    assert loader.frames_version(8, 24) == loader.frames_version(8.0, 24) != loader.frames_version(8.0, 28)


class Slow:
    """Samples that take as long as their number says."""

    def __len__(self):
        return 4

    def key(self, index):
        return str(index)

    def draw(self, index, length, rng):
        return loader.Sample(torch.zeros(3, length, 8, 8, dtype=torch.uint8), torch.zeros(length, 1))


def test_more_small_batches_are_made_ahead_than_large_ones():
    small, large = (
        batches.Batches(Slow(), lambda step, size=size: batches.Shape(16, 16, size, 0), 0) for size in (24, 224)
    )
    assert (small.ahead, large.ahead) == (batches.MOST_AHEAD, 2)
    halved = batches.Batches(Slow(), lambda step: batches.Shape(16, 16, 224, 0), 0, 0, 4)
    assert halved.ahead > large.ahead


def test_batches_are_begun_before_they_are_asked_for(spec, monkeypatch):
    """The model is built meanwhile: a training whose model takes long does not wait for its first batch."""
    order = []
    build, make = train_rank.build, batches.Batches._make
    made = batches.threading.Event()

    def noted(self, step, pool):
        batch = make(self, step, pool)
        order.append("batch")
        made.set()
        return batch

    def late(spec):
        assert made.wait(30)
        order.append("model")
        return build(spec)

    monkeypatch.setattr(batches.Batches, "_make", noted)
    monkeypatch.setattr(train_rank, "build", late)
    train_rank.Training(spec, "overlap", 0, 1)
    assert order.index("batch") < order.index("model")
