"""The gate: a challenger becomes champion only where the held-out videos show that it is better."""

from dataclasses import asdict
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from models.gate import decide, paired_bootstrap
from storage import checkpoints
from storage.datasets import Dataset
from tasks import report, tracking
from tasks.evaluate import Evaluation, evaluate_checkpoint

PROMOTED = "reelmill.champion.promoted"
REFUSED = "reelmill.challenger.refused"


def judge(
    root: str, dataset: Dataset, model: str, challenger: Evaluation, title: str, *, margin: float, seed: int
) -> dict[str, Any]:
    """Compares a challenger with the current champion on the same held-out videos: every number of the decision.

    The first model of a name has nobody to beat and is promoted. A champion that knows other classes cannot be
    compared; the challenger is refused and the reason says so.
    """
    champion = tracking.champion(root, model)
    found: dict[str, Any] = {"challenger": title, "margin": margin, "champion_version": None}
    if champion is None:
        return found | {
            "decision": "promoted",
            "why": "there was no champion",
            "delta": None,
            "ci_low": None,
            "ci_high": None,
        }
    reigning = checkpoints.describe(champion.checkpoint)
    found["champion_version"] = champion.version
    if reigning.digest == challenger.digest:
        return found | {
            "decision": "refused",
            "why": "it is the champion",
            "delta": 0.0,
            "ci_low": 0.0,
            "ci_high": 0.0,
        }
    against = evaluate_checkpoint(root, dataset, reigning, "predict-champion")
    try:
        comparison = paired_bootstrap(against.frames, challenger.frames, seed=seed)
    except ValueError as error:
        why = f"not comparable: {error}"
        return found | {"decision": "refused", "why": why, "delta": None, "ci_low": None, "ci_high": None}
    decision = decide(comparison, margin)
    low, high = comparison.ci_low, comparison.ci_high
    side = "above" if decision == "promoted" else "not above"
    why = f"the {comparison.confidence:.0%} interval [{low:+.4f}, {high:+.4f}] lies {side} the margin {margin:g}"
    return found | {"decision": decision, "why": why} | asdict(comparison)


@task(task_run_name="gate · {title}", cache_policy=NO_CACHE)
def gate(
    root: str, dataset: Dataset, model: str, candidate: dict[str, Any], title: str, margin: float, seed: int
) -> dict[str, Any]:
    """Registers a candidate, judges it and moves the alias ``champion`` if it won; emits an event either way."""
    evaluation, checkpoint = candidate["evaluation"], candidate["checkpoint"]
    tags = {
        "checkpoint": checkpoint.url,
        "checkpoint_digest": checkpoint.digest,
        "system": checkpoint.about["system"],
        "dataset": f"{dataset.name}@{dataset.version}",
        "pretraining": title,
    }
    version = tracking.register(root, model, candidate["model_uri"], candidate["run"], tags)
    decision = judge(root, dataset, model, evaluation, title, margin=margin, seed=seed) | {"version": version}
    promoted = decision["decision"] == "promoted"
    if promoted:
        tracking.promote(root, model, version)
    tracking.decide(root, model, version, decision)
    numbers = {f"gate_{name}": decision[name] for name in ("delta", "ci_low", "ci_high") if decision[name] is not None}
    tracking.log_metrics(root, candidate["run"], {**numbers, "gate_promoted": float(promoted)})
    emit_event(
        PROMOTED if promoted else REFUSED,
        resource={"prefect.resource.id": f"reelmill.model.{model}", "prefect.resource.name": model},
        payload={
            "root": root,
            "dataset": dataset.name,
            **{k: decision[k] for k in ("version", "decision", "why")},
        },
    )
    report.say(f"  gate         {title}: {decision['decision']}, {decision['why']}")
    report.markdown(f"gate-{title}", as_markdown(model, decision), f"{title}: {decision['decision']}")
    return decision


def as_markdown(model: str, decision: dict[str, Any]) -> str:
    """The decision as a page with every number."""
    shown = "\n".join(f"| {key} | {value} |" for key, value in decision.items())
    title = f"# {model}: {decision['challenger']} was **{decision['decision']}**"
    return f"{title}\n\n{decision['why']}\n\n| | |\n|---|---|\n{shown}\n"
