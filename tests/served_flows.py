"""A flow for tests of servers and workers: it says in a folder that it began, works a while in tasks, and says so."""

import time
from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run


@task(cache_policy=NO_CACHE)
def second(number: int) -> int:
    """Takes a second."""
    time.sleep(1)
    return number


@flow
def works(folder: str, seconds: int) -> list[int]:
    """Works for some seconds, or until ``folder`` has a file ``enough``."""
    mine = Path(folder) / flow_run.id
    mine.with_suffix(".began").touch()
    done = []
    while len(done) < seconds and not (Path(folder) / "enough").exists():
        done.append(second(len(done)))
    mine.with_suffix(".done").write_text(str(len(done)))
    return done
