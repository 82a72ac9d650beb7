"""What an audit objects to: findings beyond their limits, each with an event that automations can act on."""

from dataclasses import dataclass
from typing import Any

from prefect.events import emit_event

from storage.inventory import in_units
from tasks.audits.contents import in_files

EVENT = "reelmill.audit."
BEHIND, STALE, QUARANTINED = "predictions-behind", "stale", "quarantined"
DRIFT, ORPHANED = "label-drift", "orphaned"
DROPPED, SHRUNK, GREW, COST, IDLE = "dropped", "shrunk", "grew", "cost", "stale-columns"
EMBEDDINGS = "embedding-health"
FOR_PEOPLE = (STALE, QUARANTINED, DROPPED, SHRUNK, GREW, DRIFT, EMBEDDINGS, IDLE, ORPHANED, COST)  # no flow mends these


@dataclass(frozen=True)
class Limits:
    """What may be without a word about it; each is exceeded by more than its value."""

    age_hours: float = 48.0
    quarantined: float = 0.05  # share of the files listed, or of their pieces
    label_drift: float = 0.3
    behind: int = 0  # clips
    orphaned: int = 1 << 30  # bytes
    dropped: float = 0.2  # share of the files listed, or of their pieces
    shrunk: float = 0.1  # share of the clips of the version before
    grown: float = 1.0  # new clips over those of the version before: twice as many is a wrong folder, or a flood
    alignment: float = 2.0  # mean d² of frames of one clip: that of vectors that have nothing in common
    uniformity: float = -0.05  # log mean exp(-2 d²) of any frames: all nearly the same
    gap: float = 1.5  # between the mean frame and the mean class name, at most 2
    idle: int = 1 << 30  # bytes of versions of columns that nothing current uses
    stored: int = 1 << 40  # bytes under the root
    hours: float = 1000.0  # of compute that are on record


@dataclass(frozen=True)
class Finding:
    """A limit that is exceeded: its name is the event's last word."""

    name: str
    value: float
    limit: float
    why: str


def findings(found: dict[str, Any], limits: Limits) -> list[Finding]:
    """The limits that an audit's findings exceed; what could not be measured exceeds none."""
    made = []

    def over(name: str, value: float | None, limit: float, why: str) -> None:
        if value is not None and value > limit:
            made.append(Finding(name, value, limit, why))

    fresh, funnel, lag = found["freshness"], found["funnel"], found["predictions"]
    missing, drift = lag.get("clips_without_predictions", 0), found["label_drift"]
    over(
        BEHIND, missing, limits.behind, f"{missing:,} of {lag.get('clips', 0):,} clips lack the champion's predictions"
    )
    age = fresh["age_hours"]
    over(STALE, age, limits.age_hours, f"no new version for {age or 0:.0f} hours, {limits.age_hours:g} are expected")
    share = funnel["quarantined"] / max(1, funnel["pieces"])
    of = in_files(funnel["listed"], funnel["pieces"])
    over(QUARANTINED, share, limits.quarantined, f"{funnel['quarantined']:,} quarantined of {of}")
    over(DRIFT, drift, limits.label_drift, f"classes of train and held-out clips differ by {drift or 0:.2f} of 1")
    idle = found["orphaned"]["bytes"]
    over(ORPHANED, idle, limits.orphaned, f"{in_units(idle)} that nobody refers to; `reelmill gc` says what")
    came, has = found["growth"].get("clips", 0), fresh["clips"]
    had = has - came
    share = came / had if had > 0 else 0.0  # nothing has no multiple
    over(SHRUNK, -share, limits.shrunk, f"{-came:,} of {had:,} clips went since the version before")
    over(GREW, share, limits.grown, f"{came:,} clips came to {had:,} since the version before")
    left = funnel["dropped"] / max(1, funnel["pieces"])
    over(DROPPED, left, limits.dropped, f"{funnel['dropped']:,} dropped of {of}")
    for name, facts in found["features"].items():
        gap = facts["modality_gap"]
        for what, value, limit in (
            ("alignment", facts["alignment"], limits.alignment),
            ("uniformity", facts["uniformity"], limits.uniformity),
            ("modality gap", gap if isinstance(gap, float) else None, limits.gap),
        ):
            over(
                EMBEDDINGS, value, limit, f"{what} of features {name} is {value or 0:.3g}, at most {limit:g} is healthy"
            )
    unused = sum(sum(facts["stale"].values()) for facts in found["columns"].values())
    over(IDLE, unused, limits.idle, f"{in_units(unused)} in versions of columns that nothing current uses")
    stored, hours = sum(found["cost"]["bytes"].values()), sum(found["cost"]["seconds"].values()) / 3600
    over(COST, stored, limits.stored, f"{in_units(stored)} are stored under the root")
    over(COST, hours, limits.hours, f"{hours:,.0f} hours of compute are on record")
    return made


def announce(root: str, dataset: str, model: str, made: list[Finding]) -> None:
    """Emits an event for each finding; deployments may be started by them."""
    resource = {"prefect.resource.id": f"reelmill.dataset.{dataset}", "prefect.resource.name": dataset}
    for finding in made:
        payload = {"root": root, "dataset": dataset, "model": model, **vars(finding)}
        emit_event(EVENT + finding.name, resource=resource, payload=payload)
