"""rendered archive of each seed → prepare → rows × seeds → table"""

import time
from typing import Annotated, Any, Literal

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from tasks.ablations.rendered import archive
from tasks.ablations.results import awaited, begin, finish, write
from tasks.ablations.runs import budget_of, chosen_seeds, measure, planned, train, trainings
from tasks.ablations.tables import described, tables_of
from tasks.checks import opened
from tasks.failure import accounted
from tasks.forms import explained
from tasks.naming import title
from tasks.summary import ablated
from tasks.training.launch import SIDE_BY_SIDE

COUNT = "instead of the budget's."


@flow(flow_run_name=title)
@accounted
@explained
def ablate(
    table: Annotated[list[str], Field(description=f"Tables of thesis 001: {described()}.")],
    root: Annotated[str, Field(description="Folder of archives, parts, trainings and results.")] = "var/ablation",
    seeds: Annotated[list[int], Field(description="Each decides an archive and the weights on it.")] = [0, 1, 2],  # noqa: B006
    budget: Annotated[
        Literal["quick", "default", "long"],
        Field(description="How much is rendered and trained; the default takes 30 minutes a table on two cores."),
    ] = "default",
    weak: Annotated[int | None, Field(description=f"Videos to pretrain on, {COUNT}", ge=8)] = None,
    dense: Annotated[int | None, Field(description=f"Videos full of actions, {COUNT}", ge=6)] = None,
    sparse: Annotated[int | None, Field(description=f"Videos of rare short actions, {COUNT}", ge=6)] = None,
    brief: Annotated[int | None, Field(description=f"Videos of briefer ones that shake, {COUNT}", ge=6)] = None,
    pretrain_steps: Annotated[int | None, Field(description=f"Steps of pretraining, {COUNT}", ge=1)] = None,
    finetune_steps: Annotated[
        int | None, Field(description=f"Steps of fine-tuning on dense videos, {COUNT}", ge=1)
    ] = None,
    stream_steps: Annotated[int | None, Field(description=f"Steps of a stream on sparse videos, {COUNT}", ge=1)] = None,
    brief_steps: Annotated[int | None, Field(description=f"Steps of a stream on brief videos, {COUNT}", ge=1)] = None,
    joint_steps: Annotated[int | None, Field(description=f"Steps of two streams together, {COUNT}", ge=1)] = None,
    out: Annotated[str | None, Field(description="Markdown file that all tables of this run are written to.")] = None,
) -> list[dict[str, Any]]:
    """Run the rows of ablation tables on rendered archives, over seeds, and say whether the thesis's order comes out.

    A training that two rows or tables share is made once under a root; finished ones are found again, interrupted
    ones go on. Writes ROOT/tables/TABLE/table.md, .csv and .png.
    """
    root = opened(root)
    given = {
        "weak": weak, "dense": dense, "sparse": sparse, "brief": brief, "pretrain_steps": pretrain_steps,
        "finetune_steps": finetune_steps, "stream_steps": stream_steps, "brief_steps": brief_steps,
        "joint_steps": joint_steps,
    }  # fmt: skip
    found = [ablation(root, one.id, chosen_seeds(seeds), budget, given) for one in tables_of(table)]
    write(root, found, out)
    return ablated(found)


@flow(flow_run_name="table {table}", task_runner=ThreadPoolTaskRunner(max_workers=SIDE_BY_SIDE))
def ablation(root: str, table: str, seeds: list[int], budget: str, given: dict[str, int | None]) -> dict[str, Any]:
    """One table: every training once a seed, then every row."""
    began = time.monotonic()
    (chosen,), size = tables_of([table]), budget_of(budget, **given)
    run = begin(root, chosen, size, seeds)
    data = {seed: archive(root, chosen.style, seed, size) for seed in seeds}
    made: dict[tuple[str, int], Any] = {}
    scores: dict[tuple[str, int], Any] = {}
    for seed in seeds:
        for one in planned(chosen):
            starts = [made[key, seed] for key in one.after]
            made[one.key, seed] = train.submit(root, data[seed], one, starts, chosen.style, size, seed, run)
        for row in chosen.rows:
            trained = [made[trainings(network)[-1].key, seed] for network in row.networks]
            scores[row.name, seed] = measure.submit(root, data[seed], row, trained, seed, run)
    awaited(root, run, list(made.values()), list(scores.values()))
    found = finish(root, run, chosen, size, budget, {key: future.result() for key, future in scores.items()})
    return found | {"seconds": time.monotonic() - began}
