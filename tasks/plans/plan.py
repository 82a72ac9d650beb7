"""`reelmill plan FLOW`: what a run would do, why, how much that is and how long it takes, before it is run.

Everything is read, nothing is written. A time is a rate that was measured here times the work; where no run has
measured one, the plan says so.
"""

from typing import Any

from storage import carry, datasets, files
from storage.errors import InputError
from storage.inventory import in_units
from storage.parts import Part
from tasks.audits.stale import lacking
from tasks.plans import rates
from tasks.plans.prepare import prepare
from tasks.plans.retrain import retrain


def infer(root: str, dataset: str, model: str, splits: list[str], **_: Any) -> str:
    """Say which clips lack the champion's predictions and how long they will take; changes nothing."""
    from storage.checkpoints import describe
    from tasks import checks, predict, registry

    checks.infer(root, dataset, model, splits)
    root = files.existing_root(root)
    data = datasets.load(root, dataset)
    champion = registry.champion(root, model)
    if champion is None:
        raise InputError(f"no model {model!r} has the alias champion; run `reelmill retrain` first")
    name = predict.version(describe(champion.checkpoint))
    wanted = [part for part in data.parts if not splits or part.split in splits]
    todo = lacking(root, wanted, predict.COLUMN, name)
    lines = [f"infer · {dataset} @ {data.version} · {model} version {champion.version}, predictions {name}"]
    if not todo:
        return "\n".join([*lines, f"nothing to do: all {len(wanted)} parts have these predictions"])
    before = carry.replaced(root, data)

    def unpredicted(part: Part) -> int:
        rows = part.rows()
        return len(carry.missing(rows, carry.known(root, predict.COLUMN, name, rows, before)))

    clips = sum(files.at_once(unpredicted, todo)) if before else sum(part.samples for part in todo)
    taken = sum(part.samples for part in todo) - clips
    known = files.names(files.join(root, "columns", predict.COLUMN))
    others = [version for version in known if version != name]
    why = "the column is missing" if name in known or not others else "new model: only other versions have predictions"
    lines.append(f"why      {why}")
    media = in_units(sum(part.bytes for part in todo))
    lines.append(
        f"work     {len(todo)} of {len(wanted)} parts, {clips:,} of {sum(p.samples for p in wanted):,} clips, {media}"
    )
    lines += [f"         {taken:,} more are taken over from parts that these replace"] if taken else []
    rate = rates.of_stage(root, "infer", dataset, "predict")
    return "\n".join([*lines, rates.takes(clips, rate, "predictions")])


PLANS = {"prepare": prepare, "retrain": retrain, "infer": infer}
