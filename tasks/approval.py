"""A person's word on a challenger that the gate would promote: asked for by a run of a deployment, or given later."""

from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import resume_flow_run, suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment, flow_run
from prefect.settings import get_current_settings
from pydantic import Field

from models.gate import Rules
from storage import claims, files
from storage.datasets import Dataset
from storage.errors import InputError
from tasks import registry, report
from tasks.gate import as_markdown, conclude, gate, unless_taken_down

PATIENCE = 7 * 24 * 3600  # seconds that a suspended run waits; then it fails, and `reelmill approve` still works


class Approval(RunInput):
    """The form that a suspended run shows."""

    approve: bool = Field(description="Make the challenger champion; else it is refused.")
    by: str = Field(min_length=1, description="Who decides.")
    comment: str = Field("", description="Kept with the decision.")


def judged(
    root: str, dataset: Dataset, model: str, candidate: Any, title: str, rules: Rules, seed: int, approval: bool
) -> dict[str, Any]:
    """The gate's decision; with ``approval`` a person's, where it would be to promote.

    A run of a deployment is suspended: its process ends, and when the form is sent (or `reelmill approve` is called)
    another one comes here again, with its trainings reused. Any other run ends with a decision that is ``waiting``.
    """
    decision = gate(root, dataset, model, candidate, title, rules, seed, approval)
    if decision["decision"] != "waiting":
        return decision
    asked = decision.get("asked")
    if not deployment.id:
        report.say(f"  gate         {title}: {_how(root, model, decision)}")
        return decision
    if asked and asked != flow_run.id and _paused(asked):
        report.say(f"  gate         {title}: run {asked} asks already")
        return decision
    decision |= {"asked": flow_run.id}
    registry.decide(root, model, decision["version"], decision)
    form = Approval.with_initial_data(description=as_markdown(model, decision))
    key = f"gate-{decision['version']}-{dataset.version}-{decision['champion_version'] or 0}"
    answer = suspend_flow_run(wait_for_input=form, timeout=PATIENCE, key=key)
    return answered(root, model, decision, answer.approve, answer.by, answer.comment)


def _how(root: str, model: str, decision: dict[str, Any]) -> str:
    return f"promote it with `reelmill approve --root {root} --model {model} --version {decision['version']} --by NAME`"


def answered(
    root: str, model: str, decision: dict[str, Any], approve: bool, by: str, comment: str, tell: bool = True
) -> dict[str, Any]:
    """The decision with a person's word, kept and acted on; nobody's word promotes what saw a source taken down."""
    word = f"{'approved' if approve else 'refused'} by {by}" + (f": {comment}" if comment else "")
    at = datetime.now(UTC).isoformat(timespec="seconds")
    said = {"approved": approve, "by": by, "comment": comment, "at": at}
    outcome = "promoted" if approve else "refused"
    decision = decision | {"decision": outcome, "why": f"{word}; {decision['why']}", "approval": said}
    decision = unless_taken_down(root, model, decision)
    conclude(root, model, decision, tell)
    return decision


def approve(
    root: Annotated[str, Field(description="Folder or URL of the root.")],
    by: Annotated[str, Field(description="Who decides; kept with the decision.")],
    model: Annotated[str, Field(description="Name in the model registry.")] = "detector",
    version: Annotated[int | None, Field(description="Version; none: the one that waits.", ge=1)] = None,
    refuse: Annotated[bool, Field(description="Refuse it instead.")] = False,
    comment: Annotated[str, Field(description="Kept with the decision.")] = "",
) -> str:
    """Promote a challenger that `reelmill retrain --approval` left waiting for a person's word, or refuse it."""
    root = files.existing_root(root)
    waiting = {
        number: decision
        for number in registry.versions(root, model)
        if (decision := registry.decided(root, model, number)) and decision["decision"] == "waiting"
    }
    if version is None and len(waiting) > 1:
        raise InputError(f"versions {', '.join(map(str, waiting))} of {model} wait; name one with --version")
    if not waiting or (version is not None and version not in waiting):
        raise InputError(f"no version {'' if version is None else f'{version} '}of {model} waits for approval")
    number = version or next(iter(waiting))
    decision, server = waiting[number], bool(get_current_settings().api.url)
    if server and (run := decision.get("asked")) and _paused(run):
        resume_flow_run(UUID(run), run_input={"approve": not refuse, "by": by, "comment": comment})
        return f"{model} version {number}: run {run} goes on with that"
    with claims.in_turn(root, f"gate-{model}", report.say):
        champion = registry.champion(root, model)
        if (champion.version if champion else None) != decision["champion_version"]:
            raise InputError(
                f"{model} version {number} was compared with version {decision['champion_version']}, and the champion "
                f"is {champion.version if champion else 'none'} now; run `reelmill retrain --approval` again"
            )
        made = answered(root, model, decision, not refuse, by, comment, tell=server)
    return f"{model} version {number} is {made['decision']}"


def _paused(run: str) -> bool:
    """Whether a run is suspended on the server that this process knows."""
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(UUID(run)).state
        except ObjectNotFound:
            return False
    return state is not None and state.is_paused()
