"""Look over a root without changing it: what is stale, dropped, drifting, behind or idle, and what that costs."""

from dataclasses import asdict
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from storage import datasets
from storage.inventory import in_units
from tasks import account, gc, naming, report
from tasks.audits import contents, stale
from tasks.audits.embeddings import embedding_health
from tasks.audits.holdings import GRACE, cost, orphaned
from tasks.audits.limits import Finding, Limits, announce, findings
from tasks.spending import staged

USUAL = Limits()
LOOKS = 9


def said(value: Any) -> str:
    """A finding as people read it: names with their values, those of a group in brackets."""
    if isinstance(value, dict):
        group = {name: f"({said(inner)})" if isinstance(inner, dict) else said(inner) for name, inner in value.items()}
        return ", ".join(f"{name} {text}" for name, text in group.items()) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def gather(root: str, name: str, model: str, text: bool = False) -> dict[str, Any]:
    """All that an audit finds, as plain values; how far it is can be seen in Prefect."""
    dataset = datasets.load(root, name)
    with report.progress("audit", LOOKS, "looks") as state:

        def look(seen: Any) -> Any:
            state.advance()
            return seen

        fresh, growth = look(contents.freshness(root, dataset)), look(contents.growth(root, dataset))
        funnel = look(contents.funnel(root, dataset))
        counts = look(contents.labels(root, dataset))
        classes = sorted({label for split in counts.values() for label in split})
        features = look(embedding_health(root, dataset, classes if text else None))
        predictions = look(stale.behind(root, dataset, model))
        columns = look(stale.coverage(dataset, stale.survey(root, dataset), predictions.get("version", "")))
        idle = look(gc.find(root, GRACE, model=model))
        spent = look(cost(root, dataset, idle.references.items))
    return {
        "freshness": fresh,
        "growth": growth,
        "losses": {"by_reason": funnel["by_reason"]},
        "funnel": {name: n for name, n in funnel.items() if name != "by_reason"},
        "labels": counts,
        "label_balance": contents.balance(counts),
        "label_drift": contents.drift(counts),
        "features": features,
        "columns": columns,
        "predictions": predictions,
        "orphaned": orphaned(idle),
        "cost": spent,
    }


@task(task_run_name="audit · {name}", cache_policy=NO_CACHE)
@staged("audit")
def examine(root: str, name: str, model: str, limits: Limits = USUAL, text: bool = False) -> dict[str, Any]:
    """Gathers what there is to find, prints it, publishes it as an artifact, and emits what is beyond the limits."""
    found = gather(root, name, model, text)
    beyond = findings(found, limits)
    for title, value in found.items():
        report.say(f"  audit        {title.replace('_', ' ')}: {said(value)}")
    for finding in beyond:
        report.say(f"  audit        beyond its limit: {finding.name}, {finding.why}")
    report.markdown("audit", page(name, model, found, beyond), f"audit of {name}")
    announce(root, name, model, beyond)
    over = [finding.name for finding in beyond]
    naming.rename(f"audit · {name} · {'beyond limits: ' + ', '.join(over) if over else 'all within limits'}", *over)
    return found | {"beyond": [asdict(finding) for finding in beyond]}


def page(name: str, model: str, found: dict[str, Any], beyond: list[Finding]) -> str:
    """The findings as a run's page, what is beyond its limit first."""
    funnel, fresh, lag = found["funnel"], found["freshness"], found["predictions"]
    listed = contents.in_files(funnel["listed"], funnel["pieces"])
    missing = lag.get("clips_without_predictions", 0)
    reasons = found["losses"]["by_reason"]
    told = {
        "Beyond limits": [f"{finding.name}: {finding.why}" for finding in beyond] or ["nothing is beyond its limit"],
        "What went in": [
            f"{name} @ {fresh['version']}: {fresh['clips']:,} clips of {listed}",
            f"{model} version {lag['champion']}, the champion" if lag["champion"] else f"{model} has no champion yet",
        ],
        "What came out": [
            f"{len(beyond)} findings beyond their limits, each an event of reelmill.dataset.{name}",
            f"{missing:,} clips lack the champion's predictions",
            f"{in_units(found['orphaned']['bytes'])} that nobody refers to",
        ],
        "What was dropped, and why": [f"{n:,} {reason}" for reason, n in reasons.items()],
    }
    rows = {
        f"{title.replace('_', ' ')}{': ' + str(key) if key else ''}": said(value)
        for title, group in found.items()
        for key, value in (group.items() if isinstance(group, dict) else [("", group)])
    }
    return account.text(f"Audit of {name}", told, rows)
