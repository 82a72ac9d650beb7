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
    max_dropped: Annotated[
        float, Field(description="Share of the listed files that may be dropped.", ge=0, le=1)
    ] = Limits.dropped,
    max_shrunk: Annotated[
        float, Field(description="Share of the clips that may go from one version to the next.", ge=0, le=1)
    ] = Limits.shrunk,
    max_grown: Annotated[
        float, Field(description="Clips that may come from one version to the next, as a share of those before.", ge=0)
    ] = Limits.grown,
    max_alignment: Annotated[
        float, Field(description="Mean squared distance of frames of one clip, of 4.", ge=0, le=4)
    ] = Limits.alignment,
    max_uniformity: Annotated[
        float, Field(description="Log mean exp(-2 d²) of any frames; near 0 all are the same.", le=0)
    ] = Limits.uniformity,
    max_gap: Annotated[float, Field(description="Modality gap, of 2; measured with --text.", ge=0, le=2)] = Limits.gap,
    max_stale_columns: Annotated[
        int, Field(description="Bytes in versions of columns that nothing current uses.", ge=0)
    ] = Limits.idle,
    max_stored: Annotated[int, Field(description="Bytes under the root.", ge=0)] = Limits.stored,
    max_hours: Annotated[float, Field(description="Hours of compute on record.", ge=0)] = Limits.hours,
    text: Annotated[bool, Field(description="Load the text tower, to measure the features' modality gap.")] = False,
) -> dict[str, Any] | State[Any]:
    """Look over a root without changing it; what is beyond its limit is an event that automations may act on."""
    limits = Limits(
        age_hours=max_age_hours, quarantined=max_quarantined, label_drift=max_label_drift, behind=max_behind,
        orphaned=max_orphaned, dropped=max_dropped, shrunk=max_shrunk, grown=max_grown,
        alignment=max_alignment, uniformity=max_uniformity, gap=max_gap, idle=max_stale_columns, stored=max_stored,
        hours=max_hours,
    )  # fmt: skip
    found = examine(opened(root), dataset, model, limits, text)
    if not found["beyond"]:
        return found
    why = "; ".join(finding["why"] for finding in found["beyond"])
    return Completed(name="Findings", message=why, data=found)
