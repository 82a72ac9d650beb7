"""Trainings on several machines: one announces each in the store and starts its ranks, the others join it.

An announcement is ``joining/{run}.json``, the spec and the placement; it is there while the training is on. Machines
that join need nothing but the store and the rendezvous, so they are the same for every training of a flow.
"""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Annotated

from pydantic import Field

from storage import files
from tasks import pool
from tasks.report import say
from tasks.training import launch
from tasks.training.launch import TrainingFailed
from tasks.training.spec import Placement, Spec

LOOK = 1.0  # seconds between looks for announcements
ONE = threading.Lock()  # at a time: the others take part in one after the other


def folder(root: str) -> str:
    """Where trainings are announced."""
    return files.join(root, "joining")


@contextmanager
def announced(spec: Spec, name: str, placement: Placement) -> Iterator[None]:
    """Tells other machines of a training of several nodes while the block lasts; one of a single node needs none.

    Where a Dask cluster has workers with a GPU, its scheduler places the other nodes; else they join by themselves.
    """
    if placement.nodes == 1:
        yield
        return
    url = files.join(folder(spec.root), f"{name}.json")
    with ONE:
        files.replace_json({"spec": asdict(spec), "placement": asdict(placement)}, url)
        try:
            with pool.placed(partial(take_part, spec.root, f"{name}.json"), placement.nodes - 1) as workers:
                if workers:
                    say(f"  {name}: {len(workers)} of {placement.nodes} nodes are workers of the Dask cluster")
                try:
                    yield
                except TrainingFailed:
                    for worker in workers:
                        if worker.status == "error":
                            say(f"  {name}: on a worker: {worker.exception()}")
                    raise
        finally:
            files.remove(url)


def take_part(root: str, file: str) -> None:
    """Runs the ranks of this machine in an announced training to its end. Raises `TrainingFailed`."""
    told = files.read_json(files.join(folder(root), file))
    placement, name = Placement(**told["placement"]), file.removesuffix(".json")
    with files.scratch() as place:
        (place / "spec.json").write_text(json.dumps(told["spec"] | {"root": root}))
        words = launch.command(str(place / "spec.json"), name, placement, "--parent", str(os.getpid()))
        with launch.running(words, name, placement) as started:
            for said in started.reports():
                if said["event"] in ("start", "end"):
                    say(f"  {name}: {said['event']} at step {said['step']}")


def join(
    root: Annotated[str, Field(description="Folder or URL that all machines see.")],
    trainings: Annotated[int, Field(description="Trainings to take part in; 0: until it is stopped.", ge=0)] = 0,
) -> str:
    """Take part in trainings that another machine runs with `reelmill retrain --nodes N --rendezvous HOST:PORT`."""
    root, done = files.existing_root(root), 0
    while not trainings or done < trainings:
        for file in files.names(folder(root), ".json"):
            try:
                take_part(root, file)
                done += 1
            except FileNotFoundError:
                continue  # it has just ended
            except TrainingFailed as error:
                say(f"  {error}")
        time.sleep(LOOK)
    return f"took part in {done} trainings"
