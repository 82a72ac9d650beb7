"""A retraining before and after its trainings: whether there is anything to do, who does it, and what came of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import Pause
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, State

from models.gate import Rules
from storage import claims, datasets, files
from storage.datasets import Dataset
from tasks import drift, registry, report, tracking, videos
from tasks.evaluate import held_out
from tasks.recipe import Recipe
from tasks.spec import Placement

FORMAT = 1  # of what is kept of an outcome
ANEW = "--no-resume trains it anew"


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
    """What a retraining came to, where that is kept and the registry still has each of its decisions."""
    try:
        kept = files.read_json(url)
    except FileNotFoundError:
        return None
    files.check_schema(root, kept)
    if kept["format"] != FORMAT or registry.champion(root, model) is None:
        return None
    known, found = registry.versions(root, model), kept["found"]
    for decision in found["gates"].values():
        version = decision["version"]
        now = registry.decided(root, model, version) if version in known else None
        if not now or (now["decision"], now["dataset"]) != (decision["decision"], decision["dataset"]):
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
            this.over = _nothing_to_do(dataset, found)
        else:
            this.run = begin(root, dataset, model, recipe)
        try:
            yield this
        except Pause:
            tracking.end(root, this.run, "SCHEDULED")  # it goes on when a person has answered
            raise
        except BaseException:
            if this.run:
                tracking.end(root, this.run, "FAILED")
            raise


def _nothing_to_do(dataset: Dataset, found: dict[str, Any]) -> State:
    judged = ", ".join(f"{kind} was {d['decision']}" for kind, d in found["gates"].items())
    why = f"{dataset.name}@{dataset.version} was trained on with this recipe before: {judged}; {ANEW}"
    report.say(f"  retrain      nothing to do: {why}")
    report.markdown("retrain", f"# Nothing to do\n\n{report.escape(why)}\n\nMLflow: {found['mlflow_url']}\n", why)
    return Completed(name="NothingToDo", message=why, data=found | {"nothing_to_do": why})


@task(task_run_name="begin · {dataset.name}", cache_policy=NO_CACHE)
def begin(root: str, dataset: Dataset, model: str, recipe: Recipe) -> str:
    """Opens the MLflow run of a retraining, or goes on with that of a suspended one, and shows what has drifted."""
    tags = {
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
