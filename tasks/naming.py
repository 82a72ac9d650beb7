"""What a flow run is called and tagged, from its beginning: what it works on, how far it is, and what it came to."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from storage.secrets import redact
from tasks.telling import tell

RUNS = 8  # whose names are kept
SUBJECTS = ("dataset", "name", "table", "seed")  # parameters that say what a run is about, the first that is there
TAGS = ("dataset", "name", "model")
_tagged: deque[str] = deque(maxlen=RUNS)
_titles: dict[str, str] = {}  # by flow run: what its name begins with
_stages: dict[str, list[Any]] = {}  # by flow run: what is under way; the first names the run
_lock = threading.Lock()


def title() -> str:
    """What the name of the current run begins with, such as ``infer · champion v7``."""
    if kept := _titles.get(str(flow_run.id)):
        return kept
    given = flow_run.parameters or {}
    about = next((name for name in SUBJECTS if given.get(name) is not None), "")
    said = f"seed {given[about]}" if about == "seed" else _listed(given.get(about, ""))
    return f"{flow_run.flow_name} · {said}" if about else str(flow_run.flow_name)


def _listed(given: Any) -> str:
    return ", ".join(map(str, given)) if isinstance(given, list) else str(given)


def entitle(name: str, *tags: str) -> None:
    """Gives the current run what its name begins with from now on, and tags beside those that it has."""
    if flow_run.id:
        with _lock:
            _titles[str(flow_run.id)] = name
            while len(_titles) > RUNS:
                del _titles[next(iter(_titles))]
        rename(name, *tags)


def rename(name: str, *tags: str) -> None:
    """Gives the current run a name, and tags beside those that it has; without a server nothing happens.

    With the first name of a run it is tagged by its dataset and model.
    """
    if flow_run.id:
        if (run := str(flow_run.id)) not in _tagged:
            _tagged.append(run)
            given = flow_run.parameters or {}
            tags = (*tags, *(str(given[name]) for name in TAGS if given.get(name)))
        tell(_rename, UUID(str(flow_run.id)), redact(name), {redact(tag) for tag in tags if tag})


def _rename(run: UUID, name: str, tags: set[str]) -> None:
    with get_client(sync_client=True) as client:
        if tags:
            client.update_flow_run(run, name=name, tags={*client.read_flow_run(run).tags, *tags})
        else:
            client.set_flow_run_name(run, name)


@contextmanager
def first(state: Any) -> Iterator[None]:
    """Of the stages of a run that are under way the one that began first names it, see `stage`."""
    key = str(flow_run.id)
    with _lock:
        _stages.setdefault(key, []).append(state)
    try:
        yield
    finally:
        with _lock:
            _stages[key].remove(state)
            if not _stages[key]:
                del _stages[key]


def stage(state: Any, text: str) -> None:
    """Names the current run after how far a stage is, where that stage is the one that names it."""
    if flow_run.id and _stages.get(str(flow_run.id), [None])[0] is state:
        rename(f"{title()} · {text}")
