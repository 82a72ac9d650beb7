"""Choosing clips asks the store for each object once, many at a time, and says its options in one place."""

import inspect
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import get_type_hints

import pytest
from click.testing import CliRunner

from flows.__main__ import main
from flows.prepare import prepare
from storage import files
from tasks import duplicates, select, what_if
from tasks.forms import description
from tasks.score import score_dataset
from tasks.thresholds import Thresholds
from tests.films import moving, prepare_films
from tests.preparing import CHECKOUT
from tests.test_faults_full_disk import namespace

WANTED = Thresholds(min_motion=0.0001, near_duplicates="drop")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A scored and searched root of one part to a film."""
    folder = tmp_path_factory.mktemp("choosing")
    root, dataset = prepare_films(folder, {f"{i}/film.mp4": moving(9500 + i, 12) for i in range(12)})
    version, _ = score_dataset(root, dataset)
    duplicates.find_duplicates(root, dataset, version)
    assert len(dataset.parts) >= 4
    return root, dataset, version


@pytest.fixture
def asked(monkeypatch):
    """How often each kind of object is read, by part, and the most reads that were under way at one time."""
    reads, under_way, most = Counter(), [], [0]
    lock, real = threading.Lock(), files.read

    def read(url, *span):
        with lock:
            reads[(url.split("/")[-3], url.split("/")[-1]) if "/columns/" in url else (url.split("/")[-2], url)] += 1
            under_way.append(url)
            most[0] = max(most[0], len(under_way))
        time.sleep(0.05)  # a store that takes its time
        with lock:
            under_way.remove(url)
        return real(url, *span)

    monkeypatch.setattr(files, "read", read)
    return reads, most


def of(reads, kind):
    return [n for (folder, _), n in reads.items() if folder == kind]


def test_what_if_reads_each_object_of_a_part_once_and_side_by_side(made, asked):
    root, dataset, version = made
    chosen, _ = select.select_dataset(root, dataset, version, WANTED)
    reads, most = asked
    reads.clear()
    most[0] = 0
    what_if.outcome(root, chosen, version, WANTED)
    parts = len(dataset.parts)
    for kind in ("scores", "selection", "parts"):
        assert of(reads, kind) == [1] * parts, kind
    assert reads.total() == 3 * parts + 1, "and the pairs"
    assert most[0] >= min(parts, 4)


def test_select_reads_the_scores_of_a_part_once(made, asked):
    root, dataset, version = made
    reads, most = asked
    select.select_dataset(root, dataset, version, Thresholds(min_motion=0.0002, near_duplicates="drop"))
    assert of(reads, "scores") == [1] * len(dataset.parts)
    assert max(of(reads, "parts")) == 2, "once to check the scores and once to check the selection that is written"
    assert most[0] >= min(len(dataset.parts), 4)


def test_comparing_clips_reads_each_object_once_and_side_by_side(made, asked):
    root, dataset, version = made
    reads, most = asked
    duplicates._clips(root, dataset, version)
    assert of(reads, "scores") == of(reads, "parts") == [1] * len(dataset.parts)
    assert most[0] >= min(len(dataset.parts), 4)


READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'


@pytest.mark.parametrize("how", ["mount", "rights"])
def test_a_root_that_may_only_be_read_is_answered_all_the_same(made, tmp_path, how):
    """What would go and what thresholds would keep; where no mount of our own is allowed, rights stand for it."""
    root = str(shutil.copytree(made[0], tmp_path / "root"))
    if how == "mount" and (means := namespace()):
        before = [*means, "sh", "-c", READ_ONLY, "sh", root]
    else:
        for path in (Path(root), *Path(root).rglob("*")):
            path.chmod(path.stat().st_mode & 0o555)
        before = ["setpriv", "--bounding-set=-dac_override"] if os.getuid() == 0 else []

    def call(*words):
        command = [*before, sys.executable, "-m", "flows", *words, "--root", root]
        return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)

    dataset = made[1].name
    said = call("gc", "--keep-versions", "1")
    assert said.returncode == 0 and "would remove 0 of " in said.stdout, said
    assert "ages are by this machine's" in said.stdout + said.stderr
    said = call("what-if", "--dataset", dataset, "--min-motion", "0.5")
    assert said.returncode == 0 and "of 12 clips kept" in said.stdout and "no picture: " in said.stdout, said
    said = call("gc", "--no-dry-run")
    assert said.returncode == 2 and "no permission to write" in said.stderr and "Errno" in said.stderr, said


@pytest.mark.parametrize("name", Thresholds.__dataclass_fields__)
def test_a_threshold_is_explained_alike_wherever_it_is_set(name):
    said = {
        description(get_type_hints(f, include_extras=True)[name]) for f in (prepare.fn, select.choose, what_if.what_if)
    }
    assert len(said) == 1 and len(said.pop()) > 20
    defaults = {inspect.signature(f).parameters[name].default for f in (prepare.fn, select.choose)}
    assert defaults == {getattr(Thresholds(), name)}, "the defaults of the options are those of the thresholds"


def test_a_choice_that_may_be_left_out_is_a_choice():
    shown = CliRunner().invoke(main, ["what-if", "--root", "none", "--near-duplicates", "maybe"])
    assert shown.exit_code == 2 and "'maybe' is not one of 'keep', 'drop'" in shown.stderr
