"""champion × parts → predictions column → segments → tables → summary"""

from typing import Annotated, Any, Literal

from prefect import flow
from pydantic import Field

from tasks.checks import opened
from tasks.failure import accounted
from tasks.forms import explained
from tasks.pool import on
from tasks.predict import predict
from tasks.summary import inferred


@flow(flow_run_name="infer · {dataset} · {model}")
@accounted
@explained
def infer(
    root: Annotated[str, Field(description="Folder or URL that `prepare` has written to.")],
    dataset: Annotated[str, Field(description="Name of the dataset.")] = "archive",
    model: Annotated[str, Field(description="Name in the model registry; its champion is used.")] = "detector",
    splits: Annotated[list[str], Field(description="Only these splits (train, heldout, unlabelled); none: all.")] = [],  # noqa: B006
    order: Annotated[
        Literal["newest", "oldest", "watched"],
        Field(description="Which sources come first; watched: by the number `views` of the archive's list."),
    ] = "newest",
    max_hours: Annotated[
        float | None, Field(description="Begin no part once so many hours are over; the next run goes on.", gt=0)
    ] = None,
    dask: Annotated[
        str | None, Field(description="Address of a Dask scheduler; none: DASK_SCHEDULER_ADDRESS, or this process.")
    ] = None,
) -> dict[str, Any]:
    """Predict every frame of every clip that lacks the champion's predictions, and find segments in them."""
    root = opened(root)
    with on(dask):
        found = predict(root, dataset, model, splits, order, max_hours)
        return inferred(root, dataset, model, found)
