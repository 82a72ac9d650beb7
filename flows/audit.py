"""ledger, labels, features, predictions → what is stale, dropped, drifting or behind"""

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from tasks.audit import examine
from tasks.checks import opened
from tasks.forms import explained


@flow(flow_run_name="audit · {dataset}")
@explained
def audit(
    root: Annotated[str, Field(description="Folder or URL that `prepare` has written to.")],
    dataset: Annotated[str, Field(description="Name of the dataset.")] = "archive",
    model: Annotated[str, Field(description="Name in the model registry.")] = "detector",
) -> dict[str, Any]:
    """Look over a root without changing it: freshness, quarantine, label balance, features, predictions."""
    return examine(opened(root), dataset, model)
