"""How fast stages were: written when a flow ends, read by those who say how long the next one takes."""

from dataclasses import dataclass
from typing import Any

from storage import files, ledger, plans
from storage.ledger import Entry
from tasks import report, spending
from tasks.audits.contents import STAGES, WALL

BOOKS = 200  # ledgers of parts that the rate of cutting is taken from


@dataclass(frozen=True)
class Rate:
    """Clips a second of wall time, and over how many clips that was measured."""

    clips_a_second: float
    clips: int


def keep(root: str, flow: str, dataset: str) -> None:
    """Keeps in the ledger what the stages of the current run took, those that did something.

    A run of less than a tenth of the clips of the one before says less, as most of it was starting, and is not kept.
    """
    now = {name: took for name, took in spending.spent().items() if took.items and took.seconds}
    if not now:
        return
    before = {entry.item: entry for entry in _read(root, f"{flow}-{dataset}")}
    made = {
        name: Entry(name, "kept", clips=took.items, seconds=took.seconds, scores={**took.into, WALL: took.part})
        for name, took in now.items()
        if name not in before or 10 * took.items >= before[name].clips
    }
    ledger.write(root, STAGES, f"{flow}-{dataset}", list({**before, **made}.values()))


def _read(root: str, name: str) -> list[Entry]:
    try:
        return ledger.read(root, STAGES, name)
    except FileNotFoundError:
        return []


def of_stage(root: str, flow: str, dataset: str, stage: str) -> Rate | None:
    """How fast a stage was when it was measured last; None where it was not."""
    for entry in _read(root, f"{flow}-{dataset}"):
        if entry.item == stage and entry.seconds > 0:
            return Rate(entry.clips / entry.seconds, entry.clips)
    return None


def of_cutting(root: str, name: str) -> dict[str, Any] | None:
    """Seconds of work for a second of video, over the sources of the newest plan that were cut; None: none were."""
    work = video = 0.0
    try:
        drafts = plans.drafts(root, name, plans.latest(root, name))
    except FileNotFoundError:
        return None
    for draft in drafts[:BOOKS]:
        url = ledger.url(root, "shard", draft.id)
        for entry in ledger.read(root, "shard", draft.id) if files.exists(url) else []:
            if entry.verdict == "kept" and entry.duration > 0 and not entry.detail.startswith("clips taken"):
                work, video = work + entry.seconds, video + entry.duration
    return {"rate": work / video, "video": video} if video and work else None


def takes(clips: int, rate: Rate | None, what: str) -> str:
    """The line of a plan about time; it says so where nothing was measured."""
    if rate is None:
        return f"time     not known: no run under this root has measured {what} yet"
    over = f"{rate.clips_a_second:.3g} clips/s, measured over {rate.clips:,} clips"
    return f"time     about {report.clock(clips / rate.clips_a_second)} (m:ss) at {over}"
