"""Checkpoints are written beside the training, one at a time, and tried again; what fails for good is told."""

import errno
import threading
import time
from dataclasses import replace

import pytest
import torch

from storage import checkpoints, files
from storage.errors import StoreError
from tasks import train_rank
from tasks.training import saving
from tests.ranks import Noise, spec_on


@pytest.fixture
def spec(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(train_rank, "_say", lambda rank, report: None)
    monkeypatch.setattr(train_rank, "samples_of", lambda _: Noise())
    monkeypatch.setattr(saving, "WAITS", (0.0, 0.01))
    return spec_on(tmp_path, steps=6, checkpoint_every=2)


@pytest.fixture
def steps(monkeypatch):
    """The steps that have been taken, from 0."""
    taken, real = [], train_rank.train_step
    monkeypatch.setattr(train_rank, "train_step", lambda *given: taken.append(given[4]) or real(*given))
    return taken


def test_the_training_goes_on_while_a_checkpoint_is_written(spec, steps, monkeypatch):
    """One at a time: at the second one it waits for the first. What is written is of the step that it is named by."""
    train_rank.run(spec, "plain")
    plain, save = [*steps], checkpoints.save
    steps.clear()
    enough, under_way, most = threading.Event(), [], []

    def slow(*given):
        under_way.append(given[2])
        most.append(len(under_way))
        if given[2] == 2:
            assert enough.wait(60)
        under_way.remove(given[2])
        return save(*given)

    def watch():
        while len(steps) < 4:
            time.sleep(0.002)
        enough.set()

    monkeypatch.setattr(checkpoints, "save", slow)
    threading.Thread(target=watch, daemon=True).start()
    train_rank.run(replace(spec, steps=6), "slow")
    assert steps == plain and most == [1, 1, 1]
    for step in (4, 6):
        one, other = (checkpoints.describe(checkpoints.place(spec.root, name, step)) for name in ("plain", "slow"))
        assert one.digest == other.digest
    assert checkpoints.load_state(one.url)["losses"].tolist() == checkpoints.load_state(other.url)["losses"].tolist()


def failing(monkeypatch, error, times):
    """Has the store fail so many times, from the second checkpoint on; returns what it was asked for."""
    asked, replaced = [], files.replace

    def replace_(data, url):
        if "step_00000004" in url:
            asked.append(url)
            if len(asked) <= times:
                raise error
        return replaced(data, url)

    monkeypatch.setattr(files, "replace", replace_)
    return asked


@pytest.mark.parametrize("error", [StoreError("no answer"), OSError(errno.ENOSPC, "No space left on device")])
def test_a_store_that_comes_back_is_asked_again(spec, monkeypatch, error):
    asked = failing(monkeypatch, error, 2)
    train_rank.run(spec, "patient")
    assert len(asked) == 2 + 3 and checkpoints.find(spec.root, "patient").final


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "there is no room for the checkpoint of step 4 under"),
        (StoreError("no answer"), "the store fails for the checkpoint of step 4 under"),
    ],
)
def test_a_store_that_stays_away_ends_the_training_with_a_word(spec, steps, monkeypatch, error, told):
    """At the next step, not at the next checkpoint; the one before stays, and the next run goes on from it."""
    asked, step = failing(monkeypatch, error, 1000), train_rank.train_step

    def waiting(*given):
        while given[4] == 4 and len(asked) < 3:
            time.sleep(0.01)
        time.sleep(0.3 * (given[4] == 4))
        return step(*given)

    monkeypatch.setattr(train_rank, "train_step", waiting)
    with pytest.raises(StoreError, match=told) as caught:
        train_rank.run(spec, "full")
    assert "tried 3 times" in str(caught.value) and "goes on from step 2" in str(caught.value)
    assert str(error) in str(caught.value) and max(steps) == 4
    assert checkpoints.find(spec.root, "full").step == 2
    monkeypatch.undo()
    monkeypatch.setattr(train_rank, "samples_of", lambda _: Noise())
    train_rank.run(spec, "full")
    assert checkpoints.find(spec.root, "full").final


def test_an_error_of_the_training_is_told_before_one_of_the_store(spec, monkeypatch):
    failing(monkeypatch, StoreError("no answer"), 1000)
    real = train_rank.train_step

    def dying(*given):
        if given[4] == 4:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(train_rank, "train_step", dying)
    with pytest.raises((KeyboardInterrupt, StoreError)) as caught:
        train_rank.run(spec, "both")
    assert caught.type is KeyboardInterrupt or "step 4" in str(caught.value)
