"""The gate: a challenger becomes champion only where the held-out videos show that it is better."""

from dataclasses import asdict, replace
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.transactions import transaction
from threadpoolctl import threadpool_limits

from models.gate import Rules, objections, paired_bootstrap
from models.metrics import FrameScores
from storage import checkpoints, claims, files, tombstones
from storage.datasets import Dataset
from tasks import calibration, registry, report, tracking
from tasks.evaluate import Evaluation, evaluate_checkpoint
from tasks.lineage import ancestry
from tasks.overlap import trained_on
from tasks.spending import staged

PROMOTED = "reelmill.champion.promoted"
REFUSED = "reelmill.challenger.refused"
WAITING = "reelmill.challenger.waiting"
EVENTS = {"promoted": PROMOTED, "refused": REFUSED, "waiting": WAITING}
AS_IT_IS = "it is the champion already"


def judge(
    root: str, dataset: Dataset, model: str, challenger: Evaluation, title: str, rules: Rules, seed: int
) -> dict[str, Any]:
    """Compares a challenger with the current champion on the same held-out videos: every number of the decision.

    The first model of a name has nobody to beat and is promoted. A champion that knows other classes cannot be
    compared; the challenger is refused and the reason says so. Held-out videos that the champion was trained on, in a
    version where they were not held out, count for neither; those that show what training clips show never did.
    A champion that was trained on a source that was taken down since has to go: a challenger that was not need not be
    better, only surely no worse than `Rules.successor_drop` allows.
    """
    champion = registry.champion(root, model)
    found: dict[str, Any] = {
        "candidate": title,
        "dataset": f"{dataset.name}@{dataset.version}",
        "rules": asdict(rules),
        "champion_version": champion.version if champion else None,
        "evaluation_set": evaluation_set(challenger.frames),
        "held_out": len(challenger.frames.videos),
        "leaks": len(challenger.leaks),
        "checked": challenger.checked,
        "delta": None,
        "ci_low": None,
        "ci_high": None,
    }
    if champion is None:
        return found | {"decision": "promoted", "why": "there was no champion"}
    if gone := champion.taken_down:
        found |= {"taken_down": gone}
    reigning = checkpoints.describe(champion.checkpoint)
    if reigning.digest == challenger.digest:
        return found | {"decision": "promoted", "why": AS_IT_IS}
    against = evaluate_checkpoint(root, dataset, reigning, "predict-champion")
    known, unknown = trained_on(root, dataset, champion.tags.get("dataset", ""))
    sides = [without(evaluation.frames, known) for evaluation in (against, challenger)]
    found |= {"evaluation_set": evaluation_set(sides[1]), "known_to_champion": len(known)}
    found |= {"unknown_to_champion": unknown} if unknown else {}
    try:
        with threadpool_limits(1):  # many small products: more threads make it several times slower
            comparison = paired_bootstrap(
                *sides, metric=rules.metric, confidence=rules.confidence, class_drop=rules.class_drop, seed=seed
            )  # fmt: skip
    except ValueError as error:
        return found | {"decision": "refused", "why": f"not comparable: {error}"}
    if gone:
        rules = replace(rules, margin=min(rules.margin, -rules.successor_drop))
    costs = against.metrics, challenger.metrics
    classes = [row["class"] for row in challenger.per_class]
    against_it = objections(comparison, rules, classes, costs)
    decision = {
        "decision": "refused" if against_it else "promoted",
        "why": "; ".join(against_it) or f"{comparison.interval} is above the margin {rules.margin:g}",
    }
    if gone:
        decision["why"] += f"; the champion was trained on what was taken down since ({gone})"
    measured = {f"{who}_{name}": each[name] for who, each in zip(("champion", "challenger"), costs, strict=True)
                for name in ("latency_ms", "gmacs") if name in each}  # fmt: skip
    numbers = asdict(comparison)
    numbers["classes"] = [{"class": classes[c["index"]] if classes else c["index"]} | c for c in numbers["classes"]]
    return found | decision | measured | numbers


def evaluation_set(frames: FrameScores) -> str:
    """The digest of what is measured on: which frames of which videos, with which truth."""
    truth = [(key, *targets.shape, files.digest(targets.tobytes())) for key, (_, targets) in frames.videos.items()]
    return files.digest_of(sorted(truth))[:16]


def without(frames: FrameScores, videos: set[str]) -> FrameScores:
    """The scores of all other videos."""
    return FrameScores(frames.num_classes, {k: v for k, v in frames.videos.items() if k not in videos})


@task(task_run_name="gate · {title}", cache_policy=NO_CACHE)
@staged("gate")
def gate(
    root: str,
    dataset: Dataset,
    model: str,
    candidate: dict[str, Any],
    title: str,
    rules: Rules,
    seed: int,
    approval: bool = False,
) -> dict[str, Any]:
    """Registers a candidate, judges it and moves the alias ``champion`` if it won; emits an event either way.

    A version is judged once on a dataset version: asking again until chance agrees would not be a test. One that a
    person took the alias from (`reelmill rollback`) does not get it back here, and one that was trained on a source
    that was taken down meanwhile does not get it at all. With ``approval`` a winner is ``waiting`` for a person's word
    (`tasks.approval`), until the champion is another one. One challenger of a model is judged at a time, whoever runs.
    """
    evaluation, checkpoint = candidate["evaluation"], candidate["checkpoint"]
    tags = {
        "checkpoint": checkpoint.url,
        "checkpoint_digest": checkpoint.digest,
        "system": checkpoint.about["system"],
        "dataset": f"{dataset.name}@{dataset.version}",
        "pretraining": title,
        calibration.TAG: calibration.save(checkpoint.url, evaluation.thresholds),
    }
    with claims.in_turn(root, f"gate-{model}", lambda who: report.say(f"  gate         {title}: waits, {who}")):
        version = registry.register(root, model, candidate["model_uri"], candidate["run"], tags)
        champion = registry.champion(root, model)
        reigning = champion.version if champion else None
        earlier = registry.decided(root, model, version)
        if earlier and earlier["dataset"] == tags["dataset"]:
            settled = earlier["decision"] != "waiting" or (approval and earlier["champion_version"] == reigning)
            if settled and registry.stands(earlier, champion):
                report.say(f"  gate         {title}: {earlier['decision']} earlier, {earlier['why']}")
                return earlier
        decision = judge(root, dataset, model, evaluation, title, rules, seed)
        decision |= {"version": version, "run": candidate["run"]}
        if away := registry.rolled_back(root, model, version):
            decision |= {"decision": "refused", "why": f"it was rolled back: {away}"}
        for gone in ancestry.taken_down(root, checkpoint.url):
            registry.add_to_tag(root, model, version, tombstones.TAG, gone)
        if reigning != version:
            decision = unless_taken_down(root, model, decision)
        if approval and decision["decision"] == "promoted" and reigning != version:
            decision |= {"decision": "waiting", "why": f"it would be promoted ({decision['why']}) once a person agrees"}
        conclude(root, model, decision)
    return decision


def unless_taken_down(root: str, model: str, decision: dict[str, Any]) -> dict[str, Any]:
    """The decision, which is to refuse where the version was trained on a source that was taken down since."""
    gone = registry.versions(root, model)[decision["version"]].get(tombstones.TAG)
    if not gone:
        return decision
    return decision | {"decision": "refused", "why": f"it was trained on what was taken down since ({gone})"}


def conclude(root: str, model: str, decision: dict[str, Any], tell: bool = True) -> None:
    """Keeps a decision and acts on it: where it cannot be kept and told, the alias goes back to where it was."""
    version = decision["version"]
    with transaction() as move:
        if decision["decision"] == "promoted":
            back = registry.promote(root, model, version)
            move.stage(version, on_rollback_hooks=[lambda _: back()])
        registry.decide(root, model, version, decision)
        _log(root, model, decision)
        if tell:
            payload = {name: decision[name] for name in ("version", "decision", "why")} | {"gate": decision}
            dataset = decision["dataset"].partition("@")[0]
            announce(EVENTS[decision["decision"]], model, {"root": root, "dataset": dataset, **payload})


def _log(root: str, model: str, decision: dict[str, Any]) -> None:
    """Tells MLflow, the terminal and the run's page."""
    title = decision["candidate"]
    numbers = {f"gate_{k}": float(v) for k, v in decision.items() if isinstance(v, int | float) and k != "version"}
    promoted = float(decision["decision"] == "promoted")
    tracking.log_metrics(root, decision["run"], {**numbers, "gate_promoted": promoted})
    report.say(f"  gate         {title}: {decision['decision']}, {decision['why']}")
    report.markdown(f"gate-{title}", as_markdown(model, decision), f"{title}: {decision['decision']}")


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
