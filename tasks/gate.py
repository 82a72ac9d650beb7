"""The gate: a challenger becomes champion only where the held-out videos show that it is better."""

from dataclasses import asdict
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from threadpoolctl import threadpool_limits

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
    found: dict[str, Any] = {
        "candidate": title,
        "dataset": f"{dataset.name}@{dataset.version}",
        "margin": margin,
        "champion_version": champion.version if champion else None,
        "delta": None,
        "ci_low": None,
        "ci_high": None,
    }
    if champion is None:
        return found | {"decision": "promoted", "why": "there was no champion"}
    reigning = checkpoints.describe(champion.checkpoint)
    if reigning.digest == challenger.digest:
        return found | {"decision": "promoted", "why": "it is the champion already"}
    against = evaluate_checkpoint(root, dataset, reigning, "predict-champion", cost=False)
    try:
        with threadpool_limits(1):  # many small products: more threads make it several times slower
            comparison = paired_bootstrap(against.frames, challenger.frames, seed=seed)
    except ValueError as error:
        return found | {"decision": "refused", "why": f"not comparable: {error}"}
    decision = decide(comparison, margin)
    interval = f"the {comparison.confidence:.0%} interval [{comparison.ci_low:+.4f}, {comparison.ci_high:+.4f}]"
    above = comparison.ci_low > margin
    why = f"{interval} is {'above' if above else 'not above'} the margin {margin:g}"
    if above and decision == "refused":
        why += f", but {comparison.videos} videos are too few for it to mean anything"
    return found | {"decision": decision, "why": why} | asdict(comparison)


@task(task_run_name="gate · {title}", cache_policy=NO_CACHE)
def gate(
    root: str, dataset: Dataset, model: str, candidate: dict[str, Any], title: str, margin: float, seed: int
) -> dict[str, Any]:
    """Registers a candidate, judges it and moves the alias ``champion`` if it won; emits an event either way.

    A version is judged once on a dataset version: asking again until chance agrees would not be a test.
    """
    evaluation, checkpoint = candidate["evaluation"], candidate["checkpoint"]
    tags = {
        "checkpoint": checkpoint.url,
        "checkpoint_digest": checkpoint.digest,
        "system": checkpoint.about["system"],
        "dataset": f"{dataset.name}@{dataset.version}",
        "pretraining": title,
    }
    version = tracking.register(root, model, candidate["model_uri"], candidate["run"], tags)
    earlier = tracking.decided(root, model, version)
    if earlier and earlier["dataset"] == tags["dataset"]:
        report.say(f"  gate         {title}: {earlier['decision']} earlier, {earlier['why']}")
        return earlier
    decision = judge(root, dataset, model, evaluation, title, margin=margin, seed=seed) | {"version": version}
    promoted = decision["decision"] == "promoted"
    if promoted:
        tracking.promote(root, model, version)
    tracking.decide(root, model, version, decision)
    _announce(root, dataset, model, candidate["run"], decision)
    return decision


def _announce(root: str, dataset: Dataset, model: str, run: str, decision: dict[str, Any]) -> None:
    """Tells MLflow, the event log, the terminal and the run's page."""
    promoted, title = decision["decision"] == "promoted", decision["candidate"]
    numbers = {f"gate_{name}": decision[name] for name in ("delta", "ci_low", "ci_high") if decision[name] is not None}
    tracking.log_metrics(root, run, {**numbers, "gate_promoted": float(promoted)})
    emit_event(
        PROMOTED if promoted else REFUSED,
        resource={"prefect.resource.id": f"reelmill.model.{model}", "prefect.resource.name": model},
        payload={"root": root, "dataset": dataset.name, "model": model}
        | {name: decision[name] for name in ("version", "decision", "why")},
    )
    report.say(f"  gate         {title}: {decision['decision']}, {decision['why']}")
    report.markdown(f"gate-{title}", as_markdown(model, decision), f"{title}: {decision['decision']}")


def as_markdown(model: str, decision: dict[str, Any]) -> str:
    """The decision as a page with every number."""
    shown = "\n".join(f"| {key} | {value} |" for key, value in decision.items())
    title = f"# {model}: {decision['candidate']} was **{decision['decision']}**"
    return f"{title}\n\n{decision['why']}\n\n| | |\n|---|---|\n{shown}\n"
