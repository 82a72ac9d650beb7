"""What an audit objects to: findings beyond their limits, each with an event that automations can act on."""

from dataclasses import dataclass
from typing import Any

from prefect.events import emit_event

from storage.inventory import in_units
from tasks.audits.contents import in_files

EVENT = "reelmill.audit."
BEHIND, STALE, QUARANTINED = "predictions-behind", "stale", "quarantined"
DRIFT, ORPHANED = "label-drift", "orphaned"


@dataclass(frozen=True)
class Limits:
    """What may be without a word about it; each is exceeded by more than its value."""

    age_hours: float = 48.0
    quarantined: float = 0.05  # share of the files listed, or of their pieces
    label_drift: float = 0.3
    behind: int = 0  # clips
    orphaned: int = 1 << 30  # bytes


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
    return made


def announce(root: str, dataset: str, model: str, made: list[Finding]) -> None:
    """Emits an event for each finding; deployments may be started by them."""
    resource = {"prefect.resource.id": f"reelmill.dataset.{dataset}", "prefect.resource.name": dataset}
    for finding in made:
        payload = {"root": root, "dataset": dataset, "model": model, **vars(finding)}
        emit_event(EVENT + finding.name, resource=resource, payload=payload)
