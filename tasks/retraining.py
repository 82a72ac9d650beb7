"""A retraining before and after its trainings: whether there is anything to do, who does it, and what came of it."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, fields
from typing import Any
from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound, Pause
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Crashed, State

from models.gate import Rules
from storage import claims, datasets, files
from storage.datasets import Dataset
from tasks import drift, naming, registry, report, tracking
from tasks.evaluate import held_out
from tasks.pages import page
from tasks.spending import staged
from tasks.training import videos
from tasks.training.recipe import Recipe
from tasks.training.spec import Placement

FORMAT = 1  # of what is kept of an outcome
ANEW = "--no-resume trains it anew"
CLAIM = "reelmill.claim"  # the tag of a run in MLflow with what its process holds while it lives
GONE = "its process is gone; the next run goes on from its last checkpoint"


@dataclass
class Retraining:
    """One retraining. ``over`` is set where there is nothing to do: the state that the flow run ends in."""

    root: str
    dataset: Dataset
    url: str  # where its outcome is kept, named by the digest of all that decides it
    run: str = ""  # of MLflow, which the trainings are children of
    over: State | None = field(default=None, repr=False)

    def kept(self, found: dict[str, Any]) -> dict[str, Any]:
        """Keeps an outcome, so that the next run with the same inputs ends at once; not while a person is asked."""
        if all(decision["decision"] != "waiting" for decision in found["gates"].values()):
            files.replace_json({"schema": files.SCHEMA, "format": FORMAT, "found": found}, self.url)
        return found


def identity(
    root: str, dataset: Dataset, model: str, recipe: Recipe, rules: Rules, kinds: list[str], ensemble_of: list[str]
) -> str:
    """The digest of all that decides what a retraining comes to, the champion that it meets left out."""
    chosen = asdict(recipe)
    for name in ("resume", *(known.name for known in fields(Placement))):
        del chosen[name]
    if recipe.inputs == "features":
        wanted = [*dataset.select(split="train", labelled="segments"), *held_out(dataset)]
        chosen["features"] = videos.version(root, wanted, recipe.features)
    data = f"{dataset.name}@{dataset.version}"
    return files.digest_of([FORMAT, data, model, chosen, asdict(rules), kinds, ensemble_of])[:16]


def outcome(root: str, model: str, url: str) -> dict[str, Any] | None:
    """What a retraining came to, where that is kept and each of its decisions still stands in the registry."""
    try:
        kept = files.read_json(url)
    except FileNotFoundError:
        return None
    files.check_schema(root, kept)
    champion = registry.champion(root, model)
    if kept["format"] != FORMAT or champion is None:
        return None
    known, found = registry.versions(root, model), kept["found"]
    for decision in found["gates"].values():
        version = decision["version"]
        now = registry.decided(root, model, version) if version in known else None
        if not now or (now["decision"], now["dataset"]) != (decision["decision"], decision["dataset"]):
            return None
        if not registry.stands(now, champion):
            return None
    return found


@contextmanager
def begun(
    root: str, name: str, model: str, recipe: Recipe, rules: Rules, kinds: list[str], ensemble_of: list[str]
) -> Iterator[Retraining]:
    """Holds the claim on a retraining while the block runs, and ends its MLflow run where the block fails.

    `Retraining.over` says that nothing is to be done: it was done before on the same inputs (unless the recipe says
    not to resume), or another process does it now.
    """
    dataset = datasets.load(root, name)
    key = identity(root, dataset, model, recipe, rules, kinds, ensemble_of)
    this = Retraining(root, dataset, files.join(root, "retrained", model, f"{key}.json"))
    with claims.claimed(root, f"retrain-{key}") as other:
        if other:
            report.say(f"  retrain      {other}; nothing is done here")
            this.over = Cancelled(message=f"{other}; it makes the same, and nothing was done here")
        elif recipe.resume and (found := outcome(root, model, this.url)):
            this.over = _nothing_to_do(root, dataset, model, found)
        else:
            this.run = begin(root, dataset, model, recipe, f"retrain-{key}")
        try:
            yield this
        except Pause:
            tracking.end(root, this.run, "SCHEDULED")  # it goes on when a person has answered
            raise
        except BaseException:
            if this.run:
                tracking.end(root, this.run, "FAILED")
            raise


def _nothing_to_do(root: str, dataset: Dataset, model: str, found: dict[str, Any]) -> State:
    judged = ", ".join(f"{kind} was {d['decision']}" for kind, d in found["gates"].items())
    why = f"{dataset.name}@{dataset.version} was trained on with this recipe before: {judged}; {ANEW}"
    report.say(f"  retrain      nothing to do: {why}")
    made = page.told(root, "retrain", dataset.name, model, note=f"Nothing to do: {why}")
    text = f"# Nothing to do\n\n{report.escape(why)}\n\nMLflow: {found['mlflow_url']}\n{page.link(made)}"
    report.markdown("retrain", text, why)
    naming.rename(f"retrain · {dataset.name} · champion v{found.get('champion')} · nothing to do", dataset.name, model)
    found = found | {"report": made}
    return Completed(name="NothingToDo", message=why, data=found | {"nothing_to_do": why})


def end_dead(root: str, mine: str) -> list[str]:
    """Ends the runs in MLflow, and their Prefect runs, that are called running and whose processes were killed.

    Their claims tell: nobody holds that of a killed process. ``mine`` is held by this one. Returns their ids.
    """
    found = []
    for run, tags in tracking.running(root).items():
        claim = tags.get(CLAIM) or f"train-{tags.get('reelmill.training', '')}"
        if claim == "train-":
            continue
        with nullcontext("") if claim == mine else claims.claimed(root, claim) as other:
            if other or not tracking.is_running(root, run):
                continue
            tracking.tag(root, run, {"failure": GONE})
            tracking.end(root, run, "KILLED")
            found.append(run)
        if CLAIM in tags and tags.get("prefect.flow_run_id", "") not in ("", flow_run.id):
            report.tell(_crash, tags["prefect.flow_run_id"])
    if found:
        report.say(f"  retrain      ended {len(found)} runs in MLflow whose processes were killed")
    return found


def _crash(run: str) -> None:
    """Ends a run that Prefect takes for running."""
    with get_client(sync_client=True) as client, suppress(ObjectNotFound):
        state = client.read_flow_run(UUID(run)).state
        if state is not None and (state.is_running() or state.is_pending()):
            client.set_flow_run_state(UUID(run), Crashed(message=GONE), force=True)


@task(task_run_name="begin · {dataset.name}", cache_policy=NO_CACHE)
@staged("begin")
def begin(root: str, dataset: Dataset, model: str, recipe: Recipe, claim: str) -> str:
    """Opens the MLflow run of a retraining, or goes on with that of a suspended one, and shows what has drifted.

    Before that the runs are ended whose processes were killed.
    """
    end_dead(root, claim)
    tags = {
        CLAIM: claim,
        "prefect.flow_run_id": flow_run.id or "",
        "prefect.flow_run_url": str(flow_run.ui_url or ""),
        "dataset": f"{dataset.name}@{dataset.version}",
    }
    title, params = f"retrain {dataset.name}", asdict(recipe)
    if flow_run.id:
        run = tracking.resume_or_start(root, title, f"retrain-{flow_run.id}", params, tags, None)
    else:
        run = tracking.start(root, title, params, tags)
    tracking.log_dataset(root, run, dataset, "training", len(dataset.parts))
    champion = registry.champion(root, model)
    metrics, tags = drift.show(root, dataset, champion.tags.get("dataset", "") if champion else "")
    tracking.log_metrics(root, run, metrics)
    tracking.tag(root, run, tags)
    return run
