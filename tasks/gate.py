"""The gate: a challenger becomes champion only where the held-out videos show that it is better."""

from dataclasses import asdict
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.transactions import transaction
from threadpoolctl import threadpool_limits

from models.gate import Rules, objections, paired_bootstrap
from storage import checkpoints
from storage.datasets import Dataset
from tasks import report, tracking
from tasks.evaluate import Evaluation, evaluate_checkpoint

PROMOTED = "reelmill.champion.promoted"
REFUSED = "reelmill.challenger.refused"


def judge(
    root: str, dataset: Dataset, model: str, challenger: Evaluation, title: str, rules: Rules, seed: int
) -> dict[str, Any]:
    """Compares a challenger with the current champion on the same held-out videos: every number of the decision.

    The first model of a name has nobody to beat and is promoted. A champion that knows other classes cannot be
    compared; the challenger is refused and the reason says so.
    """
    champion = tracking.champion(root, model)
    found: dict[str, Any] = {
        "candidate": title,
        "dataset": f"{dataset.name}@{dataset.version}",
        "rules": asdict(rules),
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
    against = evaluate_checkpoint(root, dataset, reigning, "predict-champion")
    try:
        with threadpool_limits(1):  # many small products: more threads make it several times slower
            comparison = paired_bootstrap(
                against.frames, challenger.frames, metric=rules.metric, confidence=rules.confidence,
                class_drop=rules.class_drop, seed=seed,
            )  # fmt: skip
    except ValueError as error:
        return found | {"decision": "refused", "why": f"not comparable: {error}"}
    costs = against.metrics, challenger.metrics
    classes = [row["class"] for row in challenger.per_class]
    against_it = objections(comparison, rules, classes, costs)
    decision = {
        "decision": "refused" if against_it else "promoted",
        "why": "; ".join(against_it) or f"{comparison.interval} is above the margin {rules.margin:g}",
    }
    measured = {f"{who}_{name}": each[name] for who, each in zip(("champion", "challenger"), costs, strict=True)
                for name in ("latency_ms", "gmacs") if name in each}  # fmt: skip
    numbers = asdict(comparison)
    numbers["classes"] = [{"class": classes[c["index"]] if classes else c["index"]} | c for c in numbers["classes"]]
    return found | decision | measured | numbers


@task(task_run_name="gate · {title}", cache_policy=NO_CACHE)
def gate(
    root: str, dataset: Dataset, model: str, candidate: dict[str, Any], title: str, rules: Rules, seed: int
) -> dict[str, Any]:
    """Registers a candidate, judges it and moves the alias ``champion`` if it won; emits an event either way.

    A version is judged once on a dataset version: asking again until chance agrees would not be a test. One that a
    person took the alias from (`reelmill rollback`) does not get it back here. The alias moves in a transaction: where
    the decision cannot be kept and told, it goes back to where it was.
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
    decision = judge(root, dataset, model, evaluation, title, rules, seed) | {"version": version}
    if away := tracking.rolled_back(root, model, version):
        decision |= {"decision": "refused", "why": f"it was rolled back: {away}"}
    with transaction() as move:
        if decision["decision"] == "promoted":
            back = tracking.promote(root, model, version)
            move.stage(version, on_rollback_hooks=[lambda _: back()])
        tracking.decide(root, model, version, decision)
        _announce(root, dataset, model, candidate["run"], decision)
    return decision


def _announce(root: str, dataset: Dataset, model: str, run: str, decision: dict[str, Any]) -> None:
    """Tells MLflow, the event log, the terminal and the run's page."""
    promoted, title = decision["decision"] == "promoted", decision["candidate"]
    numbers = {f"gate_{name}": decision[name] for name in ("delta", "ci_low", "ci_high") if decision[name] is not None}
    tracking.log_metrics(root, run, {**numbers, "gate_promoted": float(promoted)})
    report.say(f"  gate         {title}: {decision['decision']}, {decision['why']}")
    report.markdown(f"gate-{title}", as_markdown(model, decision), f"{title}: {decision['decision']}")
    said = {name: decision[name] for name in ("version", "decision", "why")}
    announce(PROMOTED if promoted else REFUSED, model, {"root": root, "dataset": dataset.name, **said})


def announce(event: str, model: str, payload: dict[str, Any]) -> None:
    """Emits an event about a model, which deployments may be started by."""
    resource = {"prefect.resource.id": f"reelmill.model.{model}", "prefect.resource.name": model}
    emit_event(event, resource=resource, payload={"model": model, **payload})


def as_markdown(model: str, decision: dict[str, Any]) -> str:
    """The decision as a page with every number, those of the classes in a table of their own."""
    plain = {key: value for key, value in decision.items() if key not in ("classes", "rules")} | decision["rules"]
    page = f"# {model}: {decision['candidate']} was **{decision['decision']}**\n\n{decision['why']}\n\n"
    page += "| | |\n|---|---|\n" + "".join(f"| {key} | {value} |\n" for key, value in plain.items())
    if rows := decision.get("classes"):
        page += (
            "\n| class | champion | challenger | change | videos | p of a fall by chance |\n|---|---|---|---|---|---|\n"
        )
        for row in sorted(rows, key=lambda row: row["delta"]):
            aps = " | ".join(f"{100 * row[name]:{sign}.1f}" for name, sign in
                             (("champion", ""), ("challenger", ""), ("delta", "+")))  # fmt: skip
            page += f"| {report.escape(str(row['class']))} | {aps} | {row['videos']} | {row['p_worse']:.3f} |\n"
    return page
