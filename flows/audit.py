"""ledger, labels, features, columns, predictions, bytes → what is stale, dropped, drifting, behind or idle"""

from typing import Annotated, Any

from prefect import State, flow
from prefect.states import Completed
from pydantic import Field

from tasks.audits.audit import examine
from tasks.audits.limits import Limits
from tasks.checks import opened
from tasks.failure import accounted
from tasks.forms import explained


@flow(flow_run_name="audit · {dataset}")
@accounted
@explained
def audit(
    root: Annotated[str, Field(description="Folder or URL that `prepare` has written to.")],
    dataset: Annotated[str, Field(description="Name of the dataset.")] = "archive",
    model: Annotated[str, Field(description="Name in the model registry.")] = "detector",
    max_age_hours: Annotated[
        float, Field(description="Hours that the newest version may be old.", ge=0)
    ] = Limits.age_hours,
    max_quarantined: Annotated[
        float, Field(description="Share of the listed files that may be quarantined.", ge=0, le=1)
    ] = Limits.quarantined,
    max_label_drift: Annotated[
        float, Field(description="Distance of class shares between train and held-out clips.", ge=0, le=1)
    ] = Limits.label_drift,
    max_behind: Annotated[
        int, Field(description="Clips that may lack the champion's predictions.", ge=0)
    ] = Limits.behind,
    max_orphaned: Annotated[int, Field(description="Bytes that nobody may refer to.", ge=0)] = Limits.orphaned,
    text: Annotated[bool, Field(description="Load the text tower, to measure the features' modality gap.")] = False,
) -> dict[str, Any] | State[Any]:
    """Look over a root without changing it; what is beyond its limit is an event that automations may act on."""
    limits = Limits(max_age_hours, max_quarantined, max_label_drift, max_behind, max_orphaned)
    found = examine(opened(root), dataset, model, limits, text)
    if not found["beyond"]:
        return found
    why = "; ".join(finding["why"] for finding in found["beyond"])
    return Completed(name="Findings", message=why, data=found)
