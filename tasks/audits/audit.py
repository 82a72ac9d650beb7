"""Look over a root without changing it: what is stale, dropped, drifting, behind or idle, and what that costs."""

from dataclasses import asdict
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from storage import datasets
from tasks import gc, naming, report
from tasks.audits import contents, stale
from tasks.audits.embeddings import embedding_health
from tasks.audits.holdings import GRACE, cost, orphaned
from tasks.audits.limits import Finding, Limits, announce, findings

USUAL = Limits()


def said(value: Any) -> str:
    """A finding as people read it: names with their values, those of a group in brackets."""
    if isinstance(value, dict):
        group = {name: f"({said(inner)})" if isinstance(inner, dict) else said(inner) for name, inner in value.items()}
        return ", ".join(f"{name} {text}" for name, text in group.items()) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def gather(root: str, name: str, model: str, text: bool = False) -> dict[str, Any]:
    """All that an audit finds, as plain values."""
    dataset = datasets.load(root, name)
    counts = contents.labels(root, dataset)
    predictions = stale.behind(root, dataset, model)
    funnel = contents.funnel(root, dataset)
    listed = stale.survey(root, dataset)
    idle = gc.find(root, GRACE, model=model)
    classes = sorted({label for split in counts.values() for label in split})
    return {
        "freshness": contents.freshness(root, dataset),
        "growth": contents.growth(root, dataset),
        "losses": {"by_reason": funnel["by_reason"]},
        "funnel": {name: n for name, n in funnel.items() if name != "by_reason"},
        "labels": counts,
        "label_balance": contents.balance(counts),
        "label_drift": contents.drift(counts),
        "features": embedding_health(root, dataset, classes if text else None),
        "columns": stale.coverage(dataset, listed, predictions.get("version", "")),
        "predictions": predictions,
        "orphaned": orphaned(idle),
        "cost": cost(root, dataset, idle.references.items),
    }


@task(task_run_name="audit · {name}", cache_policy=NO_CACHE)
def examine(root: str, name: str, model: str, limits: Limits = USUAL, text: bool = False) -> dict[str, Any]:
    """Gathers what there is to find, prints it, publishes it as an artifact, and emits what is beyond the limits."""
    found = gather(root, name, model, text)
    beyond = findings(found, limits)
    for title, value in found.items():
        report.say(f"  audit        {title.replace('_', ' ')}: {said(value)}")
    for finding in beyond:
        report.say(f"  audit        beyond its limit: {finding.name}, {finding.why}")
    report.markdown("audit", page(name, found, beyond), f"audit of {name}")
    announce(root, name, model, beyond)
    over = [finding.name for finding in beyond]
    naming.rename(f"audit · {name} · {'beyond limits: ' + ', '.join(over) if over else 'all within limits'}", *over)
    return found | {"beyond": [asdict(finding) for finding in beyond]}


def page(name: str, found: dict[str, Any], beyond: list[Finding]) -> str:
    """The findings as a page, what is beyond its limit first."""
    lines = [f"# Audit of {name}", "", "## Beyond limits" if beyond else "Nothing is beyond its limit.", ""]
    lines += [f"- **{finding.name}**: {report.escape(finding.why)}" for finding in beyond]
    for title, value in found.items():
        rows = value.items() if isinstance(value, dict) else [("", value)]
        lines += ["", f"## {title.replace('_', ' ')}", "", "| | |", "|---|---|"]
        lines += [f"| {report.escape(str(k))} | {report.escape(said(v))} |" for k, v in rows]
    return "\n".join([*lines, ""])
