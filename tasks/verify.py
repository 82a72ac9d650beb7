"""Check every byte under a root, or a sample of it, against the digests that were written with it."""

from collections import Counter
from functools import partial
from typing import Annotated

from pydantic import Field

from storage import datasets, files, soundness
from storage.errors import Damaged, StoreError
from storage.soundness import Finding, Unit
from tasks import pool
from tasks.report import progress, say

ALWAYS = ("marker", "datasets")  # small, and everything hangs on them
SHOWN = 200  # findings on the terminal


def chosen(units: list[Unit], sample: float, seed: int) -> set[Unit]:
    """The units that are read whole: a share by a hash of their names, and at least one of every kind."""

    def place(unit: Unit) -> float:
        return int(files.digest(f"verify\0{seed}\0{unit.url}".encode())[:13], 16) / 16**13

    found = {unit for unit in units if unit.kind in ALWAYS or place(unit) < sample}
    for kind in {unit.kind for unit in units}:
        found.add(min((unit for unit in units if unit.kind == kind), key=place))
    return found


def examine(root: str, dataset: str | None, sample: float, seed: int) -> tuple[list[Finding], str]:
    """What is wrong under a root, and one line on what was looked at."""
    if dataset is not None and dataset not in datasets.names(root):
        datasets.load(root, dataset)  # names those that are there
    units = soundness.units(root, dataset)
    whole = chosen(units, sample, seed)
    findings: list[Finding] = []
    failed: list[str] = []
    with progress("verify", len(units), "objects") as state:
        for (unit, _), result in pool.run(partial(_check, root=root), [(unit, unit in whole) for unit in units]):
            if isinstance(result, Exception):
                failed.append(f"{unit.url}: {type(result).__name__}: {result}")
            else:
                findings += result
            state.advance()
    if failed:  # the store's trouble, which says nothing about the bytes
        raise StoreError(f"{len(failed)} objects could not be read, try again: {'; '.join(sorted(failed)[:3])}")
    counts = Counter(unit.kind for unit in units)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    looked = f"{len(units)} objects ({kinds}); {len(whole)} read whole, {len(units) - len(whole)} by name and size"
    return sorted(set(findings), key=lambda f: (f.kind, f.url, f.problem)), looked


def _check(unit: tuple[Unit, bool], *, root: str) -> list[Finding]:
    return soundness.check(unit[0], root, unit[1])


def verify(
    root: Annotated[str, Field(description="Folder or URL to check; it is only read.")],
    dataset: Annotated[str | None, Field(description="Only what belongs to this dataset.")] = None,
    sample: Annotated[float, Field(description="Share of the objects that is read whole.", ge=0, le=1)] = 1.0,
    seed: Annotated[int, Field(description="Which objects a sample takes.")] = 0,
) -> str:
    """Check what is stored against the digests written with it: tars and every clip, indexes, columns, ledger, plans.

    Exits with 1 where anything is damaged, and says for each object what to do.
    """
    root = files.existing_root(root)
    findings, looked = examine(root, dataset, sample, seed)
    for finding in findings[:SHOWN]:
        say(f"  {finding.kind:<12} {finding.url}\n    problem: {finding.problem}\n    remedy:  {finding.remedy}")
    if findings:
        first = findings[0]
        raise Damaged(f"{len(findings)} findings in {looked}; the first: {first.url}: {first.problem}")
    return f"nothing is damaged: {looked}"
