"""Ranks of a training as forks of one process: whole runs of several processes without their imports.

They train on noise, so that nothing is rendered, cut or decoded.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tasks.training.loader import Sample
from tasks.training.spec import Spec
from tests import forked
from tests.servers import free_ports

IMPORTS = """
import hashlib, time, traceback
import torch, torch.distributed.fsdp
from storage import checkpoints
from tasks import train_rank
from tests.ranks import Noise
torch.set_num_threads(1)
train_rank.samples_of = lambda spec: Noise()
"""
# Ranks that note which samples they train on; each kills itself before a step that it is given. The first one is the
# parent of the others.
PROGRAM = """
ranks, port, seen, dies, *words = sys.argv[1:]
rank = next((rank for rank in range(1, int(ranks)) if not os.fork()), 0)
if rank:
    end_with_us()
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
os.environ.update(zip(names, (str(rank), str(rank), ranks, "127.0.0.1", port)))
step_of = train_rank.train_step

def noted(*given):
    if given[4] == json.loads(dies).get(str(rank)):
        while checkpoints.find(given[5].root, words[3]) is None:  # it is being written
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
    rows = [hashlib.sha1(row.numpy().tobytes()).hexdigest() for row in given[2]]
    with open(seen, "a") as file:
        file.write(json.dumps([given[4], rank, rows]) + "\\n")
    return step_of(*given)

train_rank.train_step = noted
sys.argv = ["train_rank", *words]
try:
    train_rank.main()
    code = 0
except BaseException:
    traceback.print_exc()
    code = 1
sys.stdout.flush(), sys.stderr.flush()
os._exit(code)  # tidying up all that the parent has imported takes longer than the training
"""


class Noise:
    """Nine clips of three classes to draw windows from; one may have labels that are no numbers."""

    def __init__(self, bad: str | None = None) -> None:
        self.bad = bad

    def __len__(self) -> int:
        return 9

    def draw(self, index: int, length: int, rng: np.random.Generator) -> Sample:
        """A window that follows from the clip and from what is drawn."""
        made = np.random.default_rng((index, int(rng.integers(4))))
        frames = torch.from_numpy(made.integers(0, 256, (3, length, 16, 16), dtype=np.uint8))
        labels = torch.eye(3)[index % 3].expand(length, 3)
        return Sample(frames, labels * float("nan") if self.key(index) == self.bad else labels)

    def key(self, index: int) -> str:
        return f"clip {index}"


class Vectors(Noise):
    """The same as features."""

    def draw(self, index: int, length: int, rng: np.random.Generator) -> Sample:
        """All of a video."""
        seen = torch.from_numpy(np.random.default_rng(index).normal(size=(length, 12)).astype(np.float32))
        return Sample(seen, torch.eye(3)[index % 3].expand(length, 3), torch.arange(float(length)))


def spec_on(root: Path, **given: Any) -> Spec:
    """A small training on noise, twelve steps of four."""
    plain: dict[str, Any] = {
        "root": str(root), "parts": [], "classes": ["a", "b", "c"], "objective": "dense", "size": 16, "frames": 4,
        "options": {"size": "TINY", "dropout": 0.2}, "batch": 4, "steps": 12, "checkpoint_every": 3,
    }  # fmt: skip
    return Spec(**(plain | given))


class Ranks:
    """Starts trainings of a number of ranks."""

    def __init__(self, forks: forked.Forks, folder: Path) -> None:
        self._forks, self.folder, self._runs = forks, folder, 0

    def start(
        self, spec: Spec, name: str, ranks: int, *words: str, dies: dict[int, int] | None = None
    ) -> forked.Run:  # fmt: skip
        """A training; ``dies`` has the step, from 0, before which a rank is killed."""
        self._runs += 1
        place = self.folder / f"{self._runs}.json"
        place.write_text(json.dumps(asdict(spec)))
        given = [str(ranks), str(free_ports(1)), str(self.seen), json.dumps(dies or {}), "--spec", str(place)]
        return self._forks.run(*given, "--name", name, *words, program=PROGRAM)

    @property
    def seen(self) -> Path:
        """Where ranks note what they train on."""
        return self.folder / "seen.jsonl"

    def steps(self) -> dict[int, dict[int, list[str]]]:
        """Of each step the samples of each rank, as the last one to take that step has noted them; forgotten then."""
        found: dict[int, dict[int, list[str]]] = {}
        for line in self.seen.read_text().splitlines():
            step, rank, rows = json.loads(line)
            found.setdefault(step, {})[rank] = rows
        self.seen.unlink()
        return found


@contextmanager
def ranks(folder: Path) -> Iterator[Ranks]:
    """What starts ranks, while the block lasts."""
    with forked.forks(IMPORTS) as forks:
        yield Ranks(forks, folder)
