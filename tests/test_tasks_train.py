"""Training: the golden loss, samples that follow from (seed, step), and runs that are killed and go on."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dask.distributed import Client
from test_tasks_prepare import prepare

from storage import checkpoints, files
from storage.errors import Damaged, InputError
from storage.parts import Part
from tasks import label, train_rank
from tasks.training import batches as batches_
from tasks.training import join, loader, train, train_step
from tasks.training.pretrain import classes_of, records
from tasks.training.spec import Placement, Spec
from tests import servers

GOLDEN = Path(__file__).parent / "golden" / "x3d_tiny.json"
CHECKOUT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def spec(archive, tmp_path_factory):
    """A small detection pretraining on real parts."""
    root = tmp_path_factory.mktemp("trained")
    dataset, _ = prepare(str(root), str(archive / "archive"), str(archive / "labels.csv"))
    version, _ = label.label_dataset(str(root), dataset)
    parts = dataset.select(split="train", labelled="video")
    return Spec(
        root=str(root), parts=records(parts), classes=classes_of(parts), objective="detection", labels=version,
        options={"size": "TINY"}, augmentation="joint", size=24, batch=4, steps=12, checkpoint_every=4,
    )  # fmt: skip


def steps_of(spec: Spec, first: int, last: int) -> list[float]:
    """Losses of `train_step` on rendered-free, seeded batches, single-threaded."""
    torch.set_num_threads(1)
    model = train_rank.build(spec).train()
    optimizer = train_rank.optimiser(model, spec)
    generator = torch.Generator().manual_seed(1)
    found = []
    for step in range(first, last):
        video = torch.randint(0, 256, (4, 3, 8, 24, 24), generator=generator, dtype=torch.uint8)
        labels = torch.eye(3)[torch.randint(0, 3, (4,), generator=generator)][:, None].expand(4, 8, 3).contiguous()
        found.append(train_rank.train_step(model, optimizer, video, labels, step, spec, 0))
    return found


def test_golden_loss_of_tiny():
    """Refactors must not move it; a change that is meant to does so in this file, in the same commit."""
    spec = Spec(
        root="", parts=[], classes=["a", "b", "c"], objective="dense", options={"size": "TINY"},
        augmentation="joint", steps=20, lr=0.003,
    )  # fmt: skip
    found = steps_of(spec, 0, 20)
    assert found == pytest.approx(json.loads(GOLDEN.read_text()), abs=1e-4)


def test_every_epoch_sees_every_clip_once():
    for epoch in range(3):
        assert sorted(loader.place(5, 7, epoch * 7 + i) for i in range(7)) == list(range(7))
    assert [loader.place(5, 50, i) for i in range(50)] != [loader.place(6, 50, i) for i in range(50)]


def test_ranks_share_the_samples_of_one(spec):
    clips = loader.Clips(spec.root, [Part(**r) for r in spec.parts], spec.classes, spec.fps, spec.size, spec.labels)

    def batches(rank: int, ranks: int):
        made = batches_.Batches(clips, lambda step: batches_.Shape(4, 16, 24, 4 * step), 0, rank, ranks)
        return [batch.seen for batch in made.from_step(3, 5)]

    whole, even, odd = batches(0, 1), batches(0, 2), batches(1, 2)
    for one, a, b in zip(whole, even, odd, strict=True):
        assert torch.equal(one[0::2], a) and torch.equal(one[1::2], b)


def test_labels_reach_both_ends_of_a_segment():
    row = {"start": 10.0, "labels": [{"start": 10.5, "end": 11.0, "label": "a"}]}
    truth = loader.frame_labels(row, np.array([0.0, 0.5, 0.75, 1.0, 1.25]), ["a", "b"])
    assert truth[:, 0].tolist() == [0, 1, 1, 1, 0] and not truth[:, 1].any()


def test_pseudo_labels_are_those_of_the_frame_on_screen():
    entry = {"times": [0.0, 0.1, 0.2], "labels": ["b"], "scores": [[0.0], [0.5], [1.0]]}
    assert loader.pseudo_labels(entry, np.array([0.05, 0.1, 0.99]), ["a", "b"])[:, 1].tolist() == [0.0, 0.5, 1.0]


def test_a_short_clip_is_played_again():
    clip = torch.arange(3)[:, None, None, None].expand(3, 3, 2, 2), torch.arange(3.0)[:, None]
    frames, labels = loader.window(clip, 7, np.random.default_rng(0))
    assert frames.shape == (3, 7, 2, 2) and labels[:, 0].tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_the_rate_warms_up_and_ends_at_nothing():
    spec = Spec(root="", parts=[], classes=["a"], objective="dense", steps=100, warmup=0.1, lr=1.0)
    assert train_step.rate(0, spec) == 0.1 and train_step.rate(10, spec) > 0.97 and train_step.rate(99, spec) < 0.001


def test_the_head_is_kept_for_classes_of_the_same_name(spec, tmp_path):
    small = replace(spec, root=str(tmp_path), parts=[], classes=["a", "b"])
    weights = train_rank.build(small).state_dict()
    saved = checkpoints.save(str(tmp_path), "first", 1, weights, {}, train_rank._about(small), True)
    other = train_rank.build(replace(small, classes=["c", "b", "a"], start=saved.url, seed=9)).state_dict()
    assert torch.equal(other["fc2.weight"][[2, 1]], weights["fc2.weight"])
    assert torch.equal(other["conv5.conv.weight"], weights["conv5.conv.weight"])


def launch(spec: Spec, folder: Path, name: str, ranks: int = 1) -> subprocess.Popen:
    (folder / "spec.json").write_text(json.dumps(asdict(spec)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command += ["-m", "tasks.train_rank", "--spec", str(folder / "spec.json"), "--name", name]
    command += ["--parent", str(os.getpid())]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=CHECKOUT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def trained(spec: Spec, name: str) -> checkpoints.Checkpoint:
    """Trains in this process, or goes on with what another one has begun."""
    torch.set_num_threads(1)
    train_rank.run(spec, name)
    found = checkpoints.find(spec.root, name)
    assert found is not None and found.final
    return found


@pytest.fixture(scope="module")
def uninterrupted(spec):
    return trained(spec, "whole")


@pytest.mark.parametrize("who", ["rank", "launcher"])
def test_a_killed_training_goes_on_as_if_nothing_had_happened(spec, uninterrupted, tmp_path, who):
    """Ranks end with torchrun's agent, however it ends; the losses of all steps and the weights are the same."""
    process = launch(spec, tmp_path, f"killed {who}")
    while checkpoints.find(spec.root, f"killed {who}") is None:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    (rank,) = _trainings(f"--name\0killed {who}")
    os.kill(rank if who == "rank" else process.pid, signal.SIGKILL)
    assert process.communicate(timeout=600) and process.returncode != 0
    assert not _trainings(f"--name\0killed {who}")
    newest = checkpoints.find(spec.root, f"killed {who}")
    assert newest is not None and not newest.final
    final = trained(spec, f"killed {who}")
    a, b = checkpoints.load_weights(uninterrupted.url), checkpoints.load_weights(final.url)
    assert all(torch.allclose(a[name].float(), b[name].float(), atol=1e-6) for name in a)
    assert train.losses(final) == pytest.approx(train.losses(uninterrupted), abs=1e-6)


@contextmanager
def by_hand(root: str):
    """Another machine that was told to join."""
    second = threading.Thread(target=join.join, args=[root, 1])
    second.start()
    yield
    second.join(120)
    assert not second.is_alive()


@contextmanager
def by_dask(root: str):
    """A cluster with a worker that has a GPU, as it says."""
    with servers.dask_cluster(1, "--resources", "GPU=1") as (address, *_), pytest.MonkeyPatch.context() as patch:
        patch.setenv("DASK_SCHEDULER_ADDRESS", address)
        servers.until("a worker", lambda: workers_of(address))
        with (
            pytest.raises(InputError, match="2 more machines are wanted; 1 workers"),
            train.launch.pool.placed(print, 2),
        ):
            pass
        yield


def workers_of(address: str) -> int:
    with Client(address, set_as_default=False) as client:
        return len(client.scheduler_info()["workers"])


@pytest.mark.long
@pytest.mark.parametrize("other", [by_hand, by_dask])
def test_two_nodes_train_and_a_finished_training_is_returned_at_once(spec, monkeypatch, capfd, other):
    """On loopback, a rank each; the second finds the training in the store. With `resume` off it is trained anew."""
    cores = train.launch.SIDE_BY_SIDE  # so that a rank has one thread, as in this process
    monkeypatch.setattr(train.launch.pool, "workers", lambda: cores)
    short = replace(spec, steps=3, checkpoint_every=3, seed=5 if other is by_dask else spec.seed)
    seen: dict[int, float] = {}
    placement = Placement(nodes=2, rendezvous=f"127.0.0.1:{servers.free_ports(1)}")
    log = lambda values, step: seen.update({step: values})  # noqa: E731
    with other(spec.root):
        first, figures = train.fit(short, "fit", placement=placement, log=log)
    assert files.names(join.folder(spec.root)) == []
    assert ("1 of 2 nodes are workers of the Dask cluster" in capfd.readouterr().out) == (other is by_dask)
    assert first.final and sorted(seen) == [1, 2, 3] and 0 <= figures["wait_share"] <= 1
    again, figures = train.fit(short, "fit")
    assert again.url == first.url and figures == {"reused": 1.0}
    anew, figures = train.fit(short, "fit", resume=False)
    assert anew.url == first.url and figures["train_seconds"] > 0
    assert anew.digest == trained(short, f"in this process, {other.__name__}").digest != first.digest


@pytest.mark.long
def test_a_failing_training_shows_the_end_of_its_log(spec):
    with pytest.raises(train.TrainingFailed, match="unknown system 'nonsense'"):
        train.fit(replace(spec, system="nonsense"), "broken")


def test_another_option_is_another_run(spec):
    names = {
        train.run_name(s, "t") for s in (spec, replace(spec, lr=0.5), replace(spec, seed=1), replace(spec, steps=9))
    }
    assert len(names) == 4
    assert train.run_name(replace(spec, root="/elsewhere"), "t") in names


def test_a_damaged_checkpoint_is_named(spec, uninterrupted):
    url = files.join(uninterrupted.url, checkpoints.STATE)
    data = files.read(url)
    files.replace(data[:-1] + bytes([data[-1] ^ 1]), url)
    with pytest.raises(Damaged, match="state.pt differs"):
        checkpoints.load_state(uninterrupted.url)
    files.replace(data, url)


def test_a_step_without_manifest_is_not_there(tmp_path):
    root = str(tmp_path)
    checkpoints.save(root, "r", 1, {"w": torch.ones(1)}, {}, {}, False)
    second = checkpoints.save(root, "r", 2, {"w": torch.ones(1)}, {}, {}, False)
    files.remove(files.join(second.url, checkpoints.MANIFEST))
    assert checkpoints.find(root, "r").step == 1


def test_old_checkpoints_are_pruned(tmp_path):
    root = str(tmp_path)
    for step in range(1, 6):
        checkpoints.save(root, "r", step, {"w": torch.ones(1)}, {}, {}, False)
        checkpoints.prune(root, "r")
    kept = [n for n in files.names(files.join(root, "checkpoints", "r"))
            if files.exists(files.join(root, "checkpoints", "r", n, checkpoints.MANIFEST))]  # fmt: skip
    assert kept == ["step_00000004", "step_00000005"]


def test_ranks_end_with_the_launcher(spec, tmp_path):
    code = (
        "import json,sys; from tasks.training.train import fit; from tasks.train_rank import Spec;"
        f"fit(Spec(**json.loads(open({str(tmp_path / 's.json')!r}).read())), 'orphan')"
    )
    (tmp_path / "s.json").write_text(json.dumps(asdict(replace(spec, steps=5000))))
    launcher = subprocess.Popen([sys.executable, "-c", code], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
    for line in launcher.stdout:
        if "step" in line:
            break
    assert _trainings("orphan")
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and _trainings("orphan"):
        time.sleep(0.1)
    assert not _trainings("orphan")


def _trainings(name: str) -> list[int]:
    """The ranks whose command line holds a name."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "tasks.train_rank" in command and name in command and "torch.distributed.run" not in command:
            found.append(int(path.parent.name))
    return found
