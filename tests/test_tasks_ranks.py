"""Ranks of a two-stream training: they share the samples of one, the whole video beside each, and train together."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch

from storage import checkpoints
from tasks.train_rank import Spec, build
from tasks.training import batches, samples
from tasks.training.pretrain import records
from tests import lamps
from tests.preparing import CHECKOUT, prepare


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """Of a fine-tuning of Coarse-Fine: videos of two clips, of which a window is seen beside the whole."""
    folder = tmp_path_factory.mktemp("ranks")
    lamps.render(folder, train=4, held_out=0, weak=0)
    root = str(folder / "root")
    dataset, _ = prepare(root, str(folder / "archive"), str(folder / "labels.csv"))
    return Spec(
        root=root, parts=records(dataset.parts), classes=list(lamps.COLOURS), objective="dense", system="coarse_fine",
        options={"size": "TINY"}, size=16, whole=24, batch=4, steps=2, checkpoint_every=2, rate="source",
        faster={"fusion": 10.0},
    )  # fmt: skip


def drawn(spec, rank, ranks):
    shape = batches.Shape(spec.batch, spec.frames, spec.size, 0)
    made = batches.Batches(samples.samples_of(spec), lambda step: replace(shape, first=4 * step), 0, rank, ranks)
    return list(made.from_step(0, 3))


def test_two_ranks_see_what_one_sees_in_its_order(spec):
    for one, *shares in zip(drawn(spec, 0, 1), drawn(spec, 0, 2), drawn(spec, 1, 2), strict=True):
        for rank, share in enumerate(shares):
            assert torch.equal(one.seen[rank::2], share.seen)
            assert torch.equal(one.inputs["start"][rank::2], share.inputs["start"])
            assert torch.equal(one.inputs["step"][rank::2], share.inputs["step"])
            for name in ("labels", "places", "mask"):  # padded to the longest of their own batch
                whole, part = getattr(one, name)[rank::2], getattr(share, name)
                assert torch.equal(whole[:, : part.shape[1]], part) and not whole[:, part.shape[1] :].any()
            there = one.inputs["valid"][rank::2]
            for b, valid in enumerate(share.inputs["valid"]):
                assert there[b].sum() == valid.sum()
                assert torch.equal(one.inputs["whole"][rank::2][b][:, there[b]], share.inputs["whole"][b][:, valid])
    assert len({tuple(start.inputs["start"].tolist()) for start in drawn(spec, 0, 1)}) > 1


@pytest.mark.long
def test_two_ranks_train_both_streams_and_the_fusion(spec, tmp_path):
    (tmp_path / "spec.json").write_text(json.dumps(asdict(spec)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tasks.train_rank", "--spec", str(tmp_path / "spec.json"), "--name", "two"]
    done = subprocess.run(
        command, cwd=CHECKOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=1000
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = checkpoints.find(spec.root, "two")
    assert found.final and found.step == 2
    before, after = build(spec).state_dict(), checkpoints.load_weights(found.url)
    for first in ("coarse.conv1", "grid.conv1", "fine.res5", "fusion.levels.conv5", "fusion.mixes.res3"):
        moved = [
            n for n in before if n.startswith(first) and n.endswith("weight") and not torch.equal(before[n], after[n])
        ]
        assert moved, first
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert torch.equal(before["fine.fc2.weight"], after["fine.fc2.weight"]), "it has no part in the logits"
