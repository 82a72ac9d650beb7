"""A slot of Prefect's global concurrency limit ``gpu``, held by each training while it runs.

The limit is taken inside the task, so trainings of all flows and machines that share a server take turns. Its lease
is renewed while the training lives; one whose process was killed runs out on the server. Without the limit, or where
the server does not answer, trainings run as they come.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound

from tasks import report

GPU = "gpu"  # prefect global-concurrency-limit create gpu --limit 1
LEASE = 90.0  # seconds after which the slot of a killed training is free; the server takes 60 at least


@contextmanager
def slot(title: str) -> Iterator[bool]:
    """Holds a slot while the block runs, waiting for one if need be; yields whether there is such a limit."""
    with ExitStack() as stack:
        there = report.in_run() and bool(report.tell(_limited))
        if there:
            report.say(f"  {title:<12} takes a slot of {GPU}")
            held = concurrency(GPU, strict=False, lease_duration=LEASE, raise_on_lease_renewal_failure=False)
            held.__enter__()
            stack.callback(report.tell, held.__exit__, None, None, None)
        yield there


def _limited() -> bool:
    with get_client(sync_client=True) as client:
        try:
            return client.read_global_concurrency_limit_by_name(GPU).active
        except ObjectNotFound:
            return False
