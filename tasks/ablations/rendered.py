"""The rendered archive of a seed, as parts with pseudo labels: what ablations train on and measure."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from storage import datasets, files
from storage.datasets import Dataset
from storage.errors import InputError
from storage.plans import Limits
from tasks.ablations.runs import Budget
from tasks.label import label_dataset
from tasks.listing import plan_archive
from tasks.render import render_archive
from tasks.shard import recipe, shard_archive

CUT = recipe(60.0, 64, "span", "exact")  # videos whole, of more pixels than any network here sees


@task(task_run_name="archive · {style} · seed {seed}", cache_policy=NO_CACHE)
def archive(root: str, style: str, seed: int, budget: Budget) -> Dataset:
    """Renders, shards and pseudo-labels what is missing of the weak and the ``style`` videos of a seed.

    Both styles of a seed have the same weak videos, which become the same parts, so what is pretrained on them is
    pretrained once.
    """
    count = getattr(budget, style)
    name = f"{style}-{seed}-{budget.weak}-{count}"
    if "file" not in files.locate(root)[0].protocol:
        raise InputError(f"{root}: ablations render into a local folder; give --root a path")
    folder = files.join(files.locate(root)[1], "archives", name)
    made = render_archive(folder, seed, budget.weak, extras=False, **{"dense": 0, style: count})
    plan, listed = plan_archive(
        root, name, made["archive"], made["labels"], classes=[], held_out=1 / 3, recipe=CUT, limits=Limits(units=96)
    )
    parts, _ = shard_archive(root, name, plan, recipe=CUT, failure_budget=0.0, listed=listed)
    dataset = datasets.freeze(root, name, parts, {"recipe": CUT})
    label_dataset(root, dataset)
    return dataset
