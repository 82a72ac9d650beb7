"""archive → clips → parts → scores → selection → features → pseudo labels → volumes"""

from typing import Annotated, Any, Literal

from prefect import flow
from pydantic import Field

from tasks.checks import opened
from tasks.duplicates import duplicates
from tasks.extract import extract
from tasks.failure import accounted
from tasks.forms import explained
from tasks.label import label
from tasks.listing import between, list_archive
from tasks.pool import at_most
from tasks.score import score
from tasks.segment_tables import refresh
from tasks.select import select
from tasks.shard import Cutting, Splitting, recipe, shard
from tasks.shot_sheet import shot_sheet
from tasks.summary import prepared, standing
from tasks.thresholds import MAX_BLACK, MAX_STATIC, MIN_DURATION, MIN_MOTION, MIN_SHARPNESS, NEAR_DUPLICATES, Thresholds
from tasks.volumes import volumes


@flow(flow_run_name="prepare · {name} · {archive}")
@accounted
@explained
def prepare(
    root: Annotated[str, Field(description="Folder or URL that everything is written under.")],
    archive: Annotated[str, Field(description="Folder or URL of the source videos; it is only read.")],
    labels: Annotated[
        str | None, Field(description="CSV, Parquet or JSON lines: path,label or path,start,end,label.")
    ] = None,
    name: Annotated[str, Field(description="Name of the dataset.")] = "archive",
    classes: Annotated[list[str], Field(description="If given, the only class names that labels may use.")] = [],  # noqa: B006
    span: Annotated[float, Field(description="Seconds of video per clip.", ge=1)] = 10.0,
    short_side: Annotated[int, Field(description="Pixels of a clip's short side, at most.", ge=16)] = 256,
    splitting: Annotated[
        Splitting, Field(description="Where clips begin: every span, or also at shots, found by content or learned.")
    ] = "span",
    cutting: Annotated[Cutting, Field(description="Re-encode exactly, or copy the stream from key frames.")] = "exact",
    per_part: Annotated[int, Field(description="Sources per part, about.", ge=4)] = 64,
    part_bytes: Annotated[int, Field(description="Bytes of sources per part, at most.", ge=1 << 20)] = 1 << 30,
    held_out: Annotated[float, Field(description="Share of segment-labelled videos held out.", ge=0, le=1)] = 0.3,
    failure_budget: Annotated[
        float, Field(description="Share of quarantined files that fails the run.", ge=0, le=1)
    ] = 0.05,
    min_motion: Annotated[float, MIN_MOTION] = 0.0,
    min_sharpness: Annotated[float, MIN_SHARPNESS] = 0.0,
    max_black: Annotated[float, MAX_BLACK] = 1.0,
    max_static: Annotated[float, MAX_STATIC] = 1.0,
    min_duration: Annotated[float, MIN_DURATION] = 0.0,
    near_duplicates: Annotated[Literal["keep", "drop"], NEAR_DUPLICATES] = "keep",
    model: Annotated[str, Field(description="open_clip model of the features; 'conse' needs no download.")] = "conse",
    pretrained: Annotated[str | None, Field(description="open_clip's tag of the model's weights.")] = None,
    feature_fps: Annotated[float, Field(description="Frames per second that features are taken from.", ge=0.01)] = 1.0,
    augmentation: Annotated[
        Literal["none", "freeze", "mixup", "cutmix", "joint_single", "joint"],
        Field(description="Augmentation of materialised volumes."),
    ] = "joint_single",
    materialise: Annotated[bool, Field(description="Write augmented volumes as parts.")] = False,
    modified_from: Annotated[
        str | None, Field(description="Take in only new files that were modified on this day (UTC) or later.")
    ] = None,
    modified_to: Annotated[str | None, Field(description="And on this day or before.")] = None,
    parallel: Annotated[int | None, Field(description="Parts at a time, at most; none: one a core.", ge=1)] = None,
    seed: Annotated[int, Field(description="Seed of the drawn volumes.")] = 0,
) -> dict[str, Any]:
    """Turn an archive of video into sharded clips with features, pseudo labels and volumes.

    Only what is missing is done: unchanged files are not decoded again, a changed one rebuilds the part it is in.
    A long archive may be taken in piece by piece, by days of modification; what was taken in before stays.
    """
    root = opened(root)
    before = standing(root, name)
    with at_most(parallel):
        cut = recipe(span, short_side, splitting, cutting)
        for last in (False, True):
            plan, listed = list_archive(
                root,
                name,
                archive,
                labels,
                classes,
                held_out,
                per_part,
                part_bytes,
                cut,
                between(modified_from, modified_to),
            )
            dataset, sharded = shard(root, name, plan, cut, failure_budget, listed)
            scores, scored = score(root, dataset, last)
            if not scored.quarantined:  # else packets that were copied do not decode; only now is that known
                break
        duplicates(root, dataset, scores)
        wanted = Thresholds(min_motion, min_sharpness, max_black, max_static, min_duration, near_duplicates)
        dataset, selected = select(root, dataset, scores, wanted)
        features, extracted = extract(root, dataset, model, pretrained, feature_fps)
        pseudo_labels, _ = label(root, dataset)
        if "shots" in cut:
            shot_sheet(root, dataset, span)
        sheets = volumes(root, dataset, pseudo_labels, augmentation, materialise, seed)
        refresh(root, dataset)
        counts = [listed, sharded, scored, selected, extracted]
        return prepared(root, dataset, before, counts, features, pseudo_labels, sheets)
